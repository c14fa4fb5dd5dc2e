"""What an audit asks and what mends a home, against a real Synapse: the rules they rest on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from homeroom.errors import Rejected
from homeroom.matrix import MARKER_TYPE, is_gone
from homeroom.model import RoomId
from support.admin import admin_of
from support.matrix import as_ghost, catch_up, connect, move_in
from support.person import Person
from support.synapse import PASSWORD, Homeserver

pytest_plugins = ("support.fixtures_matrix",)

Unique = Callable[[str], str]
CLIENT = "/_matrix/client/v3"


async def test_a_ghost_is_made_once_and_one_that_is_not_there_has_no_name_at_all(
    synapse: Homeserver, unique: Unique
) -> None:
    async with connect(synapse) as matrix:
        await matrix.check()
        name = unique("agent_once")
        assert await matrix.find_display_name(matrix.ghost_id(name)) is None
        assert await matrix.make_ghost(name) and not await matrix.make_ghost(name)
        assert await matrix.find_display_name(matrix.ghost_id(name)) == name
        assert not await matrix.revive_hub(), "it is there"


async def test_an_alias_is_pointed_elsewhere_from_wherever_it_led(
    synapse: Homeserver, unique: Unique
) -> None:
    async with connect(synapse) as matrix:
        name = unique("agent_alias")
        ghost, room = await move_in(matrix, name)
        _, other = await move_in(matrix, unique("agent_other"))
        alias = matrix.alias(name)
        for target in (other, room, room):
            await matrix.point_alias(ghost, alias, target)
            assert await matrix.find_room(alias) == target
        for _ in range(2):
            await matrix.remove_alias(ghost, alias)
            assert await matrix.find_room(alias) is None
        await matrix.point_alias(ghost, alias, room)
        assert await matrix.find_room(alias) == room
        with pytest.raises(Rejected):
            await matrix.point_alias(ghost, alias, RoomId("!none:hs.test"))


@pytest.mark.parametrize("version", ["11", "12"])
async def test_the_state_of_a_room_comes_with_its_members_and_of_who_left_with_their_leaving(
    synapse: Homeserver, unique: Unique, version: str
) -> None:
    async with connect(synapse) as matrix:
        name = unique("agent_look")
        ghost, room = await move_in(matrix, name, version)
        state, members = await matrix.room_state(matrix.hub, room)
        told = {event.type: event.content for event in state}
        assert told["m.room.name"] == {"name": f"Room of {name}"}
        assert told[MARKER_TYPE] == {"agent_id": name} and "m.room.create" in told
        assert {(m.user_id, m.membership) for m in members} == {
            (ghost, "join"),
            (matrix.hub, "join"),
        }
        as_ghost(synapse, matrix.hub, "POST", f"{CLIENT}/rooms/{room}/leave")
        await matrix.set_name(ghost, room, "later")
        state, members = await matrix.room_state(matrix.hub, room)
        assert {m.user_id: m.membership for m in members}[matrix.hub] == "leave"
        assert not [e for e in state if e.content == {"name": "later"}], "it sees the past"


@pytest.mark.parametrize("how", ["purged", "blocked", "left"])
async def test_a_room_that_is_gone_is_told_from_one_that_does_not_let_us_in(
    synapse: Homeserver, unique: Unique, how: str
) -> None:
    ann = unique("ann")
    person_id = synapse.person(ann)
    async with connect(synapse) as matrix, Person.login(synapse.url, ann, PASSWORD) as person:
        ghost, room = await move_in(matrix, unique("agent_gone"), "11", person_id)
        await person.join(room)
        for user in (matrix.hub, ghost):
            as_ghost(synapse, user, "POST", f"{CLIENT}/rooms/{room}/leave")
        with pytest.raises(Rejected) as locked_out:
            await matrix.ensure_joined(ghost, room)
        assert not is_gone(locked_out.value) and locked_out.value.code == "M_FORBIDDEN"
        if how == "left":
            await person.leave(room)
        else:
            async with admin_of(synapse, unique("admin")) as admin:
                await admin.delete_room(room, block=how == "blocked")
        for user in (matrix.hub, ghost):
            with pytest.raises(Rejected) as refused:
                await matrix.ensure_joined(user, room)
            assert is_gone(refused.value)


async def test_the_hub_is_never_told_of_a_room_that_was_purged(
    synapse: Homeserver, unique: Unique
) -> None:
    """The reason for audits."""
    async with connect(synapse) as matrix, admin_of(synapse, unique("admin")) as admin:
        _, room = await move_in(matrix, unique("agent_purged"))
        cursor = await catch_up(matrix)
        await admin.delete_room(room)
        batch = await matrix.sync(cursor, 0)
        assert room not in batch.left_rooms and not [m for m in batch.members if m.room_id == room]
        assert room not in await matrix.joined_rooms(matrix.hub)


async def test_a_room_that_takes_requests_is_knocked_at(
    synapse: Homeserver, unique: Unique
) -> None:
    ann = unique("ann")
    synapse.person(ann)
    async with connect(synapse) as matrix, Person.login(synapse.url, ann, PASSWORD) as person:
        ghost, _ = await move_in(matrix, unique("agent_knock"))
        made = await person._ask("POST", ("createRoom",), body={"room_version": "11"})
        room = RoomId(made["room_id"])
        with pytest.raises(Rejected):
            await matrix.knock(ghost, room)
        await person.send_state(room, "m.room.join_rules", {"join_rule": "knock"})
        await matrix.knock(ghost, room)
        assert (await person.state(room, "m.room.member", ghost))["membership"] == "knock"
