"""Several processes, one store: one runs the bridge, the others serve tools and wait."""

from __future__ import annotations

import anyio
from mcp import Client

from support.home import Home
from support.talk import answers, answers_in, ask


async def test_a_second_process_takes_over_within_ten_seconds_of_the_firsts_death(
    home: Home,
) -> None:
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service() as first, home.service() as second:
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say one")
            assert (await first.health())["bridge"]["runs_here"]
            assert not (await second.health())["bridge"]["runs_here"]
            first.kill()
            event_id = await alice.say(room, "!say two")
            answer = await alice.wait_event(answers(event_id), 10)
            assert answer["content"]["body"] == "two"
            assert (await second.health())["bridge"]["runs_here"]


async def test_a_stopped_process_hands_over_at_once(home: Home) -> None:
    await home.letta.create_agent("Ada")
    with home.service() as first, home.service() as second:
        first.stop()
        with anyio.fail_after(4):
            while not (await second.health())["bridge"]["runs_here"]:
                await second.changed()


async def test_a_client_on_stdio_beside_the_service_chats_through_the_services_bridge(
    home: Home,
) -> None:
    await home.letta.create_agent("Ada")
    with home.service() as service:
        async with Client(home.stdio()) as client:
            result = await client.call_tool(
                "chat_with_agent", {"agent": "Ada", "message": "!say hi"}
            )
            assert result.structured_content and result.structured_content["reply"] == "hi"
        assert (await service.health())["bridge"]["runs_here"]


async def test_a_bridge_replaces_a_tools_only_process_at_once(home: Home) -> None:
    await home.letta.create_agent("Ada")
    blank = dict.fromkeys([k for k in home.environ if "MATRIX" in k or "INVITE" in k], "")
    async with home.login() as alice:
        with home.service(**blank) as tools_only, home.service() as bridge:
            room = await alice.join(await alice.wait_invite())
            assert (await ask(alice, room, "!say here"))["content"]["body"] == "here"
            assert (await bridge.health())["bridge"]["runs_here"]
            assert not (await tools_only.health())["bridge"]["runs_here"]


async def test_a_second_store_on_the_same_homeserver_stands_back_and_names_the_first(
    home: Home,
) -> None:
    """Both would answer everything; it happens where one set-up forgets the data directory."""
    await home.letta.create_agent("Ada")
    elsewhere = {"HOMEROOM_DATA_DIR": str(home.directory / "other")}
    async with home.login() as alice:
        with home.service() as first, home.service(start=False, **elsewhere) as second:
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say one")
            second.start(wait_ok=False)
            with anyio.fail_after(20):
                while "Another Homeroom" not in (await second.health())["matrix"]:
                    await second.changed()
            assert str(first.child.pid if first.child else "") in (await second.health())["matrix"]
            event_id = await alice.say(room, "!say two")
            await alice.wait_event(answers(event_id), 20)
            await ask(alice, room, "!say three")
            assert answers_in(await alice.messages(room))[event_id] == ["two"]
            first.stop()
            late = await alice.say(room, "!say four")
            answer = await alice.wait_event(answers(late), 30)
            assert answer["content"]["body"] == "four"
