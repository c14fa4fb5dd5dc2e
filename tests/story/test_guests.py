"""People take agents into rooms of their own. All real."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from mcp import Client

from support.home import Home, on_both_back_ends
from support.matrix import as_ghost
from support.person import Person
from support.rooms import (
    HUB,
    ghost_of,
    invite,
    kick,
    membership,
    new_room,
    wait_membership,
)
from support.synapse import PASSWORD
from support.talk import REPLY_S, answers, answers_in, ask

QUICK = {"HOMEROOM_INVITE_POLL_S": "1", "HOMEROOM_SYNC_INTERVAL_S": "1"}
"""No push: the ghosts are asked in turn."""


@on_both_back_ends
async def test_a_direct_chat_with_an_agent_is_answered_by_that_agent_alone_from_the_invitation_on(
    home: Home,
) -> None:
    ada = await home.letta.create_agent("Ada")
    await home.letta.create_agent("Brook")
    async with home.login() as alice:
        with home.service(**QUICK) as service:
            chat = await new_room(alice, direct=True)
            before = await alice.say(chat, "!say before the invitation")
            await invite(alice, chat, ghost_of(ada))
            first = await alice.say(chat, "!say first")
            answer = await alice.wait_event(answers(first), REPLY_S)
            assert answer["sender"] == ghost_of(ada) and answer["content"]["body"] == "first"
            assert (await ask(alice, chat, "!say second"))["content"]["body"] == "second"
            assert before not in answers_in(await alice.messages(chat))
            assert set(await alice.members(chat)) == {alice.id, ghost_of(ada), HUB}

            service.kill()
            late = await alice.say(chat, "!say after a crash")
            service.start()
            answer = await alice.wait_event(answers(late), REPLY_S)
            assert answer["content"]["body"] == "after a crash"
            found = answers_in(await alice.messages(chat))
            assert found[first] == ["first"] and found[late] == ["after a crash"]

            # A store that is lost finds the chat again, and answers nothing old.
            service.stop()
            for file in (home.directory / "data").iterdir():
                file.unlink()
            old = await alice.say(chat, "!say from the past")
            service.start()
            assert (await ask(alice, chat, "!say found again"))["content"]["body"] == "found again"
            assert old not in answers_in(await alice.messages(chat))


async def test_a_direct_chat_is_noted_as_one_and_an_encrypted_one_is_told_how_to_do_better(
    home: Home,
) -> None:
    ada = await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service(**QUICK):
            encryption = {
                "type": "m.room.encryption",
                "state_key": "",
                "content": {"algorithm": "m.megolm.v1.aes-sha2"},
            }
            chat = await new_room(
                alice, ghost_of(ada), direct=True, initial_state=[encryption]
            )  # fmt: skip
            await wait_membership(alice, chat, HUB, "join")
            await alice.send(
                chat,
                {"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "x", "session_id": "s"},
                "m.room.encrypted",
            )
            notice = await alice.wait_event(
                lambda e: e["room_id"] == chat and "encrypted" in e["content"].get("body", ""),
                REPLY_S,
            )
            assert "leave encryption off" in notice["content"]["body"]
            assert notice["sender"] == ghost_of(ada)
            path = f"/_matrix/client/v3/user/{ghost_of(ada)}/account_data/m.direct"
            direct = as_ghost(home.homeserver, ghost_of(ada), "GET", path)
            assert direct == {alice.id: [chat]}


async def test_an_invitation_by_a_stranger_is_declined_once_counted_and_explained(
    home: Home, unique: Callable[[str], str]
) -> None:
    ada = await home.letta.create_agent("Ada")
    home.homeserver.person(unique("stranger"))
    async with Person.login(home.homeserver.url, unique("stranger"), PASSWORD) as stranger:
        with home.service(**QUICK) as service:
            room = await new_room(stranger)
            await service.wait_log("sync_finished")
            await invite(stranger, room, ghost_of(ada))
            await wait_membership(stranger, room, ghost_of(ada), "leave")
            await service.wait_log("invitation_declined")
            assert "HOMEROOM_ACCEPT_INVITES (invited-people)" in service.log()
            said = home.run("doctor", "rooms")
            assert "1 invitations declined" in said.stdout and stranger.id in said.stdout
            # The server is the person's own: with `local` they may.
            service.stop()
        with home.service(**QUICK, HOMEROOM_ACCEPT_INVITES="local"):
            await invite(stranger, room, ghost_of(ada))
            answer = await ask(stranger, room, "!say now I may")
            assert answer["content"]["body"] == "now I may"


async def test_a_room_with_several_agents_is_answered_by_those_a_message_is_for(
    home: Home,
) -> None:
    ada = await home.letta.create_agent("Ada")
    brook = await home.letta.create_agent("Brook")
    async with home.login() as alice:
        with home.service(**QUICK):
            room = await new_room(alice, ghost_of(ada), name="Together")
            await ask(alice, room, "!say alone")
            await invite(alice, room, ghost_of(brook))
            await wait_membership(alice, room, ghost_of(brook), "join")

            async def who_answers(text: str, count: int, **content: object) -> set[str]:
                asked = await alice.say(room, text, **content)
                found = []
                for _ in range(count):
                    known = list(found)
                    found.append(
                        await alice.wait_event(
                            lambda e, known=known: answers(asked)(e) and e not in known, REPLY_S
                        )
                    )
                return {event["sender"] for event in found}

            # The second one may not have settled in yet; nobody answers to nobody once it has.
            with anyio.fail_after(REPLY_S):
                await who_answers("Brook: !say here", 1)
            nobody = await alice.say(room, "!say to whom it may concern")
            notice = await alice.wait_event(
                lambda e: e["room_id"] == room and "Several agents" in e["content"].get("body", ""),
                REPLY_S,
            )
            assert notice["sender"] == ghost_of(ada)
            mention = {"m.mentions": {"user_ids": [ghost_of(brook)]}}
            assert await who_answers("!say mentioned", 1, **mention) == {ghost_of(brook)}
            assert await who_answers("Ada: !say by name", 1) == {ghost_of(ada)}
            pill = f'<a href="https://matrix.to/#/{ghost_of(ada)}">Ada</a>: !say by pill'
            formatted = {"format": "org.matrix.custom.html", "formatted_body": pill}
            assert await who_answers("Someone: !say by pill", 1, **formatted) == {ghost_of(ada)}
            both = {"m.mentions": {"user_ids": [ghost_of(brook), ghost_of(ada)]}}
            assert await who_answers("!say both", 2, **both) == {ghost_of(brook), ghost_of(ada)}
            said_to_both = (await alice.messages(room))[-3]
            assert said_to_both["content"]["body"] == "!say both"
            for ghost in (ghost_of(ada), ghost_of(brook)):  # each has read it
                await alice.wait_event(
                    lambda e, ghost=ghost: (
                        e["type"] == "m.receipt"
                        and ghost
                        in e["content"].get(said_to_both["event_id"], {}).get("m.read", {})
                    ),
                    REPLY_S,
                )
            again = await alice.say(room, "!say nobody again")
            await who_answers("Ada: !say done", 1)
            bodies = await alice.bodies(room)
            assert sum("Several agents" in body for body in bodies) == 1
            found = answers_in(await alice.messages(room))
            assert nobody not in found and again not in found
            shared = next(event for event, texts in found.items() if texts == ["both", "both"])
            assert "It was for @agent_" in home.run("explain", shared).stdout
            said = home.run("explain", nobody)
            assert "names none of the agents" in said.stdout


async def test_a_second_agent_that_is_invited_into_a_home_leaves_and_says_where_it_lives(
    home: Home,
) -> None:
    ada = await home.letta.create_agent("Ada")
    brook = await home.letta.create_agent("Brook")
    async with home.login() as alice:
        with home.service(**QUICK) as service:
            await service.wait_log("sync_finished")
            rooms = {}
            while len(rooms) < 2:
                room = await alice.join(await alice.wait_invite())
                rooms[(await alice.room_name(room)).partition(" ")[0]] = room
            await invite(alice, rooms["Ada"], ghost_of(brook))
            notice = await alice.wait_event(
                lambda e: "this is the room of Ada alone" in e["content"].get("body", ""), REPLY_S
            )
            assert notice["room_id"] == rooms["Ada"] and notice["sender"] == ghost_of(ada)
            assert rooms["Brook"] in notice["content"]["body"]
            await wait_membership(alice, rooms["Ada"], ghost_of(brook), "leave")
            answer = await ask(alice, rooms["Ada"], "!say still mine")
            assert answer["sender"] == ghost_of(ada)
            said = home.run("doctor", "rooms")
            assert said.returncode == 0, said.stdout
            assert "1 conflicts so far" in said.stdout
            assert f"turned away: {ghost_of(brook)}" in said.stdout


async def test_a_room_is_left_when_the_last_person_leaves_and_a_new_one_starts_anew(
    home: Home,
) -> None:
    ada = await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service(**QUICK) as service:
            chat = await new_room(alice, ghost_of(ada), direct=True)
            await ask(alice, chat, "!say hello")
            await alice.leave(chat)
            await service.wait_log("room_left")
            assert "the last person left" in service.log()
            for ghost in (ghost_of(ada), HUB):
                path = "/_matrix/client/v3/joined_rooms"
                rooms = as_ghost(home.homeserver, ghost, "GET", path)["joined_rooms"]
                assert chat not in rooms
            again = await new_room(alice, ghost_of(ada), direct=True)
            assert (await ask(alice, again, "!say back"))["content"]["body"] == "back"


async def test_an_agent_that_is_put_out_goes_with_the_hub_and_does_not_come_back_by_itself(
    home: Home,
) -> None:
    ada = await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service(**QUICK) as service:
            chat = await new_room(alice, ghost_of(ada))
            await ask(alice, chat, "!say hello")
            await kick(alice, chat, ghost_of(ada))
            await wait_membership(alice, chat, HUB, "leave")
            await service.wait_log("room_left")
            await alice.say(chat, "!say anybody?")
            assert set(await alice.members(chat)) == {alice.id}


async def test_where_the_agent_may_invite_nobody_it_says_what_a_person_must_do_and_then_hears(
    home: Home,
) -> None:
    ada = await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service(**QUICK):
            strict = {"power_level_content_override": {"invite": 50}}
            room = await new_room(alice, ghost_of(ada), **strict)
            waiting = await alice.say(room, "!say you hear me now")
            notice = await alice.wait_event(
                lambda e: f"Please invite {HUB}" in e["content"].get("body", ""), REPLY_S
            )
            assert notice["room_id"] == room and notice["sender"] == ghost_of(ada)
            assert await membership(alice, room, HUB) == ""
            faults = home.run("doctor", "rooms")
            assert faults.returncode == 1 and "hub_missing" in faults.stdout
            await invite(alice, room, HUB)
            answer = await alice.wait_event(answers(waiting), REPLY_S)
            assert answer["content"]["body"] == "you hear me now"
            # Put out again, it does not push back in; the room is told, and may ask it in.
            await kick(alice, room, HUB)
            await alice.wait_event(
                lambda e: (
                    f"Please invite {HUB}" in e["content"].get("body", "")
                    and e["event_id"] != notice["event_id"]
                ),
                REPLY_S,
            )
            meanwhile = [await alice.say(room, f"!say meanwhile {number}") for number in range(3)]
            await invite(alice, room, HUB)
            assert (await ask(alice, room, "!say again"))["content"]["body"] == "again"
            found = answers_in(await alice.messages(room))
            assert [found[event_id] for event_id in meanwhile] == [
                [f"meanwhile {number}"] for number in range(3)
            ]


async def test_an_upgraded_room_is_left_and_the_new_one_entered_by_invitation(home: Home) -> None:
    ada = await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service(**QUICK) as service:
            old = await new_room(alice, ghost_of(ada))
            await ask(alice, old, "!say old")
            body = {"new_version": "11"}
            new = str(
                (await alice._ask("POST", ("rooms", old, "upgrade"), body=body))["replacement_room"]
            )
            await service.wait_log("room_left")
            await wait_membership(alice, old, ghost_of(ada), "leave")
            await invite(alice, new, ghost_of(ada))
            assert (await ask(alice, new, "!say new"))["content"]["body"] == "new"


async def test_doctor_finds_and_mends_what_happened_to_rooms_while_nothing_ran(home: Home) -> None:
    ada = await home.letta.create_agent("Ada")
    brook = await home.letta.create_agent("Brook")
    async with home.login() as alice:
        with home.service(**QUICK, HOMEROOM_TOOLSETS="operate") as service:
            chat = await new_room(alice, ghost_of(ada))
            stray = await new_room(alice, ghost_of(ada), name="Stray")
            for room in (chat, stray):
                await ask(alice, room, "!say hello")
            assert home.run("doctor", "rooms").returncode == 1, "nobody is in the homes yet"
            homes: set[str] = set()
            while len(homes) < 2:
                homes.add(await alice.join(await alice.wait_invite()))
            async with Client(f"{service.url}/mcp") as client:
                found = await client.call_tool("diagnose_rooms", {"all": True})
            assert found.structured_content
            kinds = sorted(room["kind"] for room in found.structured_content["rooms"])
            assert kinds == ["further", "further", "home", "home"]
            service.stop()

            # One room is left behind our back, and in another sits who should not.
            for ghost in (ghost_of(ada), HUB):
                for what in ("leave", "forget"):
                    path = f"/_matrix/client/v3/rooms/{chat}/{what}"
                    as_ghost(home.homeserver, ghost, "POST", path)
            await invite(alice, stray, ghost_of(brook))
            as_ghost(home.homeserver, ghost_of(brook), "POST", f"/_matrix/client/v3/join/{stray}")
            service.start()
            await service.wait_log("room_left")

            async with Client(f"{service.url}/mcp") as client:

                async def faults(**how: bool) -> list[dict[str, Any]]:
                    said = await client.call_tool("diagnose_rooms", how)
                    assert said.structured_content, said.content
                    rooms = said.structured_content["rooms"]
                    return [fault for room in rooms for fault in room["faults"]]

                with anyio.fail_after(REPLY_S):
                    while not (seen := await faults()):
                        await service.changed()
                assert [(f["kind"], f["ghost"]) for f in seen] == [("stray_ghost", ghost_of(brook))]
                assert await membership(alice, stray, ghost_of(brook)) == "join", "only looked at"
                mended = await faults(fix=True)
                assert [(f["kind"], f["fixed"]) for f in mended] == [("stray_ghost", True)]
            await wait_membership(alice, stray, ghost_of(brook), "leave")
            assert home.run("doctor", "rooms", "--fix").returncode == 0
            assert (await ask(alice, stray, "!say mine"))["sender"] == ghost_of(ada)


@pytest.mark.parametrize("moment", range(3))
async def test_a_kill_between_accepting_and_hearing_converges(home: Home, moment: int) -> None:
    """At whatever step it dies, the next start finishes what stands in the store."""
    ada = await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service(**QUICK) as service:
            await service.wait_log("sync_finished")
            chat = await new_room(alice, ghost_of(ada), direct=True)
            asked = await alice.say(chat, "!say converged")
            if moment == 0:
                await service.wait_log("invitation_accepted")
            elif moment == 1:
                await wait_membership(alice, chat, ghost_of(ada), "join")
            else:
                await wait_membership(alice, chat, HUB, "invite", "join")
            service.kill()
            service.start(wait_ok=False)
            answer = await alice.wait_event(answers(asked), REPLY_S)
            assert answer["content"]["body"] == "converged"
            assert answers_in(await alice.messages(chat))[asked] == ["converged"]
            joins = [
                event["state_key"]
                for event in await alice.messages(chat, ("m.room.member",))
                if event["content"]["membership"] == "invite"
            ]
            assert sorted(joins) == sorted({ghost_of(ada), HUB}), "nobody is invited twice"
