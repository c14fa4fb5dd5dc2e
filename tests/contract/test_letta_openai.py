"""Agents listed as models: against a real App Server, and the corners by a scripted one."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from homeroom.config import Config
from homeroom.errors import (
    ConfigError,
    HomeroomError,
    NotFound,
    Rejected,
    Unavailable,
    Uncertain,
    Unsupported,
)
from homeroom.letta.openai_proxy import OpenAIProxyLetta
from homeroom.model import AgentId, ConversationId, Turn
from support.fixtures_letta import LettaServer
from support.loopback import Asked, Say, frames, loopback

ADA = AgentId("ada")


def chunk(text: str | None = None, finish: str | None = None) -> dict[str, Any]:
    delta = {} if text is None else {"content": text}
    return {"id": "c-1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def over_openai(server: LettaServer) -> Config:
    url = "http" + server.url.removeprefix("http").removeprefix("ws")
    return server.config(letta_url=url.removesuffix("/ws"), letta_backend="openai")


def listing(answer: Say, info: Say | None = None) -> Any:
    def reply(asked: Asked) -> Say | None:
        if asked.target == "/v1/models":
            return Say({"data": [{"id": "ada", "name": "Ada L."}, {"id": "bo"}, {"id": "bo"}]})
        if asked.target == "/app-server-info":
            return info
        return answer

    return reply


def at(url: str) -> Config:
    return Config.model_validate({"letta_url": url, "letta_backend": "openai"})


async def turn_with(answer: Say) -> Turn:
    async with (
        loopback(listing(answer)) as server,
        OpenAIProxyLetta.open(at(server.url)) as letta,
    ):
        return await letta.turn(ADA, "hello", conversation=None, key="k-1")


async def test_a_real_app_server_lists_its_agents_and_they_answer(app_server: LettaServer) -> None:
    made = await app_server.create_agent(f"proxied-{uuid.uuid4().hex[:8]}")
    pieces: list[str] = []
    async with OpenAIProxyLetta.open(over_openai(app_server)) as letta:
        agents = {agent.name: agent.id for agent in await letta.list_agents()}
        agent = agents.get(made.name) or agents[made.id]
        assert (await letta.get_agent(agent)).id == agent
        room = await letta.open_conversation(agent, "r")
        turn = await letta.turn(
            agent, "!words 5", conversation=room, key="k-1", on_delta=pieces.append
        )
    assert len(turn.text.split()) == 5
    assert "".join(pieces) == turn.text


async def test_a_chat_key_keeps_a_conversation_together(app_server: LettaServer) -> None:
    made = await app_server.create_agent(f"keyed-{uuid.uuid4().hex[:8]}")
    async with OpenAIProxyLetta.open(over_openai(app_server)) as letta:
        agent = AgentId(made.name)
        here = await letta.open_conversation(agent, "r")
        there = await letta.open_conversation(agent, "r")
        await letta.turn(agent, "my colour is teal", conversation=here, key="k-1")
        known = await letta.turn(agent, "!ctx", conversation=here, key="k-2")
        unknown = await letta.turn(agent, "!ctx", conversation=there, key="k-3")
    assert "teal" in known.text
    assert "teal" not in unknown.text


@pytest.mark.parametrize(("status", "error"), [(500, Unavailable), (401, Rejected)])
async def test_a_failing_model_behind_a_real_app_server_is_told(
    app_server: LettaServer, status: int, error: type[HomeroomError]
) -> None:
    made = await app_server.create_agent(f"failing-{uuid.uuid4().hex[:8]}")
    async with OpenAIProxyLetta.open(over_openai(app_server)) as letta:
        with pytest.raises(error) as caught:
            script = f"!status {status} private words"
            await letta.turn(AgentId(made.name), script, conversation=None, key="k-1")
    assert isinstance(caught.value, Unavailable | Rejected)
    assert caught.value.service == "model"
    assert "private words" not in str(caught.value)


async def test_an_agent_that_is_not_listed_is_not_found(app_server: LettaServer) -> None:
    async with OpenAIProxyLetta.open(over_openai(app_server)) as letta:
        with pytest.raises(NotFound):
            await letta.get_agent(AgentId("nobody"))
        with pytest.raises(NotFound):
            await letta.turn(AgentId("nobody"), "hello", conversation=None, key="k-1")


async def test_models_without_a_name_are_called_by_their_id() -> None:
    async with (
        loopback(listing(Say())) as server,
        OpenAIProxyLetta.open(at(server.url)) as letta,
    ):
        agents = await letta.list_agents()
    assert [(agent.id, agent.name) for agent in agents] == [("ada", "Ada L."), ("bo", "bo")]


async def test_what_the_protocol_lacks_is_refused_in_words() -> None:
    async with (
        loopback(listing(Say())) as server,
        OpenAIProxyLetta.open(at(server.url)) as letta,
    ):
        assert letta.capabilities.backend == "openai"
        assert not letta.capabilities.memory
        with pytest.raises(Unsupported, match="no memory"):
            await letta.list_blocks(ADA)
        with pytest.raises(Unsupported, match="no memory"):
            await letta.write_block(ADA, "human", "x")
        assert not letta.capabilities.history
        with pytest.raises(Unsupported, match="HOMEROOM_HISTORY_COUNT to 0"):
            await letta.list_history(ADA, 5)
        with pytest.raises(Uncertain):
            await letta.find_turn(ADA, conversation=None, key="k-1", text="x")
        assert not await letta.cancel(ADA, None)


async def test_an_unknown_proxy_is_not_trusted_with_conversations() -> None:
    async with loopback(listing(frames(chunk("hi", "stop")))) as server:
        async with OpenAIProxyLetta.open(at(server.url)) as letta:
            assert await letta.open_conversation(ADA, "r") is None
            for _ in range(2):
                await letta.turn(ADA, "hello", conversation=None, key="k-1")
            await letta.turn(ADA, "hello", conversation=ConversationId("lane-7"), key="k-1")
        keys = [a.headers["x-letta-chat-key"] for a in server.asked if a.method == "POST"]
    assert keys[0] == keys[1]
    assert keys[2] == "lane-7"


async def test_deltas_make_the_answer() -> None:
    turn = await turn_with(frames(chunk("he"), chunk("llo"), chunk(None, "stop")))
    assert (turn.text, turn.stop_reason) == ("hello", "end_turn")


async def test_an_empty_answer_is_an_answer() -> None:
    assert (await turn_with(frames(chunk(None, "stop")))).text == ""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"message": "boom", "type": "server_error"}, Unavailable),
        ({"message": "Error code: 401 - bad key", "type": "server_error"}, Rejected),
        ("plain words", Unavailable),
    ],
)
async def test_an_error_in_the_stream_is_a_failing_model(
    error: Any, expected: type[Unavailable | Rejected]
) -> None:
    with pytest.raises(expected) as caught:
        await turn_with(frames(f"data: {json.dumps({'error': error})}"))
    assert isinstance(caught.value, Unavailable | Rejected)
    assert caught.value.service == "model"


async def test_an_answer_without_its_end_is_uncertain() -> None:
    with pytest.raises(Uncertain):
        await turn_with(frames(chunk("hal"), done=False))


async def test_an_unknown_agent_is_not_found() -> None:
    body = {"error": {"message": "no such model", "code": "model_not_found"}}
    with pytest.raises(NotFound):
        await turn_with(Say(body, 404))


async def test_a_server_without_models_is_a_wrong_address() -> None:
    async with loopback(lambda asked: None) as server:
        with pytest.raises(ConfigError, match="HOMEROOM_LETTA_URL"):
            async with OpenAIProxyLetta.open(at(server.url)):
                pass
