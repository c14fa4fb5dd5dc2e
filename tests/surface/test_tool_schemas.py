"""What a client is told before the first call: a contract, kept as snapshots."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError

from homeroom import __version__
from homeroom_tools import register
from homeroom_tools.serve import INSTRUCTIONS, build_server
from homeroom_tools.toolkit import Result, make_tool
from support.fake_app import FakeApp

SNAPSHOTS = Path(__file__).parent / "snapshots"
CONTRACT = {
    "list_agents": {"query": "", "limit": 50, "cursor": ""},
    "chat_with_agent": {"agent": ..., "message": ..., "wait_s": 45, "mirror": True},
    "get_reply": {"reply_id": ..., "wait_s": 45},
    "get_agent_memory": {"agent": ..., "label": ""},
    "update_agent_memory": {
        "agent": ...,
        "label": ...,
        "value": ...,
        "replace_text": "",
        "expected_revision": "",
        "force": False,
    },
    "sync_agents": {"dry_run": False, "confirm_removals": False},
    "get_sync_status": {},
    "explain_delivery": {"id": ...},
    "list_parked": {"limit": 20},
    "replay_parked": {"id": ...},
}
MAX_LIST_BYTES = 20 * 1024


@pytest.fixture(params=["2026-07-28", "legacy"])
def era(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def listed(era: str) -> dict[str, dict[str, Any]]:
    async with Client(build_server(FakeApp()), mode=era) as client:
        tools = (await client.list_tools()).tools
    return {t.name: t.model_dump(by_alias=True, exclude_none=True, mode="json") for t in tools}


async def test_names_arguments_and_defaults_are_the_contract(era: str) -> None:
    tools = await listed(era)
    assert list(tools) == list(CONTRACT)
    for name, tool in tools.items():
        properties = tool["inputSchema"]["properties"]
        assert {key: s.get("default", ...) for key, s in properties.items()} == CONTRACT[name]


@pytest.mark.parametrize("name", CONTRACT)
async def test_what_a_client_sees_of_a_tool_has_not_changed(name: str, era: str) -> None:
    path = SNAPSHOTS / f"{name}.json"
    wire = json.dumps((await listed(era))[name], indent=1, sort_keys=True, ensure_ascii=False)
    if os.environ.get("UPDATE_SNAPSHOTS") == "1":
        path.write_text(wire + "\n", encoding="utf-8")
    assert path.exists(), "no snapshot: look at the tool, then run with UPDATE_SNAPSHOTS=1"
    assert path.read_text(encoding="utf-8") == wire + "\n"


def test_no_snapshot_is_left_of_a_tool_that_is_gone() -> None:
    assert {path.stem for path in SNAPSHOTS.glob("*.json")} == set(CONTRACT)


async def test_tools_are_small_and_say_everything_a_client_asks(era: str) -> None:
    tools = await listed(era)
    assert len(json.dumps(list(tools.values()), separators=(",", ":")).encode()) <= MAX_LIST_BYTES
    for tool in tools.values():
        assert len(tool["description"].encode()) <= 600
        assert set(tool["annotations"]) == {
            "readOnlyHint",
            "destructiveHint",
            "idempotentHint",
            "openWorldHint",
        }
        assert tool["inputSchema"]["additionalProperties"] is False
        for schema in subschemas(tool["inputSchema"]):
            assert "anyOf" not in schema and schema.get("type") != "null"
        assert '"null"' not in json.dumps(tool["outputSchema"])


def subschemas(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield schema
    for inner in schema.get("properties", {}).values():
        yield from subschemas(inner)


async def test_the_server_says_who_it_is_and_how_to_use_it(era: str) -> None:
    assert len(INSTRUCTIONS.encode()) <= 1024
    # A pinned modern connection asks nothing first; discovery is how such a client learns this.
    mode = "legacy" if era == "legacy" else "auto"
    async with Client(build_server(FakeApp()), mode=mode) as client:
        assert client.instructions == INSTRUCTIONS
        assert client.server_info is not None
        assert (client.server_info.name, client.server_info.version) == ("homeroom", __version__)
        tools = client.server_capabilities.tools
        assert tools is not None and not tools.list_changed


async def test_an_unknown_prompt_is_the_clients_mistake(era: str) -> None:
    async with Client(build_server(FakeApp()), mode=era) as client:
        with pytest.raises(MCPError) as caught:
            await client.get_prompt("no_such_prompt")
    assert caught.value.code == -32602


def test_every_tool_is_named_once() -> None:
    names = [tool.name for tool in register(FakeApp())]  # type: ignore[arg-type]
    assert len(names) == len(set(names))


class Nothing(Result):
    """An empty result."""


async def optional_text(text: str | None = None) -> Nothing:
    """Takes text or none."""
    return Nothing()


async def a_list(items: list[str]) -> Nothing:
    """Takes a list."""
    return Nothing()


async def undescribed(text: str) -> Nothing:
    """Does not say what text is."""
    return Nothing()


async def untyped() -> dict[str, str]:
    """Gives anything."""
    return {}


@pytest.mark.parametrize("fn", [optional_text, a_list, undescribed, untyped])
def test_a_tool_that_breaks_a_rule_cannot_be_made(fn: Any) -> None:
    with pytest.raises(TypeError, match=fn.__name__):
        make_tool(
            fn, title="x", read_only=True, destructive=False, idempotent=True, open_world=False
        )
