"""An LLM client over the network: how it connects, what a tool gives it and how it is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import httpx2
from mcp import Client
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client

LIMIT_S = 60.0
Way = Literal["http", "sse"]


@asynccontextmanager
async def connect(
    url: str, token: str = "", way: Way = "http", era: str = "auto"
) -> AsyncIterator[Client]:
    """A client of the server at ``url``, which shows the token, if it has one."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with httpx2.AsyncClient(headers=headers, timeout=LIMIT_S) as http:
        transport: Any = (
            sse_client(f"{url}/sse", headers=headers)
            if way == "sse"
            else streamable_http_client(f"{url}/mcp", http_client=http)
        )
        async with Client(transport, mode=era) as client:
            yield client


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """What the tool gives."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    assert result.structured_content is not None
    return dict(result.structured_content)


async def refusal(client: Client, tool: str, **arguments: Any) -> str:
    """The words in which the tool says why it does not."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error and result.structured_content is None
    return str(result.content[0].text)  # type: ignore[union-attr]
