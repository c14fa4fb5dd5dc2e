"""Clients that nobody here wrote do the same few things over every transport, all real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio.to_thread
import httpx2
import pytest
from mcp import Client
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client

from support.home import Home, Service
from support.node import node_home, run_node

TOKEN = "a-token-for-foreign-clients"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
WAYS = ["stdio", "sse", "http"]
LIMIT_S = 120.0
TS_CLIENT = Path(__file__).parents[1] / "support" / "ts_client.mjs"
FOUND = {"agents": ["Ada"], "reply": "hello", "refused": True}
"""What every client has to have seen in the end, beside the tools."""


def target_of(way: str, home: Home, service: Service) -> dict[str, Any]:
    if way == "stdio":
        stdio = home.stdio()
        return {"way": way, "command": stdio.command, "args": stdio.args, "env": stdio.env}
    path = {"sse": "/sse", "http": "/mcp"}[way]
    return {"way": way, "url": service.url + path, "headers": HEADERS}


async def python(way: str, home: Home, service: Service) -> dict[str, Any]:
    target = target_of(way, home, service)
    async with httpx2.AsyncClient(headers=HEADERS, timeout=LIMIT_S) as http:
        transport: Any = {
            "stdio": home.stdio,
            "sse": lambda: sse_client(target["url"], headers=HEADERS),
            "http": lambda: streamable_http_client(target["url"], http_client=http),
        }[way]()
        async with Client(transport) as client:
            tools = [tool.name for tool in (await client.list_tools()).tools]
            listed = await client.call_tool("list_agents", {"query": "ada"})
            chat = await client.call_tool(
                "chat_with_agent", {"agent": "Ada", "message": "!say hello", "mirror": False}
            )
            refused = await client.call_tool("list_agents", {"limit": 0})
    assert listed.structured_content and chat.structured_content
    return {
        "tools": tools,
        "agents": [agent["name"] for agent in listed.structured_content["agents"]],
        "reply": chat.structured_content["reply"],
        "refused": refused.is_error,
    }


async def typescript(way: str, home: Home, service: Service) -> dict[str, Any]:
    arguments = [str(TS_CLIENT), str(node_home()), json.dumps(target_of(way, home, service))]
    done = await anyio.to_thread.run_sync(lambda: run_node("node", *arguments, timeout_s=LIMIT_S))
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


async def inspector(way: str, home: Home, service: Service) -> dict[str, Any]:
    target = target_of(way, home, service)
    config = home.directory / f"inspector-{way}.json"
    if way != "stdio":
        target["type"] = {"sse": "sse", "http": "streamable-http"}[way]
    config.write_text(json.dumps({"mcpServers": {"homeroom": target}}))

    async def ask(*arguments: str) -> tuple[int, dict[str, Any]]:
        asked = ["--cli", "--config", str(config), "--server", "homeroom", *arguments]
        done = await anyio.to_thread.run_sync(
            lambda: run_node("mcp-inspector", *asked, timeout_s=LIMIT_S)
        )
        assert done.stdout, done.stderr
        return done.returncode, dict(json.loads(done.stdout))

    async def call(tool: str, *pairs: str) -> tuple[int, dict[str, Any]]:
        given = [part for pair in pairs for part in ("--tool-arg", pair)]
        return await ask("--method", "tools/call", "--tool-name", tool, *given)

    _, listed_tools = await ask("--method", "tools/list")
    _, listed = await call("list_agents", "query=ada")
    _, chat = await call("chat_with_agent", "agent=Ada", "message=!say hello", "mirror=false")
    code, refused = await call("list_agents", "limit=0")
    return {
        "tools": [tool["name"] for tool in listed_tools["tools"]],
        "agents": [agent["name"] for agent in listed["structuredContent"]["agents"]],
        "reply": chat["structuredContent"]["reply"],
        "refused": code == 5 and refused["isError"],
    }


@pytest.mark.parametrize("client", [python, typescript, inspector], ids=lambda c: c.__name__)
async def test_a_foreign_client_lists_and_chats_over_every_transport(
    home: Home, client: Any
) -> None:
    await home.letta.create_agent("Ada")
    with home.service(HOMEROOM_HTTP_TOKEN=TOKEN) as service:
        seen = {way: await client(way, home, service) for way in WAYS}
    tools = seen["http"].pop("tools")
    assert len(tools) >= 10
    assert seen["stdio"].pop("tools") == seen["sse"].pop("tools") == tools
    assert seen == dict.fromkeys(WAYS, FOUND)
