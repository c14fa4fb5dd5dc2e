"""Turns that Letta V1 was at when it ended: what of them is known, and what is sent again."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from homeroom.errors import Uncertain
from homeroom.letta import open_letta
from homeroom.letta.absence import Absence
from homeroom.letta.rest import RestLetta
from homeroom.letta.runs import ARRIVAL_S
from homeroom.model import AgentId, ConversationId, Turn
from support.letta_v1 import LettaV1
from support.loopback import Asked, Say, loopback, v1

AGENT = AgentId("agent-1")
ROOM = ConversationId("conv-1")
LONG_AGO_MS = 1
HOUR = timedelta(hours=1)


class Server:
    """A V1 server with some runs and a history; ``cancel`` works if ``obeys``."""

    def __init__(self, *history: dict[str, Any], obeys: bool = True) -> None:
        self.history, self.obeys = list(history), obeys
        self.runs: list[dict[str, Any]] = []
        self.cancelled: list[str] = []
        self.looks = 0

    def add_run(self, run_id: str, age: timedelta, conversation: str = ROOM) -> None:
        created = (datetime.now(UTC) - age).isoformat()
        run = {"id": run_id, "conversation_id": conversation, "created_at": created}
        self.runs.append({**run, "status": "running"})

    def reply(self, asked: Asked) -> Say | None:
        if asked.target.endswith("/messages/cancel"):
            ids = asked.body["run_ids"]
            self.cancelled += ids
            if self.obeys:
                self.runs = [run for run in self.runs if run["id"] not in ids]
            return Say(dict.fromkeys(ids, "cancelled"))
        if asked.target.startswith("/v1/runs/?agent_id"):
            self.looks += 1
            return Say(self.runs)
        if asked.target.startswith("/v1/runs/"):
            return Say({"status": "cancelled", "stop_reason": "cancelled"})
        if "before=" in asked.target:
            return Say([])
        return Say(self.history[::-1])

    async def find(
        self, absence: Absence, *, begun_ms: int = LONG_AGO_MS, silence_s: float = 0.3
    ) -> Turn | None:
        async with (
            asyncio.timeout(30),
            loopback(v1(self.reply)) as server,
            RestLetta.open(server.config(turn_silence_s=silence_s), absence) as letta,
        ):
            return await letta.find_turn(
                AGENT, conversation=ROOM, key="k", text="", begun_ms=begun_ms
            )


def was_away() -> Absence:
    absence = Absence()
    absence.note_lost(ConnectionRefusedError())
    return absence


def message(kind: str, **fields: Any) -> dict[str, Any]:
    return {"message_type": kind, "id": f"m-{kind}", "run_id": "run-1", **fields}


ASKED = message("user_message", otid="k")
SAID = message("assistant_message", content="all of it")
ACTED = message("tool_return_message", status="success")


async def test_a_dead_run_is_cancelled_and_its_message_is_to_be_sent_again() -> None:
    server = Server()
    server.add_run("run-1", HOUR)
    server.add_run("run-2", HOUR, "conv-2")
    assert await server.find(was_away()) is None
    assert server.cancelled == ["run-1"], "no other conversation's"


async def test_a_run_is_not_cancelled_whose_server_was_never_away() -> None:
    server = Server()
    server.add_run("run-1", HOUR)
    with pytest.raises(Uncertain, match="silent"):
        await server.find(Absence())
    assert server.cancelled == []


async def test_a_run_that_began_after_the_server_had_come_back_is_waited_for() -> None:
    server = Server()
    server.add_run("run-1", -timedelta(seconds=5))
    with pytest.raises(Uncertain, match="silent"):
        await server.find(was_away())
    assert server.cancelled == []


async def test_a_run_that_cannot_be_cancelled_is_not_cancelled_for_ever() -> None:
    server = Server(obeys=False)
    server.add_run("run-1", HOUR)
    with pytest.raises(Uncertain, match="silent"):
        await server.find(was_away())
    assert server.cancelled == ["run-1"]


async def test_a_dead_run_that_had_used_a_tool_is_uncertain_at_once_and_left_as_it_is() -> None:
    for history in ([ASKED, ACTED], [ASKED, ACTED, SAID]):
        server = Server(*history)
        server.add_run("run-1", HOUR)
        with pytest.raises(Uncertain, match="after the agent had used a tool"):
            await server.find(was_away(), silence_s=300)
        assert server.cancelled == []


async def test_a_dead_run_that_had_said_everything_is_the_answer() -> None:
    server = Server(ASKED, SAID)
    server.add_run("run-1", HOUR)
    turn = await server.find(was_away(), silence_s=300)
    assert turn and (turn.text, turn.stop_reason) == ("all of it", "end_turn")


async def test_a_dead_run_of_which_only_the_message_is_known_is_uncertain() -> None:
    server = Server(ASKED)
    server.add_run("run-1", HOUR)
    with pytest.raises(Uncertain, match="after the agent had read the message"):
        await server.find(was_away(), silence_s=300)


async def test_a_message_that_was_just_sent_may_still_turn_up() -> None:
    server, left_s = Server(), 2.0
    began_s = time.monotonic()
    begun_ms = round((time.time() - ARRIVAL_S + left_s) * 1000)
    assert await server.find(Absence(), begun_ms=begun_ms) is None
    assert left_s - 0.2 < time.monotonic() - began_s < left_s + 5
    assert server.looks >= 3, "and is looked for meanwhile"


async def test_a_message_that_turns_up_late_is_found_and_not_sent_again() -> None:
    server = Server()
    reply = server.reply

    def late(asked: Asked) -> Say | None:
        answer = reply(asked)
        if server.looks == 2:
            server.history = [ASKED, SAID]
        return answer

    server.reply = late  # type: ignore[method-assign]
    turn = await server.find(Absence(), begun_ms=round(time.time() * 1000))
    assert turn and turn.text == "all of it"


async def test_a_message_that_was_sent_long_ago_or_to_a_server_that_died_needs_no_wait() -> None:
    for absence, begun_ms in (
        (Absence(), round((time.time() - ARRIVAL_S - 1) * 1000)),
        (was_away(), round((time.time() - 1) * 1000)),
    ):
        server = Server()
        assert await server.find(absence, begun_ms=begun_ms) is None
        assert server.looks == 1


async def test_a_clock_that_was_set_back_makes_no_message_wait_for_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("homeroom.letta.runs.ARRIVAL_S", 1.0)
    ahead_ms = round((time.time() + 3600) * 1000)
    began_s = time.monotonic()
    async with asyncio.timeout(20):
        assert await Server().find(Absence(), begun_ms=ahead_ms) is None
    assert time.monotonic() - began_s < 15


async def test_a_real_server_that_died_in_mid_turn_is_asked_again_as_soon_as_it_is_back(
    own_letta_v1: LettaV1,
) -> None:
    agent = await own_letta_v1.create_agent("survivor")
    absence, heard, begun_ms = Absence(), asyncio.Event(), round(time.time() * 1000)
    config = own_letta_v1.config()
    async with asyncio.timeout(300):  # a start takes a minute on a machine that is busy
        async with open_letta(config, absence) as letta:
            room = await letta.open_conversation(agent.id, "r")
            script = "!chunkdelay 0.3\n!words 100"
            sent = asyncio.create_task(
                letta.turn(
                    agent.id,
                    script,
                    conversation=room,
                    key="k-lost",
                    on_delta=lambda _: heard.set(),
                )
            )
            await heard.wait()
            own_letta_v1.kill_letta()
            with pytest.raises(Uncertain):
                await sent
        # Homeroom itself ends too, and is started again while nobody is there.
        with pytest.raises(Exception, match="not available"):
            async with open_letta(config, again := Absence()):
                pass
        await asyncio.to_thread(own_letta_v1.start_letta)
        async with open_letta(config, again) as letta:
            back_s = time.monotonic()
            key = {"conversation": room, "key": "k-lost"}
            assert await letta.find_turn(agent.id, **key, text="", begun_ms=begun_ms) is None
            turn = await letta.turn(agent.id, "!say once more", **key)
            assert time.monotonic() - back_s < 30
            assert turn.text == "once more"
            found = await letta.find_turn(agent.id, **key, text="", begun_ms=begun_ms)
            assert found and found.text == "once more"
