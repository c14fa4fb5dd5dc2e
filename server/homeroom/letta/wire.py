"""HTTP to Letta: one place where its answers become text, and its failures become our errors.

Owns status codes, error bodies, frames of an event stream and the shape of message content. Knows
no path of any back end. Invariant: no error made here carries a token, a message or the body of an
answer; of what Letta says only its own codes and short plain sentences pass.
"""

from __future__ import annotations

import ast
import asyncio
import functools
import json
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
from httpx_sse import EventSource

from homeroom.config import EXAMPLES, Config, variable_of
from homeroom.errors import (
    ConfigError,
    HomeroomError,
    NotFound,
    Rejected,
    Unavailable,
    Uncertain,
)
from homeroom.letta.absence import NO_CONNECTION, Absence
from homeroom.model import Agent, AgentId, encodable

CONNECT_S = 10.0
"""Long enough for a TLS handshake over a slow link; a host that is down is noticed in time."""
ANSWER_S = 60.0
"""For everything but turns: Letta lists 1,000 agents in under a second."""
_REASON_CHARS = 200
"""A reason is read by a person in a chat room."""

_WRONG_TOKEN = f"set {variable_of('letta_token')} to Letta's password or API key, it takes no other"
_PAGE = "a page came instead of its answer ({status}), probably from a proxy before it"
_FINAL_MODEL_CODES = frozenset({"400", "401", "402", "403", "404", "422"})
"""What a provider answers when repeating the request cannot help."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One event of a stream. ``failed`` marks the ones that announce a failure."""

    data: Mapping[str, Any]
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Sought:
    """What a request is about, so that "no such thing" can name it."""

    kind: str
    name: str


