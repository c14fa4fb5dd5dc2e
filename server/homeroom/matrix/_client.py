"""Requests to the homeserver as any of our ghosts: the only importer of nio.

Owns one HTTP session and a nio client per ghost on top of it. nio builds the requests it knows;
its view of the answer is set aside for the JSON itself, because its schemas refuse room version 12
and its sync drops what it cannot parse. Invariant: no retry happens here, and nothing but errors
of ``homeroom.errors`` (and cancellation) leaves this module.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from typing import Any, cast
from urllib.parse import quote, urlencode

import aiohttp
import nio

from homeroom.errors import Rejected
from homeroom.matrix._answers import parse_object, read_answer, read_failure
from homeroom.model import GhostId

DEVICE_ID = "HOMEROOM"
"""The device every ghost acts with. A homeserver remembers transaction ids per device across its
own crashes; without one a resend after a crash is a second message."""
_CONNECT_S = 10.0
_ANSWER_S = 60.0
"""Creating a room takes seconds on a busy homeserver; a minute of silence is a fault."""

PRIVATE = nio.RoomVisibility.private
PRIVATE_CHAT = nio.RoomPreset.private_chat

Call = Callable[["GhostClient"], Awaitable[Any]]


class Wire:
    """The session, the token and the ghosts' clients. Use ``open_wire``."""

    def __init__(
        self, session: aiohttp.ClientSession, base_url: str, token: str, *, read_only: bool = False
    ) -> None:
        self.session, self._base_url, self._token = session, base_url, token
        self.read_only = read_only
        """It asks and changes nothing. A ghost's device is one of the things it does not make, so
        ghosts ask without one."""
        self._clients: dict[GhostId, GhostClient] = {}
        self.date_ms = 0
        """What the homeserver's clock said in its last answer; 0 if it does not tell."""

    async def call(self, ghost: GhostId, make: Call, *, key: str = "") -> dict[str, Any]:
        """The JSON object that nio's request ``make`` is answered with, sent as ``ghost``.

        A ghost whose device the homeserver has forgotten gets it back first: such a request was
        refused whole, so sending it again is safe.

        Args:
            key: idempotency key, if repeating the request without one would do it twice.

        Raises:
            Rejected, Unavailable, Uncertain: as ``read_answer`` says.
        """
        client = self._clients.get(ghost)
        if client is None:
            client = self._clients[ghost] = GhostClient(self, self._base_url, ghost, self._token)

        async def once() -> dict[str, Any]:
            try:
                response = await make(client)
                answer = cast(aiohttp.ClientResponse, response.transport_response)
                raw = await answer.read()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise read_failure(error, key) from None
            return read_answer(answer.status, answer.headers, raw, key)

        return await self._with_device(ghost, once)

    async def ask(
        self,
        method: str,
        path: tuple[str, ...],
        *,
        ghost: GhostId | None = None,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        file: tuple[bytes, str] | None = None,
        timeout_s: float = _ANSWER_S,
        array_as: str = "",
    ) -> dict[str, Any]:
        """The JSON object that a request of our own making is answered with.

        For what nio has no call for, or parses away. ``ghost`` None asks as the appservice. What
        is sent is either ``body``, as JSON, or ``file``: its bytes and their type. An answer that
        is an array comes under the name ``array_as``.
        """
        url = "/" + "/".join(quote(part, safe="") for part in path)
        data, mime_type = file or (None if body is None else json.dumps(body), "application/json")

        async def once() -> dict[str, Any]:
            params = dict(query or {})
            if ghost is not None:
                params |= self.mask(ghost)
            target = _with_query(url, params)
            return await self._exchange(method, target, data, timeout_s, array_as, mime_type)

        return await once() if ghost is None else await self._with_device(ghost, once)

    def mask(self, ghost: GhostId) -> dict[str, str]:
        """What of a request's query says whose it is."""
        return {"user_id": ghost} | ({} if self.read_only else {"device_id": DEVICE_ID})

    async def put_device(self, ghost: GhostId) -> None:
        """Makes sure that the ghost has its device, without a login.

        Source: https://spec.matrix.org/v1.17/application-service-api/#device-management
        """
        path = f"/_matrix/client/v3/devices/{DEVICE_ID}"
        body = json.dumps({"display_name": "Homeroom"})
        try:
            await self._exchange("PUT", _with_query(path, {"user_id": ghost}), body, _ANSWER_S)
        except Rejected as refusal:
            if refusal.code not in ("M_NOT_FOUND", "M_UNRECOGNIZED"):
                raise
            raise Rejected(
                "matrix",
                "it lets an appservice create no devices (MSC4190). Set io.element.msc4190: true "
                "in the registration, or use a newer homeserver",
                refusal.code,
            ) from None

    async def request(
        self,
        method: str,
        path: str,
        data: Any,
        headers: Mapping[str, str] | None,
        timeout_s: float | None,
    ) -> aiohttp.ClientResponse:
        """The answer, read to its end. Raises what aiohttp raises: GhostClient needs it raw."""
        if self.read_only and method != "GET":
            raise AssertionError(f"{method} would change something")
        if self.session.closed:
            raise aiohttp.ClientConnectionError("we have closed the connection")
        response = await self.session.request(
            method,
            self._base_url + path,
            data=data,
            headers={**(headers or {}), "Authorization": f"Bearer {self._token}"},
            # A redirected POST arrives as a GET: say that the address is wrong instead.
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=timeout_s or _ANSWER_S, sock_connect=_CONNECT_S),
        )
        # Reading to the end hands the connection back and keeps the body for nio to read again;
        # a reading that fails closes it.
        await response.read()
        self.date_ms = _date_ms(response.headers)
        return response

    async def _exchange(
        self, method: str, path: str, data: str | bytes | None, timeout_s: float,
        array_as: str = "", mime_type: str = "application/json",
    ) -> dict[str, Any]:  # fmt: skip
        headers = {"Content-Type": mime_type}
        try:
            response = await self.request(method, path, data, headers, timeout_s)
            raw = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise read_failure(error) from None
        return read_answer(response.status, response.headers, raw, array_as=array_as)

    async def _with_device(
        self, ghost: GhostId, once: Callable[[], Awaitable[dict[str, Any]]]
    ) -> dict[str, Any]:
        try:
            return await once()
        except Rejected as refusal:
            if refusal.code != "M_UNKNOWN_DEVICE":
                raise
        await self.put_device(ghost)
        return await once()


