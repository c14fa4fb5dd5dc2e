"""Agents leave Letta and come back; their rooms say so and lose nothing. All real."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import anyio

from support.home import Home, on_both_back_ends
from support.matrix import as_ghost
from support.rooms import ghost_of, is_called, join_rooms, says
from support.talk import REPLY_S, answers, ask

QUICK = {"HOMEROOM_SYNC_INTERVAL_S": "1", "HOMEROOM_RETIRE_AFTER_S": "2"}


@on_both_back_ends
async def test_an_agent_that_is_gone_for_long_is_retired_and_its_room_says_so(home: Home) -> None:
    ada = await home.letta.create_agent("Ada")
    await home.letta.create_agent("Brook")
    async with home.login() as alice:
        with home.service(**QUICK):
            rooms = await join_rooms(alice, 2)
            room = rooms["Ada"]
            await ask(alice, room, "!say before")
            await home.letta.delete_agent(ada.id)
            await alice.wait_event(is_called(room, "Ada - Letta Agent Chat (retired)"), REPLY_S)
            notice = await alice.wait_event(says(room, "I am retired"), REPLY_S)
            assert notice["content"]["msgtype"] == "m.notice"
            told = await ask(alice, room, "are you there?")
            assert told["content"]["msgtype"] == "m.notice"
            assert "was not delivered" in told["content"]["body"]
            assert "gone from Letta" in told["content"]["body"]
            assert notice["sender"] in await alice.members(room), "the ghost stays"
            other = await ask(alice, rooms["Brook"], "!say still here")
            assert other["content"]["body"] == "still here"


@on_both_back_ends
async def test_a_retired_agent_that_is_back_has_its_room_and_its_name_again(home: Home) -> None:
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service(**QUICK) as service:
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say before")
            home.letta.lose_agents()
            await alice.wait_event(says(room, "I am retired"), REPLY_S)
            missed = await alice.say(room, "!say missed")
            await alice.wait_event(answers(missed), REPLY_S)
            home.letta.restore_agents()
            await alice.wait_event(says(room, "I am back"), REPLY_S)
            assert await alice.room_name(room) == "Ada - Letta Agent Chat"
            assert (await ask(alice, room, "!say after"))["content"]["body"] == "after"
            assert alice.invites() == []
            bodies = await alice.bodies(room)
            assert sum("I am retired:" in body for body in bodies) == 2, "a notice and an answer"
            assert sum("I am back" in body for body in bodies) == 1
            assert service.log().count("action_failed") == 0


@on_both_back_ends
async def test_a_letta_that_lost_all_its_agents_retires_nobody_until_a_person_confirms(
    home: Home,
) -> None:
    agents = [await home.letta.create_agent(name) for name in ("Ada", "Brook", "Cleo")]
    async with home.login() as alice:
        with home.service(**QUICK) as service:
            rooms = await join_rooms(alice, len(agents))
            home.letta.lose_agents()
            await service.wait_sync(lambda sync: "3 of 3 agents are gone" in str(sync))
            held = home.run("sync")
            assert held.returncode == 2 and "held back" in held.stdout
            assert await alice.room_name(rooms["Ada"]) == "Ada - Letta Agent Chat"
            status = home.run("sync", "--status")
            assert status.returncode == 2 and "held back: 3 of 3" in status.stdout
            sure = home.run("sync", "--confirm-removals")
            assert sure.returncode == 0, sure.stdout + sure.stderr
            for name, room in rooms.items():
                await alice.wait_event(
                    is_called(room, f"{name} - Letta Agent Chat (retired)"), REPLY_S
                )
                await alice.wait_event(says(room, "I am retired"), REPLY_S)


async def test_an_agent_that_is_gone_is_retired_although_its_ghost_was_put_out(
    home: Home,
) -> None:
    ada = await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service(**QUICK):
            room = await alice.join(await alice.wait_invite())
        await home.letta.delete_agent(ada.id)
        path = f"/_matrix/client/v3/rooms/{room}/leave"
        as_ghost(home.homeserver, ghost_of(ada), "POST", path)
        with home.service(**QUICK) as service, anyio.fail_after(REPLY_S):
            while not rows(home, "SELECT 1 FROM mapping WHERE retired"):
                await service.changed()
            assert service.log().count("action_failed") == 0
            await service.wait_in_step()
        assert await alice.room_name(room) == "Ada - Letta Agent Chat", "nobody could change it"
        assert not rows(home, "SELECT 1 FROM item WHERE state IN ('parked', 'waiting')")


def rows(home: Home, sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(home.directory / "data" / "homeroom.db")) as store:
        return store.execute(sql).fetchall()
