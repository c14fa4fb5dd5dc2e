"""kill -9: nothing accepted is lost, nothing is answered twice, order is kept."""

from __future__ import annotations

import random

from mcp import Client

from support.home import Home
from support.talk import REPLY_S, answers, answers_in, ask, assert_answered, is_typing


async def test_a_bridge_killed_in_the_middle_of_a_turn_answers_once_after_its_restart(
    home: Home,
) -> None:
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service() as service:
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say warm")
            asked = await alice.say(room, "!delay 3\n!say once")
            await alice.wait_event(is_typing)
            service.kill()
            service.start()
            answer = await alice.wait_event(answers(asked), 60)
            assert answer["content"]["body"] == "once"
            await ask(alice, room, "!say next")
            assert answers_in(await alice.messages(room))[asked] == ["once"]


async def test_a_burst_survives_several_kills_without_loss_repetition_or_disorder(
    home: Home,
) -> None:
    await home.letta.create_agent("Ada")
    chance = random.Random(4)
    async with home.login() as alice:
        with home.service() as service:
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say warm")
            asked = [await alice.say(room, f"!delay 0.1\n!say {n}") for n in range(30)]
            for _ in range(4):
                # Some answers later, at a moment of its own choosing.
                await alice.wait_event(answers(asked[chance.randrange(5, 25)]), 60)
                service.kill()
                service.start(wait_ok=False)
            await assert_answered(alice, room, asked)


async def test_a_tool_call_that_was_accepted_is_answered_after_a_kill(home: Home) -> None:
    await home.letta.create_agent("Ada")
    with home.service() as service:
        async with Client(f"{service.url}/mcp") as client:
            result = await client.call_tool(
                "chat_with_agent",
                {"agent": "Ada", "message": "!delay 3\n!say kept", "wait_s": 0.1},
            )
            assert result.structured_content
            reply_id = result.structured_content["reply_id"]
            service.kill()
        service.start()
        async with Client(f"{service.url}/mcp") as client:
            reply = await client.call_tool("get_reply", {"reply_id": reply_id, "wait_s": 50})
            assert reply.structured_content and reply.structured_content["reply"] == "kept"


async def test_a_homeserver_that_dies_under_the_bridge_loses_and_repeats_nothing(
    own_home: Home,
) -> None:
    home = own_home
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service() as service:
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say warm")
            asked = [await alice.say(room, f"!delay 0.2\n!say {n}") for n in range(10)]
            await alice.wait_event(answers(asked[2]), REPLY_S)
            home.homeserver.synapse.kill()
            home.homeserver.synapse.start()
        # A client that lost its server in mid-sync has died with it: come back as a new one.
        async with home.login() as again:
            with home.service(start=False) as service:
                service.start(wait_ok=False)
                last = await ask(again, room, "!say last")
                assert last["content"]["body"] == "last"
                found = answers_in(await again.messages(room))
                assert [found[event_id] for event_id in asked] == [[str(n)] for n in range(10)]
