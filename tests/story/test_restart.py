"""A restart neither forgets nor replays."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import pytest
from mcp import Client

from support.home import Home, Service
from support.letta_v1 import LettaV1
from support.person import Person
from support.talk import REPLY_S, answers, answers_in, ask, assert_answered


async def _by_message(home: Home, service: Service, person: Person, room: str) -> None:
    await person.say(room, "!catchup")


async def _by_command(home: Home, service: Service, person: Person, room: str) -> None:
    done = await anyio.to_thread.run_sync(home.run, "catchup", room)
    assert (done.returncode, done.stdout) == (0, "5 are answered now\n"), done.stderr
    again = await anyio.to_thread.run_sync(home.run, "catchup", "--all")
    assert again.returncode == 1 and "Nothing is left to catch up on" in again.stderr


async def _by_tool(home: Home, service: Service, person: Person, room: str) -> None:
    async with Client(f"{service.url}/mcp") as client:
        listed = await client.call_tool("list_parked", {})
        assert listed.structured_content
        assert listed.structured_content["late"] == [{"room": room, "messages": 5}]
        done = await client.call_tool("replay_parked", {"id": room})
        assert done.structured_content
        assert done.structured_content["answered"] == 5 and done.structured_content["left"] == 0


@pytest.mark.parametrize("catch_up", [_by_message, _by_command, _by_tool])
async def test_what_is_too_old_is_announced_and_answered_in_order_when_somebody_asks(
    home: Home, catch_up: Callable[[Home, Service, Person, str], Awaitable[None]]
) -> None:
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service(HOMEROOM_CATCH_UP_S="0", HOMEROOM_TOOLSETS="operate") as service:
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say live is never old")
            service.stop()
            asked = [await alice.say(room, f"!say {n}") for n in range(5)]
            service.start()
            notice = await alice.wait_event(
                lambda e: "!catchup" in e["content"].get("body", ""), REPLY_S
            )
            assert "5 messages were written" in notice["content"]["body"]
            await ask(alice, room, "!say new")
            assert not set(asked) & set(answers_in(await alice.messages(room)))
            await catch_up(home, service, alice, room)
            await assert_answered(alice, room, asked)


async def test_a_lost_store_finds_the_rooms_again_and_answers_nothing_old(home: Home) -> None:
    """No second room is made, and on a first start what was there before stays unanswered."""
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service() as service:
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say one")
            service.stop()
            for file in (home.directory / "data").iterdir():
                file.unlink()
            old = await alice.say(room, "!say from the past")
            service.start()
            new = await ask(alice, room, "!say two")
            assert new["content"]["body"] == "two"
            found = answers_in(await alice.messages(room))
            assert old not in found
            assert alice.invites() == []


async def test_letta_v1_is_served_the_same_way(own_letta_v1: LettaV1, home: Home) -> None:
    """The other real back end, end to end."""
    letta = own_letta_v1
    await letta.create_agent("Vera", "", {"human": "Nothing known."})
    environ = {
        "HOMEROOM_LETTA_URL": letta.url,
        "HOMEROOM_LETTA_BACKEND": "auto",
        "HOMEROOM_LETTA_TOKEN": letta.config().letta_token.get_secret_value(),
    }
    async with home.login() as alice:
        with home.service(**environ) as service:
            room = await alice.join(await alice.wait_invite())
            assert await alice.room_name(room) == "Vera - Letta Agent Chat"
            answer = await ask(alice, room, "!say from V1")
            assert answer["content"]["body"] == "from V1"
            service.kill()
            late = await alice.say(room, "!say after a crash")
            service.start()
            answer = await alice.wait_event(answers(late), REPLY_S)
            assert answer["content"]["body"] == "after a crash"
