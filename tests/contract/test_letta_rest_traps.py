"""What is particular to Letta's REST API, and what a real server cannot be made to do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from pydantic import SecretStr

from homeroom.errors import (
    ConfigError,
    HomeroomError,
    NotFound,
    Rejected,
    Unavailable,
    Uncertain,
)
from homeroom.letta.rest import RestLetta
from homeroom.letta.runs import HISTORY_PAGES
from homeroom.letta.wire import reason_of
from homeroom.model import AgentId, ConversationId, Turn
from support.letta_v1 import LettaV1
from support.loopback import Asked, Say, frames, loopback, v1

AGENT = AgentId("agent-1")
ROOM = ConversationId("conv-1")
EVENTS = {"content-type": "text/event-stream"}
PING = {"message_type": "ping", "run_id": "run-1"}
STOP = {"message_type": "stop_reason", "stop_reason": "end_turn"}


def said(text: str, message_id: str = "m-1", run_id: str = "run-1") -> dict[str, Any]:
    return {
        "message_type": "assistant_message",
        "id": message_id,
        "run_id": run_id,
        "content": text,
    }


def user(key: str, run_id: str | None = "run-1") -> dict[str, Any]:
    return {"message_type": "user_message", "id": f"u-{key}", "otid": key, "run_id": run_id}


async def turn_with(answer: Say, **overrides: Any) -> Turn:
    """One turn against a server that gives this answer to the message."""

    def reply(asked: Asked) -> Say | None:
        if asked.method == "POST":
            return answer
        return Say([]) if asked.target.startswith("/v1/conversations/") else None

    async with (
        asyncio.timeout(30),
        loopback(v1(reply)) as server,
        RestLetta.open(server.config(**overrides)) as letta,
    ):
        return await letta.turn(AGENT, "hello", conversation=ROOM, key="k-1")


async def failure_of(answer: Say, **overrides: Any) -> HomeroomError:
    with pytest.raises(HomeroomError) as caught:
        await turn_with(answer, **overrides)
    return caught.value


# --- Lists ----------------------------------------------------------------------------------------


def pages(agents: list[str], size: int = 2) -> Any:
    """Letta's own paging: by a cursor, and from the start where the cursor is unknown."""

    def reply(asked: Asked) -> Say | None:
        after = parse_qs(urlsplit(asked.target).query).get("after", [""])[0]
        start = agents.index(after) + 1 if after in agents else 0
        return Say(
            [{"id": agent_id, "name": agent_id} for agent_id in agents[start : start + size]]
        )

    return reply


async def test_pages_that_are_shorter_than_asked_for_do_not_end_the_list() -> None:
    agents = [f"agent-{number}" for number in range(7)]
    async with loopback(v1(pages(agents))) as server, RestLetta.open(server.config()) as letta:
        assert [agent.id for agent in await letta.list_agents()] == agents


async def test_more_than_a_thousand_agents_are_listed_in_one_pass() -> None:
    agents = [f"agent-{number}" for number in range(1050)]
    async with loopback(v1(pages(agents, 100))) as server:
        async with RestLetta.open(server.config()) as letta:
            assert [agent.id for agent in await letta.list_agents()] == agents
        firsts = [t for t in server.targets() if t.startswith("/v1/agents/") and "after" not in t]
    assert len(firsts) == 2, "one to open, one for the list"


async def test_a_list_whose_cursor_was_deleted_is_read_again() -> None:
    agents = [f"agent-{number}" for number in range(5)]
    page = pages(agents)

    def reply(asked: Asked) -> Say | None:
        answer: Say = page(asked)
        if "agent-1" in agents and "after" not in asked.target:
            agents.remove("agent-1")
        return answer

    async with loopback(v1(reply)) as server, RestLetta.open(server.config()) as letta:
        listed = [agent.id for agent in await letta.list_agents()]
    assert listed == ["agent-0", "agent-2", "agent-3", "agent-4"]


async def test_a_list_that_never_ends_is_unavailable() -> None:
    def reply(asked: Asked) -> Say | None:
        return Say([{"id": "agent-0", "name": "the same again"}])

    async with loopback(v1(reply)) as server, RestLetta.open(server.config()) as letta:
        with pytest.raises(Unavailable, match="the list of agents changed while it was read"):
            await letta.list_agents()


