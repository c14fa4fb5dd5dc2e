"""How each message fares, as events that bridges post and some clients show. Off by default.

Owns the vocabulary of ``com.beeper.message_send_status`` and when which word is said. It adds to
what ``decide`` and the relay say and changes nothing of it. Invariant: a status has a lane and a
slot of its own, so that no answer ever waits for one.

Source: https://github.com/mautrix/go/blob/main/event/beeper.go (BeeperMessageStatusEventContent).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from homeroom.errors import Unavailable, Uncertain
from homeroom.items import Decision, Item, ItemKind, NewItem, Tell, events_of
from homeroom.mailbox import Begin, Courier, Outcome
from homeroom.model import Mapping, RoomEvent
from homeroom.store import Decide

STATUS_TYPE = "com.beeper.message_send_status"
NETWORK = "letta"
"""What the events call the far side of the bridge."""
USEFUL_MS = 600_000
"""A status that could not be posted for so long tells nobody anything any more."""

Word = Literal["PENDING", "SUCCESS", "FAIL_RETRIABLE", "FAIL_PERMANENT"]
"""``FAIL_RETRIABLE``: certainly not delivered, so it may be sent again. ``FAIL_PERMANENT``: it
would fail again, or may have been delivered already."""
Reason = Literal[
    "",
    "m.event_not_handled",
    "m.event_too_old",
    "m.bridge_unavailable",
    "m.foreign_network_error",
    "com.beeper.unsupported_event",
    "com.beeper.undecryptable_event",
]

_HELD = "Too many came while nobody listened; !catchup helps."
_REFUSED: dict[str, tuple[Word, Reason, str]] = {
    "not text": (
        "FAIL_PERMANENT",
        "com.beeper.unsupported_event",
        "The agent can only read text so far.",
    ),
    "encrypted": (
        "FAIL_PERMANENT",
        "com.beeper.undecryptable_event",
        "Agents cannot read encrypted messages.",
    ),
    "retired": ("FAIL_PERMANENT", "m.bridge_unavailable", "The agent is gone from Letta."),
    "too late": ("PENDING", "m.event_too_old", "It came while nobody listened; !catchup helps."),
}
"""By the first words of the rule that decided an event."""


def status_item(
    ghost: str, room_id: str, event_id: str, word: Word, why: str, reason: Reason = "",
    message: str = "",
) -> NewItem:  # fmt: skip
    """The item that posts one status of one event; ``why`` tells it from the event's others."""
    content: dict[str, object] = {
        "network": NETWORK,
        "m.relates_to": {"rel_type": "m.reference", "event_id": event_id},
        "status": word,
    }
    if reason:
        content["reason"] = reason
    if message:
        content["message"] = message
    payload = {"ghost": ghost, "room_id": room_id, "type": STATUS_TYPE, "content": content}
    return NewItem(
        f"status:{room_id}", ItemKind.STATUS, payload, f"status:{event_id}:{why}",
        expires_after_ms=USEFUL_MS,
    )  # fmt: skip


def statuses_of(
    item: Item, word: Word, why: str, reason: Reason = "", message: str = ""
) -> list[NewItem]:
    """A status for every event that a turn answers for; none for the chat of a tool. Pure."""
    if item.kind is not ItemKind.TURN:
        return []
    payload, why = item.payload, f"{why}:{item.replay_count}"
    return [
        status_item(payload["ghost"], payload["room_id"], event_id, word, why, reason, message)
        for event_id in events_of(payload)
    ]


def cancel_statuses(item: Item) -> list[NewItem]:
    """What follows from a person's ending a message that waited. Pure."""
    word: Word = "FAIL_PERMANENT" if item.begun else "FAIL_RETRIABLE"
    return statuses_of(item, word, "cancelled", "m.event_not_handled", "It was cancelled.")


def telling_statuses(tell: Tell) -> Tell:
    """``tell`` of what a person ended, which also says so in status events."""
    return lambda item: [*tell(item), *cancel_statuses(item)]


def drop_statuses(item: Item) -> list[NewItem]:
    """What follows from a person's ending a message that was given up. Pure."""
    word: Word = "FAIL_PERMANENT" if item.begun else "FAIL_RETRIABLE"
    return statuses_of(item, word, "dropped", "m.event_not_handled", "It was dropped.")


def with_statuses(decide: Decide) -> Decide:
    """``decide``, which also says how the event fares."""

    def decide_and_say(event: RoomEvent, mapping: Mapping, people_count: int) -> Decision:
        decision = decide(event, mapping, people_count)
        if wish := decision.stops:
            told = telling_statuses(wish.tell)
            return replace(decision, stops=replace(wish, tell=told))

        def say(word: Word, reason: Reason, message: str = "") -> tuple[NewItem, ...]:
            args = (mapping.ghost, event.room_id, event.id, word, "decided", reason, message)
            return (status_item(*args),)

        if any(item.kind is ItemKind.TURN for item in decision.items):
            return replace(
                decision,
                items=(*decision.items, *say("PENDING", "")),
                if_full=(
                    *decision.if_full,
                    *say("FAIL_RETRIABLE", "m.event_not_handled", "Too many messages wait."),
                ),
                if_held=(*decision.if_held, *say("PENDING", "m.event_too_old", _HELD)),
            )
        refusal = _REFUSED.get(decision.outcome.partition(":")[0])
        if refusal and (decision.items or decision.held):
            return replace(decision, items=(*decision.items, *say(*refusal)))
        return decision

    return decide_and_say


class StatusCourier:
    """A courier, and what its turns come to told as status events."""

    def __init__(self, courier: Courier) -> None:
        self._courier = courier

    async def stop(self, item: Item) -> bool:
        return await self._courier.stop(item)

    async def deliver(self, item: Item, begin: Begin) -> Outcome:
        outcome = await self._courier.deliver(item, begin)
        return replace(outcome, then=[*outcome.then, *statuses_of(item, "SUCCESS", "answered")])

    def on_delay(self, item: Item, error: Unavailable | Uncertain) -> Sequence[NewItem]:
        said = statuses_of(item, "PENDING", "delay", "m.foreign_network_error", error.what)
        return [*self._courier.on_delay(item, error), *said]

    def on_parked(self, item: Item, reason: str, *, delivered: bool) -> Sequence[NewItem]:
        word: Word = "FAIL_PERMANENT" if delivered else "FAIL_RETRIABLE"
        said = statuses_of(item, word, "parked", "m.foreign_network_error", reason)
        return [*self._courier.on_parked(item, reason, delivered=delivered), *said]

    def on_expired(self, item: Item) -> Sequence[NewItem]:
        said = statuses_of(item, "FAIL_RETRIABLE", "expired", "m.event_too_old", "Too late.")
        return [*self._courier.on_expired(item), *said]

    def on_stopped(self, item: Item, *, delivered: bool, goes_on: bool) -> Sequence[NewItem]:
        word: Word = "FAIL_PERMANENT" if delivered else "FAIL_RETRIABLE"
        said = statuses_of(item, word, "stopped", "m.event_not_handled", "It was stopped.")
        return [*self._courier.on_stopped(item, delivered=delivered, goes_on=goes_on), *said]
