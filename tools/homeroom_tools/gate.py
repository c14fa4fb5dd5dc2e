"""Who may speak to the server over HTTP: one gate before every route, /health and /metrics too.

Owns the checks and their order: the Host header (421), the Origin header (403), the bearer token
(401), the caller's rate (429), the size of the body (413) and the scope that the request needs
(403). The SDK's own checks of Host and Origin are off, because they cover some routes only. The
homeserver alone goes past most of it, to routes that have a guard of their own.
Invariant: what is behind the gate runs as the caller that its token names (``caller``), and a
session answers to nobody but the caller that opened it.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from homeroom.errors import ConfigError
from homeroom_tools.caller import LOCAL, Caller, calling
from homeroom_tools.caller import Scope as Needed
from homeroom_tools.pushes import PUSH_PATH
from homeroom_tools.scopes import INSUFFICIENT_SCOPE, Needs, refusal

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from homeroom_tools.rate import Rates
    from homeroom_tools.tokens import Tokens

MAX_BODY_BYTES = 4 * 1024 * 1024
"""Largest request body, in bytes; more is answered with 413."""
MAX_AT_ONCE = 200
"""Most requests of one caller that are being served, open streams among them; more get 429."""
MAX_SESSIONS_EACH = 250
"""Most handshake-era sessions of one caller, of all that there can be; more get 429."""
PROBE = Caller("a probe", frozenset())
"""Whoever asks for /health on this machine without a token: it may do nothing, so /health tells it
the bare status, as it does every caller that may not read. No token can have its name, so however
often it asks, whoever has a token is not slowed down."""
CALLER = "homeroom.caller"
"""Key of the ASGI scope: the ``Caller``."""
_REALM = 'Bearer realm="homeroom"'

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Door:
    """What the gate goes by."""

    hosts: Hosts
    tokens: Tokens
    rates: Rates
    needs: Needs
    count_sessions: Callable[[str], int] = lambda name: 0
    """How many sessions the caller of that name has open."""
    is_open: bool = False
    """Whether other machines reach it: then nobody comes in without a token, whatever happens to
    the file of tokens."""
    lets_pushes_by: bool = False


class Gate:
    """ASGI middleware: nobody gets past it whose Host, Origin, token, rate or scope is wrong.

    Of a push neither Host nor caller is checked: its route asks for the hs_token, and the
    homeserver calls us by whatever name the registration's URL has, which is for its operator to
    choose and not for us to know. But no browser has any business there.
    """

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app, self._door = app, door
        self._serving: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._door.lets_pushes_by and scope["path"].startswith(PUSH_PATH):
            from_browser = "origin" in Headers(scope=scope)
            answer = refuse(403, "A browser may not push.") if from_browser else self._app
            await answer(scope, receive, send)
            return
        admitted = self._admit(scope)
        if isinstance(admitted, JSONResponse):
            await admitted(scope, receive, send)
            return
        caller = admitted
        if scope["method"] == "POST":
            body = await _body(scope, receive)
            if body is None:
                return  # the client left
            problem = _too_large() if body is _TOO_LARGE else self._beyond(scope, body)
            if problem is not None:
                await problem(scope, receive, send)
                return
            receive = _again(body, receive)
        _bind(scope, caller)
        self._serving[caller.name] += 1
        try:
            with calling(caller):
                await self._app(scope, receive, send)
        finally:
            self._serving[caller.name] -= 1

    def _admit(self, scope: Scope) -> Caller | JSONResponse:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._door.hosts.is_ours(host):
            return refuse(421, "This server does not answer to that Host.")
        if origin is not None and not self._door.hosts.is_origin_ours(origin, host):
            return refuse(403, "This Origin may not use this server.")
        try:
            caller = self._caller(scope, headers.get("authorization", ""))
        except ConfigError as error:
            log.error("tokens_unreadable", extra={"reason": str(error)})
            return refuse(503, "The server cannot tell who may use it; its log says why.")
        if caller is None:
            given = ', error="invalid_token"' if headers.get("authorization") else ""
            challenge = {"WWW-Authenticate": _REALM + given}
            return refuse(401, "A bearer token is needed.", challenge)
        scope[CALLER] = caller
        return self._too_much(scope, caller) or caller

    def _too_much(self, scope: Scope, caller: Caller) -> JSONResponse | None:
        if wait_s := self._door.rates.wait_s(caller.name):
            after = {"Retry-After": str(math.ceil(wait_s))}
            return refuse(429, f"Too many requests: try again in {math.ceil(wait_s)} s.", after)
        if self._serving[caller.name] >= MAX_AT_ONCE:
            return refuse(429, "Too many requests at once: end one first.", {"Retry-After": "1"})
        if _may_open_session(scope) and (
            self._door.count_sessions(caller.name) >= MAX_SESSIONS_EACH
        ):
            why = "Too many sessions: end one (DELETE), or let one rest for half an hour."
            return refuse(429, why, {"Retry-After": "60"})
        return None

    def _caller(self, scope: Scope, authorization: str) -> Caller | None:
        if not (self._door.is_open or self._door.tokens.are_needed):
            return Caller(LOCAL)
        kind, _, given = authorization.partition(" ")
        found = self._door.tokens.find(given.strip())
        if found is not None and kind.lower() == "bearer":
            return found
        return PROBE if scope["path"] == "/health" and _is_from_loopback(scope) else None

    def _beyond(self, scope: Scope, body: bytes) -> JSONResponse | None:
        """The refusal of a request that needs a scope which its caller lacks; else None.

        Only where the HTTP answer is the answer: over SSE it comes on another stream, and a client
        would wait there for ever, so the guard behind the dispatch answers. That one decides in
        any case; this one says the same in the words of HTTP.
        """
        caller: Caller = scope[CALLER]
        if scope["path"] != "/mcp":
            return None
        try:
            request = json.loads(body)
            method, params = request["method"], request.get("params") or {}
            needed = self._door.needs(method, params)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None  # the SDK says what is wrong with it
        return (
            None if needed is None or needed in caller.scopes else forbid(caller, needed, request)
        )


def forbid(
    caller: Caller, needed: Needed, request: Mapping[str, Any] | None = None
) -> JSONResponse:
    """The answer to a caller whose token lacks the scope ``needed``.

    Source: https://www.rfc-editor.org/rfc/rfc6750#section-3.1, and the authorization part of the
    MCP specification (scope challenge).
    """
    why = refusal(caller, needed)
    body: dict[str, Any] = {"error": why}
    if request is not None:
        id_ = request.get("id")
        error = {"code": INSUFFICIENT_SCOPE, "message": why}
        body = {"jsonrpc": "2.0", "id": id_ if isinstance(id_, str | int) else None, "error": error}
    challenge = f'{_REALM}, error="insufficient_scope", scope="{needed}"'
    return JSONResponse(body, 403, {"WWW-Authenticate": challenge})


def refuse(status: int, why: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An answer other than what was asked for."""
    return JSONResponse({"error": why}, status_code=status, headers=headers)


