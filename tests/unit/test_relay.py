"""What is relayed, what is not and why; and what a reply looks like. Pure functions."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeroom.decide import chat_items, decide, presence_items
from homeroom.items import Decision, ItemKind
from homeroom.model import AgentId, EventId, GhostId, Mapping, RoomEvent, RoomId
from homeroom.posts import reply_content, split_text, text_items, to_html

ROOM = RoomId("!r:hs.test")
MAPPING = Mapping(
    agent_id=AgentId("agent-1"), ghost=GhostId("@agent_1:hs.test"), room_id=ROOM, heard_from_ms=100
)


def event(
    content: dict[str, Any], *, sender: str = "@you:hs.test", type_: str = "m.room.message",
    at_ms: int = 200,
) -> RoomEvent:  # fmt: skip
    return RoomEvent(EventId("$e"), ROOM, sender, type_, content, at_ms)


def judge(of: RoomEvent, people: int = 1) -> Decision:
    return decide(of, MAPPING, people, is_ghost=lambda user: user.startswith("@agent_"))


def text(body: str, **more: Any) -> dict[str, Any]:
    return {"msgtype": "m.text", "body": body, **more}


def test_a_persons_message_becomes_one_turn_on_the_rooms_lane_of_the_agent() -> None:
    decision = judge(event(text("hello")))
    assert decision.outcome == "relayed"
    (turn,) = decision.items
    assert turn.kind is ItemKind.TURN
    assert turn.lane == "agent:agent-1:!r:hs.test"
    assert turn.dedupe_key == "event:$e"
    assert turn.payload["text"] == "hello" and not turn.payload["name_sender"]


def test_a_message_to_a_retired_agent_is_answered_with_a_notice_and_never_relayed() -> None:
    retired = replace(MAPPING, retired=True)
    decision = decide(event(text("hello")), retired, 1, is_ghost=lambda user: False)
    (notice,) = decision.items
    assert decision.outcome.startswith("retired") and notice.kind is ItemKind.POST
    content = notice.payload["content"]
    assert content["msgtype"] == "m.notice" and "not delivered" in content["body"]
    assert content["m.relates_to"]["m.in_reply_to"] == {"event_id": "$e"}
    own = decide(event(text("x"), sender="@agent_1:hs.test"), retired, 1, is_ghost=lambda u: True)
    assert own.items == (), "our own notices are not answered"


def test_a_room_is_told_once_for_every_time_its_agent_leaves_or_returns() -> None:
    first = replace(MAPPING, missing_since_ms=1, retired=True)
    rows = [first, replace(first, retired=False), replace(first, missing_since_ms=2)]
    keys = [item.dedupe_key for row in rows for item in presence_items(row)]
    assert len(set(keys)) == 3
    assert presence_items(first) == presence_items(first)
    assert presence_items(replace(first, room_id=None)) == []


@pytest.mark.parametrize(
    ("of", "rule"),
    [
        (event(text("x"), sender="@agent_1:hs.test"), "echo"),
        (event(text("x"), sender="@agent_hub:hs.test"), "echo"),
        (event(text("x"), at_ms=99), "too old"),
        (event({"msgtype": "m.notice", "body": "x"}), "notice"),
        (event(text("* x", **{"m.relates_to": {"rel_type": "m.replace"}})), "edit"),
        (event(text("  \n ")), "empty"),
        (event({"msgtype": "m.text"}), "empty"),
        (event({"msgtype": "m.text", "body": 7}), "empty"),
        (event({"msgtype": "org.example.poll", "body": "x"}), "empty"),
        (event({}), "empty"),
    ],
)
def test_what_is_not_relayed_is_dropped_by_a_named_rule(of: RoomEvent, rule: str) -> None:
    decision = judge(of)
    assert decision.items == () and decision.outcome.startswith(rule)


@pytest.mark.parametrize(
    ("of", "says"),
    [
        (event({"msgtype": "m.image", "body": "cat.png"}), "only read text"),
        (event({"algorithm": "m.megolm"}, type_="m.room.encrypted"), "encrypted"),
    ],
)
def test_what_cannot_be_relayed_is_answered_with_the_reason(of: RoomEvent, says: str) -> None:
    (notice,) = judge(of).items
    assert notice.kind is ItemKind.POST
    content = notice.payload["content"]
    assert content["msgtype"] == "m.notice" and says in content["body"]
    assert "not delivered" in content["body"]
    assert content["m.relates_to"]["m.in_reply_to"] == {"event_id": "$e"}


def test_the_sender_is_named_where_several_people_talk() -> None:
    (turn,) = judge(event(text("hello")), people=2).items
    assert turn.payload["name_sender"]


def test_a_quote_above_a_reply_is_not_told_to_the_agent_again() -> None:
    relation = {"m.relates_to": {"m.in_reply_to": {"event_id": "$x"}}}
    (turn,) = judge(event(text("> <@a:b> old\n> more\n\nnew\n> kept", **relation))).items
    assert turn.payload["text"] == "new\n> kept"


def test_a_thread_is_answered_in_the_thread() -> None:
    relation = {"m.relates_to": {"rel_type": "m.thread", "event_id": "$root"}}
    (turn,) = judge(event(text("x", **relation))).items
    assert turn.payload["thread"] == "$root"
    content = reply_content("y", notice=False, reply_to="$e", thread="$root")
    assert content["m.relates_to"]["rel_type"] == "m.thread"
    assert content["m.relates_to"]["m.in_reply_to"] == {"event_id": "$e"}


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(["msgtype", "body", "m.relates_to", "formatted_body", "x"]),
        junk | st.sampled_from(["m.text", "m.image", "m.notice"]),
    )
)
def test_no_content_that_a_stranger_can_send_breaks_the_decision(content: dict[str, Any]) -> None:
    assert judge(event(content)).outcome


# --- chats from tools ----------------------------------------------------------------------------


def test_a_mirrored_chat_shares_the_rooms_lane_and_shows_a_labelled_notice() -> None:
    turn, notice = chat_items(
        AgentId("agent-1"), MAPPING, "hi", client="Claude Desktop", mirror=True, key="k"
    )
    assert turn.lane == "agent:agent-1:!r:hs.test"
    assert notice.lane == "room:!r:hs.test"
    assert notice.payload["content"]["msgtype"] == "m.notice", "a notice is never relayed: no loop"
    assert "Claude Desktop" in notice.payload["content"]["body"]


def test_a_private_chat_has_a_conversation_of_its_own() -> None:
    (turn,) = chat_items(AgentId("agent-1"), MAPPING, "hi", client="c", mirror=False, key="k")
    assert turn.lane == "agent:agent-1:private"


def test_a_clients_name_cannot_carry_markup() -> None:
    _, notice = chat_items(
        AgentId("agent-1"), MAPPING, "hi", client="**x** <b>[a](http://e)", mirror=True, key="k"
    )
    assert "<a" not in notice.payload["content"]["formatted_body"]


# --- replies -------------------------------------------------------------------------------------


def test_markdown_becomes_html_and_plain_text_stays_plain() -> None:
    rich = reply_content("a **b** `c`", notice=False, reply_to=None, thread=None)
    assert rich["formatted_body"] == "<p>a <strong>b</strong> <code>c</code></p>"
    assert rich["body"] == "a **b** `c`"
    assert "formatted_body" not in reply_content("a & b", notice=False, reply_to=None, thread=None)


@pytest.mark.parametrize(
    "evil",
    [
        "<script>alert(1)</script>",
        "[x](javascript:alert(1))",
        "![x](http://tracker/pixel.png)",
        "<img src=x onerror=alert(1)>",
        "<a href='data:text/html,x'>y</a>",
        '[x](http://ok"onclick=alert(1))',
    ],
)
def test_an_agents_html_is_harmless(evil: str) -> None:
    tags = re.findall(r"<[^>]*>", to_html(evil))  # what a client would take for markup
    for bad in ("<script", "javascript:", "<img", "onerror", "data:", '" onclick'):
        assert not any(bad in tag for tag in tags)


@given(st.text(max_size=400), st.integers(5, 60))
def test_splitting_loses_no_word_and_keeps_the_limit(whole: str, limit: int) -> None:
    pieces = split_text(whole, limit)
    assert all(len(piece) <= limit for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(whole.split())


@pytest.mark.parametrize(
    "text",
    ["答" * 40_000 + " **x**", "| a | b |\n|---|---|\n" + "| x | y |\n" * 4_000, "🎈" * 30_000],
)
def test_a_long_answer_in_any_script_fits_into_its_events(text: str) -> None:
    """An event over 65,536 bytes is refused, and the answer would be lost."""
    items = text_items("@g:h", "!r", text, "k")
    sizes = [
        len(json.dumps(dict(i.payload["content"]), ensure_ascii=False).encode()) for i in items
    ]
    assert len(items) > 1 and max(sizes) <= 60_000
    assert len({item.dedupe_key for item in items}) == len(items)
    said = "".join("".join(i.payload["content"]["body"].split()) for i in items)
    assert said == "".join(text.split())


def test_what_a_person_quotes_by_hand_is_told_to_the_agent() -> None:
    relation = {"m.relates_to": {"m.in_reply_to": {"event_id": "$x"}}}
    (turn,) = judge(event(text("> my own quote\n> of two lines", **relation))).items
    assert turn.payload["text"] == "> my own quote\n> of two lines"
