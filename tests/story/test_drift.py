"""Somebody changes a room behind Homeroom's back, and it finds its way home. All real."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from mcp import Client

from homeroom.model import AgentId, ghost_localpart
from support.home import Home, Service, on_both_back_ends
from support.matrix import as_ghost
from support.rooms import HUB, ghost_of, invite, kick
from support.talk import REPLY_S, answers, answers_in, ask, assert_answered

OFTEN = {"HOMEROOM_SYNC_INTERVAL_S": "1"}


async def agent_entry(service: Service) -> dict[str, Any]:
    async with Client(f"{service.url}/mcp") as client:
        listed = await client.call_tool("list_agents", {"detail": "full"})
    assert listed.structured_content is not None
    return dict(listed.structured_content["agents"][0])


async def wait_agent(service: Service, wanted: Callable[[dict[str, Any]], bool]) -> None:
    with anyio.fail_after(REPLY_S):
        while not wanted(await agent_entry(service)):
            await service.changed()


async def wait_home(service: Service) -> None:
    """Returns once the agent lives in its room."""
    await wait_agent(service, lambda entry: entry["state"] == "home")


async def wait_problem(service: Service, words: str) -> None:
    """Returns once the agent is said to be failing, in these words."""
    await wait_agent(
        service, lambda entry: entry["state"] == "failing" and words in entry["problem"]
    )


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
            answer = await alice.wait_event(answers(meanwhile), REPLY_S)
            assert answer["content"]["body"] == "meanwhile"
            assert HUB in await alice.members(room)
            after = await alice.say(room, "!say after")
            await alice.wait_event(answers(after), REPLY_S)
            found = answers_in(await alice.messages(room))
            assert found == {first: ["before"], meanwhile: ["meanwhile"], after: ["after"]}


@pytest.mark.parametrize("how", ["kick", "ban"])
async def test_all_that_people_write_while_the_hub_is_out_is_answered_in_order_or_counted(
    home: Home, how: str
) -> None:
    """More than a timeline holds, while the bridge goes on reading; and more than a lane holds."""
    agent = await home.letta.create_agent("Ada")
    ghost = f"@{ghost_localpart(AgentId(agent.id))}:hs.test"
    limits = {"HOMEROOM_MAX_WAITING": "120"} if how == "kick" else {"HOMEROOM_MAX_WAITING": "500"}
    async with home.login() as alice:
        # No sync but those that are asked for, so it stays out until it is let in.
        with home.service(HOMEROOM_SYNC_INTERVAL_S="86400", **limits):
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say before")
            home.run("sync")  # the first may still be at work, and would let it in at once
            await alice._ask("POST", ("rooms", room, how), body={"user_id": HUB})
            asked = [await alice.say(room, f"!say {number}") for number in range(160)]
            assert not set(asked) & set(answers_in(await alice.messages(room)))
            if how == "ban":
                await alice._ask("POST", ("rooms", room, "unban"), body={"user_id": HUB})
                as_ghost(
                    home.homeserver, ghost, "POST", f"/_matrix/client/v3/rooms/{room}/invite",
                    {"user_id": HUB},
                )  # fmt: skip
            home.run("sync")
            await alice.wait_event(answers(asked[119]), 4 * REPLY_S)
            if how == "kick":
                notice = await alice.wait_event(
                    lambda e: "!catchup" in e["content"].get("body", ""), REPLY_S
                )
                assert "40 messages were written here while I was away" in notice["content"]["body"]
                await alice.say(room, "!catchup")
            await alice.wait_event(answers(asked[-1]), 4 * REPLY_S)
            found = answers_in(await alice.messages(room))
            assert [found[event_id] for event_id in asked] == [[str(n)] for n in range(160)]
            assert [event_id for event_id in found if event_id in asked] == asked


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
            await assert_answered(alice, room, asked)
            assert answers_in(await alice.messages(room))[first] == ["before"]


async def test_a_room_without_hub_and_ghost_is_said_to_be_failing_until_people_invite_both(
    home: Home,
) -> None:
    ghost = ghost_of(await home.letta.create_agent("Ada"))
    async with home.login() as alice:
        with home.service(**OFTEN) as service:
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say before")
            leave = f"/_matrix/client/v3/rooms/{room}/leave"
            as_ghost(home.homeserver, ghost, "POST", leave)
            as_ghost(home.homeserver, HUB, "POST", leave)
            await wait_problem(service, f"{HUB} and {ghost}")
            said = (await service.wait_sync(lambda sync: bool(sync["failures"])))["failures"]
            assert any(f"invite {HUB} and {ghost} again" in reason for reason in said)
            assert service.log().count("action=join_hub") <= 2, "it is not asked for ever"

            await invite(alice, room, ghost)
            await invite(alice, room, HUB)
            meanwhile = await alice.say(room, "!say meanwhile")
            await alice.wait_event(answers(meanwhile), REPLY_S)
            assert {HUB, ghost} <= set(await alice.members(room))
            await wait_home(service)


@on_both_back_ends
async def test_a_ghost_that_left_its_room_is_said_to_be_failing_until_it_is_invited(
    home: Home,
) -> None:
    ghost = ghost_of(await home.letta.create_agent("Ada"))
    async with home.login() as alice:
        with home.service(**OFTEN) as service:
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say before")
            as_ghost(home.homeserver, ghost, "POST", f"/_matrix/client/v3/rooms/{room}/leave")
            await wait_problem(service, f"invite {ghost} again")
            await invite(alice, room, ghost)
            await wait_home(service)
            assert (await ask(alice, room, "!say back"))["content"]["body"] == "back"


async def test_a_person_who_invites_the_hub_again_is_heard_at_the_next_sync(home: Home) -> None:
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service(**OFTEN) as service:
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say before")
            ban = {"user_id": HUB}
            await alice._ask("POST", ("rooms", room, "ban"), body=ban)
            await wait_problem(service, "banned")
            await alice._ask("POST", ("rooms", room, "unban"), body=ban)
            meanwhile = await alice.say(room, "!say meanwhile")
            await invite(alice, room, HUB)
            await alice.wait_event(answers(meanwhile), REPLY_S)
            await wait_home(service)
