"""Agents that reach each other through Homeroom: said to be so, counted, paused, resumed."""

from __future__ import annotations

import json
from typing import Any

import anyio
from mcp import Client

from support.client import connect
from support.home import Home, Service
from support.rooms import join_rooms, says
from support.talk import REPLY_S, ask


def make_token(home: Home, name: str, *arguments: str) -> str:
    done = home.run("token", "new", name, "--scope", "chat", "--scope", "read", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


async def call(service: Service, token: str, tool: str, **arguments: Any) -> tuple[bool, Any, str]:
    """Whether it went well, what it gave and in which words."""
    async with connect(service.url, token) as client:
        result = await client.call_tool(tool, arguments)
    text = " ".join(getattr(part, "text", "") for part in result.content)
    return not result.is_error, result.structured_content, text


async def test_a_chain_between_agents_is_paused_at_its_limit_and_resumed_by_a_person(
    home: Home,
) -> None:
    for name in ("Ada", "Brook"):
        await home.letta.create_agent(name)
    tokens = {name: make_token(home, name.lower(), "--agent", name) for name in ("Ada", "Brook")}
    stranger = home.run("token", "new", "x", "--scope", "chat", "--agent", "Nobody")
    assert stranger.returncode == 1 and "no agent 'Nobody'" in stranger.stderr
    limits = {"HOMEROOM_HOP_LIMIT": "1", "HOMEROOM_TOOLSETS": "chat,operate"}
    async with home.login() as alice:
        with home.service(**limits) as service:
            rooms = await join_rooms(alice, 2)
            # Ada is at work on what Alice said when her client writes to Brook.
            await alice.say(rooms["Ada"], "!delay 20\n!say done at last")
            await at_work(service, home, "done at last")
            ok, given, _ = await call(
                service, tokens["Ada"], "chat_with_agent",
                agent="Brook", message="!delay 30\n!say dear Ada", wait_s=0,
            )  # fmt: skip
            assert ok and given["status"] == "pending"
            shown = await alice.wait_event(says(rooms["Brook"], "over MCP"), REPLY_S)
            assert shown["content"]["body"].startswith("**Ada** (an agent) over MCP:")
            await at_work(service, home, r"Ada (an agent) says:\n!delay 30")

            # Brook, at work on that, writes back: the second hop, which is one too many.
            ok, _, why = await call(
                service, tokens["Brook"], "chat_with_agent", agent="Ada", message="!say no end"
            )
            assert not ok and "led to the next 1 times" in why and "!resume" in why
            for room, other in (("Ada", "Brook"), ("Brook", "Ada")):
                notice = await alice.wait_event(says(rooms[room], "are paused until"), REPLY_S)
                assert f"the agent **{other}**" in notice["content"]["body"]
                assert notice["content"]["msgtype"] == "m.notice"
            listed = home.run("resume").stdout
            assert "Ada" in listed and "Brook" in listed and listed.endswith("1 paused\n")
            # It is the pair that is paused, whoever speaks; not a person's client.
            ok, _, _ = await call(
                service, tokens["Ada"], "chat_with_agent", agent="Brook", message="!say and I?"
            )
            assert not ok

            await alice.say(rooms["Brook"], "!resume")
            for room in rooms.values():
                await alice.wait_event(says(room, "may go on"), REPLY_S)
            assert home.run("resume").stdout == "0 paused\n"
            ok, given, _ = await call(
                service, tokens["Brook"], "chat_with_agent",
                agent="Ada", message="!say at last", wait_s=0,
            )  # fmt: skip
            assert ok
            told = await call(service, tokens["Brook"], "explain_delivery", id=given["reply_id"])
            assert "(hop 1 between agents)" in told[2]
            answer = await alice.wait_event(says(rooms["Ada"], "Answer to"), 90)
            assert answer["content"]["body"] == "Answer to **Brook** (an agent):\n\nat last"


async def test_the_budget_of_a_pair_outlives_a_restart_and_the_command_resumes_it(
    home: Home,
) -> None:
    ada = await home.letta.create_agent("Ada")
    await home.letta.create_agent("Brook")
    plain = make_token(home, "plain")
    settings = {"HOMEROOM_PAIR_BUDGET": "1", "HOMEROOM_STDIO_AGENT": "Ada"}
    message = {"agent": "Brook", "message": "!say one"}
    async with home.login() as alice:
        with home.service(**settings) as service:
            rooms = await join_rooms(alice, 2)
            async with Client(home.stdio(**settings)) as client:
                first = await client.call_tool("chat_with_agent", message)
                assert first.structured_content and first.structured_content["reply"] == "one"
                over = {**message, "message": "!say two"}
                refused = await client.call_tool("chat_with_agent", over)
                assert refused.is_error and "1 messages within an hour" in str(refused.content)
            await alice.wait_event(says(rooms["Ada"], "are paused until"), REPLY_S)
        with home.service(**settings) as service:
            token = make_token(home, "ada", "--agent", ada.id)
            assert not (await call(service, token, "chat_with_agent", **message))[0]
            assert (await call(service, plain, "chat_with_agent", **message))[0]
            assert (await ask(alice, rooms["Brook"], "!say hi"))["content"]["body"] == "hi"
            assert home.run("resume", "brook", "Cat").returncode == 1
            resumed = home.run("resume", "brook", "ADA")
            assert resumed.stdout.strip().endswith("may write to each other again"), resumed.stderr
            await alice.wait_event(says(rooms["Brook"], "may go on"), REPLY_S)
            assert (await call(service, token, "chat_with_agent", **message))[0]


async def test_a_client_of_an_agent_that_is_not_there_sends_nothing(home: Home) -> None:
    await home.letta.create_agent("Ada")
    with home.service():
        async with Client(home.stdio(HOMEROOM_STDIO_AGENT="Nobody")) as client:
            refused = await client.call_tool("chat_with_agent", {"agent": "Ada", "message": "hi"})
    assert refused.is_error and "HOMEROOM_STDIO_AGENT" in str(refused.content)


async def at_work(service: Service, home: Home, words: str) -> None:
    """Returns once the agents' model has been asked with these words."""
    with anyio.fail_after(REPLY_S):
        while words not in json.dumps(home.letta.model.stats()["bodies"]):
            await service.changed()
