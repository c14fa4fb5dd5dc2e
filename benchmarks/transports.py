"""A round trip over each transport, and how many of them a second, against a bare SDK server.

Both sides are processes of their own with the same client, in turns. Ours checks a token with
every HTTP request and does what the bare one does not: strict arguments, sizes, scopes.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import httpx
import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPDeprecationWarning

from benchmarks.stand import Stand
from benchmarks.table import Row, in_turns
from homeroom.local.child import Child, free_port

TARGET = 1.3
CLIENTS = 16
WINDOW_S = 1.0
"""How long calls are counted at a time, in seconds."""
TOKEN = "a-token-of-the-benchmark"
BARE = str(Path(__file__).with_name("bare_transports.py"))
WAYS = ("stdio", "http 2025-11-25", "http 2026-07-28", "sse")
READY_S = 60.0


@dataclass(frozen=True)
class Side:
    """One of the two servers: how it is started over stdio, and where it listens."""

    stdio: Sequence[str]
    url: str
    pid: int
    environ: Mapping[str, str]

    @asynccontextmanager
    async def connect(self, way: str) -> AsyncIterator[Client]:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with AsyncExitStack() as stack:
            if way == "stdio":
                command, *arguments = self.stdio
                target: Any = StdioServerParameters(
                    command=command, args=arguments, env=dict(self.environ)
                )
            elif way == "sse":
                target = sse_client(f"{self.url}/sse", headers=headers)
            else:
                http = httpx2.AsyncClient(headers=headers, timeout=READY_S)
                await stack.enter_async_context(http)
                target = streamable_http_client(f"{self.url}/mcp", http_client=http)
            mode = "2026-07-28" if way.endswith("2026-07-28") else "legacy"
            yield await stack.enter_async_context(Client(target, mode=mode))


async def measure(count: int, stand: Stand) -> list[Row]:
    """Rows per transport, and one for the memory of the HTTP processes at their end."""
    rows = []
    warnings.simplefilter("ignore", MCPDeprecationWarning)  # ping is what we came for
    with _serving(stand) as (ours, bare):
        for way in WAYS:
            rows += await _round_trips(count, way, ours, bare)
        for way in WAYS[1:]:
            for clients in (1, CLIENTS):
                rows.append(await _throughput(max(3, count // 20), way, clients, ours, bare))
        rows.append(Row("memory after all that (RSS)", [_rss(ours)], [_rss(bare)], unit="MiB"))
    return rows


async def _round_trips(count: int, way: str, ours: Side, bare: Side) -> list[Row]:
    async with ours.connect(way) as one, bare.connect(way) as two:
        samples = {
            name: await in_turns(count, _timed(call(one)), _timed(call(two)), warm_up=5)
            for name, call in (("no-op", _no_op), ("list_agents", _list_agents))
        }
    note = "no-op: " + ("resources/list" if way.endswith("2026-07-28") else "ping")
    return [
        Row(f"{way}: {name}", *sides, target=TARGET, note=note if name == "no-op" else "")
        for name, sides in samples.items()
    ]


def _no_op(client: Client) -> Callable[[], Awaitable[object]]:
    if client.protocol_version == "2026-07-28":
        return client.list_resources  # the stateless era has no ping
    return client.send_ping


def _list_agents(client: Client) -> Callable[[], Awaitable[object]]:
    async def call() -> None:
        result = await client.call_tool("list_agents", {})
        assert not result.is_error, result.content

    return call


def _timed(call: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[float]]:
    async def once() -> float:
        began_s = perf_counter()
        await call()
        return (perf_counter() - began_s) * 1000

    return once


async def _throughput(count: int, way: str, clients: int, ours: Side, bare: Side) -> Row:
    async with AsyncExitStack() as stack:
        sides = [
            [await stack.enter_async_context(side.connect(way)) for _ in range(clients)]
            for side in (ours, bare)
        ]
        samples = await in_turns(count, *(_counted(connected) for connected in sides))
    rates = " / ".join(f"{1000 / median(values):,.0f}" for values in samples)
    what = f"{way}: {clients} client{'s' if clients > 1 else ''}, time per call"
    return Row(what, *samples, target=TARGET, note=f"{rates} calls/s")


def _counted(clients: Sequence[Client]) -> Callable[[], Awaitable[float]]:
    async def once() -> float:
        began_s = perf_counter()

        async def ask(client: Client) -> int:
            call, number = _no_op(client), 0
            while perf_counter() - began_s < WINDOW_S:
                await call()
                number += 1
            return number

        total = sum(await asyncio.gather(*map(ask, clients)))
        return (perf_counter() - began_s) * 1000 / total

    return once


@contextmanager
def _serving(stand: Stand) -> Iterator[list[Side]]:
    """Both sides, listening."""
    sides, children = [], []
    try:
        for name in ("ours", "bare"):
            port = free_port()
            environ = stand.environ(f"transports-{name}") | {
                "HOMEROOM_HTTP_TOKEN": TOKEN,
                "HOMEROOM_HTTP_RATE": "0",
                "HOMEROOM_MATRIX_URL": "",
            }
            serve = [sys.executable, "-m", "homeroom", "serve"]
            argv = [*serve, "--http", str(port)]
            if name == "bare":
                serve = [sys.executable, BARE, "stdio"]
                argv = [sys.executable, BARE, "http", str(port)]
            log = stand.directory / f"transports-{name}.log"
            child = Child(name, argv, cwd=stand.directory, log=log, env=environ)
            children.append(child)
            child.start()
            url = f"http://127.0.0.1:{port}"
            child.wait_ready(lambda url=url: _answers(url), READY_S)
            sides.append(Side(serve, url, child.pid, environ))
        yield sides
    finally:
        for child in children:
            child.stop()


def _answers(url: str) -> bool:
    try:
        httpx.get(f"{url}/none", timeout=5)
    except httpx.HTTPError:
        return False
    return True


def _rss(side: Side) -> float:
    status = Path(f"/proc/{side.pid}/status")
    if not status.exists():  # not on Linux
        said = subprocess.check_output(["ps", "-o", "rss=", "-p", str(side.pid)], text=True)
        return int(said) / 1024
    found = re.search(r"VmRSS:\s+(\d+)", status.read_text())
    assert found, os.listdir("/proc")
    return int(found[1]) / 1024
