"""Ghosts, rooms and posts against a real Synapse, and where logins are delegated."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from pydantic import SecretStr

from homeroom.errors import Rejected, Unavailable, Uncertain
from homeroom.matrix import MARKER_TYPE, open_matrix
from homeroom.model import EventId, RoomId
from support.matrix import (
    answering,
    as_ghost,
    bodies,
    catch_up,
    connect,
    devices,
    events_until,
    move_in,
    room_spec,
    text,
)
from support.person import Person
from support.synapse import PASSWORD, Homeserver, matrix_config

pytest_plugins = ("support.fixtures_matrix",)

Unique = Callable[[str], str]
VERSIONS = ("10", "11", "12")


# --- The server ----------------------------------------------------------------------------------


async def test_the_check_names_the_server_and_acts_as_the_hub(synapse: Homeserver) -> None:
    async with connect(synapse) as matrix:
        info = await matrix.check()
        assert info.whoami == matrix.hub == "@agent_hub:hs.test"
        assert "v1.11" in info.versions
        assert await matrix.ping() is None, "a registration without a url is not pushed to"


async def test_the_hub_is_called_homeroom_until_somebody_calls_it_otherwise(
    synapse: Homeserver,
) -> None:
    async with connect(synapse) as matrix:
        await matrix.check()
        assert await matrix.get_display_name(matrix.hub) == "Homeroom"
        await matrix.set_display_name(matrix.hub, "Front desk")
        await matrix.check()
        assert await matrix.get_display_name(matrix.hub) == "Front desk"
        await matrix.set_display_name(matrix.hub, "")
        await matrix.check()
        assert await matrix.get_display_name(matrix.hub) == "Homeroom"


async def test_one_that_only_reads_checks_everything_and_changes_nothing(
    own_synapse: Homeserver,
) -> None:
    reading = open_matrix(matrix_config(own_synapse), own_synapse.registration, read_only=True)
    async with reading as matrix, connect(own_synapse) as writing:
        info = await matrix.check()
        assert "v1.11" in info.versions and info.whoami == ""
        assert await matrix.find_room("#agent_hub:hs.test") is None
        assert not (await matrix.inspect_home(matrix.hub, RoomId("!x:hs.test"))).exists
        with pytest.raises(AssertionError, match="would change something"):
            await matrix.ensure_ghost("agent_x")
        await writing.ensure_ghost("agent_hub")
        await writing.set_display_name(matrix.hub, "")
        assert (await matrix.check()).whoami == matrix.hub
        assert await matrix.get_display_name(matrix.hub) == "", "it is named by those who may"


async def test_a_wrong_token_is_rejected_with_what_to_look_at(synapse: Homeserver) -> None:
    registration = synapse.registration.model_copy(update={"as_token": SecretStr("not-the-one")})
    async with open_matrix(matrix_config(synapse), registration) as matrix:
        with pytest.raises(Rejected, match="app_service_config_files") as refused:
            await matrix.check()
    assert refused.value.code == "M_UNKNOWN_TOKEN"
    assert "not-the-one" not in repr(refused.value) + str(refused.value)


async def test_a_wrong_server_name_is_rejected_with_the_right_one(synapse: Homeserver) -> None:
    async with connect(synapse, matrix_server_name="elsewhere.test") as matrix:
        with pytest.raises(Rejected, match=r"@homeroom:hs\.test"):
            await matrix.check()


async def test_a_registration_for_other_names_is_rejected(synapse: Homeserver) -> None:
    namespaces = synapse.registration.namespaces.model_copy(update={"aliases": []})
    registration = synapse.registration.model_copy(update={"namespaces": namespaces})
    async with open_matrix(matrix_config(synapse), registration) as matrix:
        with pytest.raises(Rejected, match=r"#agent_hub:hs\.test"):
            await matrix.check()


async def test_ghosts_are_known_by_namespace_and_server(synapse: Homeserver) -> None:
    async with connect(synapse) as matrix:
        assert matrix.is_ghost("@agent_anyone:hs.test")
        assert matrix.is_ghost(matrix.hub)
        assert matrix.is_ghost("@homeroom:hs.test"), "the appservice's own sender"
        assert not matrix.is_ghost("@ann:hs.test")
        assert not matrix.is_ghost("@agent_anyone:elsewhere.test")
        assert not matrix.is_ghost("@agent_anyone:hs.test.evil.test")


# --- Ghosts --------------------------------------------------------------------------------------


async def test_a_ghost_is_registered_once_with_its_device(
    synapse: Homeserver, unique: Unique
) -> None:
    name = unique("agent_ghost")
    async with connect(synapse) as matrix:
        ghost = await matrix.ensure_ghost(name)
        assert await matrix.ensure_ghost(name) == ghost == f"@{name}:hs.test"
        await matrix.set_display_name(ghost, "Ädä 🦊")
        assert await matrix.get_display_name(ghost) == "Ädä 🦊"
    assert [device["device_id"] for device in devices(synapse, ghost)] == ["HOMEROOM"]


async def test_a_name_outside_the_namespace_is_rejected(synapse: Homeserver) -> None:
    async with connect(synapse) as matrix:
        with pytest.raises(Rejected, match="outside the user namespace"):
            await matrix.ensure_ghost("somebody")


async def test_a_ghost_nobody_registered_has_no_name_and_cannot_act(synapse: Homeserver) -> None:
    async with connect(synapse) as matrix:
        with pytest.raises(Rejected):
            await matrix.set_display_name(matrix.ghost_id("agent_nobody"), "Nobody")


async def test_a_ghost_whose_device_was_deleted_gets_it_back(
    synapse: Homeserver, unique: Unique
) -> None:
    async with connect(synapse) as matrix:
        ghost, room = await move_in(matrix, unique("agent_device"))
        as_ghost(synapse, ghost, "DELETE", "/_matrix/client/v3/devices/HOMEROOM")
        assert devices(synapse, ghost) == []
        assert await matrix.post(ghost, room, text("still here"), "1")
    assert [device["device_id"] for device in devices(synapse, ghost)] == ["HOMEROOM"]


# --- Rooms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_room_is_created_whole(synapse: Homeserver, unique: Unique, version: str) -> None:
    name, ann, bob = unique("agent_room"), unique("ann"), unique("bob")
    people = (synapse.person(ann), synapse.person(bob))
    async with connect(synapse) as matrix:
        ghost, room = await move_in(matrix, name, version, *people)
        assert (":" in room) is (version != "12")
        assert await matrix.find_room(matrix.alias(name)) == room
        create = await matrix.get_state(ghost, room, "m.room.create")
        assert create is not None and create["room_version"] == version
        assert await matrix.get_state(ghost, room, MARKER_TYPE) == {"agent_id": name}
        for event_type, value in (
            ("m.room.history_visibility", {"history_visibility": "shared"}),
            ("m.room.guest_access", {"guest_access": "forbidden"}),
            ("m.room.join_rules", {"join_rule": "invite"}),
        ):
            assert await matrix.get_state(ghost, room, event_type) == value
        async with Person.login(synapse.url, ann, PASSWORD) as person:
            assert await person.wait_invite() == room
            await person.join(room)
            assert await person.room_name(room) == f"Room of {name}"
            await person.send_state(room, "m.room.name", {"name": "Ann may rename it"})
        assert set(await matrix.joined_members(ghost, room)) == {ghost, matrix.hub, people[0]}


async def test_creating_a_room_again_finds_it_and_invites_whom_it_lacks(
    synapse: Homeserver, unique: Unique
) -> None:
    name, ann = unique("agent_again"), unique("ann")
    person_id = synapse.person(ann)
    async with connect(synapse) as matrix:
        ghost, room = await move_in(matrix, name)
        again = await matrix.create_room(ghost, room_spec(name, "11", person_id, hub=matrix.hub))
        assert again == room
        async with Person.login(synapse.url, ann, PASSWORD) as person:
            assert await person.wait_invite() == room


@pytest.mark.parametrize("version", ["11", "12"])
async def test_inviting_is_idempotent_and_a_refusal_is_final(
    synapse: Homeserver, unique: Unique, version: str
) -> None:
    ann = unique("ann")
    person_id = synapse.person(ann)
    async with connect(synapse) as matrix:
        ghost, room = await move_in(matrix, unique("agent_invite"), version)
        stranger = await matrix.ensure_ghost(unique("agent_stranger"))
        await matrix.invite(ghost, room, person_id)
        await matrix.invite(ghost, room, person_id)
        async with Person.login(synapse.url, ann, PASSWORD) as person:
            await person.join(room)
            await matrix.invite(ghost, room, person_id)
            as_ghost(
                synapse,
                ghost,
                "POST",
                f"/_matrix/client/v3/rooms/{room}/ban",
                {"user_id": person_id},
            )
            with pytest.raises(Rejected, match="banned"):
                await matrix.invite(ghost, room, person_id)
        with pytest.raises(Rejected):
            await matrix.invite(stranger, room, person_id)
        with pytest.raises(Rejected):
            await matrix.ensure_joined(stranger, room)


async def test_missing_things_are_none(synapse: Homeserver, unique: Unique) -> None:
    async with connect(synapse) as matrix:
        ghost, room = await move_in(matrix, unique("agent_none"))
        assert await matrix.find_room(matrix.alias("agent_no_such_room")) is None
        assert await matrix.get_state(ghost, room, "org.homeroom.nothing") is None
        assert await matrix.get_display_name(matrix.ghost_id("agent_no_such_ghost")) == ""


@pytest.mark.parametrize("version", ["11", "12"])
async def test_name_and_topic_can_be_changed(
    synapse: Homeserver, unique: Unique, version: str
) -> None:
    async with connect(synapse) as matrix:
        ghost, room = await move_in(matrix, unique("agent_rename"), version)
        await matrix.set_name(ghost, room, "New")
        await matrix.set_topic(ghost, room, "Other")
        assert await matrix.get_state(ghost, room, "m.room.name") == {"name": "New"}
        topic = await matrix.get_state(ghost, room, "m.room.topic")
        assert topic is not None and topic["topic"] == "Other"
        assert await matrix.find_state(ghost, room, "m.room.name") == ({"name": "New"}, ghost)
        assert await matrix.find_state(ghost, room, "m.room.avatar") is None


# --- Posts ---------------------------------------------------------------------------------------


async def test_the_same_transaction_posts_once_and_two_ghosts_never_share_one(
    synapse: Homeserver, unique: Unique
) -> None:
    async with connect(synapse) as matrix:
        one, room = await move_in(matrix, unique("agent_one"))
        two = await matrix.ensure_ghost(unique("agent_two"))
        await matrix.invite(one, room, two)
        await matrix.ensure_joined(two, room)
        cursor = await catch_up(matrix)
        first = await matrix.post(one, room, text("from one"), "7")
        assert await matrix.post(one, room, text("from one, again"), "7") == first
        assert await matrix.post(two, room, text("from two"), "7") != first
        events = await events_until(matrix, cursor, "from two")
        assert bodies(events) == ["from one", "from two"]


async def test_who_is_not_in_the_room_cannot_post(synapse: Homeserver, unique: Unique) -> None:
    async with connect(synapse) as matrix:
        _, room = await move_in(matrix, unique("agent_private"))
        stranger = await matrix.ensure_ghost(unique("agent_stranger"))
        with pytest.raises(Rejected) as refused:
            await matrix.post(stranger, room, text("let me in"), "1")
        assert refused.value.code == "M_FORBIDDEN"


async def test_a_message_that_is_too_large_is_rejected(synapse: Homeserver, unique: Unique) -> None:
    async with connect(synapse) as matrix:
        ghost, room = await move_in(matrix, unique("agent_large"))
        with pytest.raises(Rejected) as refused:
            await matrix.post(ghost, room, text("x" * 70_000), "1")
        assert refused.value.code == "M_TOO_LARGE"


@pytest.mark.parametrize("version", ["11", "12"])
async def test_people_see_typing_receipts_and_posts(
    synapse: Homeserver, unique: Unique, version: str
) -> None:
    ann = unique("ann")
    async with connect(synapse) as matrix:
        ghost, room = await move_in(matrix, unique("agent_typing"), version, synapse.person(ann))
        async with Person.login(synapse.url, ann, PASSWORD) as person:
            await person.join(room)
            question = await person.say(room, "anybody home?")
            await matrix.set_typing(ghost, room, True)
            await person.wait_event(
                lambda e: e["type"] == "m.typing" and ghost in e["content"]["user_ids"]
            )
            await matrix.read_receipt(ghost, room, EventId(question))
            await person.wait_event(lambda e: e["type"] == "m.receipt" and question in e["content"])
            await matrix.set_typing(ghost, room, False)
            event_id = await matrix.post(ghost, room, text("yes"), "1")
            await person.wait_event(lambda e: e.get("event_id") == event_id)
            assert await person.bodies(room) == ["anybody home?", "yes"]


async def test_a_post_repeated_across_a_crash_of_the_homeserver_is_one_event(
    own_synapse: Homeserver,
) -> None:
    own_synapse.person("ann")
    async with connect(own_synapse) as matrix:
        ghost, room = await move_in(matrix, "agent_crash", "11", "@ann:hs.test")
        first = await matrix.post(ghost, room, text("once"), "42")
        await asyncio.to_thread(own_synapse.synapse.kill)
        with pytest.raises(Unavailable, match="nothing accepts connections"):
            await matrix.post(ghost, room, text("once"), "42")
        own_synapse.synapse.start()
        assert await matrix.post(ghost, room, text("once"), "42") == first
        async with Person.login(own_synapse.url, "ann", PASSWORD) as person:
            await person.join(room)
            assert await person.bodies(room) == ["once"]


async def test_a_lost_answer_is_uncertain_and_the_repeat_does_not_double_it(
    synapse: Homeserver, unique: Unique
) -> None:
    async with connect(synapse) as matrix:
        ghost, room = await move_in(matrix, unique("agent_lost"))
        cursor = await catch_up(matrix)
        async with (
            answering(synapse, b"") as url,
            connect(synapse, matrix_url=url) as deaf,
        ):
            with pytest.raises(Uncertain) as lost:
                await deaf.post(ghost, room, text("said once"), "9")
        name = ghost.removeprefix("@").partition(":")[0]
        assert lost.value.key == f"{name}-9"
        await matrix.post(ghost, room, text("said once"), "9")
        await matrix.post(ghost, room, text("end"), "10")
        assert bodies(await events_until(matrix, cursor, "end")) == ["said once", "end"]


async def test_a_room_whose_creation_got_no_answer_is_found_by_the_repeat(
    synapse: Homeserver, unique: Unique
) -> None:
    async with connect(synapse) as matrix:
        await matrix.check()
        name = unique("agent_lost_room")
        ghost = await matrix.ensure_ghost(name)
        async with (
            answering(synapse, b"") as url,
            connect(synapse, matrix_url=url) as deaf,
        ):
            with pytest.raises(Uncertain):
                await deaf.create_room(ghost, room_spec(name, hub=matrix.hub))
        room = await matrix.create_room(ghost, room_spec(name, hub=matrix.hub))
        assert await matrix.find_room(matrix.alias(name)) == room
        await matrix.ensure_joined(matrix.hub, room)
