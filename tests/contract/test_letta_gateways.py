"""What stands between Homeroom and Letta answers in Letta's place: pages, and JSON of its own."""

from __future__ import annotations

import json
from typing import Any

import pytest

from homeroom.errors import (
    ConfigError,
    HomeroomError,
    NotFound,
    Rejected,
    Unavailable,
    Uncertain,
)
from homeroom.letta.openai_proxy import OpenAIProxyLetta
from homeroom.letta.rest import RestLetta
from homeroom.model import AgentId, ConversationId, Turn
from support.loopback import Asked, Say, frames, loopback, v1

AGENT = AgentId("agent-1")
ROOM = ConversationId("conv-1")
HTML = {"content-type": "text/html"}
STOP = {"message_type": "stop_reason", "stop_reason": "end_turn"}
CHUNK = {"id": "c-1", "choices": [{"index": 0, "delta": {"content": "half"}}]}


def page(status: int) -> Say:
    return Say(b"<html><h1>Sign in</h1></html>", status, HTML)


async def rest_turn(answer: Say, later: Say | None = None) -> Turn:
    """One turn: ``answer`` to the message, ``later`` to whatever is asked after it."""

    def reply(asked: Asked) -> Say | None:
        return answer if asked.method == "POST" else later

    async with loopback(v1(reply)) as server, RestLetta.open(server.config()) as letta:
        return await letta.turn(AGENT, "hello", conversation=ROOM, key="k-1")


async def openai_turn(answer: Say) -> Turn:
    def reply(asked: Asked) -> Say | None:
        return Say({"data": [{"id": "ada"}]}) if asked.target == "/v1/models" else answer

    async with loopback(reply) as server:
        config = server.config(letta_backend="openai")
        async with OpenAIProxyLetta.open(config) as letta:
            return await letta.turn(AgentId("ada"), "hello", conversation=None, key="k-1")


async def failure_of(answer: Say, later: Say | None = None) -> HomeroomError:
    with pytest.raises(HomeroomError) as caught:
        await rest_turn(answer, later)
    return caught.value


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 422])
async def test_a_page_that_refuses_a_message_is_no_refusal_of_letta(status: int) -> None:
    error = await failure_of(page(status))
    assert isinstance(error, Unavailable)
    assert error.service == "letta" and str(status) in str(error) and "Sign in" not in str(error)


@pytest.mark.parametrize("status", [200, 401, 403, 404])
async def test_a_page_instead_of_what_was_asked_for_is_unavailable(status: int) -> None:
    async with (
        loopback(v1(lambda asked: page(status))) as server,
        RestLetta.open(server.config()) as letta,
    ):
        for call in (letta.get_agent(AGENT), letta.list_agents(), letta.list_blocks(AGENT)):
            with pytest.raises(Unavailable, match="a proxy"):
                await call


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404])
async def test_a_page_in_place_of_letta_at_the_start_is_a_wrong_address(status: int) -> None:
    async with loopback(lambda asked: page(status)) as server:
        for backend in (RestLetta, OpenAIProxyLetta):
            with pytest.raises(ConfigError, match=f"HOMEROOM_LETTA_URL.*{status}.*proxy"):
                async with backend.open(server.config()):
                    pass


async def test_letta_itself_still_refuses_a_wrong_token_at_the_start() -> None:
    async with loopback(lambda asked: Say({"detail": "Unauthorized"}, 401)) as server:
        with pytest.raises(Rejected, match="HOMEROOM_LETTA_TOKEN"):
            async with RestLetta.open(server.config()):
                pass


async def test_a_gateway_that_hides_paths_with_pages_leaves_what_it_lets_through() -> None:
    def reply(asked: Asked) -> Say | None:
        if asked.target.startswith("/v1/agents/"):
            return Say([])
        return page(404)

    async with loopback(reply) as server, RestLetta.open(server.config()) as letta:
        assert not letta.capabilities.conversations and not letta.capabilities.finds_turns


@pytest.mark.parametrize("status", [500, 502, 504, 520, 522, 524, 599])
async def test_behind_a_gateways_page_of_failure_a_message_may_have_arrived(status: int) -> None:
    error = await failure_of(page(status))
    assert isinstance(error, Uncertain) and error.key == "k-1"


async def test_a_gateway_that_has_nobody_to_give_a_message_to_did_not_deliver_it() -> None:
    assert isinstance(await failure_of(page(503)), Unavailable)


@pytest.mark.parametrize("body", [{"status": "ok"}, {"error": "no"}, {"messages": "none"}, {}, []])
async def test_json_that_is_no_turn_is_not_taken_for_an_empty_answer(body: Any) -> None:
    for turn in (rest_turn, openai_turn):
        with pytest.raises(Uncertain) as caught:
            await turn(Say(body))
        assert caught.value.key == "k-1"


async def test_a_proxy_that_does_not_stream_is_understood() -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "whole"}}
    body = {"id": "c-1", "choices": [{**choice, "finish_reason": "stop"}]}
    turn = await openai_turn(Say(body))
    assert (turn.text, turn.stop_reason) == ("whole", "end_turn")
    with pytest.raises(Uncertain):
        await rest_turn(Say(body))


@pytest.mark.parametrize("words", ["boom", "Error code: 401 - bad key", "rate limit"])
async def test_an_error_after_the_agent_has_spoken_is_no_message_that_never_arrived(
    words: str,
) -> None:
    failed = f"data: {json.dumps({'error': {'message': words}})}"
    with pytest.raises(Uncertain):
        await openai_turn(frames(CHUNK, failed))


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_an_answer_that_cannot_be_unpacked_is_a_lost_one(encoding: str) -> None:
    broken = Say(b"{not packed at all}", headers={"content-encoding": encoding})
    assert isinstance(await failure_of(broken), Uncertain)
    async with (
        loopback(v1(lambda asked: broken)) as server,
        RestLetta.open(server.config()) as letta,
    ):
        with pytest.raises(Unavailable):
            await letta.get_agent(AGENT)


@pytest.mark.parametrize(
    "later",
    [Say({"detail": "no"}, 404), Say({"detail": "no"}, 401), Say(None, 503), Say(b"", torn=True)],
    ids=["not found", "refused", "away", "torn"],
)
async def test_a_turn_that_has_ended_is_not_undone_by_a_history_that_cannot_be_read(
    later: Say,
) -> None:
    error = await failure_of(frames(STOP), later)
    assert isinstance(error, Uncertain) and not isinstance(error, NotFound)
