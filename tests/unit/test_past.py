"""What counts as an exchange of a person with an agent, whatever Letta's messages look like."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeroom.history import HISTORY_KEY, history_items
from homeroom.letta.past import exchanges_of, words_of
from homeroom.model import AgentId, Exchange, GhostId, Mapping, RoomId

ROW = Mapping(AgentId("agent-1"), GhostId("@agent_1:hs.test"), room_id=RoomId("!r"))


def at(second: int) -> str:
    return f"2026-01-01T00:00:{second:02}Z"


def asked(text: Any, second: int = 0, **more: Any) -> dict[str, Any]:
    return {"message_type": "user_message", "content": text, "date": at(second), **more}


def answered(text: Any, second: int = 1, **more: Any) -> dict[str, Any]:
    return {"message_type": "assistant_message", "id": f"m{second}", "content": text,
            "date": at(second), **more}  # fmt: skip


def texts(messages: list[dict[str, Any]], limit: int = 10) -> list[tuple[str, str]]:
    return [(one.asked, one.answered) for one in exchanges_of(messages, limit)]


def test_thoughts_tools_and_system_messages_are_in_no_exchange() -> None:
    messages = [
        {"message_type": "system_message", "content": "the prompt", "date": at(0)},
        asked("hello", 1),
        {"message_type": "reasoning_message", "reasoning": "hm", "date": at(2)},
        {"message_type": "tool_call_message", "date": at(3),
         "tool_call": {"name": "memory_insert", "arguments": "{}", "tool_call_id": "1"}},
        {"message_type": "tool_return_message", "tool_return": "done", "date": at(4)},
        answered("hello you", 5),
        {"message_type": "something new", "content": "?", "date": at(6)},
    ]  # fmt: skip
    (one,) = exchanges_of(messages, 5)
    assert (one.asked, one.answered) == ("hello", "hello you")
    assert one.answered_ms - one.asked_ms == 4000


def test_what_an_older_agent_sends_by_tool_is_its_answer() -> None:
    call = {"name": "send_message", "arguments": '{"message": "hi"}', "tool_call_id": "1"}
    messages = [asked("hello"), {"message_type": "tool_call_message", "tool_call": call}]
    assert texts(messages) == [("hello", "hi")]


def test_mixed_conversations_are_kept_apart_and_ordered_by_time() -> None:
    messages = [
        asked("one", 1, run_id="a"),
        asked("two", 2, run_id="b"),
        answered("to two", 3, run_id="b"),
        answered("to one", 4, run_id="a"),
    ]
    assert texts(messages) == [("one", "to one"), ("two", "to two")]
    assert texts(messages, 1) == [("two", "to two")]


def test_a_question_without_an_answer_and_an_answer_without_a_question_are_left_out() -> None:
    heartbeat = json.dumps({"type": "heartbeat", "reason": "timer"})
    messages = [
        answered("to something older", 0),
        asked("nobody answers", 1),
        asked("one", 2),
        answered("to one", 3),
        asked(heartbeat, 4),
        answered("to a timer", 5),
    ]
    assert texts(messages) == [("one", "to one")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("hello", "hello"),
        ([{"type": "text", "text": "a "}, {"type": "text", "text": "b"}], "a b"),
        ("<system-reminder>\nthe machine\n</system-reminder>hi", "hi"),
        ([{"type": "text", "text": "<system-reminder> cut off"}], ""),
        ('{"type": "user_message", "message": "hi", "time": "now"}', "hi"),
        ('{"type": "login", "last_login": "never"}', ""),
        ('{"type": "of the person\'s own"}', '{"type": "of the person\'s own"}'),
        ('{"a": 1}', '{"a": 1}'),
        ("{not json", "{not json"),
        (None, ""),
        (7, ""),
        ("\ud800", "\ufffd"),
    ],
)
def test_a_persons_words_are_told_from_what_systems_put_around_them(
    content: Any, words: str
) -> None:
    assert words_of(content) == words


anything = st.recursive(
    st.none() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
)
messages_of_any_kind = st.lists(
    st.fixed_dictionaries(
        {"message_type": st.sampled_from(["user_message", "assistant_message", "other"])},
        optional={"content": anything, "date": anything, "run_id": anything},
    )
)


@given(messages_of_any_kind, st.integers(1, 5))
def test_whatever_letta_sends_no_more_than_asked_for_comes_out(
    messages: list[dict[str, Any]], limit: int
) -> None:
    found = exchanges_of(messages, limit)
    assert len(found) <= limit
    assert all(one.asked and one.answered for one in found)


def test_the_past_is_posted_by_the_ghost_as_notices_that_say_what_they_are() -> None:
    past = [Exchange("*hi* @room", "x" * 30_000, 1000, 2000), Exchange("b", "c", 3000, 4000)]
    items = history_items(ROW, past)
    contents = [item.payload["content"] for item in items]
    assert {item.payload["ghost"] for item in items} == {ROW.ghost}
    assert {content["msgtype"] for content in contents} == {"m.notice"}
    assert all(content[HISTORY_KEY]["agent_id"] == "agent-1" for content in contents)
    assert all(content["m.mentions"] == {} for content in contents)
    assert "the last 2 exchanges" in contents[0]["body"]
    assert [item.payload["ts_ms"] for item in items] == [1000, 1000, *[2000] * 3, 3000, 4000]
    assert len({item.dedupe_key for item in items}) == len(items)
    assert [item.dedupe_key for item in history_items(ROW, past)] == [i.dedupe_key for i in items]
    assert history_items(ROW, []) == []
