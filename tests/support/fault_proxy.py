"""A loopback proxy that makes a real server fail in the way a test says, request by request.

It stands before a Synapse or a Letta. Whatever no rule names passes through unharmed; WebSockets
pass too, and can be cut. It runs in a thread of its own, so that a test may block meanwhile.

    with FaultProxy(homeserver.url) as proxy:
        proxy.on(path("/createRoom"), drop_after(), times=1)
        ...                                      # whoever is told to use ``proxy.url``
        assert proxy.count(path("/createRoom")) == 2

Source: https://www.rfc-editor.org/rfc/rfc9112 (by way of h11), https://www.rfc-editor.org/rfc/rfc6455
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, cast
from urllib.parse import urlsplit

import h11

from support.splice import Splice

_MESSAGE = "MESSAGE"
_EXTENSIONS = b"sec-websocket-extensions"
_READ = 1 << 16
_START_S = 10.0


@dataclass(frozen=True)
class Request:
    """One request as it arrived, whole; or a message of the client's on a WebSocket."""

    method: str
    target: str
    """Path and query, as sent."""
    headers: tuple[tuple[str, str], ...]
    body: bytes
    at_s: float = field(default=0.0, compare=False)
    """When it had come, by ``time.monotonic``: before anything was answered."""

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def is_websocket(self) -> bool:
        return ("upgrade", "websocket") in [(k, v.lower()) for k, v in self.headers]


Match = Callable[[Request], bool]


@dataclass(frozen=True)
class Fault:
    """What becomes of one request. Use the functions below; ``&`` joins a delay or a call to any
    other."""

    kind: Literal["pass", "drop", "lose", "hang", "say", "cut", "halve"] = "pass"
    delay_s: float = 0.0
    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    after_bytes: int = 0
    call: Callable[[], object] | None = None

    def __and__(self, other: Fault) -> Fault:
        main = other if self.kind == "pass" else self
        return Fault(
            main.kind, self.delay_s + other.delay_s, main.status, main.headers, main.body,
            main.after_bytes, self.call or other.call,
        )  # fmt: skip


def drop_before() -> Fault:
    """The connection breaks before the server has the request."""
    return Fault("drop")


def drop_after() -> Fault:
    """The server carries the request out; its answer is lost."""
    return Fault("lose")


def delay(seconds: float) -> Fault:
    """The request reaches the server late."""
    return Fault(delay_s=seconds)


def hang() -> Fault:
    """Nobody answers, and the server never has the request. Lasts until the connection ends."""
    return Fault("hang")


def say(status: int, body: object = None, content_type: str = "application/json") -> Fault:
    """This answer, and the server never has the request. ``body`` is JSON unless it is bytes."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Fault("say", status=status, headers=(("content-type", content_type),), body=raw)


def limited(retry_after_ms: int) -> Fault:
    """Matrix' way of saying "too often".

    Source: https://spec.matrix.org/v1.16/client-server-api/#rate-limiting
    """
    body = {"errcode": "M_LIMIT_EXCEEDED", "error": "Too often", "retry_after_ms": retry_after_ms}
    return say(429, body)


def failing(status: int = 500) -> Fault:
    """An error of the server's own."""
    return say(status, {"errcode": "M_UNKNOWN", "error": "Internal server error"})


def bad_gateway() -> Fault:
    """What a reverse proxy shows when the server behind it is away: a page, with numbers in it
    that are no status."""
    return say(502, b"<html><h1>502 Bad Gateway</h1><p>upstream said 403</p></html>", "text/html")


def cut(after_bytes: int = 0) -> Fault:
    """The server carries the request out; its answer breaks off after so many bytes of the body
    (of all that the server sends, on a WebSocket)."""
    return Fault("cut", after_bytes=after_bytes)


def half_json() -> Fault:
    """The server carries the request out; half of its body arrives, as if that were all."""
    return Fault("halve")


def call(action: Callable[[], object]) -> Fault:
    """``action`` is called in the proxy's thread when the server has answered (with
    ``drop_before``: when the request came), and before the client hears of it."""
    return Fault(call=action)


def path(piece: str, method: str = "") -> Match:
    """Requests whose path (without its query) has the regular expression ``piece`` in it."""
    pattern = re.compile(piece)
    return lambda asked: bool(pattern.search(asked.path)) and method in ("", asked.method)


