"""Asking in a room and waiting for the answer to exactly that."""

from __future__ import annotations

from collections.abc import Callable

from support.person import Event, Person

REPLY_S = 30.0


def answers(event_id: str) -> Callable[[Event], bool]:
    """Whether an event is a reply to ``event_id``."""

    def is_answer(event: Event) -> bool:
        relation = event["content"].get("m.relates_to") or {}
        return bool((relation.get("m.in_reply_to") or {}).get("event_id") == event_id)

    return is_answer


async def ask(person: Person, room: str, text: str) -> Event:
    """Says it and waits for the answer to it."""
    event_id = await person.say(room, text)
    return await person.wait_event(answers(event_id), REPLY_S)


def answers_in(messages: list[Event]) -> dict[str, list[str]]:
    """Event id of a question -> the texts of all answers to it."""
    found: dict[str, list[str]] = {}
    for event in messages:
        relation = event["content"].get("m.relates_to") or {}
        if asked := (relation.get("m.in_reply_to") or {}).get("event_id"):
            found.setdefault(asked, []).append(event["content"]["body"])
    return found
