"""A WebSocket on its way through a fault proxy, message by message.

What the client says is read, so that a fault may befall one message; what the server says can be
held, halved or cut from then on.

Source: https://www.rfc-editor.org/rfc/rfc6455#section-5
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

if TYPE_CHECKING:
    from support.fault_proxy import Fault

_READ = 1 << 16
_HEAD_END = b"\r\n\r\n"


@dataclass
class Splice:
    """Both directions between ``client`` and ``server``, after the client's upgrade was sent on.

    ``fault_of`` says what becomes of a message of the client's. ``left`` is how many bytes of the
    server's are still handed on; None means all.
    """

    client: asyncio.StreamReader
    to_client: asyncio.StreamWriter
    server: asyncio.StreamReader
    to_server: asyncio.StreamWriter
    fault_of: Callable[[bytes], Fault]
    left: int | None = None
    _fate: str = ""
    """What befalls the answers from now on, since a message of the client's met its fault."""

    async def run(self, already: bytes) -> None:
        """Returns when one side has ended, or the fault says so. ``already`` is what the client
        has sent after its upgrade."""
        tasks = [asyncio.create_task(self._answers()), asyncio.create_task(self._asks(already))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _asks(self, already: bytes) -> None:
        async for frame in _frames(self.client, already, masked=True):
            fault = self.fault_of(bytes(frame.data))
            await asyncio.sleep(fault.delay_s)
            if fault.kind == "drop":
                return
            if fault.kind in ("lose", "hang", "halve"):
                self._fate = fault.kind
            elif fault.kind == "cut":
                self.left = fault.after_bytes
            if self._fate != "hang":
                self.to_server.write(frame.serialize(mask=True))
                await self.to_server.drain()

    async def _answers(self) -> None:
        head = await self.server.readuntil(_HEAD_END)
        going = await self._tell(head)
        if b" 101 " not in head.partition(b"\r\n")[0]:
            while going and (data := await self.server.read(_READ)):
                going = await self._tell(data)
            return
        async for frame in _frames(self.server, b"", masked=False):
            if self._fate == "lose":
                return
            if self._fate == "hang":
                continue
            told = frame
            if self._fate == "halve" and frame.opcode is Opcode.TEXT:
                self._fate = ""
                told = Frame(Opcode.TEXT, bytes(frame.data)[: len(frame.data) // 2])
            if not going or not await self._tell(told.serialize(mask=False)):
                return

    async def _tell(self, data: bytes) -> bool:
        """Whether the client may be told more."""
        self.to_client.write(data if self.left is None else data[: self.left])
        await self.to_client.drain()
        if self.left is not None:
            self.left = max(0, self.left - len(data))
        return self.left != 0


async def _frames(
    reader: asyncio.StreamReader, already: bytes, *, masked: bool
) -> AsyncIterator[Frame]:
    """The frames of one direction, until it ends. Nothing may be compressed."""
    stream = StreamReader()
    stream.feed_data(already)
    while True:
        parsing = Frame.parse(stream.read_exact, mask=masked)
        while True:
            try:
                next(parsing)
            except StopIteration as whole:
                yield whole.value
                break
            if not (data := await reader.read(_READ)):
                return
            stream.feed_data(data)
