"""One WebSocket to a Letta App Server: requests, answers, and the events of each conversation.

Owns connecting, reconnecting, correlation by ``request_id`` and the meaning of a lost connection.
Knows nothing of agents or turns. Invariant: every request ends, by an answer, by its deadline or
by the loss of the connection (the server does not answer what it does not understand), and no
frame that the server sends ends more than itself.

The server has one thread, and everything waits for it: with a hundred turns to take up it answers
nobody for a while, not even a ping. To give up then makes it worse, because a connection that is
lost cuts off every turn that listens on it. So silence is judged by the whole connection, by pings
that any server answers which is awake at all; the deadline of one request only ends what a server
does not understand.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus
from websockets.frames import CloseCode
from websockets.protocol import State

from homeroom.config import EXAMPLES, variable_of
from homeroom.errors import ConfigError, NotFound, Rejected, Unavailable, Uncertain
from homeroom.model import Json

LOST = "connection_lost"
"""Type of the event that watchers get when the connection is gone."""

_OPEN_TIMEOUT_S = 30.0
"""A server that is taking up many turns at once accepts nobody meanwhile."""
_ANSWER_TIMEOUT_S = 180.0
"""Of a server that is awake. The slowest request measured (a new agent: its own git repository)
takes under a second, but behind a hundred others it waits its turn."""
_CLOSE_TIMEOUT_S = 1.0
"""There is nothing left to hear from a server that is being left."""
_PING_S = 10.0
_SILENCE_S = 90.0
"""A connection on which a ping has not been answered for so long is lost. A server that joins many
conversations at once was seen silent for 40 s on two busy cores (0.34.12)."""
_MESSAGE_BYTES = 64 * 1024 * 1024
"""A page of a long conversation is one message."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_MISSING = re.compile(r"\b(Agent|Conversation) (\S+) not found")

Scope = tuple[str, str]
"""Agent id and conversation id: whose events a watcher gets."""
UNSCOPED: Scope = ("None", "None")
"""The scope of what concerns no conversation."""

log = logging.getLogger(__name__)

_ANSWERS: dict[str, tuple[str, type, str]] = {
    "agent_create": ("agent", dict, "id"),
    "agent_retrieve": ("agent", dict, "id"),
    "agent_update": ("agent", dict, "id"),
    "agent_list": ("agents", list, "id"),
    "conversation_create": ("conversation", dict, "id"),
    "conversation_fork": ("conversation", dict, "id"),
    "conversation_list": ("conversations", list, "id"),
    "conversation_messages_list": ("messages", list, ""),
    "list_memory": ("entries", list, "relative_path"),
}
"""Command -> where its answer has the thing asked for, whether that is one or a list of them, and
the text that each of them must have."""


def websocket_url(url: str) -> str:
    """The WebSocket address of an App Server named by any of http, https, ws and wss."""
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    path = parts.path if parts.path not in ("", "/") else "/ws"
    return parts._replace(scheme=scheme, path=path).geturl()


