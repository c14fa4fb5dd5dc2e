"""What became of a message, told to whoever asks; and what a person does about a parked one.

Owns the wording of the story, and the rules for replaying what was given up. Invariant: no text of
a message is part of it, only who, when, where, in which state and why.
"""

from __future__ import annotations

import time

from homeroom.errors import Misuse, NotFound
from homeroom.model import (
    Change,
    Delivery,
    HeardEvent,
    Item,
    ItemId,
    ItemKind,
    ItemState,
    Parked,
    Step,
    Story,
    StoryState,
    utc_text,
)
from homeroom.relay import CATCH_UP, replay_notices
from homeroom.store import Store

WHAT_IDS_LOOK_LIKE = (
    "Give the id of a message in a room (it begins with $; clients show it under View source) or a"
    " reply id. What agents themselves said is not kept, nor are messages that are older than"
    " Homeroom's store or HOMEROOM_KEEP_DAYS, or were sent to rooms without an agent of its own."
)
POST_KEY_KEPT_S = 86_400.0
"""How long a homeserver knows a transaction id again; measured on Synapse, which keeps 24 hours."""


class Deliveries:
    """Questions about messages and decisions on parked ones, from the store alone."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def explain(self, name: str) -> Story:
        """The story of the event or item ``name``. Raises NotFound."""
        name = name.strip()
        found = await self._store.find_delivery(name)
        if found is None:
            raise NotFound("message", name[:80], advice=WHAT_IDS_LOOK_LIKE)
        return tell(found)

    async def list_parked(self, limit: int) -> tuple[list[Parked], int]:
        """The newest ``limit`` parked items, oldest first, and how many there are in all."""
        return await self._store.list_parked(limit)

    async def replay(self, item_id: str) -> int:
        """Puts a parked item back at the head of its lane; returns how many come first.

        One that certainly was not delivered is sent with a fresh key. Any other keeps its key and
        is looked for before it is sent, so that nothing is answered twice. The room is told.

        Raises NotFound, and Misuse if it is not parked or a post that could come out double.
        """
        parked = await self._store.get_parked(ItemId(item_id.strip()))
        item = parked.item
        age_s = time.time() - item.created_ms / 1000
        if item.kind is ItemKind.POST and item.begun and age_s > POST_KEY_KEPT_S:
            raise Misuse(
                "This post may have been made more than a day ago, and the homeserver would not"
                " know it again: it could come out twice. Look in the room, then drop it."
            )
        return (await self._store.replay(item.id, replay_notices))[1]

    async def drop(self, item_id: str, reason: str) -> None:
        """Ends a parked item as cancelled. Raises NotFound, or Misuse if it is not parked."""
        await self._store.drop(ItemId(item_id.strip()), reason)


def tell(of: Delivery) -> Story:
    """The story of one message. Pure."""
    steps = _steps_of_event(of.event) if of.event else []
    if of.item:
        steps += _steps_of_item(of.item, of.changes)
        for post, changes in of.posts:
            steps += _steps_of_post(post, changes)
    state, now = _standing(of)
    payload = of.item.payload if of.item else {}
    room = payload.get("room_id") or payload.get("mirror_room_id") or ""
    return Story(
        state=state,
        now=now,
        steps=tuple(sorted(steps, key=lambda step: step.at_ms)),
        item_id=of.item.id if of.item else "",
        event_id=of.event.id if of.event else "",
        room_id=of.event.room_id if of.event else str(room),
        sender=of.event.sender if of.event else str(payload.get("client", "")),
    )


def _steps_of_event(event: HeardEvent) -> list[Step]:
    # The sender's homeserver may have another clock, so its time is told and not sorted by.
    sent = f"sent {utc_text(event.sent_ms)} by the homeserver's clock"
    steps = [Step(event.received_ms, f"Received from {event.sender} in {event.room_id}, {sent}.")]
    if event.outcome and event.outcome != "relayed":
        steps.append(Step(event.received_ms, f"Not relayed, by this rule: {event.outcome}."))
    return steps


def _steps_of_item(item: Item, changes: tuple[Change, ...]) -> list[Step]:
    if item.kind is ItemKind.POST:
        return _steps_of_post(item, changes)
    payload = item.payload
    whom = f"agent {payload['agent_id']}"
    asked_by = "" if payload.get("event_id") else f" from {payload.get('client') or 'a tool'}"
    steps, attempts = [], 0
    for number, change in enumerate(changes):
        match change.state:
            case ItemState.WAITING if number == 0:
                text = f"Accepted{asked_by} for {whom} as item {item.id}."
            case ItemState.WAITING:
                text = _put_off(change)
            case ItemState.CANCELLED:
                text = f"Dropped: {change.reason}"
            case ItemState.CLAIMED:
                attempts += 1
                text = f"Taken to the agent (attempt {attempts})."
            case ItemState.DONE:
                text = "The agent ended its turn with an answer."
                if item.result is not None and not str(item.result.get("text", "")).strip():
                    text = "The agent ended its turn and said nothing."
            case ItemState.PARKED:
                text = f"Given up: {change.reason}"
        steps.append(Step(change.at_ms, text))
    return steps


def _steps_of_post(post: Item, changes: tuple[Change, ...]) -> list[Step]:
    what = {
        "reply": "answer",
        "delay": "notice that it has to wait",
        "parked": "notice why not",
        "replay": "notice that it is taken up again",
    }
    name = f"The {what.get(post.dedupe_key.partition(':')[0], 'message of the agent')}"
    room = post.payload["room_id"]
    steps = []
    for number, change in enumerate(changes):
        match change.state:
            case ItemState.WAITING if number:
                steps.append(Step(change.at_ms, f"{name} was not posted. {_put_off(change)}"))
            case ItemState.DONE:
                event_id = (post.result or {}).get("event_id", "an unknown event")
                steps.append(Step(change.at_ms, f"{name} was posted in {room} as {event_id}."))
            case ItemState.PARKED:
                steps.append(Step(change.at_ms, f"{name} could not be posted: {change.reason}"))
            case _:
                pass
    return steps


def _put_off(change: Change) -> str:
    if not change.next_try_ms:
        return f"Back on its lane: {change.reason}."
    return f"Put off: {change.reason} Next try {utc_text(change.next_try_ms)}."


def _standing(of: Delivery) -> tuple[StoryState, str]:
    """Where it stands now, and what a person can do about it."""
    item = of.item
    if item is None:
        if of.event and not of.event.outcome:
            return "undecided", (
                "It is kept: no agent is known to live in this room. If one should,"
                " run `homeroom sync`."
            )
        if of.event and of.event.held:
            return "held", f"It is kept: {CATCH_UP} in its room has it answered."
        return "ignored", "It was decided not to relay it, and it will not be."
    if item.state is ItemState.WAITING:
        ahead = f"{of.place} earlier ones of its lane come first" if of.place else "it is next"
        return "waiting", f"It waits; {ahead}."
    if item.state is ItemState.CLAIMED:
        return "working", "It is being worked on."
    if item.state is ItemState.PARKED:
        how = "is looked for before it is sent" if item.begun else "is sent as if it were new"
        return "parked", (
            f"It was given up and is kept: `homeroom parked replay {item.id}` (it {how}) or"
            f" `homeroom parked drop {item.id}`."
        )
    if item.state is ItemState.CANCELLED:
        return "cancelled", "It was dropped by a person, and there will be no answer."
    if item.kind is ItemKind.POST:
        return "posted", "What followed from it was posted."
    answers = [post for post, _ in of.posts if post.dedupe_key.startswith("reply:")]
    stuck = [post for post in answers if post.state is ItemState.PARKED]
    on_the_way = [post for post in answers if post.state in (ItemState.WAITING, ItemState.CLAIMED)]
    if stuck:
        return "parked", f"The agent answered; its answer, item {stuck[0].id}, was given up."
    if on_the_way:
        return "working", "The agent answered, and its answer is on the way to the room."
    return "answered", "It was answered."
