"""Agents leave Letta and come back; their rooms say so and lose nothing. All real."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from homeroom.model import Agent
from support.home import Home, Service
from support.person import Event, Person
from support.talk import REPLY_S, answers, ask

QUICK = {"HOMEROOM_SYNC_INTERVAL_S": "1", "HOMEROOM_RETIRE_AFTER_S": "2"}


def says(room: str, words: str) -> Callable[[Event], bool]:
    """Whether an event is a notice with these words."""

    def is_notice(event: Event) -> bool:
        content = event["content"]
        return event["room_id"] == room and words in str(content.get("body", ""))

    return is_notice


def is_called(room: str, name: str) -> Callable[[Event], bool]:
    return lambda e: (
        e["type"] == "m.room.name" and ((e["room_id"], e["content"].get("name")) == (room, name))
    )


async def join_all(person: Person, agents: list[Agent]) -> dict[str, str]:
    """Room name -> room."""
    rooms: dict[str, str] = {}
    while len(rooms) < len(agents):
        room = await person.join(await person.wait_invite())
        rooms[await person.room_name(room)] = room
    return rooms


async def wait_last_sync(service: Service, words: str) -> None:
    with anyio.fail_after(REPLY_S):
        while words not in str((await service.health())["last_sync"]):
            await service.changed()


async def test_an_agent_that_is_gone_for_long_is_retired_and_its_room_says_so(home: Home) -> None:
    ada = await home.letta.create_agent("Ada")
    await home.letta.create_agent("Brook")
    async with home.login() as alice:
        with home.service(**QUICK):
            rooms = await join_all(alice, [ada, ada])
            room = rooms["Ada - Letta Agent Chat"]
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
            other = await ask(alice, rooms["Brook - Letta Agent Chat"], "!say still here")
            assert other["content"]["body"] == "still here"


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


async def test_a_letta_that_lost_all_its_agents_retires_nobody_until_a_person_confirms(
    home: Home,
) -> None:
    agents = [await home.letta.create_agent(name) for name in ("Ada", "Brook", "Cleo")]
    async with home.login() as alice:
        with home.service(**QUICK) as service:
            rooms = await join_all(alice, agents)
            home.letta.lose_agents()
            await wait_last_sync(service, "3 of 3 agents are gone")
            held = home.run("sync")
            assert held.returncode == 2 and "held back" in held.stdout
            assert (
                await alice.room_name(rooms["Ada - Letta Agent Chat"]) == "Ada - Letta Agent Chat"
            )
            status = home.run("sync", "--status")
            assert status.returncode == 2 and "held back: 3 of 3" in status.stdout
            sure = home.run("sync", "--confirm-removals")
            assert sure.returncode == 0, sure.stdout + sure.stderr
            for name, room in rooms.items():
                await alice.wait_event(is_called(room, f"{name} (retired)"), REPLY_S)
                await alice.wait_event(says(room, "I am retired"), REPLY_S)
