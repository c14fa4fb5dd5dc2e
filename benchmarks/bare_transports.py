"""The least that the SDK can serve with the same work behind it: what our own layers are held to.

bare_transports.py stdio | http PORT
"""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack
from typing import Any

import anyio
import uvicorn
from mcp.server import MCPServer

from homeroom.app import App, open_app
from homeroom.config import load_config

server = MCPServer("bare", log_level="WARNING")
_app: list[App] = []


@server.tool()
async def list_agents(query: str = "", limit: int = 50, cursor: str = "") -> dict[str, Any]:
    """Lists agents."""
    page = await _app[0].list_agents(query, limit, cursor)
    return {
        "agents": [
            {"id": v.agent.id, "name": v.agent.name, "description": v.agent.description,
             "room": v.room_id, "user": v.ghost, "state": v.state}
            for v in page.agents
        ],
        "total": page.total,
    }  # fmt: skip


async def main(transport: str, port: int = 0) -> None:
    async with AsyncExitStack() as stack:
        _app.append(await stack.enter_async_context(open_app(load_config(), bridge=False)))
        if transport == "stdio":
            await server.run_stdio_async()
            return
        app = server.streamable_http_app()
        app.router.routes += server.sse_app().routes
        config = uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=1)
        await uvicorn.Server(config).serve()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], *map(int, sys.argv[2:]))
