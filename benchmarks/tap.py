"""A wire tap: a loopback TCP proxy that notes when which bytes passed.

Stands in front of a server for both sides of a comparison, so what it costs cancels out. What
comes from the server is noted just before it is handed on, what goes to it just after it came.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

_OFFER = b"Sec-WebSocket-Extensions"
"""Renamed on its way through, so that nobody compresses what is to be read here."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Bytes that passed at ``at_s`` (monotonic); ``outbound`` means towards the server."""

    at_s: float
    wire: int
    outbound: bool
    data: bytes


class Tap:
    """``url`` leads to the server by way of the tap; ``marks`` is what passed since ``clear``."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._wires = 0
        self._open: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self.marks: list[Mark] = []
        self.port = 0

    def clear(self) -> None:
        self.marks.clear()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = self._wires = self._wires + 1
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        far_reader, far_writer = await asyncio.open_connection(*self._server)
        self._writers += [writer, far_writer]
        await asyncio.gather(
            self._pass(wire, True, reader, far_writer), self._pass(wire, False, far_reader, writer)
        )
        self._open.discard(task)

    async def close(self) -> None:
        """Ends every wire that is still open."""
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._open)

    async def _pass(
        self, wire: int, outbound: bool, source: asyncio.StreamReader, sink: asyncio.StreamWriter
    ) -> None:
        with suppress(ConnectionError):
            while data := await source.read(1 << 20):
                if outbound and data.startswith(b"GET ") and _OFFER in data:
                    data = data.replace(_OFFER, b"X" + _OFFER)
                self.marks.append(Mark(time.perf_counter(), wire, outbound, data))
                sink.write(data)
        with suppress(ConnectionError):
            sink.close()


@asynccontextmanager
async def tap(host: str, port: int) -> AsyncIterator[Tap]:
    """A tap in front of the server at ``host`` and ``port``."""
    wires = Tap(host, port)
    listener = await asyncio.start_server(wires.serve, "127.0.0.1", 0)
    wires.port = listener.sockets[0].getsockname()[1]
    try:
        yield wires
    finally:
        listener.close()
        await wires.close()


def websocket_messages(data: bytes) -> Iterator[dict[str, Any]]:
    """The JSON messages in whole frames of either direction; what is no frame ends it.

    Source: https://www.rfc-editor.org/rfc/rfc6455#section-5.2
    """
    at = 0
    while at + 2 <= len(data):
        is_text, masked, size = data[at] == 0x81, data[at + 1] >> 7, data[at + 1] & 0x7F
        at += 2
        if size >= 126:
            wide = 2 if size == 126 else 8
            size, at = int.from_bytes(data[at : at + wide], "big"), at + wide
        mask = data[at : at + 4] if masked else b"\0\0\0\0"
        at += 4 if masked else 0
        body = bytes(byte ^ mask[i % 4] for i, byte in enumerate(data[at : at + size]))
        at += size
        if is_text:
            with suppress(ValueError):
                yield json.loads(body)