def _date_ms(headers: Mapping[str, str]) -> int:
    """Source: https://www.rfc-editor.org/rfc/rfc9110#section-6.6.1"""
    try:
        return int(parsedate_to_datetime(headers.get("Date", "")).timestamp() * 1000)
    except (ValueError, OverflowError):
        return 0


class GhostClient(nio.AsyncClient):  # type: ignore[misc]  # nio carries no types
    """A nio client that acts as a ghost with the appservice's token and keeps no state.

    Source: https://spec.matrix.org/v1.17/application-service-api/#identity-assertion
    """

    def __init__(self, wire: Wire, base_url: str, ghost: GhostId, token: str) -> None:
        config = nio.AsyncClientConfig(
            max_limit_exceeded=0, max_timeouts=0, encryption_enabled=False
        )
        super().__init__(base_url, ghost, device_id=DEVICE_ID, config=config)
        self.access_token, self.user_id = token, ghost
        self._wire = wire
        # nio opens a session of its own around some calls if it finds none, and nobody closes it.
        self.client_session = wire.session

    async def send(
        self,
        method: str,
        path: str,
        data: Any = None,
        headers: dict[str, str] | None = None,
        trace_context: Any = None,
        timeout: float | None = None,
    ) -> aiohttp.ClientResponse:
        masked = _with_query(path, self._wire.mask(self.user_id))
        return await self._wire.request(method, masked, data, headers, timeout)

    async def parse_body(self, transport_response: aiohttp.ClientResponse) -> dict[str, Any]:
        return parse_object(await transport_response.read()) or {}

    async def receive_response(self, response: Any) -> None:
        """Nothing: rooms and members live in the store, not in nio's memory."""


@asynccontextmanager
async def open_wire(base_url: str, token: str, *, read_only: bool = False) -> AsyncIterator[Wire]:
    """A wire to the homeserver at ``base_url``; makes no request."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        yield Wire(session, base_url, token, read_only=read_only)


def _with_query(path: str, params: Mapping[str, str]) -> str:
    if not params:
        return path
    return f"{path}{'&' if '?' in path else '?'}{urlencode(params)}"