async def test_a_list_that_breaks_off_half_way_is_no_list() -> None:
    page = pages([f"agent-{number}" for number in range(5)])

    def reply(asked: Asked) -> Say | None:
        return Say({"detail": "no"}, 500) if "after=" in asked.target else page(asked)

    async with loopback(v1(reply)) as server, RestLetta.open(server.config()) as letta:
        with pytest.raises(Unavailable):
            await letta.list_agents()


async def test_requests_look_like_a_current_client_and_carry_the_token() -> None:
    token = SecretStr("sk-let-1")
    async with loopback(v1(pages([]))) as server:
        async with RestLetta.open(server.config(letta_token=token)) as letta:
            await letta.list_agents()
        for asked in server.asked:
            assert asked.headers["x-stainless-package-version"]
            assert asked.headers["authorization"] == "Bearer sk-let-1"
            assert urlsplit(asked.target).path.endswith("/")


async def test_ids_and_labels_cannot_leave_their_place_in_a_path() -> None:
    seen: list[str] = []

    def reply(asked: Asked) -> Say | None:
        seen.append(asked.target)
        return None

    evil = "../../v1/agents/x?y=1#z"
    async with loopback(v1(reply)) as server, RestLetta.open(server.config()) as letta:
        for call in (
            letta.get_agent(AgentId(evil)),
            letta.list_blocks(AgentId(evil)),
            letta.turn(AGENT, "x", conversation=ConversationId(evil), key="k"),
        ):
            with pytest.raises(NotFound):
                await call
    assert seen
    assert all("..%2F..%2Fv1%2Fagents%2Fx%3Fy%3D1%23z" in target for target in seen)


# --- Answers --------------------------------------------------------------------------------------


async def test_a_message_is_sent_once_and_carries_its_key() -> None:
    def reply(asked: Asked) -> Say | None:
        return frames(PING, said("hi"), STOP)

    async with loopback(v1(reply)) as server, RestLetta.open(server.config()) as letta:
        await letta.turn(AGENT, "hello", conversation=ROOM, key="k-1")
    (post,) = [asked for asked in server.asked if asked.method == "POST"]
    assert post.target == "/v1/conversations/conv-1/messages"
    assert post.body["messages"] == [{"role": "user", "content": "hello", "otid": "k-1"}]


async def test_content_may_be_a_list_of_parts() -> None:
    parts = [{"type": "text", "text": "one "}, "two ", {"type": "image"}, {"text": "three"}]
    turn = await turn_with(frames({**said(""), "content": parts}, STOP))
    assert turn.text == "one two three"


async def test_messages_of_one_turn_are_set_apart() -> None:
    turn = await turn_with(frames(said("a", "m-1"), said("b", "m-1"), said("c", "m-2"), STOP))
    assert turn.text == "ab\n\nc"


async def test_unknown_messages_are_ignored() -> None:
    strange = {"message_type": "hologram_message", "content": "?"}
    turn = await turn_with(frames(PING, strange, {"x": 1}, said("hi"), STOP))
    assert turn.text == "hi"


async def test_what_an_older_agent_sends_by_tool_is_its_answer() -> None:
    def call(arguments: str, name: str | None = None) -> dict[str, Any]:
        piece = {"name": name, "arguments": arguments, "tool_call_id": "c-1"}
        return {"message_type": "tool_call_message", "id": "m-1", "tool_call": piece}

    back = {"message_type": "tool_return_message", "status": "success"}
    split = frames(call("", "send_message"), call('{"mess'), call('age":"hi"}'), back, STOP)
    whole = frames(call('{"message":"hi"}', "send_message"), STOP)
    other = frames(call('{"message":"no"}', "note"), said("hi", "m-2"), STOP)
    for answer in (split, whole, other):
        assert (await turn_with(answer)).text == "hi"


async def test_a_server_that_cannot_stream_is_understood_too() -> None:
    turn = await turn_with(Say({"messages": [said("hi")], "stop_reason": STOP, "usage": {}}))
    assert (turn.text, turn.stop_reason) == ("hi", "end_turn")


