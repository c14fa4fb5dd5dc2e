"""What is away comes back, and nothing is lost, doubled or out of order. All real."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from homeroom.local.scripted_model import ScriptedModel
from support.fault_proxy import FaultProxy, Request, path
from support.home import Home, Service, make_home
from support.letta_v1 import LettaV1
from support.load import Crowd, Figures, crowd
from support.person import Person
from support.soak import Soak, wait_dead
from support.streams import wait_streaming
from support.synapse import Homeserver
from support.talk import after, answers, answers_in, ask, is_typing

TWO = ("ann", "bob")
STREAM = "!chunkdelay 0.5"
BACK_S = 75.0
"""So long after Letta's return the last of what waited may be answered: the pauses of those who
asked in vain have grown to half a minute by then."""
ENDS_S = 30.0
"""A bridge that is told to end takes far less; a turn of a minute takes more."""


def _of_two(own: Home, letta: Any = None, backend: str = "app-server") -> Home:
    return make_home(own.homeserver, letta or own.letta, own.directory, *TWO, backend=backend)


@asynccontextmanager
async def _served(
    home: Home, agents: int = 3, parked_most: int = 0
) -> AsyncIterator[tuple[Service, Crowd]]:
    """Two people with some agents, who talk all the time; at the end all is counted. No more than
    ``parked_most`` messages may have been given up."""
    with home.service() as service:
        async with crowd(home, TWO, agents=agents, further_rooms=0) as people:
            async with people.talking():
                await people.wait_answers(3)
                yield service, people
            await people.settle()
            _assert_clean(await people.count(), parked_most)


def _assert_clean(figures: Figures, parked_most: int) -> None:
    assert figures.is_clean and figures.answered + figures.parked == figures.said, figures
    assert figures.parked <= parked_most and figures.answered > 10, figures


async def test_a_homeserver_that_is_killed_under_load_and_comes_back(own_home: Home) -> None:
    home = _of_two(own_home)
    async with _served(home) as (service, people):
        home.homeserver.synapse.kill()
        await service.wait_log("sync_failed")
        home.homeserver.synapse.start()
        await people.wait_answers(10)


async def test_an_app_server_that_is_killed_in_mid_stream_and_comes_back(own_home: Home) -> None:
    home = _of_two(own_home)
    async with _served(home) as (_, people):
        await _kill_while_it_streams(people, home.letta.model, home.letta.crash)
        home.letta.start()
        await people.wait_answers(6)


async def test_a_letta_v1_that_is_killed_in_mid_stream_and_comes_back(
    own_synapse: Homeserver, own_letta_v1: LettaV1, scripted_model: ScriptedModel, tmp_path: Path
) -> None:
    home = make_home(own_synapse, own_letta_v1, tmp_path / "homeroom", *TWO, backend="rest")
    async with _served(home, agents=2) as (_, people):
        await _kill_while_it_streams(people, scripted_model, own_letta_v1.kill_letta)
        own_letta_v1.start_letta()
        back_s, waiting = anyio.current_time(), people.said.keys() - people.answered_at
        await people.wait_answers(3)
    late_s = max(people.answered_at[asked] for asked in waiting) - back_s
    assert late_s < BACK_S, f"the last of {len(waiting)} was answered {late_s:.1f} s after"


async def _kill_while_it_streams(
    people: Crowd, model: ScriptedModel, kill: Callable[[], None]
) -> None:
    """Kills Letta when pieces of one long answer have come to it from the model, and its person has
    none of it."""
    words = " ".join(f"piece{number}" for number in range(60))
    people.script = STREAM
    asked = await people.say(len(people.said), words)
    people.script = ""
    await wait_streaming(model, words)
    assert asked in people.unanswered
    kill()


async def test_both_servers_killed_at_once_and_started_one_after_the_other(
    own_home: Home,
) -> None:
    home = _of_two(own_home)
    async with _served(home) as (service, people):
        home.letta.crash()
        home.homeserver.synapse.kill()
        await service.wait_log("sync_failed")
        home.homeserver.synapse.start()
        home.letta.start()
        await people.wait_answers(10)


# --- the store -----------------------------------------------------------------------------------


@asynccontextmanager
async def _one(home: Home) -> AsyncIterator[tuple[Soak, Person, str]]:
    """One person with one agent that has answered already; the bridge has stopped in order."""
    await home.letta.create_agent("Ada")
    soak = Soak(home)
    try:
        async with home.login() as person:
            soak.start()
            room = await person.join(await person.wait_invite(60))
            await ask(person, room, "!say warm")
            yield soak, person, room
    finally:
        soak.stop()


async def _wait_end(soak: Soak) -> str:
    """Returns what the bridge has said by the time it has ended by itself."""
    assert soak.child
    assert await wait_dead(soak.child, 60), "it goes on"
    return soak.child.log.read_text()


async def _assert_answered(
    person: Person, room: str, asked: list[str], limit_s: float = 60
) -> None:
    for event_id in asked:
        await person.wait_event(answers(event_id), limit_s)
    found = answers_in(await person.messages(room))
    assert [found[event_id] for event_id in asked] == [[str(n)] for n in range(len(asked))]
    assert [event_id for event_id in found if event_id in asked] == asked


async def test_a_full_disk_ends_the_bridge_which_says_why_and_loses_nothing(home: Home) -> None:
    async with _one(home) as (soak, person, room):
        soak.stop()
        with sqlite3.connect(Path(home.environ["HOMEROOM_DATA_DIR"]) / "homeroom.db") as db:
            (pages,) = db.execute("PRAGMA page_count").fetchone()
        soak.start(pages=pages + 2)
        filler = "x" * 3000
        asked = [await person.say(room, f"{filler}\n!say {n}") for n in range(20)]
        log = await _wait_end(soak)
        assert "is full: free space on the disk of HOMEROOM_DATA_DIR" in log
        assert "Traceback" not in log
        soak.start()
        await _assert_answered(person, room, asked)


@contextmanager
def _locked(home: Home) -> Iterator[None]:
    """Another process, as SQLite sees it, is in the middle of a write."""
    db = sqlite3.connect(Path(home.environ["HOMEROOM_DATA_DIR"]) / "homeroom.db")
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        db.rollback()
        db.close()


async def _lease_lapsed(home: Home) -> None:
    """Returns when the lease that the store tells of is valid no more."""
    with sqlite3.connect(Path(home.environ["HOMEROOM_DATA_DIR"]) / "homeroom.db") as db:
        until_ms = 0
        with anyio.fail_after(60):
            while True:
                (until_ms,) = db.execute("SELECT until_ms FROM lease").fetchone()
                if (left_ms := until_ms - time.time() * 1000) < 0:
                    break
                await anyio.sleep(left_ms / 1000 + 0.05)
    db.close()


async def test_a_store_that_another_process_holds_longer_than_a_lease_is_waited_for(
    home: Home,
) -> None:
    async with _one(home) as (_, person, room):
        with _locked(home):
            asked = [await person.say(room, f"!say {n}") for n in range(5)]
            await _lease_lapsed(home)
            assert not set(asked) & set(answers_in(await person.messages(room)))
        await _assert_answered(person, room, asked)


async def test_a_store_that_another_process_does_not_give_back_ends_the_bridge_with_a_word(
    home: Home,
) -> None:
    async with _one(home) as (soak, person, room):
        soak.stop()
        soak.start(busy_ms=500)
        asked = [await person.say(room, "!say 0")]
        await person.wait_event(answers(asked[0]), 60)
        with _locked(home):
            asked.append(await person.say(room, "!say 1"))
            log = await _wait_end(soak)
        assert "database is locked: another process holds it" in log and "Traceback" not in log
        soak.start()
        await _assert_answered(person, room, asked)


# --- clocks and signals --------------------------------------------------------------------------


@pytest.mark.parametrize("step_s", [3700.0, -3700.0], ids=["forth", "back"])
async def test_a_clock_that_steps_by_an_hour_holds_nothing_up_and_drops_nothing(
    home: Home, step_s: float
) -> None:
    clock = home.directory / "clock"
    clock.write_text("0")
    async with _one(home) as (soak, person, room):
        soak.stop()
        soak.start(clock=str(clock))
        seen = len(person.events)
        asked = [await person.say(room, "!delay 1.5\n!say 0")]
        await person.wait_event(after(seen, is_typing))
        clock.write_text(str(step_s))
        asked += [await person.say(room, f"!say {n}") for n in range(1, 4)]
        for event_id in asked:
            await person.wait_event(answers(event_id), 60)
        # What is put off when the clock steps is not put off by an hour.
        home.letta.crash()
        asked.append(await person.say(room, "!say 4"))
        await person.wait_event(lambda e: "⏳" in e["content"].get("body", ""), 60)
        clock.write_text("0")
        home.letta.start()
        for event_id in asked:
            await person.wait_event(_text_answer(event_id), 60)
        told = [e for e in await person.messages(room) if e["content"]["msgtype"] == "m.text"]
        found = answers_in(told)
        assert [found[event_id] for event_id in asked] == [[str(n)] for n in range(5)]


def _text_answer(event_id: str) -> Callable[[dict[str, Any]], bool]:
    is_answer = answers(event_id)
    return lambda e: is_answer(e) and e["content"].get("msgtype") == "m.text"


async def test_a_bridge_that_is_told_to_end_in_a_turn_ends_soon_and_answers_later(
    home: Home,
) -> None:
    async with _one(home) as (soak, person, room):
        seen = len(person.events)
        asked = [await person.say(room, "!delay 60\n!say 0"), await person.say(room, "!say 1")]
        await person.wait_event(after(seen, is_typing))
        began_s = anyio.current_time()
        assert soak.child
        os.kill(soak.child.pid, signal.SIGTERM)
        assert await wait_dead(soak.child, ENDS_S), "it waits for the turn"
        assert not set(asked) & set(answers_in(await person.messages(room)))
        assert anyio.current_time() - began_s < 60, "the turn may have ended by itself"
        soak.start()
        await _assert_answered(person, room, asked, 150)


_WRITES = path(r"/send/|/state/|/createRoom|/invite$|/join|/leave$")


def _writes(asked: Request) -> bool:
    return asked.method in ("PUT", "POST") and _WRITES(asked)


async def test_a_suspended_bridge_whose_lease_was_taken_over_writes_nothing_when_it_wakes(
    home: Home,
) -> None:
    await home.letta.create_agent("Ada")
    with FaultProxy(home.homeserver.url) as proxy:
        laptop = replace(home, environ=home.environ | {"HOMEROOM_MATRIX_URL": proxy.url})
        async with home.login() as person:
            with laptop.service() as first, home.service() as second:
                room = await person.join(await person.wait_invite(60))
                await ask(person, room, "!say warm")
                assert (await first.health())["bridge"]["runs_here"]
                seen = len(person.events)
                asked = [await person.say(room, f"!delay 2\n!say {n}") for n in range(3)]
                await person.wait_event(after(seen, is_typing))
                assert first.child
                os.kill(first.child.pid, signal.SIGSTOP)
                try:
                    await _assert_answered(person, room, asked)
                    assert (await second.health())["bridge"]["runs_here"]
                    written = proxy.count(_writes)
                finally:
                    os.kill(first.child.pid, signal.SIGCONT)
                await first.wait_log("lease_lost")
                asked += [await person.say(room, "!say 3")]
                await _assert_answered(person, room, asked)
                assert proxy.count(_writes) == written
                assert not (await first.health())["bridge"]["runs_here"]
