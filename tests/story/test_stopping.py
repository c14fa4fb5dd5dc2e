"""A person stops an agent in the middle of its answer. All real."""

from __future__ import annotations

import secrets

import anyio
from mcp import Client

from homeroom.local.scripted_model import ScriptedModel
from support.client import call
from support.home import Home, on_both_back_ends
from support.person import Person
from support.streams import wait_streaming
from support.talk import REPLY_S, answers, answers_in, ask


def _words() -> str:
    """An answer that takes two minutes, and that no other test has the model say."""
    name = secrets.token_hex(3)
    return " ".join(f"{name}-{number}" for number in range(240))


async def _say_long(model: ScriptedModel, person: Person, room: str) -> str:
    """Asks for a long answer; returns the question when the agent has begun to say it."""
    words = _words()
    asked = await person.say(room, f"!chunkdelay 0.5\n!say {words}")
    await wait_streaming(model, words)
    return asked


@on_both_back_ends
async def test_stop_ends_the_turn_under_way_and_the_next_message_is_answered(
    home: Home, scripted_model: ScriptedModel
) -> None:
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service():
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say warm")
            long = await _say_long(scripted_model, alice, room)
            waiting = await alice.say(room, "!say waiting")
            stop = await alice.say(room, "!stop")
            notice = await alice.wait_event(answers(long), REPLY_S)
            said = notice["content"]["body"]
            assert "stopped me" in said and alice.id in said and "may have happened" in said
            assert "Letta could not stop it" not in said
            answer = await alice.wait_event(answers(waiting), REPLY_S)
            assert answer["content"]["body"] == "waiting"
            idle = await ask(alice, room, "!stop")
            assert "I am not working on anything here" in idle["content"]["body"]

            other = await _say_long(scripted_model, alice, room)
            unwanted = await alice.say(room, "!say unwanted")
            await alice.say(room, "!stop all")
            ended = await alice.wait_event(answers(unwanted), REPLY_S)
            assert "was cancelled by" in ended["content"]["body"]
            await alice.wait_event(answers(other), REPLY_S)
            assert (await ask(alice, room, "!say last"))["content"]["body"] == "last"
            found = answers_in(await alice.messages(room))
            assert [len(found[asked]) for asked in (long, waiting, other, unwanted)] == [1] * 4
            assert stop not in found
        shown = home.run("explain", long).stdout
        assert "wrote !stop" in shown and "cancelled: It was stopped by a person" in shown


async def test_a_chat_is_stopped_from_the_command_line_and_its_client_hears_why(
    home: Home, scripted_model: ScriptedModel
) -> None:
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service() as service:
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say warm")
            async with Client(f"{service.url}/mcp") as client:
                words = _words()
                sent = f"!chunkdelay 0.5\n!say {words}"
                asked = await call(client, "chat_with_agent", agent="Ada", message=sent, wait_s=0)
                await wait_streaming(scripted_model, words)
                reply_id = asked["reply_id"]
                done = await anyio.to_thread.run_sync(
                    home.run, "cancel", reply_id, "--reason", "wrong agent"
                )
                assert done.returncode == 0, done.stderr
                assert done.stdout.startswith(f"{reply_id} is stopped; what the agent had")
                view = await call(client, "get_reply", reply_id=reply_id, wait_s=0)
            assert view["status"] == "failed" and "reply" not in view
            assert "no answer comes" in view["reason"] and "wrong agent" in view["reason"]
            told = await alice.wait_event(
                lambda e: "stopped me" in str(e["content"].get("body")), REPLY_S
            )
            assert "whoever runs this Homeroom" in told["content"]["body"]
            assert (await ask(alice, room, "!say next"))["content"]["body"] == "next"


@on_both_back_ends
async def test_a_stop_that_nobody_could_carry_out_is_carried_out_after_a_kill(
    home: Home, scripted_model: ScriptedModel
) -> None:
    """The wish falls between the kill and the start: it is in the store, and nobody runs."""
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service() as service:
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say warm")
            long = await _say_long(scripted_model, alice, room)
            after = await alice.say(room, "!say after")
            service.kill()
            asked = await anyio.to_thread.run_sync(home.run, "cancel", long)
            assert asked.returncode == 0 and "is to be stopped" in asked.stdout, asked.stderr
            assert "It is being stopped" in home.run("explain", long).stdout
            service.start()
            notice = await alice.wait_event(answers(long), REPLY_S)
            assert "stopped me" in notice["content"]["body"]
            answer = await alice.wait_event(answers(after), REPLY_S)
            assert answer["content"]["body"] == "after"
            assert len(answers_in(await alice.messages(room))[long]) == 1