@pytest.mark.parametrize(
    "answer",
    [
        Say(
            b'data: {"message_type": "assis',
            headers=EVENTS,
            torn=True,
        ),
        frames(PING, said("half an ans"), done=False),
        frames(PING, 'data: {"message_type": "assistant_mess', done=False),
        frames(PING, done=False),
        Say(b"<html>", headers={"content-type": "text/html"}),
        Say({"detail": "Bad Gateway"}, 502),
    ],
    ids=["cut", "no end", "torn frame", "only a ping", "no JSON", "gateway"],
)
async def test_an_answer_that_was_lost_is_uncertain(answer: Say) -> None:
    error = await failure_of(answer)
    assert isinstance(error, Uncertain)
    assert error.key == "k-1"


async def test_keep_alives_are_no_speech() -> None:
    text = f"data: {json.dumps(PING)}\n\n".encode() * 3
    endless = Say(text, headers=EVENTS, endless=True)
    error = await failure_of(endless, turn_silence_s=0.3)
    assert isinstance(error, Uncertain)
    assert "silent" in str(error)


async def test_a_keep_alive_reveals_a_run_that_was_cancelled_elsewhere() -> None:
    text = f"data: {json.dumps(PING)}\n\n".encode() * 2
    endless = Say(text, headers=EVENTS, endless=True)

    def reply(asked: Asked) -> Say | None:
        if asked.target == "/v1/runs/run-1":
            return Say({"id": "run-1", "status": "cancelled"})
        return endless

    async with loopback(v1(reply)) as server, RestLetta.open(server.config()) as letta:
        async with asyncio.timeout(20):
            turn = await letta.turn(AGENT, "hello", conversation=ROOM, key="k-1")
    assert turn.stop_reason == "cancelled"


# --- Failures -------------------------------------------------------------------------------------


def error_frame(kind: str, detail: str = "") -> str:
    data = {"message_type": "error_message", "error_type": kind, "message": "m", "detail": detail}
    return f"event: error\ndata: {json.dumps(data)}"


async def test_an_error_inside_a_good_answer_is_a_failure() -> None:
    error = await failure_of(frames(PING, said("hal"), STOP, error_frame("llm_error")))
    assert isinstance(error, Unavailable)
    assert error.service == "model"


async def test_a_failure_after_the_agent_has_acted_is_uncertain() -> None:
    acted = {"message_type": "tool_return_message", "status": "success"}
    error = await failure_of(frames(PING, acted, error_frame("llm_error")))
    assert isinstance(error, Uncertain)


@pytest.mark.parametrize(
    ("status", "body", "expected", "service"),
    [
        (401, {"detail": "Unauthorized"}, Rejected, "letta"),
        (401, {"error": {"type": "llm_authentication", "message": "m"}}, Rejected, "model"),
        (429, {"error": {"type": "llm_rate_limit", "message": "m"}}, Unavailable, "model"),
        (500, {"error": {"type": "llm_error", "detail": "m"}}, Unavailable, "model"),
        (500, {"error": {"type": "llm_error", "detail": "Error code: 404 - x"}}, Rejected, "model"),
        (500, {"detail": "An unknown error occurred"}, Unavailable, "letta"),
        (400, {"detail": "CONTEXT_WINDOW_EXCEEDED: 9 > 8"}, Rejected, "model"),
        (409, {"detail": "CONFLICT: Cannot send a new message"}, Unavailable, "letta"),
        (409, {"detail": {"code": "PENDING_APPROVAL", "message": "m"}}, Rejected, "letta"),
        (422, {"detail": [{"loc": ["body", "x"], "msg": "wrong"}]}, Rejected, "letta"),
        (302, None, Rejected, "letta"),
        (503, None, Unavailable, "letta"),
    ],
)
async def test_a_refusal_names_who_refused(
    status: int, body: Any, expected: type[Unavailable | Rejected], service: str
) -> None:
    error = await failure_of(Say(body, status, {"retry-after": "7"}))
    assert type(error) is expected
    assert isinstance(error, Unavailable | Rejected)
    assert error.service == service
    if status == 503 and isinstance(error, Unavailable):
        assert error.retry_after_s == 7


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"detail": "too  \n long"}, "too long"),
        ({"detail": {"code": "X", "message": "why"}}, "why"),
        (
            {"detail": [{"loc": ["body", "a"], "msg": "is wrong", "input": "secret"}]},
            "body.a: is wrong",
        ),
        (
            {"detail": "[{'loc': ('path', 'id'), 'msg': 'is wrong', 'input': 'secret'}]"},
            "path.id: is wrong",
        ),
        ({"detail": "[{'loc': <Secret object>}]"}, "the request is not valid"),
        ({"error": {"type": "t", "message": "why"}}, "why"),
        ({"error": "why", "code": "c"}, "why"),
        ({"detail": "x" * 1000}, "x" * 199 + "…"),
        ("<html>", "<html>"),
        (None, ""),
    ],
)
def test_a_reason_is_read_from_every_shape_of_error(body: Any, reason: str) -> None:
    assert reason_of(body) == reason


