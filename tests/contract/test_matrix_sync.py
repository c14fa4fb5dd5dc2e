"""The hub's sync against a real Synapse: everything once, in order, across restarts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from homeroom.matrix._sync import read_batch
from homeroom.model import MARKER_TYPE, RoomEvent, RoomId, SyncBatch, Unread
from homeroom.residence import Absence
from support.fault_proxy import FaultProxy, path
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
SYNC = path(r"/sync$")
LONG_MS = 60_000
"""How long a sync waits when nothing happens: what ends in half of it was not waited for."""


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
        again = await matrix.sync(batch.cursor, 0)
        assert again == SyncBatch(batch.cursor, since=batch.cursor, now_ms=again.now_ms)


async def test_a_waiting_sync_returns_as_soon_as_something_happens(
    synapse: Homeserver, unique: Unique
) -> None:
    with FaultProxy(synapse.url) as proxy:
        async with connect(synapse, matrix_url=proxy.url) as matrix:
            ghost, room = await move_in(matrix, unique("agent_wait"))
            cursor, asked = await catch_up(matrix), proxy.count(SYNC)
            waiting = asyncio.create_task(matrix.sync(cursor, LONG_MS))
            await proxy.wait_count(SYNC, asked + 1)
            await matrix.post(ghost, room, text("wake up"), "1")
            async with asyncio.timeout(LONG_MS / 2000):
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


async def test_each_step_of_a_backlog_tells_when_the_hub_came_into_the_room(
    synapse: Homeserver, unique: Unique
) -> None:
    """Else what was said there while the hub was out, and nobody read, would count as just said."""
    async with connect(synapse) as matrix:
        ghost, room = await move_in(matrix, unique("agent_rejoined"))
        cursor = await catch_up(matrix)
        as_ghost(synapse, matrix.hub, "POST", f"/_matrix/client/v3/rooms/{room}/leave", {})
        for number in range(100):
            await matrix.post(ghost, room, text(str(number)), str(number))
        invited = {"user_id": matrix.hub}
        as_ghost(synapse, ghost, "POST", f"/_matrix/client/v3/rooms/{room}/invite", invited)
        as_ghost(synapse, matrix.hub, "POST", f"/_matrix/client/v3/join/{room}", {})
        told, heard, steps = set[int](), list[str](), 0
        while "99" not in heard:
            batch = await read_batch(
                matrix._wire.ask, matrix.hub, cursor, 0, page_size=30, page_limit=1
            )
            found = [event for event in batch.events if event.room_id == room]
            heard, cursor, steps = heard + bodies(found), batch.cursor, steps + 1
            if found:
                joined_ms = batch.joined_ms[RoomId(room)]
                told.add(joined_ms)
                assert all(event.origin_server_ts_ms <= joined_ms for event in found)
        assert heard[-100:] == [str(number) for number in range(100)]
        assert len(told) == 1 and steps > 3


def _member(homeserver: Homeserver, by: str, what: str, room: str, whom: str) -> None:
    path = f"/_matrix/client/v3/rooms/{room}/{what}"
    as_ghost(homeserver, by, "POST", path, {} if by == whom else {"user_id": whom})


@pytest.mark.parametrize("visibility", ["shared", "joined"])
@pytest.mark.parametrize("how", ["kick", "ban"])
async def test_what_was_said_while_the_hub_was_put_out_is_read_by_the_ghost_when_it_is_back(
    synapse: Homeserver, unique: Unique, how: str, visibility: str
) -> None:
    """Steps go on while it is out, so nothing but the token of then leads back."""
    async with connect(synapse) as matrix:
        ghost, room = await move_in(matrix, unique("agent_out"))
        await matrix.put_state(
            ghost, room, "m.room.history_visibility", {"history_visibility": visibility}
        )
        await matrix.post(ghost, room, text("before"), "before")
        cursor = await catch_up(matrix)
        _member(synapse, ghost, how, room, matrix.hub)
        left = await matrix.sync(cursor, 0)
        assert left.left_rooms == (room,) and left.since == cursor
        for number in range(150):
            await matrix.post(ghost, room, text(str(number)), str(number))
        cursor = (await matrix.sync(left.cursor, 0)).cursor
        if how == "ban":
            _member(synapse, ghost, "unban", room, matrix.hub)
        await matrix.invite(ghost, room, matrix.hub)
        cursor = (await matrix.sync(cursor, 0)).cursor
        await matrix.ensure_joined(matrix.hub, room)
        await matrix.post(ghost, room, text("back"), "back")

        async def find_absences(rooms: object) -> dict[RoomId, Absence]:
            assert rooms == [room]
            return {room: Absence(ghost, left.since)}

        heard, steps = list[RoomEvent](), 0
        while "back" not in bodies(heard):
            batch = await read_batch(
                matrix._wire.ask, matrix.hub, cursor, 0, find_absences, page_size=40, page_limit=1
            )
            assert room in batch.joined_ms
            heard += [event for event in batch.events if event.room_id == room]
            cursor, steps = batch.cursor, steps + 1
            if steps == 1:  # what is left of it is read even if it is put out once more
                _member(synapse, ghost, "kick", room, matrix.hub)
        assert bodies(heard) == [*(str(number) for number in range(150)), "back"]
        assert steps > 3 and len({event.id for event in heard}) == len(heard)
        while batch.has_more:
            batch = await matrix.sync(batch.cursor, 0)
        assert (await matrix.sync(batch.cursor, 0)).left_rooms == (room,)


async def test_an_absence_within_one_step_is_read_by_the_ghost_too(
    synapse: Homeserver, unique: Unique
) -> None:
    async with connect(synapse) as matrix:
        ghost, room = await move_in(matrix, unique("agent_blink"))
        await matrix.put_state(
            ghost, room, "m.room.history_visibility", {"history_visibility": "joined"}
        )
        cursor = await catch_up(matrix)
        await matrix.post(ghost, room, text("in"), "in")
        _member(synapse, ghost, "kick", room, matrix.hub)
        await matrix.post(ghost, room, text("out"), "out")
        await matrix.invite(ghost, room, matrix.hub)
        await matrix.ensure_joined(matrix.hub, room)
        await matrix.post(ghost, room, text("back"), "back")

        async def find_absences(rooms: object) -> dict[RoomId, Absence]:
            return {room: Absence(ghost, was_in=True)}

        batch = await matrix.sync(cursor, 0, find_absences)
        assert bodies([e for e in batch.events if e.room_id == room]) == ["in", "out", "back"]
        hub_only = await matrix.sync(cursor, 0)
        assert "out" not in bodies(hub_only.events), "else the ghost would not be needed"


async def test_where_hub_and_ghost_are_both_out_nothing_is_held_up(
    synapse: Homeserver, unique: Unique
) -> None:
    async with connect(synapse) as matrix:
        ghost, room = await move_in(matrix, unique("agent_both"))
        other, other_room = await move_in(matrix, unique("agent_third"))
        cursor = await catch_up(matrix)
        _member(synapse, matrix.hub, "leave", room, matrix.hub)
        left = await matrix.sync(cursor, 0)
        await matrix.invite(ghost, room, matrix.hub)
        await matrix.ensure_joined(matrix.hub, room)
        await matrix.post(ghost, room, text("seen by the hub"), "1")
        _member(synapse, ghost, "leave", room, ghost)

        async def find_absences(rooms: object) -> dict[RoomId, Absence]:
            return {room: Absence(ghost, left.since)}

        batch = await matrix.sync(left.cursor, 0, find_absences)
        assert "seen by the hub" in bodies(batch.events), "it may read on alone"

        async def find_nonsense(rooms: object) -> dict[RoomId, Absence]:
            return {room: Absence(ghost, "of another homeserver")}

        await matrix.post(other, other_room, text("elsewhere"), "1")
        batch = await matrix.sync(left.cursor, 0, find_nonsense)
        assert {"seen by the hub", "elsewhere"} <= set(bodies(batch.events))


@pytest.mark.parametrize("visibility", ["shared", "joined"])
@pytest.mark.parametrize("who_comes_back", ["hub, ghost", "ghost, hub", "hub"])
async def test_what_was_said_while_hub_and_ghost_were_out_is_read_or_told_to_be_unreadable(
    synapse: Homeserver, unique: Unique, who_comes_back: str, visibility: str
) -> None:
    ann = unique("ann")
    person_id = synapse.person(ann)
    async with (
        connect(synapse) as matrix,
        Person.login(synapse.url, ann, PASSWORD) as person,
    ):
        ghost, room = await move_in(matrix, unique("agent_pair"), "11", person_id)
        await person.join(room)
        await matrix.put_state(
            ghost, room, "m.room.history_visibility", {"history_visibility": visibility}
        )
        cursor = await catch_up(matrix)
        _member(synapse, ghost, "kick", room, matrix.hub)
        left = await matrix.sync(cursor, 0)
        assert left.left_rooms == (room,)
        await person.say(room, "to the ghost")
        _member(synapse, ghost, "leave", room, ghost)
        for number in range(110):  # more than the timeline holds
            await person.say(room, str(number))
        for who in who_comes_back.split(", "):
            user = matrix.hub if who == "hub" else ghost
            await person._ask("POST", ("rooms", room, "invite"), body={"user_id": user})
            await matrix.ensure_joined(user, room)
            await person.say(room, f"with the {who}")

        async def find_absences(rooms: object) -> dict[RoomId, Absence]:
            return {room: Absence(ghost, left.since, out_ms=left.left_ms[room])}

        for page_size in (500, 40):
            heard, unread = list[RoomEvent](), list[Unread]()
            batch = SyncBatch(left.cursor, has_more=True)
            while batch.has_more:
                batch = await read_batch(
                    matrix._wire.ask, matrix.hub, batch.cursor, 0, find_absences,
                    page_size=page_size, page_limit=2,
                )  # fmt: skip
                known = {event.id for event in heard}
                heard += [e for e in batch.events if e.room_id == room and e.id not in known]
                unread += batch.unread
            back = [f"with the {who}" for who in who_comes_back.split(", ")]
            between = [str(number) for number in range(110)] if visibility == "shared" else []
            assert bodies(heard) == ["to the ghost", *between, *back]
            if visibility == "shared":
                assert not unread
                continue
            (one,) = unread
            said = {event.content.get("body"): event.origin_server_ts_ms for event in heard}
            assert one.room_id == room and said["to the ghost"] <= one.from_ms < one.to_ms
            assert one.to_ms <= said[back[0]]


async def test_a_room_that_no_token_leads_back_to_is_read_back_to_where_it_is_known(
    synapse: Homeserver, unique: Unique
) -> None:
    async with connect(synapse) as matrix:
        ghost, room = await move_in(matrix, unique("agent_lost"))
        for number in range(60):
            await matrix.post(ghost, room, text(f"long ago {number}"), f"old {number}")
        known = (await matrix.sync("", 0)).events
        known_ms = max(event.origin_server_ts_ms for event in known if event.room_id == room)
        _member(synapse, matrix.hub, "leave", room, matrix.hub)
        for number in range(250):
            await matrix.post(ghost, room, text(str(number)), str(number))
        cursor = await catch_up(matrix)
        await matrix.invite(ghost, room, matrix.hub)
        await matrix.ensure_joined(matrix.hub, room)

        async def heard(absence: Absence) -> list[str]:
            async def find_absences(rooms: object) -> dict[RoomId, Absence]:
                return {room: absence}

            batch = await read_batch(
                matrix._wire.ask, matrix.hub, cursor, 0, find_absences, page_size=40
            )
            found = list(batch.events)
            while batch.has_more:
                batch = await matrix.sync(batch.cursor, 0)
                found += batch.events
            return bodies([event for event in found if event.room_id == room])

        every = [str(number) for number in range(250)]
        back = await heard(Absence(ghost, known_ms=known_ms))
        assert [body for body in back if not body.startswith("long ago")] == every
        assert len(back) < len(every) + 40, "and no further"
        few = await heard(Absence(ghost, known_ms=known_ms, reach_ms=0))
        assert few == every[-len(few) :] and len(few) <= 100, "what is too old stays where it is"


async def test_a_cancelled_sync_ends_at_once(synapse: Homeserver) -> None:
    with FaultProxy(synapse.url) as proxy:
        async with connect(synapse, matrix_url=proxy.url) as matrix:
            await matrix.check()
            cursor, asked = await catch_up(matrix), proxy.count(SYNC)
            waiting = asyncio.create_task(matrix.sync(cursor, LONG_MS))
            await proxy.wait_count(SYNC, asked + 1)
            assert not waiting.done()
            waiting.cancel()
            async with asyncio.timeout(LONG_MS / 2000):
                with pytest.raises(asyncio.CancelledError):
                    await waiting


def _name_of(batch: SyncBatch, room: str) -> list[tuple[str, str]]:
    return [
        (str(event.content.get("name")), event.sender)
        for event in batch.state
        if event.room_id == room and event.type == "m.room.name"
    ]


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_state_of_a_room_comes_whole_at_first_and_then_as_it_changes(
    synapse: Homeserver, unique: Unique, version: str
) -> None:
    ann = unique("ann")
    person_id = synapse.person(ann)
    async with connect(synapse) as matrix:
        name = unique("agent_state")
        ghost, room = await move_in(matrix, name, version, person_id)
        first = await matrix.sync("", 0)
        here = {event.type: event for event in first.state if event.room_id == room}
        assert here["m.room.create"].sender == ghost
        assert here["m.room.topic"].content["topic"] == "What it is for"
        assert here["m.room.canonical_alias"].content == {"alias": matrix.alias(name)}
        assert here[MARKER_TYPE].content == {"agent_id": name}
        assert here["m.room.power_levels"].content["invite"] == 50
        assert "m.room.history_visibility" not in here and "m.room.member" not in here
        async with Person.login(synapse.url, ann, PASSWORD) as person:
            await person.join(room)
            await person.send_state(room, "m.room.name", {"name": "theirs"})
            await matrix.set_name(ghost, room, "ours")
        batch = await matrix.sync(first.cursor, 0)
        assert _name_of(batch, room) == [("ours", ghost)], "the last of them counts"
        assert (await matrix.sync(batch.cursor, 0)).state == ()


async def test_a_change_of_state_in_a_hole_is_told_and_never_wins_over_a_later_one(
    synapse: Homeserver, unique: Unique
) -> None:
    async with connect(synapse) as matrix:
        ghost, room = await move_in(matrix, unique("agent_hole"))
        cursor = await catch_up(matrix)
        await matrix.set_topic(ghost, room, "in the hole")
        await matrix.set_name(ghost, room, "in the hole")
        for number in range(130):
            await matrix.post(ghost, room, text(str(number)), str(number))
        await matrix.set_name(ghost, room, "after it")
        names, topics, heard = [], [], []
        while "129" not in heard:
            batch = await read_batch(
                matrix._wire.ask, matrix.hub, cursor, 0, page_size=30, page_limit=1
            )
            names += _name_of(batch, room)
            topics += [e.content["topic"] for e in batch.state if e.type == "m.room.topic"]
            heard += bodies([e for e in batch.events if e.room_id == room])
            cursor = batch.cursor
        assert (names, topics) == ([("after it", ghost)], ["in the hole"])
        assert heard == [str(number) for number in range(130)]


async def test_a_tombstone_of_an_upgraded_room_names_the_room_that_follows(
    synapse: Homeserver, unique: Unique
) -> None:
    async with connect(synapse) as matrix:
        ghost, room = await move_in(matrix, unique("agent_moves"), "10")
        cursor = await catch_up(matrix)
        upgrade = f"/_matrix/client/v3/rooms/{room}/upgrade"
        answer = as_ghost(synapse, ghost, "POST", upgrade, {"new_version": "11"})
        batch = await matrix.sync(cursor, 0)
        (stone,) = [e for e in batch.state if e.type == "m.room.tombstone"]
        assert stone.content["replacement_room"] == answer["replacement_room"]


async def test_a_batch_tells_the_homeservers_own_time(synapse: Homeserver) -> None:
    """The age of a message is measured by the clock that its time was taken from."""
    async with connect(synapse) as matrix:
        before_ms = time.time_ns() // 1_000_000 - 1_000  # it tells whole seconds
        batch = await matrix.sync("", 0)
        assert before_ms <= batch.now_ms <= time.time_ns() // 1_000_000
