"""The connection to an App Server, and turns on it, when the server does what a real one cannot be
made to do: strange frames, no reading, answers that never come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from homeroom.errors import Unavailable, Uncertain
from homeroom.letta import app_server
from homeroom.letta.app_server import AppServerLetta
from homeroom.letta.link import Link
from homeroom.model import AgentId, ConversationId
from support.fault_proxy import FaultProxy, hang, path

WAIT_S = 30.0
AGENT, ROOM = AgentId("agent-1"), ConversationId("conv-1")
SCOPE = {"agent_id": AGENT, "conversation_id": ROOM}
BIG = "x" * (1 << 20)

Answer = Callable[[ServerConnection, dict[str, Any]], Awaitable[None]]


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[str]:
    """The URL of a server that has ``answer`` called for every command."""

    async def talk(connection: ServerConnection) -> None:
        async for text in connection:
            await answer(connection, json.loads(text))

    options: dict[str, Any] = {"max_size": None, "close_timeout": 0.1}
    async with asyncio.timeout(WAIT_S), serve(talk, "127.0.0.1", 0, **options) as listening:
        yield f"ws://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


async def tell(connection: ServerConnection, **message: Any) -> None:
    await connection.send(json.dumps(message))


async def echo(connection: ServerConnection, command: dict[str, Any]) -> None:
    await tell(connection, type="echo", request_id=command["request_id"])


@pytest.mark.parametrize(
    "frame",
    [
        "{", "[]", "null", "{}", "[" * 100_000, '{"type": 1}', '{"type": "x", "runtime": "x"}',
        '{"type": "x", "request_id": {}}', '{"type": "x", "request_id": ["homeroom-1"]}',
        '{"type": "x", "runtime": {"agent_id": {}}}',
    ],
)  # fmt: skip
async def test_a_strange_frame_harms_nobody(frame: str) -> None:
    async def answer(connection: ServerConnection, command: dict[str, Any]) -> None:
        await connection.send(frame)
        await echo(connection, command)

    async with server(answer) as url, Link.open(url, "") as link:
        for _ in range(2):
            assert (await link.request("ask"))["type"] == "echo"
        assert link.connection_count == 1


async def test_an_answer_in_parts_that_are_no_list_is_an_answer() -> None:
    async def answer(connection: ServerConnection, command: dict[str, Any]) -> None:
        await tell(connection, type="echo", request_id=command["request_id"], entries=7)

    async with server(answer) as url, Link.open(url, "") as link:
        assert (await link.request("ask"))["type"] == "echo"


@pytest.mark.parametrize("found", [None, 7, "x", {}, {"id": 7}, [7], [{}], [{"id": None}]])
@pytest.mark.parametrize("missing", [True, False])
async def test_an_answer_without_what_was_asked_for_is_none(found: Any, missing: bool) -> None:
    async def answer(connection: ServerConnection, command: dict[str, Any]) -> None:
        told = {} if missing else {"agents": found, "agent": found}
        await tell(connection, type="answer", request_id=command["request_id"], **told)

    async with server(answer) as url, Link.open(url, "") as link:
        with pytest.raises(Unavailable, match="its answer to agent_list could not be read"):
            await link.request("agent_list")
        with pytest.raises(Uncertain, match="its answer to agent_create could not be read"):
            await link.request("agent_create", key="Ada")


async def test_a_server_that_reads_nothing_is_given_up_and_connected_to_again() -> None:
    stuck = asyncio.Event()

    async def answer(connection: ServerConnection, command: dict[str, Any]) -> None:
        if command["type"] == "stop":
            connection.transport.pause_reading()
            stuck.set()
        else:
            await echo(connection, command)

    async with server(answer) as url, Link.open(url, "", silence_s=1.0) as link:
        await link.send("stop")
        await stuck.wait()
        with pytest.raises(Uncertain) as caught:
            await link.request("fill", key="k", timeout_s=10, text=BIG * 16)
        assert caught.value.key == "k"
        assert (await link.request("ask"))["type"] == "echo"
        assert link.connection_count == 2


async def test_a_deadline_holds_while_the_request_is_still_being_written() -> None:
    async def answer(connection: ServerConnection, command: dict[str, Any]) -> None:
        connection.transport.pause_reading()

    async with server(answer) as url, Link.open(url, "", silence_s=WAIT_S) as link:
        with pytest.raises(Unavailable):
            await link.request("first", timeout_s=0.1)
        for _ in range(3):
            with pytest.raises(Unavailable, match=r"within 0\.2 s"):
                await link.request("fill", timeout_s=0.2, text=BIG * 16)


async def test_a_server_that_falls_silent_is_noticed_by_all_who_wait_for_it() -> None:
    async def answer(connection: ServerConnection, command: dict[str, Any]) -> None:
        connection.transport.pause_reading()

    async with server(answer) as url, Link.open(url, "", silence_s=0.5) as link:
        with link.watch((AGENT, ROOM)) as events:
            with pytest.raises(Unavailable, match=r"silent for 0\.5 s"):
                await link.request("ask")
            assert (await events.get())["type"] == "connection_lost"


async def test_a_server_that_accepts_and_says_nothing_is_one_failure_for_all_who_wait() -> None:
    async with asyncio.timeout(WAIT_S), server(echo) as url:
        with FaultProxy(url) as proxy:
            proxy.on(path("/ws"), hang(), times=1)
            async with Link.open(proxy.url, "", silence_s=1.0) as link:
                failures = await asyncio.gather(
                    *(link.request("ask") for _ in range(20)), return_exceptions=True
                )
                assert {str(failure) for failure in failures} == {
                    "Letta is not available (it does not answer). Try again later."
                }
                assert proxy.count(path("/ws")) == 1
                assert (await link.request("ask"))["type"] == "echo"


# --- turns ---------------------------------------------------------------------------------------


class Turns:
    """An App Server's side of turns: says ``disposition`` of every input, and then what
    ``then`` says."""

    def __init__(self, disposition: str, then: Answer) -> None:
        self.disposition, self.then = disposition, then
        self.inputs: list[dict[str, Any]] = []
        self.joins = 0

    async def answer(self, connection: ServerConnection, command: dict[str, Any]) -> None:
        told = {"request_id": command["request_id"], "runtime": SCOPE}
        if command["type"] == "input":
            self.inputs.append(command)
            taken = {"accepted": bool(self.disposition), "disposition": self.disposition}
            await tell(connection, type="input_accepted", **told, **taken)
            await self.then(connection, command)
        elif command["type"] == "runtime_start":
            self.joins += 1
            if self.inputs:
                await self.then(connection, command)
            await tell(connection, type="runtime_start_response", success=True, **told)
        else:
            await tell(connection, type="answer", **told)

    def ids(self) -> list[str]:
        return [command["payload"]["messages"][0]["client_message_id"] for command in self.inputs]


async def nothing(connection: ServerConnection, command: dict[str, Any]) -> None:
    return


async def ends(connection: ServerConnection, command: dict[str, Any]) -> None:
    """The turn that was asked for with ``key`` begins, and ends."""
    loop = {"status": "PROCESSING", "client_message_ids_by_run_id": {"run-1": ["key"]}}
    await tell(connection, type="update_queue", runtime=SCOPE, queue=[])
    await tell(connection, type="update_loop_status", runtime=SCOPE, loop_status=loop)
    await tell(
        connection, type="turn_finished", runtime=SCOPE, stop_reason="end_turn", run_id="run-1"
    )


async def hangs_up(connection: ServerConnection, command: dict[str, Any]) -> None:
    if command["type"] == "runtime_start":
        connection.transport.abort()


async def asks_and_hangs_up(connection: ServerConnection, command: dict[str, Any]) -> None:
    """Asks for an approval, and is gone when it is answered."""
    if command["type"] == "input":
        await tell(connection, type="control_request", request_id="r", runtime=SCOPE)
        connection.transport.abort()


async def refuses(connection: ServerConnection, command: dict[str, Any]) -> None:
    if command["type"] == "runtime_start":
        await tell(
            connection, type="runtime_start_response", runtime=SCOPE, success=False,
            error="Conversation conv-1 not found", request_id=command["request_id"],
        )  # fmt: skip


@pytest.mark.parametrize("then", [hangs_up, asks_and_hangs_up, refuses])
async def test_what_fails_after_the_message_was_taken_leaves_its_turn_open(
    then: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken for "not delivered", it would be sent once more with an id that the server does not
    know, and the agent would have it twice."""
    monkeypatch.setattr(app_server, "_FIRST_SIGN_S", 0.1)
    turns = Turns("started", then)
    async with server(turns.answer) as url, AppServerLetta.connect(url) as letta:
        with pytest.raises(Uncertain) as caught:
            await letta.turn(AGENT, "hello", conversation=ROOM, key="key")
    assert caught.value.key == "key"
    assert turns.ids() == ["key"]