async def test_a_waiting_approval_says_what_a_person_must_do() -> None:
    body = {"detail": {"code": "PENDING_APPROVAL", "pending_request_id": "message-1"}}
    error = await failure_of(Say(body, 409))
    assert "approve" in str(error)
    assert "PENDING_APPROVAL" in str(error)


@pytest.mark.parametrize("status", [200, 404])
async def test_a_web_server_is_no_letta(status: int) -> None:
    def reply(asked: Asked) -> Say | None:
        return Say(b"<html>", status, {"content-type": "text/html"})

    async with loopback(reply) as server:
        with pytest.raises(ConfigError, match="HOMEROOM_LETTA_URL"):
            async with RestLetta.open(server.config()):
                pass


async def test_a_server_without_conversations_has_one_thread_per_agent() -> None:
    def reply(asked: Asked) -> Say | None:
        if asked.target.startswith(("/v1/conversations", "/v1/runs")):
            return None
        if asked.method == "POST":
            return frames(said("hi"), STOP)
        return Say([])

    async with loopback(reply) as server, RestLetta.open(server.config()) as letta:
        assert not letta.capabilities.conversations
        assert await letta.open_conversation(AGENT, "x") is None
        await letta.turn(AGENT, "hello", conversation=None, key="k")
        assert server.targets("POST") == ["/v1/agents/agent-1/messages"]


async def test_without_runs_a_message_that_has_no_answer_yet_is_uncertain() -> None:
    def reply(asked: Asked) -> Say | None:
        if asked.target.startswith(("/v1/conversations", "/v1/runs")):
            return None
        return Say([user("answered", None), said("hi"), user("waiting", None)])

    async with loopback(reply) as server, RestLetta.open(server.config()) as letta:
        found = await letta.find_turn(AGENT, conversation=None, key="answered", text="hello")
        assert found is not None
        assert found.text == "hi"
        for key in ("waiting", "never seen"):
            with pytest.raises(Uncertain):
                await letta.find_turn(AGENT, conversation=None, key=key, text="hello")


# --- Looking a turn up ----------------------------------------------------------------------------


async def test_a_run_that_stays_silent_makes_its_turn_uncertain() -> None:
    def reply(asked: Asked) -> Say | None:
        if asked.target.startswith("/v1/runs/"):
            return Say([{"id": "run-1", "status": "running", "conversation_id": ROOM}])
        return Say([])

    async with (
        asyncio.timeout(20),
        loopback(v1(reply)) as server,
        RestLetta.open(server.config(turn_silence_s=0.2)) as letta,
    ):
        with pytest.raises(Uncertain):
            await letta.find_turn(AGENT, conversation=ROOM, key="k", text="x")


async def test_runs_of_other_conversations_are_not_waited_for() -> None:
    def reply(asked: Asked) -> Say | None:
        if asked.target.startswith("/v1/runs/?agent_id"):
            return Say([{"id": "run-2", "status": "running", "conversation_id": "conv-2"}])
        return Say([])

    async with (
        asyncio.timeout(20),
        loopback(v1(reply)) as server,
        RestLetta.open(server.config()) as letta,
    ):
        assert await letta.find_turn(AGENT, conversation=ROOM, key="k", text="x") is None


async def test_the_history_is_read_page_by_page_and_not_for_ever() -> None:
    def reply(asked: Asked) -> Say | None:
        if asked.target.startswith("/v1/runs/"):
            return Say([])
        return Say([said("old", f"m-{len(asked.target)}")])

    async with loopback(v1(reply)) as server, asyncio.timeout(20):
        async with RestLetta.open(server.config()) as letta:
            assert await letta.find_turn(AGENT, conversation=ROOM, key="k", text="x") is None
        read = [t for t in server.targets() if t.startswith("/v1/conversations/conv-1/messages")]
    assert len(read) == HISTORY_PAGES


# --- A real server --------------------------------------------------------------------------------


