"""People and programs change what is ours, and it is put back, kept or reported. All real."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from support.admin import admin_of
from support.home import Home, on_both_back_ends
from support.lost import NAME, OFTEN, new_agent
from support.person import Event
from support.rooms import HUB, invite
from support.talk import REPLY_S, ask

Unique = Callable[[str], str]


def named(room: str, name: str, by: str) -> Callable[[Event], bool]:
    return lambda e: (
        e["type"] == "m.room.name"
        and (e["room_id"], e["content"].get("name"), e["sender"]) == (room, name, by)
    )


async def test_a_name_that_a_person_gave_is_put_back_and_their_topic_stays(home: Home) -> None:
    ghost = await new_agent(home)
    async with home.login() as alice:
        with home.service(**OFTEN) as service:
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say before")
            await alice.send_state(room, "m.room.topic", {"topic": "what we talk about"})
            theirs = await alice.send_state(room, "m.room.name", {"name": "Our corner"})
            back = await alice.wait_event(
                lambda e: named(room, NAME, ghost)(e) and theirs in str(e.get("unsigned")), REPLY_S
            )
            assert back["sender"] == ghost
            await service.wait_in_step()
            await ask(alice, room, "!say after")
            assert (await alice.state(room, "m.room.topic"))["topic"] == "what we talk about"
            names = await alice.messages(room, ("m.room.name",))
            assert [e["sender"] for e in names] == [ghost, alice.id, ghost], "written once"


async def test_a_name_stays_as_a_person_gave_it_where_the_settings_say_so(home: Home) -> None:
    await new_agent(home)
    async with home.login() as alice:
        with home.service(**OFTEN, HOMEROOM_KEEP_EDITS="both") as service:
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say before")
            await alice.send_state(room, "m.room.name", {"name": "Our corner"})
            await service.wait_syncs(3)
            assert await alice.room_name(room) == "Our corner"
            await service.wait_in_step()


async def test_a_program_that_changes_a_name_again_and_again_is_reported_and_not_fought(
    home: Home,
) -> None:
    ghost = await new_agent(home)
    async with home.login() as alice:
        with home.service(**OFTEN) as service:
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say before")
            for number in range(3):
                theirs = await alice.send_state(room, "m.room.name", {"name": f"bot {number}"})
                await alice.wait_event(
                    lambda e, theirs=theirs: (
                        named(room, NAME, ghost)(e) and theirs in str(e.get("unsigned"))
                    ),
                    REPLY_S,
                )
            await alice.send_state(room, "m.room.name", {"name": "bot 3"})
            said = str(await service.wait_sync(lambda sync: "3 times within an hour" in str(sync)))
            assert "HOMEROOM_KEEP_EDITS" in said
            assert await alice.room_name(room) == "bot 3"
            status = home.run("sync", "--status")
            assert status.returncode == 2 and "held back" in status.stdout
            doctor = home.run("doctor")
            assert doctor.returncode == 1 and "3 times within an hour" in doctor.stdout

            assert home.run("sync").returncode == 0, "a person asks for it"
            await alice.wait_event(
                lambda e: named(room, NAME, ghost)(e) and "bot 3" in str(e.get("unsigned")), REPLY_S
            )
            await service.wait_in_step()


@on_both_back_ends
async def test_a_ghost_that_was_kicked_is_reported_until_somebody_invites_it(home: Home) -> None:
    ghost = await new_agent(home)
    async with home.login() as alice:
        with home.service(**OFTEN) as service:
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say before")
            # Nobody in the room has more power than the ghost: it takes an administrator.
            async with admin_of(home.homeserver, alice.id[1:].partition(":")[0] + "admin") as admin:
                await admin.deactivate(ghost)
            await alice.wait_event(
                lambda e: e["type"] == "m.room.member" and e["state_key"] == ghost
                and e["content"]["membership"] == "leave", REPLY_S
            )  # fmt: skip
            said = str(await service.wait_sync(lambda sync: f"invite {ghost} again" in str(sync)))
            assert "failing" in said
            await invite(alice, room, ghost)
            await service.wait_in_step()
            assert (await ask(alice, room, "!say after"))["content"]["body"] == "after"


async def test_a_hub_that_was_deactivated_is_let_in_again_by_the_agents_users(
    own_home: Home,
) -> None:
    await new_agent(own_home, "Ada")
    await new_agent(own_home, "Brook")
    async with own_home.login() as alice, admin_of(own_home.homeserver, "admin") as admin:
        with own_home.service(**OFTEN) as service:
            rooms: set[str] = set()
            while len(rooms) < 2:
                rooms.add(await alice.join(await alice.wait_invite()))
            for room in rooms:
                await ask(alice, room, "!say before")
            await admin.deactivate(HUB)
            for room in rooms:
                await alice.wait_event(
                    lambda e, room=room: e["room_id"] == room and e.get("state_key") == HUB
                    and e["content"]["membership"] == "leave", REPLY_S
                )  # fmt: skip
            for room in rooms:
                assert (await ask(alice, room, "!say after"))["content"]["body"] == "after"
                assert HUB in await alice.members(room)
            await service.wait_in_step()


async def test_a_homeserver_that_has_lost_everything_is_filled_again(own_home: Home) -> None:
    """Somebody started it with an empty database: hub, ghosts, rooms and people are gone."""
    ghost = await new_agent(own_home)
    synapse = own_home.homeserver.synapse
    with own_home.service(**OFTEN) as service:
        async with own_home.login() as alice:
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say before")
        synapse.stop()
        for path in synapse._dir.glob("synapse.db*"):
            path.unlink()
        synapse.start()
        own_home.homeserver.person("alice")
        async with own_home.login() as alice:
            with anyio.fail_after(90):
                new = await alice.join(await alice.wait_invite(80))
            assert (await ask(alice, new, "!say after"))["content"]["body"] == "after"
            assert {HUB, ghost} <= set(await alice.members(new))
            assert (await alice.members(new))[ghost] == "Ada"
            await service.wait_in_step()
