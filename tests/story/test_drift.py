"""Somebody changes a room behind Homeroom's back, and it finds its way home. All real."""

from __future__ import annotations

from typing import Any

import anyio
from mcp import Client

from homeroom.model import AgentId, ghost_localpart
from support.home import Home, Service
from support.matrix import as_ghost
from support.person import Person
from support.talk import REPLY_S, answers, answers_in, ask

HUB = "@agent_hub:hs.test"
OFTEN = {"HOMEROOM_SYNC_INTERVAL_S": "1"}


async def kick(person: Person, room: str, user: str) -> None:
    await person._ask("POST", ("rooms", room, "kick"), body={"user_id": user})


async def invite(person: Person, room: str, user: str) -> None:
    await person._ask("POST", ("rooms", room, "invite"), body={"user_id": user})


async def agent_entry(service: Service) -> dict[str, Any]:
    async with Client(f"{service.url}/mcp") as client:
        listed = await client.call_tool("list_agents", {})
    assert listed.structured_content is not None
    return dict(listed.structured_content["agents"][0])


async def wait_state(service: Service, state: str) -> dict[str, Any]:
    with anyio.fail_after(REPLY_S):
        while (entry := await agent_entry(service))["state"] != state:
            await service.changed()
    return entry


async def test_a_hub_that_is_put_out_comes_back_and_what_was_said_meanwhile_is_answered_once(
    home: Home,
) -> None:
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service(**OFTEN):
            room = await alice.join(await alice.wait_invite())
            first = await alice.say(room, "!say before")
            await alice.wait_event(answers(first), REPLY_S)
            await kick(alice, room, HUB)
            meanwhile = await alice.say(room, "!say meanwhile")
            with anyio.fail_after(10):
                answer = await alice.wait_event(answers(meanwhile), REPLY_S)
            assert answer["content"]["body"] == "meanwhile"
            assert HUB in await alice.members(room)
            after = await alice.say(room, "!say after")
            await alice.wait_event(answers(after), REPLY_S)
            found = answers_in(await alice.messages(room))
            assert found == {first: ["before"], meanwhile: ["meanwhile"], after: ["after"]}


async def test_a_hub_put_out_while_nothing_ran_comes_back_and_nothing_is_answered_twice(
    home: Home,
) -> None:
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service(**OFTEN) as service:
            room = await alice.join(await alice.wait_invite())
            first = await alice.say(room, "!say before")
            await alice.wait_event(answers(first), REPLY_S)
            service.stop()
            asked = [await alice.say(room, f"!say {number}") for number in range(3)]
            await kick(alice, room, HUB)
            asked += [await alice.say(room, f"!say {number}") for number in range(3, 6)]
            service.start()
            for event_id in asked:
                await alice.wait_event(answers(event_id), REPLY_S)
            found = answers_in(await alice.messages(room))
            assert [found[event_id] for event_id in asked] == [[str(n)] for n in range(6)]
            assert found[first] == ["before"]


async def test_a_room_without_hub_and_ghost_is_said_to_be_failing_until_people_invite_both(
    home: Home,
) -> None:
    agent = await home.letta.create_agent("Ada")
    ghost = f"@{ghost_localpart(AgentId(agent.id))}:hs.test"
    async with home.login() as alice:
        with home.service(**OFTEN) as service:
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say before")
            leave = f"/_matrix/client/v3/rooms/{room}/leave"
            as_ghost(home.homeserver, ghost, "POST", leave)
            as_ghost(home.homeserver, HUB, "POST", leave)
            problem = ""
            with anyio.fail_after(REPLY_S):
                while f"{HUB} and {ghost}" not in problem:
                    problem = (await wait_state(service, "failing"))["problem"]
            with anyio.fail_after(REPLY_S):
                while not (said := (await service.health())["last_sync"]["failures"]):
                    await service.changed()
            assert any(f"invite {HUB} and {ghost} again" in reason for reason in said)
            assert service.log().count("action=join_hub") <= 2, "it is not asked for ever"

            await invite(alice, room, ghost)
            await invite(alice, room, HUB)
            meanwhile = await alice.say(room, "!say meanwhile")
            await alice.wait_event(answers(meanwhile), REPLY_S)
            assert {HUB, ghost} <= set(await alice.members(room))
            await wait_state(service, "home")


async def test_a_ghost_that_left_its_room_is_said_to_be_failing_until_it_is_invited(
    home: Home,
) -> None:
    agent = await home.letta.create_agent("Ada")
    ghost = f"@{ghost_localpart(AgentId(agent.id))}:hs.test"
    async with home.login() as alice:
        with home.service(**OFTEN) as service:
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say before")
            as_ghost(home.homeserver, ghost, "POST", f"/_matrix/client/v3/rooms/{room}/leave")
            problem = ""
            with anyio.fail_after(REPLY_S):
                while f"invite {ghost} again" not in problem:
                    problem = (await wait_state(service, "failing"))["problem"]
            await invite(alice, room, ghost)
            await wait_state(service, "home")
            assert (await ask(alice, room, "!say back"))["content"]["body"] == "back"


async def test_a_person_who_invites_the_hub_again_is_heard_at_the_next_sync(home: Home) -> None:
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service(**OFTEN) as service:
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say before")
            ban = {"user_id": HUB}
            await alice._ask("POST", ("rooms", room, "ban"), body=ban)
            entry = await wait_state(service, "failing")
            with anyio.fail_after(REPLY_S):
                while "banned" not in entry["problem"]:
                    entry = await agent_entry(service)
            await alice._ask("POST", ("rooms", room, "unban"), body=ban)
            meanwhile = await alice.say(room, "!say meanwhile")
            await invite(alice, room, HUB)
            with anyio.fail_after(10):
                await alice.wait_event(answers(meanwhile), REPLY_S)
            await wait_state(service, "home")
