"""Whom a message is for, in a room with several agents; and what people may order there."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeroom.addressing import addressed
from homeroom.decide import decide
from homeroom.items import Decision, ItemKind
from homeroom.model import AgentId, EventId, GhostId, Mapping, RoomEvent, RoomId
from homeroom.residence import Claim, Guest
from homeroom.room_commands import Command, parse_command

ADA, BROOK = GhostId("@agent_1:hs.test"), GhostId("@agent_2:hs.test")
AGENTS = [(ADA, "Ada"), (BROOK, "Brook Löwe")]
ROOM, YOU, ME = RoomId("!r:hs.test"), "@you:hs.test", "@me:hs.test"


@pytest.mark.parametrize(
    ("text", "content", "for_whom"),
    [
        ("good morning", {}, set()),
        ("Ada: good morning", {}, {ADA}),
        ("  ada , good morning", {}, {ADA}),
        ("@Ada: good morning", {}, {ADA}),
        ("brook löwe: hi", {}, {BROOK}),
        ("Adam: good morning", {}, set()),
        ("I said to Ada: no", {}, set()),
        ("Ada good morning", {}, set()),
        (f"ask {BROOK}, please", {}, {BROOK}),
        (f"ask {BROOK}.", {}, {BROOK}),
        (f"not {BROOK}.example", {}, set()),
        ("hi", {"m.mentions": {"user_ids": [ADA, YOU, 7]}}, {ADA}),
        ("hi", {"m.mentions": {"room": True}}, set()),
        ("hi", {"m.mentions": [ADA]}, set()),
        ("hi", {"formatted_body": f'<a href="https://matrix.to/#/{ADA}">x</a>'}, {ADA}),
        ("hi", {"formatted_body": '<a href="https://matrix.to/#/%40agent_1%3Ahs.test">'}, {ADA}),
        ("hi", {"formatted_body": '<a href="matrix:u/agent_2:hs.test">x</a>'}, {BROOK}),
        ("hi", {"formatted_body": f"<mx-reply>https://matrix.to/#/{ADA}</mx-reply>hi"}, set()),
        (f"Brook Löwe: tell {ADA}", {}, {ADA, BROOK}),
    ],
)
def test_only_whom_the_sender_named_on_purpose_is_meant(
    text: str, content: dict[str, Any], for_whom: set[str]
) -> None:
    assert addressed(content, text, AGENTS) == for_whom


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["m.mentions", "formatted_body", "body"]), junk), st.text())
def test_no_content_of_a_stranger_breaks_it_or_names_somebody_else(
    content: dict[str, Any], text: str
) -> None:
    assert addressed(content, text, AGENTS) <= {ADA, BROOK}


# --- what becomes of it --------------------------------------------------------------------------


def guest(number: int, *others: tuple[GhostId, str]) -> Guest:
    ghost, name = AGENTS[number]
    row = Mapping(AgentId(f"agent-{number + 1}"), ghost, RoomId("!home"), display_name=name)
    return Guest.of(row, Claim(ROOM, row.agent_id, heard_from_ms=100), others, number == 0)


TOGETHER = [guest(0, AGENTS[1]), guest(1, AGENTS[0])]


def said(text: str, *, sender: str = YOU, at_ms: int = 200, **content: Any) -> RoomEvent:
    body = {"msgtype": "m.text", "body": text, **content}
    return RoomEvent(EventId("$e"), ROOM, sender, "m.room.message", body, at_ms)


def judge(event: RoomEvent, guests: list[Guest] = TOGETHER) -> list[Decision]:
    return [
        decide(event, each, 1, is_ghost=lambda u: u.startswith("@agent_"), people=(YOU, ME))
        for each in guests
    ]


def turns(decisions: list[Decision]) -> list[Any]:
    items = [item for decision in decisions for item in decision.items]
    return [item for item in items if item.kind is ItemKind.TURN]


def test_each_agent_that_is_meant_gets_a_turn_of_its_own_in_a_conversation_of_its_own() -> None:
    (turn,) = turns(judge(said("Ada: hello")))
    assert turn.payload["agent_id"] == "agent-1" and turn.payload["text"] == "Ada: hello"
    both = turns(judge(said("hello", **{"m.mentions": {"user_ids": [ADA, BROOK]}})))
    assert [turn.lane for turn in both] == [f"agent:agent-{n}:{ROOM}" for n in (1, 2)]
    assert len({turn.dedupe_key for turn in both}) == 2


def test_a_message_for_nobody_is_answered_by_nobody_and_the_first_says_how_to_address() -> None:
    first, second = judge(said("hello"))
    assert not turns([first, second]) and second.items == ()
    assert "names none of the agents" in first.outcome
    (notice,) = first.items
    assert "Ada, Brook Löwe" in notice.payload["content"]["body"]
    again, _ = judge(said("hello again"))
    assert again.items[0].dedupe_key == notice.dedupe_key, "which the store takes once"


def test_an_agent_that_is_alone_in_a_further_room_is_meant_by_everything() -> None:
    (turn,) = turns(judge(said("hello"), [guest(0)]))
    assert turn.dedupe_key == "event:$e" and turn.payload["room_id"] == ROOM
    (old,) = judge(said("hello", at_ms=99), [guest(0)])
    assert old.outcome.startswith("too old")


# --- commands ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("!catchup", Command("catch_up")),
        (" !HELP ", Command("help")),
        ("!invite me", Command("invite", YOU)),
        ("!Invite  @me:hs.test", Command("invite", ME)),
        ("!invite", None),
        ("!invite you", None),
        ("!invite @a b:c", None),
        ("!helpme", None),
        ("please !help", None),
        ("!say hi", None),
    ],
)
def test_a_message_is_a_command_only_to_the_letter(text: str, command: Command | None) -> None:
    assert parse_command(text, YOU) == command


def test_in_a_room_with_several_agents_a_command_is_answered_once() -> None:
    first, second = judge(said("!help"))
    assert "!invite me" in first.items[0].payload["content"]["body"]
    assert second.items == () and "another agent" in second.outcome


@pytest.mark.parametrize(
    ("text", "sender", "asks", "says"),
    [
        ("!invite me", YOU, (YOU,), "You are invited again"),
        (f"!invite {ME}", YOU, (ME,), "They are invited again"),
        ("!invite @x:y.z", YOU, (), "not in HOMEROOM_INVITE"),
        ("!invite me", "@x:y.z", (), "only the people of HOMEROOM_INVITE"),
        (f"!invite {ME}", "@x:y.z", (), "only the people of HOMEROOM_INVITE"),
    ],
)
def test_only_those_who_are_invited_anyway_may_ask_and_only_for_each_other(
    text: str, sender: str, asks: tuple[str, ...], says: str
) -> None:
    (decision,) = judge(said(text, sender=sender), [guest(0)])
    assert decision.asks == asks
    assert says in decision.items[0].payload["content"]["body"]