def _too_large() -> JSONResponse:
    # What is left of the body is read and dropped, for a while: a client that cannot finish
    # sending would not see the answer.
    return refuse(413, f"A request may have {MAX_BODY_BYTES} bytes.")


def _may_open_session(scope: Scope) -> bool:
    """Whether it is neither in a session already nor in the era that has none."""
    headers = Headers(scope=scope)
    version = headers.get("mcp-protocol-version", HANDSHAKE_PROTOCOL_VERSIONS[0])
    return (
        scope["method"] == "POST"
        and scope["path"] == "/mcp"
        and "mcp-session-id" not in headers
        and version in HANDSHAKE_PROTOCOL_VERSIONS
    )


def _bind(scope: Scope, caller: Caller) -> None:
    """Has the SDK bind sessions to the caller: it goes by who it takes for authenticated."""
    token = AccessToken(token="", client_id=caller.name, scopes=sorted(caller.scopes))
    scope["user"] = AuthenticatedUser(token)


_TOO_LARGE = b"too large"


async def _body(scope: Scope, receive: Receive) -> bytes | None:
    """The request's body, ``_TOO_LARGE`` itself for one that is, None if the client left."""
    declared = Headers(scope=scope).get("content-length", "")
    if declared.isdecimal() and int(declared) > MAX_BODY_BYTES:
        return _TOO_LARGE
    pieces, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return None
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > MAX_BODY_BYTES:
            return _TOO_LARGE
        more = message.get("more_body", False)
    return b"".join(pieces)


def _again(body: bytes, receive: Receive) -> Receive:
    """``receive`` for an application that has not read the body yet."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return first.pop() if first else await receive()

    return replay


class Hosts:
    """Which Host and Origin headers are ours.

    A Host is ours if it names loopback, the address we are bound to, or a configured name. Where
    we are open to other machines any bare IP address is ours as well: clients use addresses we
    cannot know, and an address cannot be rebound as a name can.

    Source: https://modelcontextprotocol.io/specification (transports: servers must validate
    Origin to prevent DNS rebinding).
    """

    def __init__(self, bound: str, more: Collection[str]) -> None:
        self._names = {name.lower().strip("[]") for name in (bound, "localhost", *more)}
        self._is_open = not is_loopback(bound)

    def is_ours(self, authority: str) -> bool:
        name = _name_of(authority)
        if name is None:
            return False
        return name in self._names or is_loopback(name) or (self._is_open and _is_ip(name))

    def is_origin_ours(self, origin: str, host: str) -> bool:
        scheme, _, authority = origin.partition("://")
        name = _name_of(authority)
        if scheme not in ("http", "https") or name is None:
            return False
        return name in self._names or is_loopback(name) or name == _name_of(host)


def _name_of(authority: str) -> str | None:
    """The host of ``host[:port]`` in lower case without brackets; None if it is malformed."""
    if not authority or any(character in authority for character in "/\\@?# \t,"):
        return None
    try:
        parts = urlsplit(f"//{authority}")
        _ = parts.port  # raises if it is no number
    except ValueError:
        return None
    return parts.hostname


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(name: str) -> bool:
    """Whether only this machine can be meant by ``name``."""
    name = name.strip("[]").lower()
    return name == "localhost" or (_is_ip(name) and ipaddress.ip_address(name).is_loopback)


def _is_from_loopback(scope: Scope) -> bool:
    client = scope.get("client")
    return client is not None and is_loopback(client[0])