def message(piece: bytes) -> Match:
    """What a client says on a WebSocket, if ``piece`` is in it. No status can be answered to it;
    ``hang`` and ``drop_after`` befall all that the server says from then on, ``half_json`` the next
    that it says, and ``cut`` counts from the next."""
    return lambda asked: asked.method == _MESSAGE and piece in asked.body


@dataclass
class _Rule:
    match: Match
    fault: Fault
    skip: int
    left: int | None


@dataclass
class FaultProxy:
    """Use as a context manager. ``target`` is the server's base URL (http or ws)."""

    target: str
    requests: list[Request] = field(default_factory=list)
    """What came, in order."""
    port: int = 0

    def __post_init__(self) -> None:
        self._rules: list[_Rule] = []
        self._news = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def url(self) -> str:
        """The proxy's base URL, of the same scheme as the target's."""
        return f"{urlsplit(self.target).scheme}://127.0.0.1:{self.port}"

    # --- what the test says ----------------------------------------------------------------------

    def on(self, match: Match, fault: Fault, *, times: int | None = None, skip: int = 0) -> None:
        """``fault`` for matching requests: the first ``skip`` of them pass, the next ``times``
        (None: all) get it. Earlier rules go first; one that is used up is forgotten."""
        with self._news:
            self._rules.append(_Rule(match, fault, skip, times))

    def heal(self) -> None:
        """Forgets every rule. What hangs already goes on hanging."""
        with self._news:
            self._rules.clear()

    def cut_all(self) -> None:
        """Breaks every connection there is, WebSockets above all."""
        self._run(self._abort_all())

    # --- what the test looks at ------------------------------------------------------------------

    @property
    def has_rules(self) -> bool:
        """Whether a fault has still to happen."""
        with self._news:
            return bool(self._rules)

    def times_s(self, match: Match) -> list[float]:
        """When each matching request came."""
        with self._news:
            return [asked.at_s for asked in self.requests if match(asked)]

    def count(self, match: Match) -> int:
        """How many matching requests came so far."""
        with self._news:
            return sum(map(match, self.requests))

    async def wait_count(self, match: Match, count: int, timeout_s: float = 60.0) -> None:
        """Returns once ``count`` matching requests have come. Raises TimeoutError."""

        def wait() -> bool:
            with self._news:
                return self._news.wait_for(
                    lambda: sum(map(match, self.requests)) >= count, timeout_s
                )

        if not await asyncio.to_thread(wait):
            raise TimeoutError(f"{self.count(match)} of {count} requests in {timeout_s} s")

    # --- life ------------------------------------------------------------------------------------

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        self._server = self._run(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_START_S)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_START_S)

    async def _listen(self) -> asyncio.Server:
        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = self._loop.create_task(self._serve(reader, writer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        server = await asyncio.start_server(accept, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _close(self) -> None:
        self._server.close()
        await self._abort_all()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _abort_all(self) -> None:
        for writer in list(self._open):
            writer.transport.abort()

    # --- one connection --------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            client = _Side(h11.Connection(h11.SERVER), reader, writer)
            while await self._exchange(client):
                client.http.start_next_cycle()
        except (OSError, EOFError, h11.ProtocolError):
            writer.transport.abort()
        finally:
            self._open.discard(writer)
            writer.close()

    async def _exchange(self, client: _Side) -> bool:
        """One request and its answer. Whether the connection lives on."""
        head = await client.next()
        if not isinstance(head, h11.Request):
            return False
        asked = _request(head, await client.body())
        fault = self._fault_of(asked)
        if fault.kind == "drop":
            if fault.call:
                fault.call()
            client.writer.transport.abort()
            return False
        await asyncio.sleep(fault.delay_s)
        if fault.kind == "hang":
            while await client.reader.read(_READ):
                pass
            return False
        if fault.kind == "say":
            await client.send(
                h11.Response(
                    status_code=fault.status,
                    headers=[*fault.headers, ("content-length", str(len(fault.body)))],
                ),
                h11.Data(data=fault.body),
                h11.EndOfMessage(),
            )
        elif asked.is_websocket:
            await self._splice(client, head, fault)
            return False
        else:
            await self._hand_on(client, head, asked, fault)
        return client.http.our_state is h11.DONE and client.http.their_state is h11.DONE

    async def _hand_on(
        self, client: _Side, head: h11.Request, asked: Request, fault: Fault
    ) -> None:
        server = await self._connect()
        try:
            await server.send(head, *([h11.Data(data=asked.body)] if asked.body else []))
            await server.send(h11.EndOfMessage())
            while isinstance(response := await server.next(), h11.InformationalResponse):
                pass
            if not isinstance(response, h11.Response):
                raise ConnectionError("the server answered nothing")
            whole = None
            if fault.kind in ("lose", "halve") or fault.call:
                whole = await server.body()
            if fault.call:
                fault.call()
            if fault.kind == "lose":
                raise ConnectionError("lost")
            if fault.kind == "halve" and whole is not None:
                whole = whole[: len(whole) // 2]
                response = _with_length(response, len(whole))
            await client.send(response)
            await _pass_body(server, client, whole, fault)
        finally:
            self._open.discard(server.writer)
            server.writer.close()

    async def _splice(self, client: _Side, head: h11.Request, fault: Fault) -> None:
        """A WebSocket: messages in both directions until one side ends, or a fault says so."""
        server = await self._connect()
        lines = [f"{head.method.decode()} {head.target.decode()} HTTP/1.1".encode()]
        # Nobody compresses what is to be read on its way.
        pairs = [pair for pair in head.headers.raw_items() if pair[0].lower() != _EXTENSIONS]
        lines += [name + b": " + value for name, value in pairs]
        server.writer.write(b"\r\n".join(lines) + b"\r\n\r\n")
        target = head.target.decode()
        splice = Splice(
            client.reader, client.writer, server.reader, server.writer,
            lambda text: self._fault_of(Request(_MESSAGE, target, (), text)),
            fault.after_bytes if fault.kind == "cut" else None,
        )  # fmt: skip
        already, _ = client.http.trailing_data
        try:
            await splice.run(already)
        finally:
            self._open.discard(server.writer)
            client.writer.transport.abort()
            server.writer.close()

    async def _connect(self) -> _Side:
        parts = urlsplit(self.target)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        self._open.add(writer)
        return _Side(h11.Connection(h11.CLIENT), reader, writer)

    def _fault_of(self, asked: Request) -> Fault:
        with self._news:
            self.requests.append(asked)
            self._news.notify_all()
            for rule in self._rules:
                if not rule.match(asked):
                    continue
                if rule.skip:
                    rule.skip -= 1
                    continue
                if rule.left is not None:
                    rule.left -= 1
                    if not rule.left:
                        self._rules.remove(rule)
                return rule.fault
        return Fault()


@dataclass
class _Side:
    """One end of an exchange: HTTP over a pair of streams."""

    http: h11.Connection
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def next(self) -> Any:
        while (event := self.http.next_event()) is h11.NEED_DATA:
            self.http.receive_data(await self.reader.read(_READ))
        return event

    async def body(self) -> bytes:
        """All of it, up to the end of the message."""
        found = b""
        while isinstance(event := await self.next(), h11.Data):
            found += bytes(event.data)
        return found

    async def send(self, *events: Any) -> None:
        for event in events:
            self.writer.write(cast(bytes, self.http.send(event) or b""))
        await self.writer.drain()


def _request(head: h11.Request, body: bytes) -> Request:
    headers = tuple((name.decode(), value.decode("latin-1")) for name, value in head.headers)
    return Request(head.method.decode(), head.target.decode(), headers, body, time.monotonic())


def _with_length(response: h11.Response, length: int) -> h11.Response:
    framing = (b"content-length", b"transfer-encoding")
    headers = [pair for pair in response.headers.raw_items() if pair[0].lower() not in framing]
    return h11.Response(
        status_code=response.status_code,
        headers=[*headers, (b"content-length", str(length).encode())],
    )


async def _pass_body(server: _Side, client: _Side, whole: bytes | None, fault: Fault) -> None:
    """The rest of the answer: ``whole``, if it is known, else piece by piece as it comes."""
    if whole is not None:
        await client.send(*([h11.Data(data=whole)] if whole else []), h11.EndOfMessage())
        return
    left = fault.after_bytes if fault.kind == "cut" else None
    while isinstance(event := await server.next(), h11.Data):
        data = bytes(event.data)
        await client.send(h11.Data(data=data if left is None else data[:left]))
        left = None if left is None else left - len(data)
        if left is not None and left <= 0:
            break
    if fault.kind == "cut":
        with suppress(OSError):
            client.writer.write_eof()
        raise ConnectionError("cut")
    await client.send(h11.EndOfMessage())
