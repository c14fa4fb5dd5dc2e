"""The hub's sync against a real Synapse: everything once, in order, across restarts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from homeroom.matrix._sync import read_batch
from support.matrix import (
    as_ghost,
    bodies,
    catch_up,
    connect,
    move_in,
    room_spec,
    text,
)
from support.person import Person
from support.synapse import PASSWORD, Homeserver

pytest_plugins = ("support.fixtures_matrix",)

Unique = Callable[[str], str]
VERSIONS = ("10", "11", "12")


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_hub_hears_people_and_ghosts_in_order(
    synapse: Homeserver, unique: Unique, version: str
) -> None:
    ann = unique("ann")
    person_id = synapse.person(ann)
    async with connect(synapse) as matrix:
        ghost, room = await move_in(matrix, unique("agent_heard"), version, person_id)
        cursor = await catch_up(matrix)
        async with Person.login(synapse.url, ann, PASSWORD) as person:
            await person.join(room)
            said = await person.say(room, "first", **{"org.example.extra": 1})
            await matrix.post(ghost, room, text("second"), "1")
            await person.say(room, "third")
        batch = await matrix.sync(cursor, 0)
        assert bodies(batch.events) == ["first", "second", "third"]
        assert (room, person_id, "join") in [
            (member.room_id, member.user_id, member.membership) for member in batch.members
        ]
        first = next(event for event in batch.events if event.id == said)
        assert (first.room_id, first.sender, first.state_key) == (room, person_id, None)
        assert first.content["org.example.extra"] == 1
        assert first.origin_server_ts_ms > 1_600_000_000_000
        assert await matrix.sync(batch.cursor, 0) == type(batch)(batch.cursor)


async def test_a_waiting_sync_returns_as_soon_as_something_happens(
    synapse: Homeserver, unique: Unique
) -> None:
    async with connect(synapse) as matrix:
        ghost, room = await move_in(matrix, unique("agent_wait"))
        waiting = asyncio.create_task(matrix.sync(await catch_up(matrix), 30_000))
        await matrix.post(ghost, room, text("wake up"), "1")
        async with asyncio.timeout(10):
            assert bodies((await waiting).events) == ["wake up"]


async def test_the_first_sync_returns_what_the_rooms_hold(
    synapse: Homeserver, unique: Unique
) -> None:
    async with connect(synapse) as matrix:
        ghost, room = await move_in(matrix, unique("agent_first"), "12")
        await matrix.post(ghost, room, text("from before"), "1")
        batch = await matrix.sync("", 0)
        here = [event for event in batch.events if event.room_id == room]
        assert bodies(here) == ["from before"]
        assert {m.user_id for m in batch.members if m.room_id == room} == {ghost, matrix.hub}


async def test_what_was_said_before_the_hub_came_in_is_heard(
    synapse: Homeserver, unique: Unique
) -> None:
    async with connect(synapse) as matrix:
        await matrix.check()
        name = unique("agent_early")
        ghost = await matrix.ensure_ghost(name)
        room = await matrix.create_room(ghost, room_spec(name, "12", hub=matrix.hub))
        await matrix.post(ghost, room, text("early"), "1")
        cursor = await catch_up(matrix)
        await matrix.ensure_joined(matrix.hub, room)
        await matrix.post(ghost, room, text("late"), "2")
        assert bodies((await matrix.sync(cursor, 0)).events) == ["early", "late"]


async def test_a_room_that_puts_the_hub_out_is_reported_and_blocks_nobody(
    synapse: Homeserver, unique: Unique
) -> None:
    async with connect(synapse) as matrix:
        ghost, room = await move_in(matrix, unique("agent_kick"))
        other, other_room = await move_in(matrix, unique("agent_stays"))
        cursor = await catch_up(matrix)
        for number in range(120):
            await matrix.post(ghost, room, text(str(number)), str(number))
        kick = f"/_matrix/client/v3/rooms/{room}/kick"
        as_ghost(synapse, ghost, "POST", kick, {"user_id": matrix.hub})
        await matrix.post(other, other_room, text("still heard"), "1")
        batch = await matrix.sync(cursor, 0)
        assert batch.left_rooms == (room,)
        here = [event for event in batch.events if event.room_id == room]
        assert bodies(here) == [str(number) for number in range(120)]
        assert "still heard" in bodies(batch.events)


async def test_an_invitation_of_the_hub_is_told_and_what_was_missed_comes_with_its_return(
    synapse: Homeserver, unique: Unique
) -> None:
    async with connect(synapse) as matrix:
        ghost, room = await move_in(matrix, unique("agent_again"))
        await matrix.post(ghost, room, text("before"), "1")
        as_ghost(
            synapse, ghost, "POST", f"/_matrix/client/v3/rooms/{room}/kick", {"user_id": matrix.hub}
        )
        batch = await matrix.sync(await catch_up(matrix), 0)
        assert room not in await matrix.joined_rooms(matrix.hub)
        await matrix.post(ghost, room, text("meanwhile"), "2")
        await matrix.invite(ghost, room, matrix.hub)
        batch = await matrix.sync(batch.cursor, 0)
        here = [(m.user_id, m.membership) for m in batch.members if m.room_id == room]
        assert here == [(matrix.hub, "invite")]
        await matrix.ensure_joined(matrix.hub, room)
        assert room in await matrix.joined_rooms(matrix.hub)
        batch = await matrix.sync(batch.cursor, 0)
        assert "meanwhile" in bodies([e for e in batch.events if e.room_id == room])


@pytest.mark.parametrize("version", ["11", "12"])
async def test_three_hundred_messages_missed_across_a_restart_come_whole_and_in_order(
    own_synapse: Homeserver, version: str
) -> None:
    own_synapse.person("ann")
    async with connect(own_synapse) as matrix:
        _, room = await move_in(matrix, "agent_busy", version, "@ann:hs.test")
        _, quiet = await move_in(matrix, "agent_quiet", version, "@ann:hs.test")
        async with Person.login(own_synapse.url, "ann", PASSWORD) as person:
            await person.join(room)
            await person.join(quiet)
            cursor = await catch_up(matrix)
            for number in range(150):
                await person.say(room, str(number))
        own_synapse.synapse.stop()
        own_synapse.synapse.start()
        async with Person.login(own_synapse.url, "ann", PASSWORD) as person:
            for number in range(150, 300):
                await person.say(room, str(number))
            await person.say(quiet, "meanwhile")

        batch = await matrix.sync(cursor, 0)
        heard = [event for event in batch.events if event.room_id == room]
        assert bodies(heard) == [str(number) for number in range(300)]
        assert bodies([e for e in batch.events if e.room_id == quiet]) == ["meanwhile"]
        assert len({event.id for event in batch.events}) == len(batch.events)


@pytest.mark.parametrize("version", ["11", "12"])
async def test_a_backlog_is_spread_over_steps_without_a_hole_or_a_double(
    synapse: Homeserver, unique: Unique, version: str
) -> None:
    async with connect(synapse) as matrix:
        one, room = await move_in(matrix, unique("agent_backlog"), version)
        two, other = await move_in(matrix, unique("agent_other"), version)
        cursor = await catch_up(matrix)
        for number in range(130):
            await matrix.post(one, room, text(f"a{number}"), str(number))
            await matrix.post(two, other, text(f"b{number}"), str(number))
        heard: dict[str, list[str]] = {room: [], other: []}
        step_count = 0
        while "a130" not in heard[room] or "b130" not in heard[other]:
            step_count += 1
            batch = await read_batch(
                matrix._wire.ask, matrix.hub, cursor, 0, page_size=30, page_limit=2
            )
            for room_id in heard:
                heard[room_id] += bodies([e for e in batch.events if e.room_id == room_id])
            if step_count == 1:  # people go on talking while the backlog is read
                await matrix.post(one, room, text("a130"), "130")
                await matrix.post(two, other, text("b130"), "130")
                assert batch.cursor != cursor
            cursor = batch.cursor
            assert step_count < 30
        assert heard == {
            room: [f"a{number}" for number in range(131)],
            other: [f"b{number}" for number in range(131)],
        }
        assert step_count > 3


async def test_a_cancelled_sync_ends_at_once(synapse: Homeserver) -> None:
    async with connect(synapse) as matrix:
        await matrix.check()
        cursor = await catch_up(matrix)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await matrix.sync(cursor, 30_000)
