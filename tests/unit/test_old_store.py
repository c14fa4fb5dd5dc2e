"""Stores of older releases: what was in them is there, and nothing of it is done a second time."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from homeroom.items import Decision, ItemKind, NewItem
from homeroom.model import (
    Agent,
    AgentId,
    ConversationId,
    EventId,
    GhostId,
    Mapping,
    Member,
    RoomEvent,
    RoomId,
    SyncBatch,
)
from homeroom.plan import Policy, display_name, ghost_of, plan, room_name, room_topic
from homeroom.store import Store, open_store
from homeroom.store.schema import migrations
from support.old_store import RELEASED, age_store
from support.outcome import outcome_of

ADA, BROOK = Agent(AgentId("agent-1"), "Ada"), Agent(AgentId("agent-2"), "Brook")
ROOM, YOU, HUB = RoomId("!r:hs.test"), "@you:hs.test", "@agent_hub:hs.test"
POLICY = Policy("hs.test", invite=(YOU,))


def row_of(agent: Agent, room: RoomId) -> Mapping:
    """An agent in step, as the first release wrote it down."""
    return Mapping(
        agent.id, ghost_of(agent.id, "hs.test"), room, ghost_ready=True, hub_joined=True,
        display_name=display_name(agent), room_name=room_name(agent), topic=room_topic(agent),
        invited=frozenset({YOU}), refused=(("@far:away.test", "denied"),), heard_from_ms=7,
        agent_name=agent.name,
    )  # fmt: skip


ROWS = {
    ADA.id: row_of(ADA, ROOM),
    BROOK.id: replace(row_of(BROOK, RoomId("!b:hs.test")), missing_since_ms=5, missing_seen=2,
                      retired=True),
}  # fmt: skip


def is_ghost(user: str) -> bool:
    return user.startswith("@agent_")


def answer(event: RoomEvent, mapping: Mapping, people: int) -> Decision:
    turn = NewItem("a", ItemKind.TURN, {"event_id": event.id}, f"event:{event.id}")
    return Decision("answered", (turn,))


async def live(store: Store) -> None:
    fence = (await store.take_lease("me", rank=1, ttl_ms=60_000)).fence
    for row in ROWS.values():
        await store.save_mapping(row, answer, fence, joined=True)
    people = (Member(ROOM, YOU, "join"), Member(ROOM, GhostId(ROWS[ADA.id].ghost), "join"))
    said = RoomEvent(EventId("$1"), ROOM, YOU, "m.room.message", {"body": "hi"}, 1_000)
    await store.record_batch(SyncBatch("s9", (said,), people), answer, is_ghost, fence)
    await store.save_conversation(ADA.id, ROOM, ConversationId("conv-1"), fence)
    await store.finish_sync_requests([], "{}", fence)


def tables(path: Path) -> dict[str, object]:
    """Every table with its columns, and every index and trigger with its statement."""
    with closing(sqlite3.connect(path)) as db:
        found: dict[str, object] = {}
        for kind, name, sql in db.execute("SELECT type, name, sql FROM sqlite_master"):
            columns = {tuple(row[1:]) for row in db.execute(f"PRAGMA table_info({name})")}
            found[f"{kind} {name}"] = columns if kind == "table" else sql
        return found


STEPS = [step.name for step in migrations._migrations]


@pytest.mark.parametrize("before", STEPS[STEPS.index(RELEASED) :])
async def test_an_older_store_has_everything_and_its_homes_are_in_step(
    before: str, tmp_path: Path
) -> None:
    path, new = tmp_path / "s.db", tmp_path / "new.db"
    async with open_store(path) as store:
        await live(store)
        born_ms = await store.get_meta("born_ms")
    age_store(path, before)
    async with open_store(new):
        pass
    async with open_store(path) as store:
        assert tables(path) == tables(new)
        assert await store.list_mappings() == ROWS
        claims = {(c.room_id, c.agent_id): (c.kind, c.stage) for c in await store.list_claims()}
        assert claims == {(row.room_id, name): ("home", "open") for name, row in ROWS.items()}
        assert (await store.list_rooms())[ROOM].users("join") == {YOU, ROWS[ADA.id].ghost}
        assert await store.get_meta("born_ms") == born_ms and await store.get_cursor() == "s9"
        assert await store.find_conversation(ADA.id, ROOM) == "conv-1"
        assert await outcome_of(store, "$1")
        rows, rooms = await store.list_mappings(), await store.list_rooms()
        assert plan([ADA], rows, rooms, POLICY, 0, await store.get_space()) == []
        fence = (await store.take_lease("heir", rank=2, ttl_ms=60_000)).fence
        item, _ = await store.claim([ItemKind.TURN], fence)
        assert item and item.payload == {"event_id": "$1"}
        await store.save_mapping(ROWS[ADA.id], answer, fence, joined=True)
        assert await store.list_mappings() == ROWS
