"""What the store makes of the state of rooms that the hub's sync tells."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from homeroom.items import Decision
from homeroom.model import (
    MARKER_TYPE,
    AgentId,
    Detail,
    GhostId,
    Mapping,
    Member,
    RoomEvent,
    RoomId,
    RoomView,
    StateEvent,
    SyncBatch,
)
from homeroom.residence import Claim, Refusal
from homeroom.store import Store, open_store

ROOM, SPACE, NEXT = RoomId("!r:hs.test"), RoomId("!s:hs.test"), RoomId("!next:hs.test")
YOU, GHOST = "@you:hs.test", "@agent_1:hs.test"


def ignore(event: RoomEvent, mapping: Mapping, people: int) -> Decision:
    return Decision("ignored")


class Rooms:
    """A store that hears what the test says."""

    def __init__(self, store: Store, fence: int) -> None:
        self.store, self.fence = store, fence

    async def hear(self, *state: StateEvent, **more: Any) -> None:
        batch = SyncBatch("s", state=state, **more)
        await self.store.record_batch(batch, ignore, lambda user: user == GHOST, self.fence)

    async def view(self, room: RoomId = ROOM) -> RoomView:
        return (await self.store.list_rooms())[room]


@asynccontextmanager
async def rooms(path: Path) -> AsyncIterator[Rooms]:
    async with open_store(path / "s.db") as store:
        yield Rooms(store, (await store.take_lease("me", rank=1, ttl_ms=60_000)).fence)


def state(
    type_: str, content: dict[str, Any], key: str = "", *, by: str = YOU, room: RoomId = ROOM
) -> StateEvent:
    return StateEvent(room, type_, key, content, by)


async def test_a_view_says_what_a_room_is_called_by_whom_and_who_is_in_it(tmp_path: Path) -> None:
    async with rooms(tmp_path) as it:
        members = (Member(ROOM, YOU, "join", "You"), Member(ROOM, GHOST, "invite"))
        await it.hear(
            state("m.room.create", {}, by=GHOST),
            state("m.room.name", {"name": "Ada"}, by=GHOST),
            state("m.room.topic", {"topic": "notes"}),
            state("m.room.avatar", {"url": "mxc://hs.test/a"}),
            state("m.room.canonical_alias", {"alias": "#a:hs.test"}),
            state("m.room.power_levels", {"invite": 50}),
            state(MARKER_TYPE, {"agent_id": "agent-1"}, by=GHOST),
            members=members,
        )
        assert await it.view() == RoomView(
            ROOM, known=True, name=Detail("Ada", GHOST), topic=Detail("notes", YOU),
            avatar=Detail("mxc://hs.test/a", YOU), canonical_alias="#a:hs.test",
            marker={"agent_id": "agent-1"}, marked_by=GHOST, power_levels={"invite": 50},
            members={YOU: "join", GHOST: "invite"},
        )  # fmt: skip
        assert (await it.view()).users("join", "invite") == {YOU, GHOST}


async def test_what_is_told_later_wins_and_the_rest_stays_also_when_the_hub_leaves(
    tmp_path: Path,
) -> None:
    async with rooms(tmp_path) as it:
        await it.hear(state("m.room.name", {"name": "old"}), state("m.room.topic", {"topic": "t"}))
        await it.hear(state("m.room.name", {"name": "new"}, by=GHOST), left_rooms=(ROOM,))
        view = await it.view()
        assert (view.name, view.topic) == (Detail("new", GHOST), Detail("t", YOU))
        assert not view.known, "that it was told in part is no reason to take it for whole"


async def test_a_tombstone_names_the_room_that_follows_and_can_be_taken_back(
    tmp_path: Path,
) -> None:
    async with rooms(tmp_path) as it:
        await it.hear(state("m.room.tombstone", {"body": "x", "replacement_room": NEXT}))
        assert ((await it.view()).closed, (await it.view()).replacement) == (True, NEXT)
        await it.hear(state("m.room.tombstone", {"body": "closed for good"}))
        assert ((await it.view()).closed, (await it.view()).replacement) == (True, None)
        await it.hear(state("m.room.tombstone", {}))
        assert not (await it.view()).closed


async def test_links_of_spaces_count_only_while_they_name_a_server(tmp_path: Path) -> None:
    async with rooms(tmp_path) as it:
        via = {"via": ["hs.test"]}
        await it.hear(
            state("m.room.create", {"type": "m.space"}, room=SPACE),
            state("m.space.child", via, ROOM, room=SPACE),
            state("m.space.child", via, NEXT, room=SPACE),
            state("m.space.parent", via, SPACE),
        )
        await it.hear(state("m.space.child", {}, NEXT, room=SPACE))
        space = await it.view(SPACE)
        assert (space.room_type, space.children) == ("m.space", {ROOM})
        assert (await it.view()).parents == {SPACE}


@pytest.mark.parametrize("junk", [None, 7, [], {"name": "x"}, "text\udc00"])
async def test_state_of_any_shape_is_kept_and_never_taken_for_what_it_is_not(
    junk: Any, tmp_path: Path
) -> None:
    async with rooms(tmp_path) as it:
        await it.hear(
            state("m.room.name", {"name": junk}),
            state("m.room.avatar", {"url": junk}),
            state("m.room.tombstone", {"replacement_room": junk}),
            state("m.space.parent", {"via": junk}, SPACE),
            state("m.room.create", {"type": junk}),
        )
        view = await it.view()
        text = junk if isinstance(junk, str) else ""
        assert (view.name.text, view.avatar.text, view.room_type) == (text, text, text)
        assert view.replacement is None and view.closed and not view.parents, "no room id"


async def test_a_view_that_was_read_before_is_as_new_as_any_whoever_changed_the_room(
    tmp_path: Path,
) -> None:
    """Reading is spared, and never at the price of an old view."""
    async with rooms(tmp_path) as it, open_store(tmp_path / "s.db") as other:
        await it.hear(state("m.room.name", {"name": "1"}), state("m.room.topic", {"topic": "t"}))
        names = [(await other.list_rooms())[ROOM].name.text, (await it.view()).name.text]
        assert names == ["1", "1"]
        await it.hear(state("m.room.name", {"name": "2"}), state("m.room.name", {}, room=NEXT))
        names = [(await other.list_rooms())[ROOM].name.text, (await it.view()).name.text]
        assert names == ["2", "2"] and NEXT in await it.store.list_rooms()
        batch = SyncBatch("s", state=(state("m.room.name", {"name": "3"}),))
        await other.record_batch(batch, ignore, lambda user: False, it.fence)
        await it.hear(state("m.room.topic", {"topic": "u"}))
        view = await it.view()
        assert (view.name.text, view.topic.text) == ("3", "u")
        assert await other.list_rooms() == await it.store.list_rooms()


@pytest.mark.parametrize(
    "named", ["", "no room", "!", "!with space", "!nul\0", "!" + "x" * 300, "#alias:hs.test", 7]
)
async def test_a_tombstone_that_names_no_room_id_names_none(named: object, tmp_path: Path) -> None:
    async with rooms(tmp_path) as it:
        await it.hear(state("m.room.tombstone", {"replacement_room": named}))
        assert (await it.view()).closed and (await it.view()).replacement is None
        await it.hear(state("m.room.tombstone", {"replacement_room": NEXT}))
        assert (await it.view()).replacement == NEXT


async def test_a_ghost_that_was_turned_away_or_a_hub_not_let_in_is_seen_as_out_at_once(
    tmp_path: Path,
) -> None:
    hub = GhostId("@agent_hub:hs.test")
    async with rooms(tmp_path) as it:
        inside = (Member(ROOM, GHOST, "join"), Member(ROOM, hub, "invite"))
        await it.hear(state("m.room.create", {}), members=inside)
        assert (await it.view()).members == {GHOST: "join", hub: "invite"}
        refusal = Refusal("conflict", ROOM, GhostId(GHOST), "", "not its room", 1, 0)
        await it.store.note_refusal(refusal, it.fence)
        assert (await it.view()).members[GHOST] == "leave"
        claim = Claim(ROOM, AgentId("agent-1"))
        await it.store.note_claim_problem(claim, hub, "not let in", it.fence)
        assert (await it.view()).members[hub] == "leave"
