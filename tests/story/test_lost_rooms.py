"""Rooms are deleted, closed and replaced; every agent has one home again. All real."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest

from support.admin import admin_of
from support.home import Home, on_both_back_ends
from support.lost import (
    CLIENT,
    NAME,
    OFTEN,
    alias_of,
    leads_to,
    leave,
    new_agent,
    rooms_of,
)
from support.matrix import as_ghost
from support.person import Person
from support.rooms import HUB, invite
from support.talk import REPLY_S, answers, answers_in, ask

Unique = Callable[[str], str]


async def replace_room(person: Person, old: str, **options: object) -> str:
    """A new room of that person's that takes the place of ``old``, as a client would do it."""
    made = await person._ask("POST", ("createRoom",), body={"room_version": "11", **options})
    new = str(made["room_id"])
    await person.send_state(old, "m.room.tombstone", {"body": "moved", "replacement_room": new})
    return new


@on_both_back_ends
@pytest.mark.parametrize("block", [False, True])
async def test_a_room_that_was_deleted_while_nothing_ran_is_made_anew_exactly_once(
    home: Home, unique: Unique, block: bool
) -> None:
    ghost = await new_agent(home)
    async with home.login() as alice, admin_of(home.homeserver, unique("admin")) as admin:
        with home.service(HOMEROOM_SYNC_INTERVAL_S="600") as service:
            old = await alice.join(await alice.wait_invite())
            await ask(alice, old, "!say before")
            service.stop()
            await admin.delete_room(old, block=block)
            healed = home.run("sync", "--audit")
            assert healed.returncode == 0, healed.stdout + healed.stderr
            assert "was deleted" in " ".join(healed.stdout.split())
            service.start()
            new = await alice.join(await alice.wait_invite())
            assert new != old and await alice.room_name(new) == NAME
            assert (await ask(alice, new, "!say after"))["content"]["body"] == "after"
            assert rooms_of(home.homeserver, ghost) == {new} == {leads_to(home.homeserver, ghost)}
            again = home.run("sync", "--audit")
            assert again.returncode == 0 and "0 actions planned" in again.stdout
            assert alice.invites() == []
            assert service.log().count("action_failed") == 0


async def test_a_room_that_an_administrator_deletes_is_made_anew_as_soon_as_the_hub_is_put_out(
    home: Home, unique: Unique
) -> None:
    ghost = await new_agent(home)
    async with home.login() as alice, admin_of(home.homeserver, unique("admin")) as admin:
        with home.service(HOMEROOM_SYNC_INTERVAL_S="600"):
            old = await alice.join(await alice.wait_invite())
            await ask(alice, old, "!say before")
            await admin.delete_room(old)
            new = await alice.join(await alice.wait_invite())
            assert new != old
            assert (await ask(alice, new, "!say after"))["content"]["body"] == "after"
            assert rooms_of(home.homeserver, ghost) == {new} == {leads_to(home.homeserver, ghost)}


async def test_a_room_that_everybody_left_and_forgot_is_made_anew_without_an_audit(
    home: Home,
) -> None:
    ghost = await new_agent(home)
    async with home.login() as alice:
        with home.service(**OFTEN) as service:
            old = await alice.join(await alice.wait_invite())
            await ask(alice, old, "!say before")
            await alice.leave(old)
            for user in (ghost, HUB):
                leave(home.homeserver, user, old)
            new = await alice.join(await alice.wait_invite())
            assert new != old
            assert (await ask(alice, new, "!say after"))["content"]["body"] == "after"
            await service.wait_in_step()
            assert rooms_of(home.homeserver, ghost) == {new} == {leads_to(home.homeserver, ghost)}


@on_both_back_ends
async def test_an_upgraded_room_is_followed_as_soon_as_the_agents_user_is_invited_there(
    home: Home,
) -> None:
    ghost = await new_agent(home)
    async with home.login() as alice:
        with home.service(**OFTEN) as service:
            old = await alice.join(await alice.wait_invite())
            await ask(alice, old, "!remember the number is 41")
            answer = await alice._ask("POST", ("rooms", old, "upgrade"), body={"new_version": "11"})
            new = answer["replacement_room"]
            said = str(await service.wait_sync(lambda sync: f"invite {ghost}" in str(sync)))
            assert new in said
            await alice.wait_event(
                lambda e: e["room_id"] == old and "I may not enter" in e["content"].get("body", ""),
                REPLY_S,
            )
            await invite(alice, new, ghost)
            assert home.run("sync").returncode == 0
            after = await alice.say(new, "!say after")
            assert (await alice.wait_event(answers(after), REPLY_S))["content"]["body"] == "after"
            assert {HUB, ghost} <= set(await alice.members(new))
            assert leads_to(home.homeserver, ghost) == new
            assert await alice.room_name(new) == NAME
            await alice.state(new, "org.homeroom.room")
            await service.wait_in_step()
            assert alice.invites() == []
            told = [b for b in await alice.bodies(old) if "I may not enter" in b]
            assert len(told) == 1, "asked once"


