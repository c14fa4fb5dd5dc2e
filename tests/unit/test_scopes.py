"""Which scope a tool has, and that none goes without."""

from __future__ import annotations

import pytest
from mcp.server.mcpserver.tools import Tool
from mcp_types import ToolAnnotations

from homeroom_tools import register
from homeroom_tools.caller import SCOPES
from homeroom_tools.scopes import needs_of, scope_of
from support.fake_app import FakeApp

EXPECTED = {
    "list_agents": "read",
    "get_agent": "read",
    "sync_agents": "operate",
    "get_sync_status": "read",
    "chat_with_agent": "chat",
    "get_reply": "chat",
    "read_room": "read",
    "list_rooms": "read",
    "get_agent_memory": "read",
    "update_agent_memory": "memory",
    "search_agent_memory": "read",
    "explain_delivery": "read",
    "diagnose_rooms": "operate",
    "list_parked": "read",
    "replay_parked": "operate",
}


def tool(name: str, read_only: bool | None) -> Tool:
    async def call() -> str:
        return ""

    hints = None if read_only is None else ToolAnnotations(read_only_hint=read_only)
    return Tool.from_function(call, name=name, description="x", annotations=hints)


def test_every_tool_has_the_scope_that_its_effect_asks_for() -> None:
    scopes = {found.name: scope_of(found) for found in register(FakeApp())}  # type: ignore[arg-type]
    assert scopes == EXPECTED
    assert set(scopes.values()) == set(SCOPES)


@pytest.mark.parametrize("read_only", [False, None])
def test_a_tool_that_changes_something_and_has_no_scope_stops_the_start(
    read_only: bool | None,
) -> None:
    with pytest.raises(TypeError, match="delete_everything"):
        needs_of([tool("list_agents", True), tool("delete_everything", read_only)])


def test_a_scope_given_with_the_tool_wins_and_must_exist() -> None:
    class Scoped(Tool):
        scope: str = "operate"

    fields = dict(tool("list_agents", True))
    assert scope_of(Scoped(**fields)) == "operate"
    with pytest.raises(TypeError, match="'all'"):
        scope_of(Scoped(**fields, scope="all"))


@pytest.mark.parametrize(
    ("method", "params", "scope"),
    [
        ("tools/call", {"name": "list_agents"}, "read"),
        ("tools/call", {"name": "no_such_tool"}, None),
        ("tools/call", {"name": ["list_agents"]}, None),
        ("tools/call", {}, None),
        ("tools/list", {}, None),
        ("initialize", {}, None),
        ("resources/read", {"uri": "agent://x"}, "read"),
        ("resources/subscribe", {}, "read"),
        ("subscriptions/listen", {}, "read"),
        ("completion/complete", {}, "read"),
        ("prompts/get", {}, "read"),
    ],
)
def test_what_shows_or_changes_something_needs_a_scope(
    method: str, params: dict[str, object], scope: str | None
) -> None:
    assert needs_of([tool("list_agents", True)])(method, params) == scope
