"""What users of other bridges and bots complained of, one test each. All real; a proxy before one
of the servers does what theirs did."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import anyio
from mcp import Client

from homeroom.local.child import Child
from homeroom.local.scripted_model import ScriptedModel
from support import sick_homeroom
from support.fault_proxy import FaultProxy, bad_gateway, path, say
from support.home import Home, on_both_back_ends
from support.person import Event, Person
from support.rooms import ghost_of, new_room
from support.soak import import_path
from support.streams import wait_streaming
from support.talk import REPLY_S, answers, answers_in, ask, is_typing

SYNC = path(r"/sync$")


@contextmanager
def _before(home: Home, setting: str) -> Iterator[tuple[Home, FaultProxy]]:
    """The home, with a proxy before the server that the setting names."""
    with FaultProxy(home.environ[setting]) as proxy:
        yield replace(home, environ=home.environ | {setting: proxy.url}), proxy


def _text_answer(event_id: str) -> Callable[[Event], bool]:
    is_answer = answers(event_id)
    return lambda e: is_answer(e) and e["content"].get("msgtype") == "m.text"


async def _assert_answered_in_order(
    person: Person, room: str, asked: list[str], texts: Sequence[str] = ()
) -> None:
    """The answers are ``texts``, or the numbers of the questions, once each, in order."""
    for event_id in asked:
        await person.wait_event(_text_answer(event_id), 60)
    told = [e for e in await person.messages(room) if e["content"].get("msgtype") == "m.text"]
    found = answers_in(told)
    texts = texts or [str(number) for number in range(len(asked))]
    assert [found[event_id] for event_id in asked] == [[text] for text in texts]
    assert [event_id for event_id in found if event_id in asked] == asked


async def test_a_502_page_with_403_in_it_is_no_refusal(home: Home) -> None:
    """https://github.com/NousResearch/hermes-agent/pull/66878: it ended their sync for good."""
    await home.letta.create_agent("Ada")
    with _before(home, "HOMEROOM_MATRIX_URL") as (behind, proxy):
        async with home.login() as person:
            with behind.service() as service:
                room = await person.join(await person.wait_invite())
                await ask(person, room, "!say warm")
                proxy.on(SYNC, bad_gateway(), times=3)
                proxy.on(path(r"/send/m\.room\.message/"), bad_gateway(), times=2)
                asked = [await person.say(room, f"!say {n}") for n in range(3)]
                await _assert_answered_in_order(person, room, asked)
                assert "item_parked" not in service.log()
                assert "502" in service.log()


async def test_old_messages_are_not_replayed_after_a_restart(home: Home) -> None:
    """https://github.com/openclaw/openclaw/issues/74569: weeks-old events were answered anew."""
    await home.letta.create_agent("Ada")
    async with home.login() as person:
        with home.service() as service:
            room = await person.join(await person.wait_invite())
            asked = [await person.say(room, f"!say {n}") for n in range(4)]
            for end in (service.kill, service.stop):
                await _assert_answered_in_order(person, room, asked)
                end()
                service.start()
                asked.append(await person.say(room, f"!say {len(asked)}"))
            await _assert_answered_in_order(person, room, asked)


async def test_messages_sent_while_down_are_not_dropped(home: Home) -> None:
    """https://github.com/HKUDS/nanobot/pull/3575: what was there before the start was skipped."""
    await home.letta.create_agent("Ada")
    async with home.login() as person:
        with home.service() as service:
            room = await person.join(await person.wait_invite())
            before = await person.say(room, "!say before")
            await person.wait_event(answers(before), REPLY_S)
            service.stop()
            asked = [await person.say(room, f"!say {n}") for n in range(30)]
            service.start()
            await _assert_answered_in_order(person, room, asked)
            found = answers_in(await person.messages(room))
            assert found[before] == ["before"], "not answered again"
            assert list(found) == [before, *asked]


async def test_a_busy_agent_drops_no_input(home: Home) -> None:
    """https://github.com/letta-ai/letta-code/issues/885 and the like: what came meanwhile was gone.
    For the 409 of a busy V1 see ``test_known_complaints_letta.py``."""
    await home.letta.create_agent("Ada")
    async with home.login() as person:
        with home.service():
            room = await person.join(await person.wait_invite())
            asked = [await person.say(room, "!delay 4\n!say 0")]
            await person.wait_event(is_typing)
            asked += [await person.say(room, f"!say {n}") for n in range(1, 8)]
            await _assert_answered_in_order(person, room, asked)


