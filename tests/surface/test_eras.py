"""What the server says of itself, and how it takes mistakes, is the same in both eras."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp.client import Client
from mcp.server import MCPServer
from mcp.server.subscriptions import InMemorySubscriptionBus
from mcp.shared.exceptions import MCPError
from mcp_types import EmptyResult, SubscribeRequestParams
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS

from homeroom_tools.serve import HomeroomServer
from support.fake_http import ACCEPT, INITIALIZE, ask, serve
from support.fake_process import START_LIMIT_S

ERAS = ["legacy", "2026-07-28"]
MODERN = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
}


def watchable() -> MCPServer[Any]:
    """A server of our class whose resources can be watched, and a prompt with an argument."""
    server = HomeroomServer("homeroom", subscriptions=InMemorySubscriptionBus())

    async def subscribe(ctx: Any, params: SubscribeRequestParams) -> EmptyResult:
        return EmptyResult()

    low = server._lowlevel_server
    low.add_request_handler("resources/subscribe", SubscribeRequestParams, subscribe)

    @server.prompt()
    async def brief(agent: str, tone: str = "plain") -> str:
        """Briefs."""
        return f"{agent} {tone}"

    return server


def asking(era: str) -> str:
    """The client's mode: one that is pinned to the stateless era asks nothing first."""
    return "legacy" if era == "legacy" else "auto"


@pytest.mark.parametrize("era", ERAS)
async def test_watching_is_promised_where_it_is_served_and_changed_lists_never(era: str) -> None:
    async with Client(watchable(), mode=asking(era)) as client:
        can = client.server_capabilities
    assert can.resources and can.resources.subscribe
    assert can.tools and can.prompts
    for part in (can.tools, can.prompts, can.resources):
        assert part.list_changed is False


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("no_such_prompt", {}, "Unknown prompt"),
        ("brief", {}, "Missing prompt arguments: agent"),
        ("brief", {"tone": "x"}, "Missing prompt arguments: agent"),
    ],
)
async def test_a_mistaken_prompt_is_told_as_wrong_parameters(
    era: str, name: str, arguments: dict[str, str], said: str
) -> None:
    async with Client(watchable(), mode=era) as client:
        with pytest.raises(MCPError) as caught:
            await client.get_prompt(name, arguments)
        assert (caught.value.code, str(caught.value)) == (-32602, said)
        good = await client.get_prompt("brief", {"agent": "Ada"})
    assert "Ada plain" in good.model_dump_json()


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    yield from serve(tmp_path_factory.mktemp("eras"))


@pytest.mark.parametrize("version", HANDSHAKE_PROTOCOL_VERSIONS)
def test_every_handshake_revision_is_agreed_to(port: int, version: str) -> None:
    asked = INITIALIZE | {"params": {**INITIALIZE["params"], "protocolVersion": version}}  # type: ignore[dict-item]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_LIMIT_S)
    try:
        connection.request("POST", "/mcp", json.dumps(asked), ACCEPT)
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    data = next(line for line in text.splitlines() if line.startswith("data: {"))
    assert json.loads(data.removeprefix("data: "))["result"]["protocolVersion"] == version


class Stream:
    """An SSE session, frame by frame."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_LIMIT_S)
        self._connection.request("GET", "/sse")
        self._response = self._connection.getresponse()
        self._path = self._next()

    def call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        frame = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        assert ask(self._port, "POST", self._path, ACCEPT, json.dumps(frame)).status == 202
        answer: dict[str, Any] = json.loads(self._next())
        return answer

    def close(self) -> None:
        self._connection.close()

    def _next(self) -> str:
        while not (line := self._response.readline().decode()).startswith("data: "):
            assert line, "the stream ended"
        return line.removeprefix("data: ").strip()


def test_a_client_that_probes_and_falls_back_is_served_over_sse(port: int) -> None:
    """Regression for https://github.com/anthropics/claude-code/issues/96183."""
    stream = Stream(port)
    try:
        probe = stream.call("server/discover", {"_meta": MODERN})
        assert probe["result"]["supportedVersions"] == ["2026-07-28"]
        again = stream.call("server/discover", {"_meta": MODERN})
        assert again["result"] == probe["result"]
        agreed = stream.call("initialize", INITIALIZE["params"])  # type: ignore[arg-type]
        assert agreed["result"]["protocolVersion"] == "2025-11-25"
        assert stream.call("tools/list", {})["result"]["tools"]
    finally:
        stream.close()


def test_a_client_that_probes_and_stays_is_served_over_sse(port: int) -> None:
    stream = Stream(port)
    try:
        stream.call("server/discover", {"_meta": MODERN})
        assert stream.call("tools/list", {"_meta": MODERN})["result"]["resultType"] == "complete"
    finally:
        stream.close()


def test_over_http_a_probe_and_a_handshake_are_two_requests(port: int, tmp_path: Path) -> None:
    frame = {"jsonrpc": "2.0", "id": 1, "method": "server/discover", "params": {"_meta": MODERN}}
    headers = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "server/discover"}
    assert ask(port, "POST", "/mcp", ACCEPT | headers, json.dumps(frame)).status == 200
    assert ask(port, "POST", "/mcp", ACCEPT, json.dumps(INITIALIZE)).status == 200
