"""What the store makes of the hub's sync when the hub or a ghost is put out of a room."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from sqlite_utils import Database

from homeroom.items import Decision
from homeroom.model import Agent, AgentId, GhostId, Mapping, Member, RoomEvent, RoomId, SyncBatch
from homeroom.plan import Policy, apply_to_mapping, plan, room_name, room_topic
from homeroom.store import Store, open_store
from homeroom.store.schema import migrations

ROOM, OTHER = RoomId("!r:hs.test"), RoomId("!other:hs.test")
HUB, GHOST = "@agent_hub:hs.test", GhostId("@agent_1:hs.test")
ADA = Agent(AgentId("agent-1"), "Ada")
HOME = Mapping(
    agent_id=ADA.id, ghost=GHOST, room_id=ROOM, ghost_ready=True, display_name="Ada",
    hub_joined=True, room_name=room_name(ADA), topic=room_topic(ADA),
)  # fmt: skip
POLICY = Policy("hs.test")


def ignore(event: RoomEvent, mapping: Mapping, people: int) -> Decision:
    return Decision("ignored")


async def record(store: Store, batch: SyncBatch, home: Mapping = HOME) -> Mapping:
    """The row after the batch. Once per store: it takes the lease."""
    fence = (await store.take_lease("me", rank=1, ttl_ms=60_000)).fence
    await store.save_mapping(home, ignore, fence)
    await store.record_batch(batch, ignore, lambda user: user.startswith("@agent_"), fence)
    row = await store.find_mapping(ADA.id)
    assert row
    return row


def member(user: str, membership: str, room: RoomId = ROOM) -> SyncBatch:
    return SyncBatch("s2", members=(Member(room, user, membership),))


async def test_a_room_the_hub_is_out_of_is_planned_to_be_joined_again(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        row = await record(store, SyncBatch("s2", left_rooms=(OTHER, ROOM)))
        assert not row.hub_joined and "nothing said there is heard" in row.problem
        assert await store.get_cursor() == "s2"
    (action,) = plan([ADA], {ADA.id: row}, {}, POLICY)
    assert action.kind == "join_hub"
    assert plan([ADA], {ADA.id: apply_to_mapping(row, action, ADA, POLICY)}, {}, POLICY) == []


@pytest.mark.parametrize("membership", ["leave", "ban"])
async def test_a_room_the_ghost_is_out_of_is_looked_after_at_the_next_sync(
    tmp_path: Path, membership: str
) -> None:
    async with open_store(tmp_path / "s.db") as store:
        row = await record(store, member(GHOST, membership))
        assert not row.hub_joined and "cannot answer" in row.problem


@pytest.mark.parametrize(
    "batch",
    [
        SyncBatch("s2", left_rooms=(OTHER,)),
        member("@you:hs.test", "leave"),
        member("@agent_2:hs.test", "leave"),
        member(GHOST, "leave", OTHER),
        member(GHOST, "join"),
        member(HUB, "invite"),
    ],
)
async def test_nobody_elses_comings_and_goings_change_a_home(
    tmp_path: Path, batch: SyncBatch
) -> None:
    async with open_store(tmp_path / "s.db") as store:
        assert await record(store, batch) == HOME


async def test_an_invitation_gives_a_sync_that_has_given_up_a_reason_to_try(
    tmp_path: Path,
) -> None:
    failing = replace(HOME, hub_joined=False, problem="refused")
    async with open_store(tmp_path / "1.db") as store:
        assert await record(store, member("@you:hs.test", "invite"), failing) == failing
    async with open_store(tmp_path / "2.db") as store:
        row = await record(store, member(HUB, "invite"), failing)
        assert not row.hub_joined and "Invited" in row.problem


@pytest.mark.parametrize(
    "since", ["m002_patience_is_counted_from_the_first_failure", "m002_next_try"]
)
async def test_an_older_store_opens_and_keeps_its_rows(tmp_path: Path, since: str) -> None:
    path = tmp_path / "s.db"
    connection = sqlite3.connect(path)
    migrations.apply(Database(connection), stop_before=since)
    values = ("agent-1", "Ada", GHOST, ROOM, 1, "Ada", "Ada's", "topic", 1, "[]", "[]", 7, "")
    connection.execute(f"INSERT INTO mapping VALUES ({','.join('?' * len(values))})", values)
    connection.commit()
    connection.close()
    async with open_store(path) as store:
        row = await store.find_mapping(ADA.id)
        assert row and (row.room_id, row.heard_from_ms, row.retired) == (ROOM, 7, False)
