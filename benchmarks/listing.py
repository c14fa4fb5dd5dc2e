"""``list_agents`` as an MCP client sees it, against the back end's own list call."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import httpx
from mcp import Client
from websockets.asyncio.client import connect

from benchmarks.stand import Stand
from benchmarks.table import Row, in_turns
from homeroom.app import App, open_app
from homeroom.config import Config
from homeroom_tools.serve import build_server
from support.loopback import Asked, Say, loopback

COUNTS = (10, 100, 1000)
PAGE = 50
RawCall = Callable[[], Awaitable[None]]


async def measure(count: int, stand: Stand, directory: Path) -> list[Row]:
    """Rows for a real App Server with 10 agents and for a list of 10, 100 and 1,000 models."""
    rows = []
    for number in range(COUNTS[0] - len(await _agents(stand))):
        await stand.letta.create_agent(f"Agent {number:04}", _description(number))
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(open_app(stand.letta.config(), bridge=False))
        raw = await stack.enter_async_context(_app_server_list(stand))
        rows += await _rows(count, app, raw, f"{COUNTS[0]} agents, real App Server")
    for size in COUNTS:
        async with AsyncExitStack() as stack:
            url, raw = await stack.enter_async_context(_models(size))
            config = Config(letta_url=url, letta_backend="openai", data_dir=directory / str(size))
            app = await stack.enter_async_context(open_app(config, bridge=False))
            rows += await _rows(count, app, raw, f"{size:,} agents, stand-in for /v1/models")
    return rows


async def _rows(count: int, app: App, raw: RawCall, what: str) -> list[Row]:
    sizes: dict[str, list[int]] = {"": [], "next": []}
    async with Client(build_server(app)) as client:

        async def page(cursor: str = "") -> str:
            arguments = {"limit": PAGE, "cursor": cursor}
            result = await client.call_tool("list_agents", arguments)
            assert not result.is_error, result.content
            sizes["next" if cursor else ""].append(len(result.model_dump_json(by_alias=True)))
            content: dict[str, Any] = result.structured_content or {}
            return str(content.get("next_cursor") or "")

        cursor = await page()

        async def next_page() -> None:
            await page(cursor)

        ours, bare = await in_turns(count, _timed(page), _timed(raw), warm_up=3)
        rows = [_row(f"list_agents, {what}", ours, bare, sizes[""])]
        if cursor:
            ours, bare = await in_turns(count, _timed(next_page), _timed(raw), warm_up=3)
            rows.append(_row("… the page after", ours, bare, sizes["next"]))
    return rows


def _row(what: str, ours: list[float], bare: list[float], sizes: list[int]) -> Row:
    return Row(what, ours, bare, note=f"result {median(sizes):,.0f} bytes; without: the raw list")


def _timed(call: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[float]]:
    async def once() -> float:
        began_s = perf_counter()
        await call()
        return (perf_counter() - began_s) * 1000

    return once


# --- the back ends -------------------------------------------------------------------------------


def _description(number: int) -> str:
    return f"Agent {number} keeps an eye on part {number % 17} of the house and reports on it."


async def _agents(stand: Stand) -> list[Any]:
    async with _app_server_socket(stand) as ask:
        return await ask()


@asynccontextmanager
async def _app_server_socket(stand: Stand) -> AsyncIterator[Callable[[], Awaitable[list[Any]]]]:
    headers = {"Authorization": f"Bearer {stand.letta.token}"}
    async with connect(f"{stand.letta.url}/ws", additional_headers=headers, max_size=None) as ws:

        async def ask() -> list[Any]:
            query = {"type": "agent_list", "request_id": "raw", "query": {"limit": 500}}
            await ws.send(json.dumps(query))
            while (answer := json.loads(await ws.recv())).get("request_id") != "raw":
                pass
            agents: list[Any] = answer["agents"]
            return agents

        yield ask


@asynccontextmanager
async def _app_server_list(stand: Stand) -> AsyncIterator[RawCall]:
    async with _app_server_socket(stand) as ask:

        async def raw() -> None:
            assert await ask()

        yield raw


@asynccontextmanager
async def _models(size: int) -> AsyncIterator[tuple[str, RawCall]]:
    """A server that lists ``size`` agents as models from memory, and the call that reads it."""
    models = [
        {"id": f"agent-{n:08}-0000-4000-8000-000000000000", "object": "model", "owned_by": "letta",
         "name": f"Agent {n:04}", "description": _description(n)}
        for n in range(size)
    ]  # fmt: skip
    body = json.dumps({"object": "list", "data": models}).encode()

    def answer(asked: Asked) -> Say | None:
        return Say(body) if asked.target.partition("?")[0] == "/v1/models" else None

    async with loopback(answer) as server, httpx.AsyncClient(trust_env=False) as client:

        async def raw() -> None:
            response = await client.get(f"{server.url}/v1/models")
            assert len(response.json()["data"]) == size

        yield server.url, raw
