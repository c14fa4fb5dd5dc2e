"""One WebSocket to a Letta App Server: requests, answers, and the events of each conversation.

Owns connecting, reconnecting, correlation by ``request_id`` and the meaning of a lost connection.
Knows nothing of agents or turns. Invariant: every request ends, by an answer, by its deadline or
by the loss of the connection (the server does not answer what it does not understand).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus

from homeroom.config import EXAMPLES, variable_of
from homeroom.errors import ConfigError, NotFound, Rejected, Unavailable, Uncertain
from homeroom.model import Json

LOST = "connection_lost"
"""Type of the event that watchers get when the connection is gone."""

_OPEN_TIMEOUT_S = 10.0
_ANSWER_TIMEOUT_S = 30.0
"""The slowest request measured (a new agent: its own git repository) takes under a second."""
_MESSAGE_BYTES = 64 * 1024 * 1024
"""A page of a long conversation is one message."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_MISSING = re.compile(r"\b(Agent|Conversation) (\S+) not found")

Scope = tuple[str, str]
"""Agent id and conversation id: whose events a watcher gets."""


def websocket_url(url: str) -> str:
    """The WebSocket address of an App Server named by any of http, https, ws and wss."""
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    path = parts.path if parts.path not in ("", "/") else "/ws"
    return parts._replace(scheme=scheme, path=path).geturl()


class Link:
    """A connection that is made when it is needed and made anew after it was lost."""

    def __init__(self, url: str, token: str) -> None:
        self._url, self._token = websocket_url(url), token
        self._socket: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()
        self._numbers = itertools.count(1)
        self._pending: dict[str, asyncio.Future[Json]] = {}
        self._entries: dict[str, list[Json]] = {}
        self._watchers: dict[Scope, list[asyncio.Queue[Json]]] = {}
        self.connection_count = 0
        """How often it connected: what a server keeps per connection is gone with each."""

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, token: str) -> AsyncIterator[Link]:
        link = cls(url, token)
        try:
            yield link
        finally:
            await link._close()

    async def request(
        self, kind: str, *, key: str = "", timeout_s: float = _ANSWER_TIMEOUT_S, **fields: Any
    ) -> Json:
        """The server's answer to one command; one that comes in parts is put together.

        ``key`` marks a command that changes something: if its answer is lost, whether it was
        carried out is not known.

        Raises:
            NotFound: the agent or the conversation does not exist.
            Rejected: the server refused; the reason is its own.
            Unavailable: not sent, or nothing was changed by it.
            Uncertain: sent with a ``key``, and the answer was lost.
        """
        socket = await self._connected()
        request_id = f"homeroom-{next(self._numbers)}"
        answer: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        self._pending[request_id] = answer
        try:
            await self._write(socket, {"type": kind, "request_id": request_id, **fields})
            async with asyncio.timeout(timeout_s):
                return _checked(await answer)
        except TimeoutError:
            raise _lost(key, f"it did not answer {kind} within {timeout_s:.0f} s") from None
        except ConnectionClosed:
            raise _lost(key, "the connection was lost") from None
        finally:
            self._pending.pop(request_id, None)
            self._entries.pop(request_id, None)

    async def send(self, kind: str, **fields: Any) -> None:
        """Sends a command that has no answer.

        Raises:
            Unavailable: it was not sent.
        """
        await self._write(await self._connected(), {"type": kind, **fields})

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

    async def _write(self, socket: ClientConnection, command: Json) -> None:
        try:
            await socket.send(json.dumps(command))
        except ConnectionClosed:
            raise Unavailable("letta", "the connection was lost before the request") from None

    async def _connected(self) -> ClientConnection:
        async with self._connecting:
            if self._socket is not None and self._reader is not None and not self._reader.done():
                return self._socket
            await self._close()
            self._socket = await self._connect()
            self.connection_count += 1
            self._reader = asyncio.create_task(self._read(self._socket), name="app-server-reader")
            return self._socket

    async def _connect(self) -> ClientConnection:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else None
        local = urlsplit(self._url).hostname in _LOOPBACK
        try:
            return await connect(
                self._url,
                additional_headers=headers,
                open_timeout=_OPEN_TIMEOUT_S,
                max_size=_MESSAGE_BYTES,
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
        try:
            async for text in socket:
                message = json.loads(text)
                if isinstance(message, dict):
                    self._dispatch(message)
        finally:
            self._lose()

    def _dispatch(self, message: Json) -> None:
        request_id = str(message.get("request_id") or "")
        answer = self._pending.get(request_id)
        if answer is not None and message.get("type") != "control_request":
            parts = self._entries.setdefault(request_id, [])
            parts.extend(message.get("entries") or ())
            if message.get("done", True) and not answer.done():
                answer.set_result({**message, "entries": parts} if parts else message)
        runtime = message.get("runtime") or message
        scope = (str(runtime.get("agent_id")), str(runtime.get("conversation_id")))
        for queue in self._watchers.get(scope, ()):
            queue.put_nowait(message)

    def _lose(self) -> None:
        for answer in self._pending.values():
            if not answer.done():
                answer.set_exception(ConnectionClosed(None, None))
        for queue in itertools.chain.from_iterable(self._watchers.values()):
            queue.put_nowait({"type": LOST})

    async def _close(self) -> None:
        socket, self._socket = self._socket, None
        reader, self._reader = self._reader, None
        if socket is not None:
            await socket.close()
        if reader is not None:
            # It ends with the socket; a torn frame or connection has told its waiters already.
            with contextlib.suppress(ConnectionClosed, ValueError):
                await reader


def _checked(answer: Json) -> Json:
    if answer.get("success", True) and answer.get("accepted", True):
        return answer
    reason = str(answer.get("error") or "it gave no reason")
    missing = _MISSING.search(reason)
    if missing:
        raise NotFound(missing[1].lower(), missing[2])
    raise Rejected("letta", reason)


def _lost(key: str, reason: str) -> Unavailable | Uncertain:
    return Uncertain("letta", key, reason) if key else Unavailable("letta", reason)


def _why(error: Exception) -> str:
    """Why no connection came about, in words for whoever waits for an answer."""
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there"
    if isinstance(error, TimeoutError):
        return "it does not answer"
    return "no connection"
