"""What a result leaves out it says, and the way to the rest that it names leads there."""

from __future__ import annotations

from dataclasses import replace

from mcp.client import Client

from homeroom.model import Agent, AgentId
from homeroom.reading import BlockVersion, MemoryHit, MemoryHits, MemoryView
from homeroom.reports import SyncStatus
from homeroom_tools.memory_views import (
    HIT_CHARS,
    VERSION_DIFF_CHARS,
    VERSIONS,
    agent_memory,
    memory_hits,
)
from homeroom_tools.room_views import MESSAGE_CHARS
from homeroom_tools.rooms_admin import MAX_REFUSALS, MAX_ROOMS, rooms_diagnosis
from homeroom_tools.serve import build_server
from homeroom_tools.views import MAX_ACTIONS, sync_state
from support.fake_app import FakeApp, sample_report, sample_rooms

ADA = Agent(AgentId("agent-1"), "Ada")


async def test_a_long_message_is_whole_on_a_page_of_its_own() -> None:
    app = FakeApp()
    longest = "".join(f"line {number}\n" for number in range(5_000))[:60_000]
    for text in ("first", longest, "last"):
        app.say(app.agents[0], text)
    async with Client(build_server(app), mode="2026-07-28") as client:

        async def read(limit: int, cursor: str = "") -> dict[str, object]:
            arguments = {"room": "Ada", "limit": limit, "cursor": cursor}
            data = (await client.call_tool("read_room", arguments)).structured_content
            assert data is not None
            return data

        _, cut, first = (await read(3))["messages"]  # type: ignore[misc,attr-defined]
        assert cut["truncated"] and cut["text"] == longest[:MESSAGE_CHARS]
        assert "truncated" not in first
        cursor = (await read(1))["next_cursor"]
        (whole,) = (await read(1, str(cursor)))["messages"]  # type: ignore[misc,attr-defined]
    assert whole["text"] == longest and "truncated" not in whole


def test_a_long_passage_is_whole_if_it_is_asked_for_alone() -> None:
    found = MemoryHits(ADA, (MemoryHit("passage", "p", "x" * (HIT_CHARS + 1)),), 1, "text")
    (cut,), (whole,) = memory_hits(found, 10).hits, memory_hits(found, 1).hits
    assert cut.truncated and len(cut.text) == HIT_CHARS
    assert whole.truncated is None and len(whole.text) == HIT_CHARS + 1


def test_a_long_history_says_so_and_that_of_one_block_is_whole() -> None:
    version = BlockVersion("notes", "r", "", "v", 1, "me", "d" * (VERSION_DIFF_CHARS + 1))
    all_blocks = MemoryView(ADA, (), (version,) * (VERSIONS + 1))
    cut = agent_memory(all_blocks, history=True)
    assert cut.truncated and cut.history and len(cut.history) == VERSIONS
    assert cut.history[0].truncated and len(cut.history[0].diff or "") == VERSION_DIFF_CHARS
    one = agent_memory(MemoryView(ADA, (), (version,) * 20), "notes", history=True)
    assert one.truncated is None and one.history and len(one.history) == 20
    assert one.history[0].truncated is None
    assert len(one.history[0].diff or "") == VERSION_DIFF_CHARS + 1


def test_many_rooms_and_refusals_are_said_to_be_more_than_are_shown() -> None:
    report = sample_rooms()
    assert rooms_diagnosis(report, everything=True).truncated is None
    home, _ = report.rooms
    at_most = replace(report, rooms=(home,) * MAX_ROOMS, refusals=report.refusals * MAX_REFUSALS)
    assert rooms_diagnosis(at_most, everything=False).truncated is None
    more = replace(report, rooms=(home,) * (MAX_ROOMS + 1))
    shown = rooms_diagnosis(more, everything=False)
    assert shown.truncated and len(shown.rooms) == MAX_ROOMS and shown.total == MAX_ROOMS + 1
    more = replace(report, refusals=report.refusals * (MAX_REFUSALS + 1))
    assert rooms_diagnosis(more, everything=False).truncated


def test_many_failing_agents_are_said_to_be_more_than_are_shown() -> None:
    report = sample_report()
    for count, truncated in ((MAX_ACTIONS, None), (MAX_ACTIONS + 1, True)):
        failing = replace(report, failures=report.failures * count)
        state = sync_state(SyncStatus(1_000, "", failing, 1_000))
        assert state.truncated is truncated and len(state.failing) == MAX_ACTIONS