class Http:
    """Requests to one Letta, without retries, raising only errors of ``homeroom.errors``."""

    def __init__(
        self, client: httpx.AsyncClient, turns: httpx.AsyncClient, absence: Absence | None = None
    ) -> None:
        self._client, self._turns = client, turns
        self.absence = absence or Absence()
        self.is_opening = True
        """Nothing has shown yet that this is a Letta: a page instead of an answer is a wrong
        address then, and later a proxy whose Letta is away."""

    @classmethod
    @asynccontextmanager
    async def open(
        cls, config: Config, headers: Mapping[str, str], absence: Absence | None = None
    ) -> AsyncIterator[Http]:
        """A client for ``config.letta_url``; a trailing ``/v1`` of the URL is not repeated.

        Raises:
            ConfigError: the token cannot be sent as a header.
        """
        common: dict[str, Any] = {
            "base_url": http_url(config),
            "headers": {**headers, **authorization(config)},
            "verify": trusted_roots(),
            "trust_env": not is_loopback(config.letta_url),
        }
        timeout = httpx.Timeout(ANSWER_S, connect=CONNECT_S)
        # How long an agent may be silent is the turn's business, and it has a connection of its
        # own: one from the pool may have been closed meanwhile, which would make its message
        # uncertain for no reason.
        patient = httpx.Timeout(None, connect=CONNECT_S, write=ANSWER_S)
        alone = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with (
            httpx.AsyncClient(timeout=timeout, **common) as client,
            httpx.AsyncClient(timeout=patient, limits=alone, **common) as turns,
        ):
            yield cls(client, turns, absence)

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int] | None = None,
        body: Any = None,
        sought: Sought | None = None,
        key: str | None = None,
    ) -> Any:
        """The JSON of a successful answer.

        ``key`` names a write whose loss matters; without it a lost request counts as not made,
        so give none for what may be repeated freely.

        Raises:
            NotFound: Letta does not know ``sought``.
            Unavailable, Rejected: as the taxonomy has it.
            Uncertain: the connection was lost after the request had been sent (with ``key``).
            ConfigError: what answers while we are opening is no Letta.
        """
        try:
            response = await self._client.request(method, path, params=params, json=body)
        except httpx.RequestError as error:
            self.absence.note_lost(error)
            raise lost(error, key) from error
        content = _json_or_none(response.content)
        self._note(response, content)
        if self.is_opening and _is_foreign(response.status_code, content, response.content):
            raise _no_letta(response.status_code)
        if not response.is_success:
            raise failure(response.status_code, content, response.headers, sought, key)
        if content is None:
            if _is_page(response.content):
                raise Unavailable("letta", _PAGE.format(status=response.status_code))
            reason = "half of its answer is missing"
            raise Uncertain("letta", key, reason) if key else Unavailable("letta", reason)
        return content

    @asynccontextmanager
    async def stream(
        self,
        path: str,
        body: Any,
        *,
        key: str,
        sought: Sought,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[AsyncIterator[Frame]]:
        """Posts a message and yields the frames of the answer, however long they take.

        Raises:
            NotFound, Unavailable, Rejected: the message was not taken.
            Uncertain: the connection was lost after the message had been sent, or what came over
                it was not understood.
        """
        try:
            async with self._turns.stream("POST", path, json=body, headers=headers) as response:
                if not response.is_success:
                    content = _json_or_none(await response.aread())
                    self._note(response, content)
                    raise failure(response.status_code, content, response.headers, sought, key)
                self._note(response, response.headers)
                async with aclosing(_frames(response, key)) as frames:
                    yield frames
        except httpx.RequestError as error:
            self.absence.note_lost(error)
            raise lost(error, key) from error

    def _note(self, response: httpx.Response, content: object) -> None:
        date = response.headers.get("date", "")
        self.absence.note_answer(response.status_code, is_json=content is not None, date=date)


async def _frames(response: httpx.Response, key: str) -> AsyncGenerator[Frame, None]:
    if "text/event-stream" not in response.headers.get("content-type", ""):
        # Old servers answer a stream request with one JSON document.
        content = _json_or_none(await response.aread())
        if not isinstance(content, dict):
            raise Uncertain("letta", key, "what it answered is no JSON")
        if isinstance(content.get("choices"), list):
            yield Frame(content)  # OpenAI's protocol: one document that is the whole answer
            return
        messages = content.get("messages")
        if not isinstance(messages, list):
            raise Uncertain("letta", key, "what it answered is no turn")
        for message in messages:
            if isinstance(message, dict):
                yield Frame(message)
        stop = content.get("stop_reason")
        yield Frame(stop if isinstance(stop, dict) else {"message_type": "stop_reason"})
        return
    async with aclosing(EventSource(response).aiter_sse()) as events:
        async for event in events:
            if event.data == "[DONE]":
                return
            if not event.data:
                continue
            data = _json_or_none(event.data.encode())
            if not isinstance(data, dict):
                raise Uncertain("letta", key, "a part of its answer was torn")
            yield Frame(data, event.event == "error" or "error" in data)


class SilenceLimit:
    """A bound on how long an agent may say nothing; ``heard()`` starts it anew."""

    def __init__(self, silence_s: float, key: str) -> None:
        self._silence_s, self._key = silence_s, key
        self._timeout = asyncio.timeout(silence_s)

    def heard(self) -> None:
        self._timeout.reschedule(asyncio.get_running_loop().time() + self._silence_s)

    async def __aenter__(self) -> SilenceLimit:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        """Raises Uncertain where the limit ended the block; a cancellation passes."""
        try:
            await self._timeout.__aexit__(*exc_info)
        except TimeoutError as error:
            reason = f"the agent was silent for {self._silence_s:.0f} s"
            raise Uncertain("letta", self._key, reason) from error


@functools.cache
def trusted_roots() -> ssl.SSLContext:
    """What HTTPS trusts; reading it takes a quarter of a second, so every client shares it."""
    return httpx.create_ssl_context()


def is_loopback(url: str) -> bool:
    """Whether a URL means this machine, which no proxy of the environment can reach for us."""
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def http_url(config: Config) -> str:
    """The URL to send HTTP to: ws becomes http, and ``/v1`` at the end is dropped."""
    url = re.sub(r"^ws(?=s?://)", "http", config.letta_url)
    return url.removesuffix("/v1")


def authorization(config: Config) -> dict[str, str]:
    """The header that carries the token, or nothing where there is none.

    Raises:
        ConfigError: the token has characters that a header cannot carry.
    """
    token = config.letta_token.get_secret_value()
    if not token:
        return {}
    if not (token.isascii() and token.isprintable()):
        raise ConfigError(variable_of("letta_token"), "must be printable ASCII", "sk-let-...")
    return {"Authorization": f"Bearer {token}"}


def text_of(content: object) -> str:
    """The text of a message's content, which is a string, a list of parts, or neither."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(
            part if isinstance(part, str) else text_of(part.get("text"))
            for part in content
            if isinstance(part, str | dict)
        )
    return ""


def reason_of(body: object) -> str:
    """Why Letta refused, in one short line, from any of the shapes it gives its error bodies.

    ``detail`` and ``error`` may each be a string, an object or a list of validation errors; and
    0.13 and later give that list as the *repr* of a Python list, with the caller's input in it.
    """
    if isinstance(body, dict):
        for name in ("detail", "error", "message", "msg"):
            if body.get(name):
                return reason_of(body[name])
        return ""
    if isinstance(body, list):
        return _short("; ".join(filter(None, map(_validation, body))))
    if not isinstance(body, str):
        return ""
    if body.startswith("[{"):
        try:
            return reason_of(ast.literal_eval(body))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return "the request is not valid"
    return _short(body)


def _validation(problem: object) -> str:
    if not isinstance(problem, dict):
        return ""
    place = problem.get("loc")
    where = ".".join(str(part) for part in place) if isinstance(place, list | tuple) else ""
    what = str(problem.get("msg", ""))
    return f"{where}: {what}" if where else what


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _REASON_CHARS else line[: _REASON_CHARS - 1] + "…"


def lost(error: httpx.RequestError, key: str | None) -> HomeroomError:
    """What a broken connection, or an answer that cannot be unpacked, means: Unavailable before
    anything was sent, else Uncertain."""
    never_sent = (
        httpx.ConnectError,
        httpx.ConnectTimeout,
        httpx.PoolTimeout,
        httpx.ProxyError,
        httpx.UnsupportedProtocol,
        httpx.LocalProtocolError,
    )
    if isinstance(error, never_sent):
        refused = "its certificate is not trusted" if "CERTIFICATE" in str(error) else ""
        return Unavailable("letta", refused or NO_CONNECTION)
    if key is None:
        return Unavailable("letta", "the connection was lost")
    return Uncertain("letta", key, "the connection was lost")


def failure(
    status: int,
    body: object,
    headers: Mapping[str, str],
    sought: Sought | None = None,
    key: str | None = None,
) -> HomeroomError:
    """What an HTTP status other than success means.

    Letta says why in a JSON object. Whatever else comes is a page of a proxy before it: behind a
    4xx of one the message was not taken, behind a 5xx nobody knows.
    """
    reason, code = reason_of(body), str(status)
    if isinstance(body, dict) and (told := _told_failure(body)):
        return told
    if 400 <= status < 500 and not isinstance(body, dict):
        return Unavailable("letta", _PAGE.format(status=status), retry_after(headers))
    if status in (401, 403):
        return wrong_token(status)
    if sought and (status == 404 or "pattern" in reason):
        return NotFound(sought.kind, sought.name)
    if status == 409:
        return Unavailable("letta", "it is busy with another message of this conversation")
    if status in (408, 429, 503):
        return Unavailable("letta", f"it answered {code}", retry_after(headers))
    if key is not None and (status in (502, 504) or (status > 499 and not isinstance(body, dict))):
        # A gateway says this; whether Letta behind it has the message is anybody's guess.
        return Uncertain("letta", key, f"a gateway before it answered {code}")
    if status >= 500:
        return Unavailable("letta", f"it answered {code}", retry_after(headers))
    if 300 <= status < 400:
        url = variable_of("letta_url")
        return Rejected("letta", f"it sends us to another address; set {url} to that one", code)
    return Rejected("letta", reason or "it gave no reason", code, foreign=bool(reason))


def wrong_token(status: int) -> Rejected:
    """Letta does not accept our token."""
    return Rejected("letta", _WRONG_TOKEN, str(status))


def _is_foreign(status: int, content: object, raw: bytes) -> bool:
    """Whether an answer cannot be from a Letta: a page, or a refusal that says nothing."""
    if 400 <= status < 500:
        return not isinstance(content, dict) and status not in (408, 429)
    return status < 300 and content is None and _is_page(raw)


def _is_page(raw: bytes) -> bool:
    """Whether it is no JSON, not even half of it."""
    return raw.lstrip()[:1] not in (b"{", b"[")


def _no_letta(status: int) -> ConfigError:
    what = f"names a server that answers with a page of its own ({status}), which no Letta does;"
    return ConfigError(
        variable_of("letta_url"),
        f"{what} look whether a proxy wants a login there, or give Letta's own address",
        EXAMPLES["letta_url"],
    )


def _told_failure(body: Mapping[str, Any]) -> HomeroomError | None:
    """The failures that Letta tells in the body, where the status alone would mislead."""
    error, detail = body.get("error"), body.get("detail")
    if isinstance(error, dict) and str(error.get("type", "")).startswith("llm_"):
        return model_failure(str(error["type"]), error.get("detail") or error.get("message"))
    if isinstance(detail, dict) and detail.get("code") == "PENDING_APPROVAL":
        reason = "the agent waits for a person to approve or deny one of its tool calls, in Letta"
        return Rejected("letta", reason, "PENDING_APPROVAL")
    if isinstance(detail, str) and detail.startswith("CONTEXT_WINDOW_EXCEEDED"):
        return model_failure("context_window_exceeded", None)
    return None


def model_failure(error_type: str, detail: object) -> HomeroomError:
    """What a failed run means, from Letta's ``error_type`` and the provider's status in ``detail``.

    The provider's own words are left out: they may quote the message or a part of its key.
    """
    if "context_window" in error_type or "CONTEXT_WINDOW_EXCEEDED" in str(detail):
        return Rejected("model", "the conversation no longer fits its context window", error_type)
    if not error_type.startswith("llm_"):
        return Unavailable("letta", f"the run failed ({error_type or 'no reason given'})")
    match = re.search(r"Error code: (\d{3})", str(detail))
    code = match.group(1) if match else ""
    if error_type == "llm_authentication" or code == "401":
        return Rejected("model", "the agent's provider does not accept its API key", code or "401")
    if code in _FINAL_MODEL_CODES:
        return Rejected("model", "the agent's provider does not take the request", code)
    if error_type == "llm_rate_limit" or code == "429":
        return Unavailable("model", "its provider limits the rate")
    return Unavailable("model", f"its provider answered {code}" if code else error_type)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from a Retry-After header; its date form is not used by Letta and ignored."""
    value = headers.get("retry-after", "")
    return float(value) if re.fullmatch(r"\d{1,6}(\.\d+)?", value) else None


def _json_or_none(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def agent_of(raw: Mapping[str, Any]) -> Agent:
    """An agent as either of Letta's protocols describes it."""
    return Agent(
        id=AgentId(str(raw["id"])),
        name=encodable(raw.get("name")),
        description=encodable(raw.get("description")),
        tags=tuple(encodable(tag) for tag in raw.get("tags") or ()),
    )
