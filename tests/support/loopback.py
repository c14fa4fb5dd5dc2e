"""A tiny HTTP server that says exactly what a test tells it to, for what no real server can be
made to say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from homeroom.config import Config


@dataclass(frozen=True)
class Asked:
    """One request as it arrived."""

    method: str
    target: str
    headers: dict[str, str]
    body: Any


@dataclass(frozen=True)
class Say:
    """One answer. ``body`` is JSON unless it is bytes; ``torn`` promises more bytes than it sends;
    ``endless`` keeps the connection open after them."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    torn: bool = False
    endless: bool = False


def frames(*messages: Any, done: bool = True) -> Say:
    """An event stream of JSON messages; a string is a frame as it is."""
    parts = [m if isinstance(m, str) else f"data: {json.dumps(m)}" for m in messages]
    parts += ["data: [DONE]"] if done else []
    text = "".join(part + "\n\n" for part in parts)
    return Say(text.encode(), headers={"content-type": "text/event-stream"})


class Loopback:
    """``answer`` decides; ``asked`` remembers."""

    def __init__(self, answer: Callable[[Asked], Say | None]) -> None:
        self._answer = answer
        self.asked: list[Asked] = []
        self.url = ""

    def config(self, **overrides: Any) -> Config:
        return Config.model_validate({"letta_url": self.url, "letta_backend": "rest"}).model_copy(
            update=overrides
        )

    def targets(self, method: str = "GET") -> list[str]:
        return [asked.target for asked in self.asked if asked.method == method]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = await _read(reader)
            self.asked.append(asked)
            say = self._answer(asked) or Say({"detail": "Not Found"}, 404)
            body = say.body if isinstance(say.body, bytes) else json.dumps(say.body).encode()
            headers = {"content-type": "application/json", **say.headers, "connection": "close"}
            if not say.endless:
                headers["content-length"] = str(len(body) + (100 if say.torn else 0))
            head = f"HTTP/1.1 {say.status} Said\r\n"
            head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            writer.write(head.encode() + b"\r\n" + body)
            await writer.drain()
            if say.endless:
                await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client hung up, which is what some tests do
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = head[0].split(" ")
    pairs = (line.split(": ", 1) for line in head[1:] if line)
    headers = {name.lower(): value for name, value in pairs}
    raw = await reader.readexactly(int(headers.get("content-length", "0")))
    return Asked(method, target, headers, json.loads(raw) if raw else None)


@asynccontextmanager
async def loopback(answer: Callable[[Asked], Say | None]) -> AsyncIterator[Loopback]:
    """A server that lives as long as the block."""
    server = Loopback(answer)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listener.close()


_OPENING = ("/v1/agents/?limit=1", "/v1/conversations/?limit=1", "/v1/runs/?limit=1")


def v1(answer: Callable[[Asked], Say | None]) -> Callable[[Asked], Say | None]:
    """The same, with what a V1 server says when it is opened before it."""

    def with_opening(asked: Asked) -> Say | None:
        path = asked.target.partition("?")[0]
        if path == "/v1/health/":
            return Say({"version": "0.16.8", "status": "ok"})
        if asked.target in _OPENING:
            return Say([])
        return answer(asked)

    return with_opening