@on_both_back_ends
async def test_a_stream_error_makes_no_double_answer(
    home: Home, scripted_model: ScriptedModel
) -> None:
    """https://github.com/letta-ai/lettabot/issues/269: one question, the answer twice."""
    await home.letta.create_agent("Ada")
    with _before(home, "HOMEROOM_LETTA_URL") as (behind, proxy):
        async with home.login() as person:
            with behind.service():
                room = await person.join(await person.wait_invite())
                await ask(person, room, "!say warm")
                words = " ".join(f"word{number}" for number in range(12))
                asked = [await person.say(room, f"!chunkdelay 0.3\n!say {words}")]
                await wait_streaming(scripted_model, words, 4)
                proxy.cut_all()
                assert not any(_text_answer(asked[0])(event) for event in person.events)
                asked.append(await person.say(room, "!say 1"))
                await _assert_answered_in_order(person, room, asked, [words, "1"])


async def test_the_sync_lives_on_when_the_homeserver_comes_back(own_home: Home) -> None:
    """https://github.com/sipeed/picoclaw/issues/3203: it died with the homeserver, silently.

    So did six accounts of https://github.com/openclaw/openclaw/pull/125362."""
    home = own_home
    await home.letta.create_agent("Ada")
    async with home.login() as person:
        with home.service() as service:
            room = await person.join(await person.wait_invite())
            asked = [await person.say(room, "!say 0")]
            await person.wait_event(answers(asked[0]), REPLY_S)
            for number in (1, 2):
                home.homeserver.synapse.kill()
                await service.wait_log("sync_failed", times=number)
                home.homeserver.synapse.start()
                asked.append(await person.say(room, f"!say {number}"))
                await _assert_answered_in_order(person, room, asked)
            assert (await service.health())["status"] == "ok"


async def test_a_dead_token_is_not_tried_in_a_tight_loop(own_home: Home) -> None:
    """https://github.com/HKUDS/nanobot/issues/1851 (every 2 s, for ever) and
    https://github.com/NousResearch/hermes-agent/pull/3280 (489 requests a second)."""
    home = own_home  # whose token is dead cannot give its claim back
    await home.letta.create_agent("Ada")
    with _before(home, "HOMEROOM_MATRIX_URL") as (behind, proxy):
        async with home.login() as person:
            with behind.service(HOMEROOM_SYNC_INTERVAL_S="1") as service:
                room = await person.join(await person.wait_invite())
                await ask(person, room, "!say warm")
                dead = {"errcode": "M_UNKNOWN_TOKEN", "error": "Unknown access token"}
                proxy.on(lambda asked: True, say(401, dead))
                proxy.cut_all()
                await service.wait_log("sync_failed")
                before = len(proxy.requests)
                await anyio.sleep(10)
                assert len(proxy.requests) - before <= 10
                told = await service.health()
                assert told["status"] == "degraded" and "token" in told["matrix"].lower()


async def test_no_other_agent_answers_for_one_that_is_gone(home: Home) -> None:
    """A fallback to the first agent there is sent messages to the wrong one:
    https://github.com/oculairmedia/Letta-Matrix."""
    await home.letta.create_agent("Ada")
    brook = await home.letta.create_agent("Brook")
    async with home.login() as person:
        with home.service() as service:
            with anyio.fail_after(REPLY_S):
                while len(person.invites()) < 2:
                    await service.changed()
            rooms = [await person.join(room) for room in person.invites()]
            names = {await person.room_name(room): room for room in rooms}
            room = next(room for name, room in names.items() if name.startswith("Brook"))
            await ask(person, room, "!say warm")
            await home.letta.delete_agent(brook.id)
            asked = await person.say(room, "!say who is there")
            told = await person.wait_event(answers(asked), 60)
            assert told["content"]["msgtype"] == "m.notice" and told["sender"] == ghost_of(brook)
            assert "who is there" not in told["content"]["body"]
            async with Client(f"{service.url}/mcp") as client:
                for name in (brook.id, "Brok", "nobody"):
                    result = await client.call_tool(
                        "chat_with_agent", {"agent": name, "message": "!say wrong"}
                    )
                    assert result.is_error, result


