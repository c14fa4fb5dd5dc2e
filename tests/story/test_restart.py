"""A restart neither forgets nor replays."""

from __future__ import annotations

from support.home import Home
from support.letta_v1 import LettaV1
from support.talk import REPLY_S, answers, answers_in, ask


async def test_what_was_said_while_the_bridge_was_down_is_answered_once_and_in_order(
    home: Home,
) -> None:
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service() as service:
            room = await alice.join(await alice.wait_invite())
            before = await alice.say(room, "!say before")
            await alice.wait_event(answers(before), REPLY_S)
            service.stop()
            asked = [await alice.say(room, f"!say {n}") for n in range(30)]
            service.start()
            for event_id in asked:
                await alice.wait_event(answers(event_id), 60)
            found = answers_in(await alice.messages(room))
            assert found[before] == ["before"], "not answered again"
            assert [found[event_id] for event_id in asked] == [[str(n)] for n in range(30)]
            assert list(found) == [before, *asked]


async def test_what_is_too_old_is_announced_and_answered_in_order_when_a_member_asks(
    home: Home,
) -> None:
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service(HOMEROOM_CATCH_UP_S="0") as service:
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
            await alice.say(room, "!catchup")
            for event_id in asked:
                await alice.wait_event(answers(event_id), REPLY_S)
            found = answers_in(await alice.messages(room))
            assert [found[event_id] for event_id in asked] == [[str(n)] for n in range(5)]
            assert [event_id for event_id in found if event_id in asked] == asked


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
