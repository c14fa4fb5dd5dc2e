"""What a client is told before the first call: a contract, kept as snapshots."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from mcp.client import Client
from mcp.server.mcpserver.tools import Tool
from mcp.shared.exceptions import MCPError
from pydantic import BaseModel

from homeroom import __version__
from homeroom_tools import register
from homeroom_tools.instructions import MAX_BYTES, instructions_for
from homeroom_tools.selection import TOOL_NAMES
from homeroom_tools.serve import build_server
from homeroom_tools.toolkit import UNTRUSTED, Result, defaults_of, make_tool
from support.described import fields_of
from support.fake_app import FakeApp

SNAPSHOTS = Path(__file__).parent / "snapshots"
PAGED = {"limit": 50, "cursor": ""}
CONTRACT = {
    "list_agents": {"query": "", "detail": "concise", **PAGED},
    "get_agent": {"agent": ..., "detail": "concise"},
    "sync_agents": {
        "dry_run": False,
        "confirm_removals": False,
        "audit": False,
        "invite": "",
    },
    "get_sync_status": {},
    "chat_with_agent": {
        "agent": ...,
        "message": ...,
        "wait_s": 45,
        "mirror": True,
        "idempotency_key": "",
        "priority": "normal",
        "expires_after_s": 0,
    },
    "get_reply": {"reply_id": ..., "wait_s": 45, "offset": 0},
    "read_room": {"room": ..., "limit": 20, "cursor": ""},
    "list_rooms": {"agent": "", "detail": "concise", **PAGED},
    "get_agent_memory": {"agent": ..., "label": "", "history": False, "cursor": ""},
    "update_agent_memory": {
        "agent": ...,
        "label": ...,
        "value": "",
        "mode": "replace",
        "old_text": "",
        "expected_revision": "",
        "undo_of": "",
        "force": False,
    },
    "search_agent_memory": {"agent": ..., "query": ..., "limit": 10, "cursor": ""},
    "explain_delivery": {"id": ...},
    "diagnose_rooms": {"fix": False, "all": False},
    "list_parked": {"agent": "", "detail": "concise", "limit": 20, "cursor": ""},
    "replay_parked": {"id": ..., "drop": False},
}
WRITE = {
    "sync_agents",
    "chat_with_agent",
    "update_agent_memory",
    "replay_parked",
    "diagnose_rooms",
}
MAX_TOOLS = 20
MAX_LIST_BYTES = 16 * 1024
"""Some 4,000 tokens, which every model reads before its first word."""


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
        assert defaults_of(tool["inputSchema"]) == CONTRACT[name]


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


async def test_the_list_of_tools_is_small(era: str, capsys: pytest.CaptureFixture[str]) -> None:
    tools = await listed(era)
    sizes = {name: size_of(tool) for name, tool in tools.items()}
    total = size_of(list(tools.values()))
    with capsys.disabled():
        told = ", ".join(f"{name} {size}" for name, size in sizes.items())
        print(f"\ntools/list ({era}): {total} of {MAX_LIST_BYTES} bytes: {told}")  # noqa: T201
    assert len(tools) <= MAX_TOOLS
    assert total <= MAX_LIST_BYTES


def size_of(part: Any) -> int:
    return len(json.dumps(part, ensure_ascii=False, separators=(",", ":")).encode())


@pytest.mark.parametrize("name", CONTRACT)
async def test_a_tool_says_everything_that_a_client_asks(name: str, era: str) -> None:
    tool = (await listed(era))[name]
    assert 0 < len(tool["description"].encode()) <= 600
    assert len(name) <= 40 and tool["title"]
    assert set(tool["annotations"]) == {
        "readOnlyHint",
        "destructiveHint",
        "idempotentHint",
        "openWorldHint",
    }
    assert tool["annotations"]["readOnlyHint"] is (name not in WRITE)
    assert tool["inputSchema"]["additionalProperties"] is False
    for schema in subschemas(tool["inputSchema"]):
        assert "anyOf" not in schema and isinstance(schema["type"], str)
    for argument in tool["inputSchema"]["properties"].values():
        assert argument["description"]
    wire = json.dumps(tool["outputSchema"])
    assert '"null"' not in wire and "$ref" not in wire and "anyOf" not in wire


@pytest.mark.parametrize("tool", register(FakeApp()), ids=lambda tool: str(tool.name))  # type: ignore[arg-type]
def test_every_field_of_a_result_is_described_where_a_client_reads_it(tool: Tool) -> None:
    check_described(get_type_hints(tool.fn)["return"], tool.output_schema or {})


def check_described(model: type[BaseModel], schema: dict[str, Any]) -> None:
    """Every field is named, with its meaning, as what others wrote or as ours."""
    described = fields_of(schema)
    for name, field in model.model_fields.items():
        wanted = (field.description or "").startswith(UNTRUSTED)
        assert name in described, f"{model.__name__}.{name}"
        untrusted, meaning = described[name]
        assert (untrusted, bool(meaning)) == (wanted, True), f"{model.__name__}.{name}"
        for row in rows_in(field.annotation):
            check_described(row, schema["properties"][name]["items"])


def rows_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from rows_in(inner)


def subschemas(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield schema
    for inner in schema.get("properties", {}).values():
        yield from subschemas(inner)


async def test_the_server_says_who_it_is_and_how_to_use_it(era: str) -> None:
    told = instructions_for(TOOL_NAMES)
    assert len(told.encode()) <= MAX_BYTES == 1024
    # A pinned modern connection asks nothing first; discovery is how such a client learns this.
    mode = "legacy" if era == "legacy" else "auto"
    async with Client(build_server(FakeApp()), mode=mode) as client:
        assert client.instructions == told
        assert client.server_info is not None
        assert (client.server_info.name, client.server_info.version) == ("homeroom", __version__)
        tools = client.server_capabilities.tools
        assert tools is not None and not tools.list_changed


async def test_an_unknown_prompt_is_the_clients_mistake(era: str) -> None:
    async with Client(build_server(FakeApp()), mode=era) as client:
        with pytest.raises(MCPError) as caught:
            await client.get_prompt("no_such_prompt")
    assert caught.value.code == -32602


async def test_an_argument_that_a_prompt_does_not_have_is_the_clients_mistake(
    era: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Client(build_server(FakeApp()), mode=era) as client:
        with pytest.raises(MCPError) as caught:
            await client.get_prompt("brief_me_on_agent", {"agent": "Ada", "agnet": "Ada"})
    assert caught.value.code == -32602
    assert caught.value.message == "Unknown prompt arguments: agnet. There are: agent"
    assert "request_crashed" not in [record.message for record in caplog.records]


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
