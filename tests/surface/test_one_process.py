"""One process serves stdio, Streamable HTTP and SSE at once, and ends with its stdio client."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import httpx
import pytest
from mcp.client import Client
from mcp.client.sse import sse_client

from support.fake_process import environment
from support.wire import Wire


@pytest.mark.parametrize("era", ["legacy", "2026-07-28"])
async def test_one_process_serves_every_transport_and_ends_with_its_client(
    tmp_path: Path, era: str
) -> None:
    settings = {
        "HOMEROOM_LETTA_URL": "http://127.0.0.1:9",
        "HOMEROOM_DATA_DIR": str(tmp_path / "data"),
    }
    argv = [sys.executable, "-m", "homeroom", "serve", "--http", "0", "--stdio"]
    wire = Wire(argv, environment() | settings)
    try:
        assert wire.handshake()["result"]["serverInfo"]["name"] == "homeroom"
        assert wire.process.stderr is not None
        for line in wire.process.stderr:
            if found := re.search(rb"MCP at (http://\S+)/mcp", line):
                break
        url = found[1].decode()  # type: ignore[index]
        names = [tool["name"] for tool in wire.call("tools/list")["result"]["tools"]]
        for target in (f"{url}/mcp", sse_client(f"{url}/sse")):
            async with Client(target, mode=era) as client:  # type: ignore[arg-type]
                assert [tool.name for tool in (await client.list_tools()).tools] == names
        assert wire.call("ping")["result"] == {}
        wire.close_stdin()
        assert wire.wait() == 0
        assert wire.rest() == []
        async with httpx.AsyncClient(trust_env=False) as http:
            with pytest.raises(httpx.HTTPError):
                await http.get(f"{url}/health")
    finally:
        wire.close()
