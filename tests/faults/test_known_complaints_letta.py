"""The complaint that belongs to Letta's REST API, with a real server behind the proxy; and a parked
message that is taken up again and answered."""

from __future__ import annotations

import re
from dataclasses import replace

import anyio
import pytest
from mcp import Client

from support.fault_proxy import FaultProxy, path, say
from support.home import Home, on_v1
from support.talk import REPLY_S, answers, answers_in, ask

PENDING = {
    "detail": {
        "code": "PENDING_APPROVAL",
        "message": "CONFLICT: Cannot send a new message: The agent is waiting for approval on a"
        " tool call.",
        "pending_request_id": "message-1",
    }
}

BUSY = {
    "detail": "CONFLICT: Cannot send a new message: Another request (run_id=run-1) is currently"
    " being processed.",
    "run_id": "run-1",
}
TURN = path(r"/messages$", "POST")


@on_v1
async def test_an_agent_that_answers_409_because_it_is_busy_drops_no_input(home: Home) -> None:
    """https://github.com/letta-ai/letta-code/issues/885 and the like: what came meanwhile was gone.

    The body is what 0.16.8 says while another client has the conversation."""
    await home.letta.create_agent("Vera")
    with FaultProxy(home.letta.url) as proxy:
        behind = replace(home, environ=home.environ | {"HOMEROOM_LETTA_URL": proxy.url})
        async with home.login() as person:
            with behind.service() as service:
                room = await person.join(await person.wait_invite())
                await ask(person, room, "!say warm")
                sent = proxy.count(TURN)
                proxy.on(TURN, say(409, BUSY), times=3)
                asked = [await person.say(room, f"!say {n}") for n in range(6)]
                for event_id in asked:
                    is_answer = answers(event_id)
                    await person.wait_event(
                        lambda e, it=is_answer: it(e) and e["content"]["msgtype"] == "m.text",  # type: ignore[misc]
                        REPLY_S,
                    )
                told = [
                    e for e in await person.messages(room) if e["content"]["msgtype"] == "m.text"
                ]
                found = answers_in(told)
                assert [found[event_id] for event_id in asked] == [[str(n)] for n in range(6)]
                assert [event_id for event_id in found if event_id in asked] == asked
                assert proxy.count(TURN) - sent == 3 + len(asked) and not proxy.has_rules
                assert "item_parked" not in service.log()


@on_v1
@pytest.mark.parametrize("by", ["command", "tool"])
async def test_409_for_a_pending_approval_is_not_for_ever(home: Home, by: str) -> None:
    """https://github.com/letta-ai/lettabot/issues/180: every later message failed.

    Whoever wrote is told what a person must do; when that is done the agent answers again, and
    what was parked is replayed and answered, too."""
    await home.letta.create_agent("Vera")
    with FaultProxy(home.letta.url) as proxy:
        behind = replace(home, environ=home.environ | {"HOMEROOM_LETTA_URL": proxy.url})
        async with home.login() as person:
            with behind.service(HOMEROOM_TOOLSETS="operate") as service:
                room = await person.join(await person.wait_invite())
                await ask(person, room, "!say warm")
                proxy.on(path(r"/messages$", "POST"), say(409, PENDING))
                stuck = await person.say(room, "!say after the approval")
                told = await person.wait_event(answers(stuck), REPLY_S)
                assert told["content"]["msgtype"] == "m.notice"
                assert "was not delivered" in told["content"]["body"]
                assert "approve" in told["content"]["body"]
                proxy.heal()  # somebody has approved
                assert (await ask(person, room, "!say next"))["content"]["body"] == "next"
                if by == "command":
                    listed = await anyio.to_thread.run_sync(behind.run, "parked")
                    item_id = re.split(r"\s", listed.stdout)[0]
                    done = await anyio.to_thread.run_sync(behind.run, "parked", "replay", item_id)
                    assert done.returncode == 0, done.stderr
                else:
                    async with Client(f"{service.url}/mcp") as client:
                        shown = await client.call_tool("list_parked", {})
                        assert shown.structured_content
                        (parked,) = shown.structured_content["items"]
                        result = await client.call_tool("replay_parked", {"id": parked["id"]})
                        assert not result.is_error
                answer = await person.wait_event(
                    lambda e: answers(stuck)(e) and e["content"]["msgtype"] == "m.text", REPLY_S
                )
                assert answer["content"]["body"] == "after the approval"
                found = answers_in(await person.messages(room))
                assert found[stuck].count("after the approval") == 1
                assert any("taken up again" in text for text in found[stuck])
                story = behind.run("explain", stuck).stdout
                assert "a person had it replayed" in story and "answered" in story