async def test_a_room_replaced_by_an_open_one_is_followed_and_its_alias_comes_along(
    home: Home,
) -> None:
    ghost = await new_agent(home)
    async with home.login() as alice:
        with home.service(**OFTEN) as service:
            old = await alice.join(await alice.wait_invite())
            await ask(alice, old, "!say before")
            levels = {"users": {alice.id: 100, ghost: 50}}
            new = await replace_room(
                alice, old, preset="public_chat", power_level_content_override=levels
            )
            await alice.wait_event(
                lambda e: e["room_id"] == new and e.get("state_key") == HUB, REPLY_S
            )
            asked = await alice.say(new, "!say after")
            await alice.wait_event(answers(asked), REPLY_S)
            late = await alice.say(old, "!say too late")
            with anyio.fail_after(REPLY_S):
                while leads_to(home.homeserver, ghost) != new:
                    await service.changed()
            await ask(alice, new, "!say once more")
            assert late not in answers_in(await alice.messages(old))
            assert answers_in(await alice.messages(new))[asked] == ["after"]


async def test_a_room_that_was_closed_without_a_successor_says_what_a_person_must_do(
    home: Home,
) -> None:
    await new_agent(home)
    async with home.login() as alice:
        with home.service(**OFTEN) as service:
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say before")
            closed = {"body": "closed", "replacement_room": ""}
            stone = await alice.send_state(room, "m.room.tombstone", closed)
            await service.wait_sync(lambda sync: "names no room that follows" in str(sync))
            status = home.run("sync", "--status")
            assert status.returncode == 2 and "have the room deleted" in status.stdout
            await alice._ask("PUT", ("rooms", room, "redact", stone, "1"), body={})
            healed = home.run("sync", "--audit")
            assert healed.returncode == 0, healed.stdout + healed.stderr
            assert (await ask(alice, room, "!say after"))["content"]["body"] == "after"


async def test_an_alias_that_was_taken_away_or_moved_leads_to_the_room_again(home: Home) -> None:
    ghost = await new_agent(home)
    async with home.login() as alice:
        with home.service(HOMEROOM_SYNC_INTERVAL_S="600"):
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say before")
            alias = f"{CLIENT}/directory/room/{alias_of(ghost).replace('#', '%23')}"
            as_ghost(home.homeserver, ghost, "DELETE", alias)
            healed = home.run("sync", "--audit")
            assert healed.returncode == 0 and "set_alias" in healed.stdout + healed.stderr
            assert leads_to(home.homeserver, ghost) == room

            as_ghost(home.homeserver, ghost, "DELETE", alias)
            other = as_ghost(home.homeserver, ghost, "POST", f"{CLIENT}/createRoom")["room_id"]
            as_ghost(home.homeserver, ghost, "PUT", alias, {"room_id": other})
            found = home.run("sync", "--audit", "--dry-run")
            assert "set_alias" in found.stdout and leads_to(home.homeserver, ghost) == other
            assert home.run("sync", "--audit").returncode == 0
            assert leads_to(home.homeserver, ghost) == room
            assert (await ask(alice, room, "!say after"))["content"]["body"] == "after"


async def test_a_room_that_nobody_of_ours_could_read_is_told_once_between_when(home: Home) -> None:
    ghost = await new_agent(home)
    async with home.login() as alice:
        with home.service(**OFTEN) as service:
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say before")
            visibility = {"history_visibility": "joined"}
            await alice.send_state(room, "m.room.history_visibility", visibility)
            leave(home.homeserver, ghost, room)
            await alice._ask("POST", ("rooms", room, "kick"), body={"user_id": HUB})
            unheard = await alice.say(room, "!say nobody is here")
            await service.wait_health(lambda health: "@agent_" in str(health["last_sync"]))
            for user in (HUB, ghost):
                await invite(alice, room, user)
            told = await alice.wait_event(
                lambda e: "could not be read" in e["content"].get("body", ""), REPLY_S
            )
            assert told["room_id"] == room and "between" in told["content"]["body"]
            assert (await ask(alice, room, "!say after"))["content"]["body"] == "after"
            assert unheard not in answers_in(await alice.messages(room))
            await service.wait_in_step()
            assert sum("could not be read" in body for body in await alice.bodies(room)) == 1
            assert "could not be read" not in home.run("doctor", "rooms").stdout
