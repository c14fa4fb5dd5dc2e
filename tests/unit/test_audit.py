"""What an audit makes of a homeserver that answers strangely, and what the store keeps of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import anyio
import pytest

from homeroom.audit import AT_ONCE, Seen, audit
from homeroom.audits import Audits
from homeroom.errors import HomeroomError, Rejected, Unavailable
from homeroom.items import Decision, ItemKind, NewItem, lane_of_turns
from homeroom.matrix import Matrix
from homeroom.model import (
    AgentId,
    GhostId,
    Mapping,
    Member,
    RoomEvent,
    RoomId,
    RoomTold,
    Space,
    StateEvent,
    SyncBatch,
)
from homeroom.store import AUDITED_MS, Store, open_store

HUB = GhostId("@agent_hub:hs.test")


def home(number: int) -> Mapping:
    return Mapping(
        AgentId(f"agent-{number}"), GhostId(f"@agent_{number}:hs.test"), RoomId(f"!{number}"),
        ghost_ready=True, display_name=f"Agent {number}", hub_joined=True,
        agent_name=f"Agent {number}",
    )  # fmt: skip


def ignore(event: RoomEvent, mapping: Mapping, people: int) -> Decision:
    return Decision("ignored")


class Homeserver:
    """Has these homes as they should be, but for what a test takes away."""

    hub = HUB

    def __init__(self, *homes: Mapping) -> None:
        self.homes = {mapping.room_id: mapping for mapping in homes if mapping.room_id}
        self.hub_rooms = frozenset(self.homes)
        self.failures: dict[str, HomeroomError] = {}
        """Room, alias or ghost, and what asking for it raises."""
        self.left: set[tuple[str, RoomId]] = set()
        self.at_once = self.most_at_once = 0

    def alias(self, localpart: str) -> str:
        return f"#{localpart}:hs.test"

    def is_ghost(self, user: str) -> bool:
        return user.startswith("@agent_")

    def _may(self, what: str) -> None:
        if what in self.failures:
            raise self.failures[what]

    async def joined_rooms(self, ghost: GhostId) -> frozenset[RoomId]:
        self._may("hub")
        return self.hub_rooms

    async def find_display_name(self, ghost: GhostId) -> str | None:
        self._may(ghost)
        found = [m.display_name for m in self.homes.values() if m.ghost == ghost]
        return found[0] if found else None

    async def find_room(self, alias: str) -> RoomId | None:
        self._may(alias)
        found = [room for room, m in self.homes.items() if alias[1:] == m.ghost[1:]]
        return found[0] if found else None

    async def room_state(
        self, reader: GhostId, room_id: RoomId
    ) -> tuple[tuple[StateEvent, ...], tuple[Member, ...]]:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await anyio.lowlevel.checkpoint()
        self.at_once -= 1
        self._may(room_id)
        ghost = self.homes[room_id].ghost
        members = tuple(
            Member(room_id, user, "leave" if (user, room_id) in self.left else "join")
            for user in (HUB, ghost, "@you:hs.test")
        )
        return (StateEvent(room_id, "m.room.create", "", {}, ghost),), members


async def look(homeserver: Homeserver, *homes: Mapping) -> Seen:
    return await audit(cast(Matrix, homeserver), {m.agent_id: m for m in homes}, {})


async def test_homes_that_are_as_they_should_be_are_left_as_they_are() -> None:
    homes = [home(number) for number in range(9)]
    homeserver = Homeserver(*homes)
    seen = await look(homeserver, *homes)
    assert seen.mappings == {m.agent_id: replace(m, alias_room=m.room_id) for m in homes}
    assert seen.complete and not seen.unread
    assert set(seen.told) == set(homeserver.homes) and all(v.known for v in seen.rooms.values())
    assert homeserver.most_at_once == AT_ONCE


@pytest.mark.parametrize("what", ["!1", "#agent_1:hs.test", "@agent_1:hs.test"])
async def test_what_cannot_be_looked_at_is_reported_and_stops_nothing_else(what: str) -> None:
    homes = [home(number) for number in range(3)]
    homeserver = Homeserver(*homes)
    homeserver.failures[what] = Unavailable("matrix", "it answered 502")
    seen = await look(homeserver, *homes)
    (unread,) = seen.unread
    assert unread.startswith("Agent 1: ") and "502" in unread
    assert seen.mappings[homes[1].agent_id] == homes[1], "left as it was"
    assert set(seen.told) == {"!0", "!2"}


async def test_a_homeserver_that_says_nothing_changes_nothing_and_is_asked_again() -> None:
    homeserver = Homeserver(home(0))
    homeserver.failures["hub"] = Unavailable("matrix", "away")
    seen = await look(homeserver, home(0))
    assert not seen.complete and "away" in seen.unread[0]
    assert seen.mappings == {home(0).agent_id: home(0)} and not seen.told


async def test_who_has_left_is_not_believed_and_a_room_without_them_is_to_be_entered() -> None:
    homes = [home(number) for number in range(4)]
    homeserver = Homeserver(*homes)
    homeserver.hub_rooms = frozenset({RoomId("!0"), RoomId("!3")})
    homeserver.left = {(homes[1].ghost, RoomId("!1")), (homes[3].ghost, RoomId("!3"))}
    homeserver.failures["!2"] = Rejected("matrix", "not in room", "M_FORBIDDEN")
    seen = await look(homeserver, *homes)
    assert set(seen.told) == {"!0", "!3"}, "what the ghost of !1 sees is the past"
    rows = [seen.mappings[m.agent_id] for m in homes]
    assert [row.hub_joined for row in rows] == [True, False, False, False]
    assert "hub" in rows[1].problem and "hub" in rows[2].problem
    assert "agent's user" in rows[3].problem and not seen.unread


async def test_a_ghost_that_is_gone_is_to_be_made_again() -> None:
    lost = replace(home(5), room_id=None)
    seen = await look(Homeserver(home(0)), lost)
    row = seen.mappings[lost.agent_id]
    assert (row.ghost_ready, row.display_name) == (False, "")


async def audited(store: Store, fence: int, before: Mapping, after: Mapping) -> None:
    ghost, room = before.ghost, before.room_id
    assert room
    told = RoomTold(
        (StateEvent(room, "m.room.create", "", {}, ghost),
         StateEvent(room, "m.room.name", "", {"name": "seen"}, ghost)),
        (Member(room, ghost, "join"),), frozenset({ghost}),
    )  # fmt: skip
    await store.save_audit(
        {before.agent_id: before}, {after.agent_id: after}, {}, {room: told}, fence, audited_ms=7
    )


async def test_what_an_audit_saw_is_kept_unless_the_hubs_sync_told_something_meanwhile(
    tmp_path: Path,
) -> None:
    async with open_store(tmp_path / "s.db") as store:
        fence = (await store.take_lease("me", rank=1, ttl_ms=60_000)).fence
        for number in (1, 2):
            await store.save_mapping(home(number), ignore, fence)
        newer = StateEvent(RoomId("!2"), "m.room.name", "", {"name": "newer"}, "@you:hs.test")
        batch = SyncBatch("s", state=(newer,), left_rooms=(RoomId("!2"),))
        await store.record_batch(batch, ignore, lambda user: False, fence)
        for number in (1, 2):
            before = home(number)
            await audited(store, fence, before, replace(before, alias_room="", display_name="x"))
        rooms, rows = await store.list_rooms(), await store.list_mappings()
        assert rooms[RoomId("!1")].name.text == "seen" and rooms[RoomId("!1")].known
        assert rooms[RoomId("!2")].name.text == "newer"
        one, two = rows[home(1).agent_id], rows[home(2).agent_id]
        assert (one.alias_room, one.display_name) == ("", "x")
        assert (two.alias_room, two.hub_joined) == (None, False), "looked at before it was told"
        assert await store.get_meta(AUDITED_MS) == "7"


async def test_a_row_that_is_saved_does_not_unsay_that_the_hub_is_out(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        fence = (await store.take_lease("me", rank=1, ttl_ms=60_000)).fence
        row = home(1)
        await store.save_mapping(row, ignore, fence)
        batch = SyncBatch("s", left_rooms=(RoomId("!1"),))
        await store.record_batch(batch, ignore, lambda user: False, fence)
        await store.save_mapping(replace(row, topic="written meanwhile"), ignore, fence)
        found = await store.find_mapping(row.agent_id)
        assert found and (found.topic, found.hub_joined) == ("written meanwhile", False)
        await store.save_mapping(row, ignore, fence, joined=True)
        found = await store.find_mapping(row.agent_id)
        assert found and found.hub_joined


async def test_what_was_said_in_a_room_is_known_in_the_one_that_replaces_it(
    tmp_path: Path,
) -> None:
    async with open_store(tmp_path / "s.db") as store:
        fence = (await store.take_lease("me", rank=1, ttl_ms=60_000)).fence
        row = home(1)
        await store.save_mapping(row, ignore, fence)
        await store.save_conversation(row.agent_id, "!1", "conv-1", fence)  # type: ignore[arg-type]
        turn = NewItem(
            lane_of_turns(row.agent_id, "!1"), ItemKind.TURN, {"scope": "!1", "text": "x"}, "k"
        )
        (waiting,) = await store.put([turn])
        await store.save_mapping(replace(row, room_id=RoomId("!new")), ignore, fence)
        item = await store.get_item(waiting)
        assert item.lane == lane_of_turns(row.agent_id, "!new") and item.payload["scope"] == "!new"
        assert await store.find_conversation(row.agent_id, "!new") == "conv-1"
        assert await store.find_conversation(row.agent_id, "!1") is None


async def test_a_dry_run_looks_but_leaves_the_look_to_the_next_sync(tmp_path: Path) -> None:
    homeserver, row = Homeserver(home(1)), home(1)

    async def matrix() -> Matrix:
        return cast(Matrix, homeserver)

    async with open_store(tmp_path / "s.db") as store:
        fence = (await store.take_lease("me", rank=1, ttl_ms=60_000)).fence
        await store.save_mapping(row, ignore, fence, joined=True)
        await store.save_audit({}, {}, {}, {}, fence, audited_ms=5_000)
        audits = Audits(store, matrix, interval_s=60.0)

        async def look(now_ms: int, fence: int | None) -> bool:
            rows, rooms = await store.list_mappings(), await store.list_rooms()
            seen, _ = await audits.look(
                rows, rooms, Space(), asked=False, now_ms=now_ms, fence=fence
            )
            return seen is not None

        assert await look(6_000, None) and await look(6_000, None), "nothing is known of its room"
        assert await look(6_000, fence) and not await look(6_000, fence)
        assert await look(4_000, fence), "the clock was set back"
        assert not await look(4_001, fence)


async def test_a_space_that_cannot_be_looked_at_is_reported_and_stops_no_sync(
    tmp_path: Path,
) -> None:
    homeserver = Homeserver(home(1))
    homeserver.failures["#agent_space:hs.test"] = Unavailable("matrix", "it answered 502")

    async def matrix() -> Matrix:
        return cast(Matrix, homeserver)

    async with open_store(tmp_path / "s.db") as store:
        space, rows = Space(RoomId("!space")), {home(1).agent_id: home(1)}
        audits = Audits(store, matrix, interval_s=60.0)
        seen, after = await audits.look(rows, {}, space, asked=True, now_ms=1, fence=None)
        assert seen and "the space: " in seen.unread[0] and "502" in seen.unread[0]
        assert after == space