async def test_two_bots_do_not_answer_each_other(home: Home) -> None:
    """https://github.com/NousResearch/hermes-agent/issues/27995 and
    https://github.com/octos-org/octos/issues/1546: hundreds of messages in minutes."""
    ada = await home.letta.create_agent("Ada")
    brook = await home.letta.create_agent("Brook")
    async with home.login() as person:
        with home.service(HOMEROOM_INVITE_POLL_S="1"):
            room = await new_room(person, ghost_of(ada), ghost_of(brook))
            await person.wait_event(
                lambda e: (
                    e["type"] == "m.room.member"
                    and e.get("state_key") == ghost_of(brook)
                    and e["content"]["membership"] == "join"
                ),
                REPLY_S,
            )
            for name, other in (("Ada", "Brook"), ("Brook", "Ada")):
                mention = f"{other}: !say {other} and {name}, what do you think?"
                asked = await person.say(room, f"@{name}: \n!say {mention}")
                await person.wait_event(_text_answer(asked), REPLY_S)
            # A program of somebody else's speaks in notices, and each of ours is there to read it.
            await person.say(room, "@Ada: @Brook: I am a program.", msgtype="m.notice")
            # Each takes what it hears in order: an answer to the other would come before these.
            for name in ("Ada", "Brook"):
                last = await person.say(room, f"@{name}: \n!say last")
                await person.wait_event(_text_answer(last), REPLY_S)
            told = [e for e in await person.messages(room) if e["content"]["msgtype"] == "m.text"]
            assert len([e for e in told if e["sender"] != person.id]) == 4, told


async def test_a_clock_that_is_hours_ahead_of_the_homeservers_drops_nothing(home: Home) -> None:
    """https://github.com/NousResearch/hermes-agent/issues/12614 and
    https://github.com/openclaw/openclaw/issues/19843: every message was older than the start."""
    await home.letta.create_agent("Ada")
    clock = home.directory / "clock"
    clock.write_text(str(5 * 3600))
    illness = json.dumps({"clock": str(clock)})
    service = Child(
        "homeroom", [sys.executable, sick_homeroom.__file__, illness, "serve", "--http", "0"],
        cwd=home.directory, log=home.directory / "homeroom.log",
        env=home.environ | {"PYTHONPATH": import_path(), "PYTHONSAFEPATH": "1"},
    )  # fmt: skip
    try:
        service.start()
        async with home.login() as person:
            room = await person.join(await person.wait_invite(60))
            asked = [await person.say(room, "!say 0")]
            await _assert_answered_in_order(person, room, asked)
            service.kill()
            asked.append(await person.say(room, "!say 1"))
            service.start()
            asked.append(await person.say(room, "!say 2"))
            await _assert_answered_in_order(person, room, asked)
    finally:
        service.stop()


async def test_an_event_that_nobody_can_read_stops_no_other(home: Home) -> None:
    """https://github.com/NousResearch/hermes-agent/pull/57643: it took its batch along."""
    await home.letta.create_agent("Ada")
    strange: list[dict[str, Any]] = [
        {"body": "!empty", "m.relates_to": "nothing"},
        {"body": "!empty", "m.relates_to": {"rel_type": ["m.thread"], "event_id": {}}},
        {"body": "!empty", "m.relates_to": {"m.in_reply_to": 3}, "m.mentions": [7]},
        {"body": "\u0000\ud7ff\u202e" * 500, "formatted_body": {"a": 1}},
        {
            "body": "> <@a> quoted\n" * 3000 + "!empty",
            "m.relates_to": {"m.in_reply_to": {"event_id": 5}},
        },
        {"body": "", "msgtype": "m.image", "url": {}, "info": []},
        {"body": "x", "msgtype": "org.example.poll"},
        {"body": "!catchup", "m.relates_to": {"rel_type": "m.replace"}},
    ]
    async with home.login() as person:
        with home.service() as service:
            room = await person.join(await person.wait_invite())
            await ask(person, room, "!say warm")
            service.stop()  # all of it comes in one batch
            asked: list[str] = []
            accepted = 0
            for content in strange:
                with suppress(AssertionError):  # what the homeserver refuses reaches nobody
                    await person.send(room, {"msgtype": "m.text"} | content)
                    accepted += 1
                asked.append(await person.say(room, f"!say {len(asked)}"))
            await person.send(room, {"algorithm": 5, "ciphertext": []}, "m.room.encrypted")
            assert accepted >= 4
            service.start()
            await _assert_answered_in_order(person, room, asked)
            assert "Traceback" not in service.log()
