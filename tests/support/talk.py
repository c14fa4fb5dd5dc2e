"""Asking in a room and waiting for the answer to exactly that."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from support.person import Event, Person

REPLY_S = 60.0
"""Far more than it takes: the machine may be busy with other tests."""
ANSWER_S = 90.0
"""For one answer of many, after something broke."""


def answers(event_id: str) -> Callable[[Event], bool]:
    """Whether an event is a reply to ``event_id``."""

    return lambda event: asked_in(event) == event_id


def asked_in(event: Event) -> str:
    """What an event replies to; empty if to nothing. People may write anything there."""
    relation = event["content"].get("m.relates_to")
    replied = relation.get("m.in_reply_to") if isinstance(relation, dict) else None
    return str(replied.get("event_id") or "") if isinstance(replied, dict) else ""


def is_typing(event: Event) -> bool:
    """Whether somebody types in the event's room."""
    return event["type"] == "m.typing" and bool(event["content"]["user_ids"])


def after(seen: int, wanted: Callable[[Event], bool]) -> Callable[[Event], bool]:
    """The same for ``wait_event``, but not of the first ``seen`` events. For one use."""
    count = itertools.count()
    return lambda event: next(count) >= seen and wanted(event)


async def ask(person: Person, room: str, text: str) -> Event:
    """Says it and waits for the answer to it."""
    event_id = await person.say(room, text)
    return await person.wait_event(answers(event_id), REPLY_S)


async def assert_answered(person: Person, room: str, asked: list[str]) -> None:
    """Each question is answered once, with its number (from 0), in the order of the questions."""
    for event_id in asked:
        await person.wait_event(answers(event_id), ANSWER_S)
    found = answers_in(await person.messages(room))
    assert [found[event_id] for event_id in asked] == [[str(n)] for n in range(len(asked))]
    assert [event_id for event_id in found if event_id in asked] == asked


def answers_in(messages: list[Event]) -> dict[str, list[str]]:
    """Event id of a question -> the texts of all answers to it."""
    found: dict[str, list[str]] = {}
    for event in messages:
        if asked := asked_in(event):
            found.setdefault(asked, []).append(event["content"]["body"])
    return found