@pytest.mark.parametrize(
    "event",
    [
        {"type": "stream_delta"},
        {"type": "stream_delta", "delta": {"message_type": "assistant_message", "content": 7}},
        {"type": "update_loop_status", "loop_status": None},
        {"type": "update_queue", "queue": [None]},
        {"type": "turn_finished", "stop_reason": ["end_turn"]},
        {"type": "control_request"},
    ],
)
async def test_an_event_that_cannot_be_read_leaves_the_turn_open_and_is_named_as_the_reason(
    event: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def torn(connection: ServerConnection, command: dict[str, Any]) -> None:
        if command["type"] == "input":
            await tell(connection, runtime=SCOPE, **event)

    turns = Turns("started", torn)
    async with server(turns.answer) as url, AppServerLetta.connect(url) as letta:
        with pytest.raises(Uncertain, match="one of its events could not be read") as caught:
            await letta.turn(AGENT, "hello", conversation=ROOM, key="key")
    assert caught.value.key == "key"
    assert turns.ids() == ["key"]
    (logged,) = [one for one in caplog.records if one.message == "letta_event_unreadable"]
    assert logged.__dict__["event"] == event["type"]


async def test_what_cannot_be_read_before_the_message_is_sent_leaves_it_unsent() -> None:
    turns = Turns("started", nothing)

    async def answer(connection: ServerConnection, command: dict[str, Any]) -> None:
        if command["type"] == "runtime_start":
            await tell(connection, type="update_queue", runtime=SCOPE, queue=7)
        await turns.answer(connection, command)

    async with server(answer) as url, AppServerLetta.connect(url) as letta:
        with pytest.raises(Unavailable, match="one of its events could not be read"):
            await letta.turn(AGENT, "hello", conversation=ROOM, key="key")
        with pytest.raises(Unavailable, match="one of its events could not be read"):
            await letta.find_turn(AGENT, conversation=ROOM, key="key", text="hello")
    assert turns.ids() == []


async def test_a_message_that_the_server_does_not_take_was_not_delivered() -> None:
    turns = Turns("", nothing)
    async with server(turns.answer) as url, AppServerLetta.connect(url) as letta:
        with pytest.raises(Unavailable):
            await letta.turn(AGENT, "hello", conversation=ROOM, key="key")
    assert turns.ids() == ["key"]


async def test_a_message_that_waits_in_the_servers_queue_is_not_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However long it shows nothing: the server has it on disk, and runs it."""
    monkeypatch.setattr(app_server, "_FIRST_SIGN_S", 0.05)
    tasks: list[asyncio.Task[None]] = []

    async def later(connection: ServerConnection, command: dict[str, Any]) -> None:
        async def end() -> None:
            await asyncio.sleep(0.5)  # the silence itself is what is tested
            await ends(connection, command)

        if command["type"] == "input":
            tasks.append(asyncio.create_task(end()))

    turns = Turns("queued", later)
    async with server(turns.answer) as url, AppServerLetta.connect(url) as letta:
        turn = await letta.turn(AGENT, "hello", conversation=ROOM, key="key")
    assert turn.stop_reason == "end_turn"
    assert turns.ids() == ["key"]


async def test_only_a_few_conversations_are_opened_at_a_time() -> None:
    """A server that has to open all at once answers nobody meanwhile."""
    count, at_once = 20, app_server._AT_ONCE
    waiting: list[dict[str, Any]] = []
    most = 0

    async def answer(connection: ServerConnection, command: dict[str, Any]) -> None:
        nonlocal most
        waiting.append(command)
        most = max(most, len(waiting))
        # Nobody is answered before as many ask as may.
        if command["type"] != "runtime_start" or len(waiting) == at_once:
            while waiting:
                await tell(connection, type="answer", request_id=waiting.pop()["request_id"])

    async with server(answer) as url, AppServerLetta.connect(url) as letta:
        rooms = [(str(AGENT), f"conv-{number}") for number in range(count)]
        await asyncio.gather(*(letta._join(room, asyncio.Queue()) for room in rooms))
    assert most == at_once