async def test_the_past_is_read_page_by_page_and_an_exchange_over_two_pages_is_whole() -> None:
    messages: list[dict[str, Any]] = []
    for number in range(40):
        run = f"run-{number}"
        said_then = {"run_id": run, "date": f"2026-01-01T00:{number:02}:00Z"}
        question = {"message_type": "user_message", "id": f"u-{number}", "content": f"q{number}"}
        messages += [question | said_then, said(f"a{number}", f"m-{number}", run) | said_then]

    def reply(asked: Asked) -> Say | None:
        before = parse_qs(urlsplit(asked.target).query).get("before", [""])[0]
        ids = [message["id"] for message in messages]
        end = ids.index(before) if before else len(ids)
        return Say(messages[max(0, end - 7) : end])  # seven: a page ends within an exchange

    async with loopback(v1(reply)) as server, RestLetta.open(server.config()) as letta:
        past = await letta.list_history(AGENT, 10)
        everything = await letta.list_history(AGENT, 100)
    assert [(one.asked, one.answered) for one in past] == [
        (f"q{number}", f"a{number}") for number in range(30, 40)
    ]
    assert len(everything) == HISTORY_PAGES * 7 // 2


async def test_an_older_agent_type_is_heard_although_its_stream_is_mute(letta_v1: LettaV1) -> None:
    agent = await letta_v1.create_agent("older", agent_type="memgpt_v2_agent")
    pieces: list[str] = []
    async with RestLetta.open(letta_v1.config()) as letta:
        turn = await letta.turn(
            agent.id, "hello", conversation=None, key="k-old", on_delta=pieces.append
        )
    assert "hello" in turn.text
    assert "".join(pieces) == turn.text


async def test_a_label_with_every_awkward_character_can_be_written(letta_v1: LettaV1) -> None:
    label = "notes/of a?b#c%d"
    agent = await letta_v1.create_agent("labels", blocks={label: "old", "human": "h"})
    async with RestLetta.open(letta_v1.config()) as letta:
        block = await letta.write_block(agent.id, label, "new")
        blocks = {one.label: one.value for one in await letta.list_blocks(agent.id)}
    assert block.label == label
    assert blocks == {label: "new", "human": "h"}


async def test_cancelling_one_conversation_leaves_the_others_alone(letta_v1: LettaV1) -> None:
    agent = await letta_v1.create_agent("two rooms")
    started = [asyncio.Event(), asyncio.Event()]

    def tells(event: asyncio.Event) -> Callable[[str], None]:
        return lambda _piece: event.set()

    script = "!chunkdelay 0.2\n!words 12"
    async with RestLetta.open(letta_v1.config()) as letta, asyncio.timeout(60):
        rooms = [await letta.open_conversation(agent.id, "r"), None]
        async with asyncio.TaskGroup() as tasks:
            turns = [
                tasks.create_task(
                    letta.turn(
                        agent.id,
                        script,
                        conversation=room,
                        key=f"k-{number}",
                        on_delta=tells(started[number]),
                    )
                )
                for number, room in enumerate(rooms)
            ]
            await asyncio.gather(*(event.wait() for event in started))
            assert await letta.cancel(agent.id, None)
    assert [turn.result().stop_reason for turn in turns] == ["end_turn", "cancelled"]


async def test_a_turn_lost_with_the_server_can_be_settled_by_cancelling(
    own_letta_v1: LettaV1,
) -> None:
    agent = await own_letta_v1.create_agent("survivor")
    heard = asyncio.Event()
    async with asyncio.timeout(120):
        async with RestLetta.open(own_letta_v1.config(turn_silence_s=2.0)) as letta:
            room = await letta.open_conversation(agent.id, "r")
            sent = asyncio.create_task(
                letta.turn(
                    agent.id,
                    "!chunkdelay 0.3\n!words 100",
                    conversation=room,
                    key="k-lost",
                    on_delta=lambda _piece: heard.set(),
                )
            )
            await heard.wait()
            own_letta_v1.kill_letta()
            with pytest.raises(Uncertain) as caught:
                await sent
            assert caught.value.key == "k-lost"
            await asyncio.to_thread(own_letta_v1.start_letta)
            with pytest.raises(Uncertain):
                await letta.find_turn(agent.id, conversation=room, key="k-lost", text="")
            assert await letta.cancel(agent.id, room)
            assert await letta.find_turn(agent.id, conversation=room, key="k-lost", text="") is None
