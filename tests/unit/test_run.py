"""Whose end an App Server tells of, when it does not say it."""

from __future__ import annotations

from typing import Any

from homeroom.letta.events import read_event
from homeroom.letta.run import Run

BUSY = "Conversation local-conv-1 already has an active run (local-run-6)"


def queue(*ids: str) -> dict[str, Any]:
    return {"type": "update_queue", "queue": [{"client_message_id": one} for one in ids]}


def loop(**runs: list[str]) -> dict[str, Any]:
    status = {"status": "PROCESSING_API_RESPONSE", "client_message_ids_by_run_id": runs}
    return {"type": "update_loop_status", "loop_status": status}


def end(reason: str = "end_turn", **fields: str) -> dict[str, Any]:
    return {"type": "turn_finished", "stop_reason": reason, **fields}


def seen(*events: dict[str, Any], waiting: bool = False) -> Run:
    run = Run("mine")
    run.waiting = waiting
    for event in events:
        run.see(read_event(event))
    return run


def test_a_run_ends_with_the_run_that_took_its_message() -> None:
    other = loop(theirs=["other"])
    assert not seen(other, end(run_id="theirs")).ended
    mine = loop(theirs=["other"], ours=["other too", "mine"])
    assert seen(mine, end(run_id="ours")).ended == "end_turn"


def test_a_turn_that_is_refused_a_run_is_the_one_that_is_up() -> None:
    assert seen(end("error", error=BUSY)).refused


def test_what_waits_in_the_queue_does_not_end_with_the_turn_before_it() -> None:
    failed = end("error", error="no run")
    assert not seen(queue("mine"), failed).ended
    assert not seen(failed, waiting=True).ended, "its place in the queue is told after its answer"
    assert seen(queue("mine"), failed, queue(), failed).ended == "error"