class Link:
    """A connection that is made when it is needed and made anew after it was lost."""

    def __init__(self, url: str, token: str, silence_s: float = _SILENCE_S) -> None:
        self._url, self._token, self._silence_s = websocket_url(url), token, silence_s
        self._socket: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._connecting: asyncio.Task[ClientConnection] | None = None
        self._numbers = itertools.count(1)
        self._pending: dict[str, asyncio.Future[Json]] = {}
        self._entries: dict[str, list[Json]] = {}
        self._watchers: dict[Scope, list[asyncio.Queue[Json]]] = {}
        self.connection_count = 0
        """How often it connected: what a server keeps per connection is gone with each."""

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, token: str, *, silence_s: float = _SILENCE_S
    ) -> AsyncIterator[Link]:
        """After ``silence_s`` without an answer to a ping a connection counts as lost."""
        link = cls(url, token, silence_s)
        try:
            yield link
        finally:
            await link._close()

    async def request(
        self, kind: str, *, key: str = "", timeout_s: float = _ANSWER_TIMEOUT_S, **fields: Any
    ) -> Json:
        """The server's answer to one command; one that comes in parts is put together.

        ``key`` marks a command that changes something: if its answer is lost, whether it was
        carried out is not known. ``timeout_s`` is for sending it and for its answer.

        Raises:
            NotFound: the agent or the conversation does not exist.
            Rejected: the server refused; the reason is its own.
            Unavailable: not sent, not taken, or nothing was changed by it.
            Uncertain: sent with a ``key``, and the answer was lost.
        """
        socket = await self._connected()
        request_id = f"homeroom-{next(self._numbers)}"
        answer: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        self._pending[request_id] = answer
        try:
            async with asyncio.timeout(timeout_s):
                await self._write(socket, {"type": kind, "request_id": request_id, **fields}, key)
                answered = await answer
        except TimeoutError:
            raise _lost(key, f"it did not answer {kind} within {timeout_s:g} s") from None
        finally:
            self._pending.pop(request_id, None)
            self._entries.pop(request_id, None)
        if answered.get("type") == LOST:
            raise _lost(key, str(answered["reason"]))
        checked = _checked(answered)
        if not _is_readable(kind, checked):
            # It was carried out or not: what says so cannot be read.
            log.warning("letta_answer_unreadable", extra={"command": kind})
            raise _lost(key, f"its answer to {kind} could not be read")
        return checked

    async def send(self, kind: str, **fields: Any) -> None:
        """Sends a command that has no answer.

        Raises:
            Unavailable: it was not sent, or not whole.
        """
        await self._write(await self._connected(), {"type": kind, **fields}, "")

    @contextmanager
    def watch(self, scope: Scope) -> Iterator[asyncio.Queue[Json]]:
        """The events of one conversation from now on, in order, on whichever connection."""
        queue: asyncio.Queue[Json] = asyncio.Queue()
        self._watchers.setdefault(scope, []).append(queue)
        try:
            yield queue
        finally:
            self._watchers[scope].remove(queue)
            if not self._watchers[scope]:
                del self._watchers[scope]

    async def _write(self, socket: ClientConnection, command: Json, key: str) -> None:
        if socket.state is not State.OPEN:
            raise Unavailable("letta", "the connection was lost before the request")
        try:
            # A server that reads nothing makes this wait, and the pings, which nobody else ends.
            async with asyncio.timeout(self._silence_s):
                await socket.send(json.dumps(command))
        except TimeoutError:
            socket.transport.abort()
            await socket.wait_closed()
            raise _lost(key, f"it has read nothing for {self._silence_s:g} s") from None
        except ConnectionClosed:
            raise _lost(key, "the connection was lost") from None

    async def _connected(self) -> ClientConnection:
        """The connection; whoever needs one while it is made gets what comes of that attempt."""
        reading = self._reader is not None and not self._reader.done()
        if self._socket is not None and self._socket.state is State.OPEN and reading:
            return self._socket
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._reconnect(), name="app-server-connecting")
            # Those who waited for it may all be gone by the time it fails.
            self._connecting.add_done_callback(lambda made: made.cancelled() or made.exception())
        return await asyncio.shield(self._connecting)

    async def _reconnect(self) -> ClientConnection:
        await self._drop()
        self._socket = socket = await self._connect()
        self.connection_count += 1
        self._reader = asyncio.create_task(self._read(socket), name="app-server-reader")
        return socket

    async def _connect(self) -> ClientConnection:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else None
        local = urlsplit(self._url).hostname in _LOOPBACK
        try:
            return await connect(
                self._url,
                additional_headers=headers,
                open_timeout=min(_OPEN_TIMEOUT_S, self._silence_s),
                close_timeout=_CLOSE_TIMEOUT_S,
                max_size=_MESSAGE_BYTES,
                ping_interval=min(_PING_S, self._silence_s),
                ping_timeout=self._silence_s,
                proxy=None if local else True,
            )
        except InvalidStatus as error:
            status = error.response.status_code
            if status in (401, 403):
                reason = f"it does not accept the token in {variable_of('letta_token')}"
                raise Rejected("letta", reason, str(status)) from None
            if status >= 500:
                raise Unavailable("letta", f"it answered HTTP {status}") from None
            raise ConfigError(
                variable_of("letta_url"),
                f"names a server that is no Letta App Server (it answered HTTP {status})",
                EXAMPLES["letta_url"],
            ) from None
        except (InvalidHandshake, InvalidMessage, OSError, EOFError) as error:
            # OSError includes refused connections, name resolution and timeouts.
            raise Unavailable("letta", _why(error)) from None

    async def _read(self, socket: ClientConnection) -> None:
        reason = "the connection was lost"
        try:
            async for text in socket:
                try:
                    message = json.loads(text)
                except (ValueError, RecursionError):
                    # What it was meant to say is lost; whoever waits for it ends by a deadline.
                    log.warning("letta_frame_unreadable", extra={"size": len(text)})
                    continue
                if isinstance(message, dict) and isinstance(message.get("type"), str):
                    self._dispatch(message)
                else:
                    log.warning("letta_frame_strange", extra={"size": len(text)})
        except ConnectionClosed as closed:
            if closed.sent is not None and closed.sent.code == CloseCode.INTERNAL_ERROR:
                # The library's close code for a ping that was not answered.
                reason = f"it was silent for {self._silence_s:g} s"
        finally:
            self._lose(reason)

    def _dispatch(self, message: Json) -> None:
        request_id = message.get("request_id")
        answer = self._pending.get(request_id) if isinstance(request_id, str) else None
        if isinstance(request_id, str) and answer and message["type"] != "control_request":
            parts = self._entries.setdefault(request_id, [])
            entries = message.get("entries")
            parts.extend(entries if isinstance(entries, list) else ())
            if message.get("done", True) and not answer.done():
                answer.set_result({**message, "entries": parts} if parts else message)
        runtime = message.get("runtime")
        named = runtime if isinstance(runtime, dict) else message
        scope = (str(named.get("agent_id")), str(named.get("conversation_id")))
        for queue in self._watchers.get(scope, ()):
            queue.put_nowait(message)

    def _lose(self, reason: str) -> None:
        lost = {"type": LOST, "reason": reason}
        for answer in self._pending.values():
            if not answer.done():
                answer.set_result(lost)
        for queue in itertools.chain.from_iterable(self._watchers.values()):
            queue.put_nowait(lost)

    async def _close(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        await self._drop()

    async def _drop(self) -> None:
        socket, self._socket = self._socket, None
        reader, self._reader = self._reader, None
        if socket is not None:
            await socket.close()
        if reader is not None:
            await reader  # it ends with the socket


def _checked(answer: Json) -> Json:
    if answer.get("success", True) and answer.get("accepted", True):
        return answer
    reason = str(answer.get("error") or "it gave no reason")
    missing = _MISSING.search(reason)
    if missing:
        raise NotFound(missing[1].lower(), missing[2])
    if answer.get("success", True):
        # It did not take an input: its disk is slow, its list of inputs full, it is stopping.
        raise Unavailable("letta", reason, foreign=True)
    raise Rejected("letta", reason, foreign=True)


def _is_readable(kind: str, answer: Json) -> bool:
    """Whether the answer has the shape that all who send this command rely on."""
    if kind not in _ANSWERS:
        return True
    field, shape, text = _ANSWERS[kind]
    found = answer.get(field)
    things = found if isinstance(found, list) else [found]
    return isinstance(found, shape) and all(
        isinstance(thing, dict) and (not text or isinstance(thing.get(text), str))
        for thing in things
    )


def _lost(key: str, reason: str) -> Unavailable | Uncertain:
    return Uncertain("letta", key, reason) if key else Unavailable("letta", reason)


def _why(error: Exception) -> str:
    """Why no connection came about, in words for whoever waits for an answer."""
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there"
    if isinstance(error, TimeoutError):
        return "it does not answer"
    return "no connection"
