"""A stand-in for an App Server that says exactly what a test tells it to, over a real WebSocket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.server import ServerConnection, serve

CUT = object()
"""Instead of an answer: the connection is closed."""


@dataclass
class AppStand:
    """``answer`` gets each command and says what comes back; ``asked`` remembers them."""

    answer: Callable[[dict[str, Any]], Any]
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)

    async def talk(self, socket: ServerConnection) -> None:
        async for frame in socket:
            command = json.loads(frame)
            self.asked.append(command)
            said = {} if command["type"] == "app_server_info" else self.answer(command)
            if said is CUT:
                await socket.close()
                return
            kind = f"{command['type']}_response"
            reply = {"type": kind, "request_id": command["request_id"], "success": True, **said}
            await socket.send(json.dumps(reply))


@asynccontextmanager
async def app_stand(answer: Callable[[dict[str, Any]], Any]) -> AsyncIterator[AppStand]:
    """A server that lives as long as the block."""
    stand = AppStand(answer)
    async with serve(stand.talk, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        stand.url = f"ws://127.0.0.1:{port}"
        yield stand
