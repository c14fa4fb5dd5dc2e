"""What an App Server tells of a conversation, whatever it sends."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeroom.errors import HomeroomError, Unavailable
from homeroom.letta.events import Aborted, Approval, Broke, End, Queue, Said, Sign, Status
from homeroom.letta.events import read_event as read
from homeroom.letta.run import LoopState, Run

IDLE = {"status": "WAITING_ON_INPUT"}
WHOLE: list[dict[str, Any]] = [
    {
        "type": "stream_delta",
        "delta": {
            "message_type": "assistant_message",
            "id": "m",
            "run_id": "r",
            "content": [{"type": "text", "text": "hello"}],
        },
    },
    {
        "type": "stream_delta",
        "delta": {
            "message_type": "error_message",
            "run_id": "r",
            "api_error": {"detail": "500: no", "message": "no"},
        },
    },
    {
        "type": "update_loop_status",
        "loop_status": {"status": "BUSY", "client_message_ids_by_run_id": {"r": ["mine"]}},
    },
    {"type": "update_queue", "queue": [{"client_message_id": "mine"}]},
    {"type": "turn_finished", "run_id": "r", "stop_reason": "end_turn", "error": "no"},
    {"type": "abort_message_response", "aborted": True},
    {"type": "control_request", "request_id": "q"},
]
READ = [
    Said("r", "m", "hello"),
    Broke("r", "500: no"),
    Status(True, {"r": ("mine",)}),
    Queue(("mine",)),
    End("r", "end_turn", "no"),
    Aborted(),
    Approval("q"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def places_in(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of each value within an event but for its type, which the connection checks."""
    inner: list[tuple[Any, object]] = []
    if isinstance(value, dict):
        inner = [(key, one) for key, one in value.items() if (*path, key) != ("type",)]
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return [place for key, one in inner for place in ((*path, key), *places_in(one, (*path, key)))]


MISSING = object()


def broken(value: Any, path: tuple[Any, ...], by: object) -> Any:
    """``value`` with ``by`` in that place, or nothing."""
    if not path:
        return by
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(path) == 1 and by is MISSING:
        del copy[path[0]]
    else:
        copy[path[0]] = broken(value[path[0]], path[1:], by)
    return copy


def test_whole_events_are_read() -> None:
    assert [read(event) for event in WHOLE] == READ


@given(st.data())
def test_an_event_with_anything_in_any_place_is_read_or_is_no_answer_of_letta(
    data: st.DataObject,
) -> None:
    """Nothing else may come out of it: it would be taken for a fault of Homeroom."""
    event = data.draw(st.sampled_from(WHOLE))
    for _ in range(data.draw(st.integers(1, 3))):
        places = places_in(event)
        if not places:
            break
        event = broken(
            event, data.draw(st.sampled_from(places)), data.draw(JSON | st.just(MISSING))
        )
    run, state = Run("mine"), LoopState()
    try:
        seen = read(event)
    except Unavailable as error:
        assert "could not be read" in str(error) and not error.foreign
        return
    state.see(seen)
    run.see(seen)
    try:
        assert all(isinstance(text, str) for text in (run.result().text, run.ended, *state.queued))
    except HomeroomError:
        assert run.failed


@given(st.text(max_size=30), st.dictionaries(st.text(max_size=10), JSON))
def test_an_event_of_a_kind_that_is_nothing_to_us_is_let_by(kind: str, fields: Any) -> None:
    kinds = {event["type"] for event in WHOLE}
    if kind not in kinds:
        assert read({**fields, "type": kind}) is None


@pytest.mark.parametrize(
    "event",
    [
        {"type": "stream_delta"},
        {"type": "stream_delta", "delta": "hello"},
        {"type": "stream_delta", "delta": {"message_type": "assistant_message", "content": 7}},
        {"type": "stream_delta", "delta": {"message_type": "assistant_message", "content": {}}},
        {
            "type": "stream_delta",
            "delta": {"message_type": "assistant_message", "content": [{"text": ["x"]}]},
        },
        {"type": "stream_delta", "delta": {"message_type": ["assistant_message"]}},
        {"type": "stream_delta", "delta": {"run_id": {}}},
        {"type": "update_loop_status"},
        {"type": "update_loop_status", "loop_status": []},
        {"type": "update_loop_status", "loop_status": IDLE | {"client_message_ids_by_run_id": 1}},
        {
            "type": "update_loop_status",
            "loop_status": IDLE | {"client_message_ids_by_run_id": {"r": None}},
        },
        {"type": "update_queue"},
        {"type": "update_queue", "queue": {}},
        {"type": "update_queue", "queue": ["mine"]},
        {"type": "update_queue", "queue": [{"client_message_id": 1}]},
        {"type": "turn_finished", "stop_reason": {}},
        {"type": "turn_finished", "run_id": 1},
        {"type": "control_request"},
        {"type": "control_request", "request_id": {}},
    ],
)
def test_what_may_be_a_part_or_the_end_of_an_answer_is_not_passed_over(event: Any) -> None:
    with pytest.raises(Unavailable, match="one of its events could not be read"):
        read(event)


@pytest.mark.parametrize(
    ("event", "seen"),
    [
        ({"type": "stream_delta", "delta": {}}, Sign()),
        (
            {"type": "stream_delta", "delta": {"message_type": "assistant_message"}},
            Said("", "None", ""),
        ),
        (
            {
                "type": "stream_delta",
                "delta": {
                    "message_type": "assistant_message",
                    "id": "m",
                    "content": ["a", {"type": "image", "text": None}, {"text": "b"}],
                },
            },
            Said("", "m", "ab"),
        ),
        ({"type": "stream_delta", "delta": {"message_type": "loop_error", "api_error": 7}},
         Broke("", "")),
        ({"type": "update_loop_status", "loop_status": IDLE}, Status(False, {})),
        ({"type": "update_queue", "queue": [{"kind": "theirs"}]}, Queue(())),
        ({"type": "turn_finished"}, End("", "end_turn", "")),
        ({"type": "turn_finished", "error": {"message": "no"}}, End("", "end_turn", "no")),
        ({"type": "abort_message_response", "aborted": False}, None),
    ],
)  # fmt: skip
def test_what_a_server_leaves_out_is_none(event: Any, seen: object) -> None:
    assert read(event) == seen
