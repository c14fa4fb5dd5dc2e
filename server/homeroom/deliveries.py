"""What became of a message, told to whoever asks; and what a person does about a parked one.

Owns the wording of the story, and the rules for replaying what was given up. Invariant: no text of
a message is part of it, only who, when, where, in which state and why.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from homeroom.cursors import read_cursor, write_cursor
from homeroom.decide import CATCH_UP, cancel_notices, drop_notices, replay_notices
from homeroom.errors import Misuse, NotFound
from homeroom.items import (
    JOINED,
    STOP_ASKED,
    CaughtUp,
    Change,
    Delivery,
    HeardEvent,
    Item,
    ItemKind,
    ItemState,
    Moved,
    NewItem,
    Parked,
    ParkedPage,
    Step,
    Story,
    StoryState,
    events_of,
)
from homeroom.mailbox import POST_KEY_KEPT_S, Mailbox
from homeroom.model import ItemId, Json, RoomId
from homeroom.statuses import drop_statuses, telling_statuses
from homeroom.store import Store
from homeroom.times import utc_text

WHAT_IDS_LOOK_LIKE = (
    "Give the id of a message in a room (it begins with $; clients show it under View source) or a"
    " reply id. Not kept are messages that are older than Homeroom's store or HOMEROOM_KEEP_DAYS,"
    " or were sent to rooms without an agent of its own."
)
CATCH_UP_WAIT_S = 10.0
"""How long whoever asks for old messages waits to hear how many are answered now."""
STOP_WAIT_S = 10.0
"""How long whoever has a turn stopped waits to hear that it is; it mostly takes less than one."""
_FOLLOWED_AT_ONCE = 200
_PARKED_AT_ONCE = 100
_ANSWER = "answer"


class Deliveries:
    """Questions about messages and decisions on parked ones, from the store alone."""

    def __init__(self, store: Store, *, status_events: bool = False) -> None:
        self._store, self._status_events = store, status_events

    async def explain(self, name: str) -> Story:
        """The story of the event or item ``name``. Raises NotFound."""
        name = name.strip()
        found = await self._store.find_delivery(name)
        if found is None:
            raise NotFound("message", name[:80], advice=WHAT_IDS_LOOK_LIKE)
        return tell(found)

    async def list_parked(self) -> list[Parked]:
        """All items that were given up, oldest first, read page by page."""
        found, cursor = list[Parked](), ""
        while True:
            page = await self.page_parked("", _PARKED_AT_ONCE, cursor)
            found += page.items
            if not (cursor := page.next_cursor):
                return found[::-1]

    async def page_parked(self, agent_id: str, limit: int, cursor: str) -> ParkedPage:
        """Items that were given up, newest first, and rooms with late messages, ``limit`` of each;
        if ``agent_id`` is given, those of that agent.

        The cursor names the last item and the last room before: it survives a restart.
        """
        before, after = read_cursor(cursor, str, str, tool="list_parked") if cursor else ("", "")
        found, total = await self._store.page_parked(agent_id, limit + 1, before)
        held = await self._store.count_held(agent_id=agent_id)
        return parked_page(found, total, held, limit=limit, before=before, after=after)

    async def replay(self, item_id: str) -> int:
        """Puts a parked item back at the head of its lane; returns how many come first.

        One that certainly was not delivered is sent with a fresh key. Any other keeps its key and
        is looked for before it is sent, so that nothing is answered twice. The room is told.

        Raises NotFound, and Misuse if it is not parked or a post that could come out double.
        """
        parked = await self._store.get_parked(ItemId(item_id.strip()))
        item = parked.item
        age_s = time.time() - (item.begun_ms or item.created_ms) / 1000
        if item.kind is ItemKind.POST and item.begun and age_s > POST_KEY_KEPT_S:
            raise Misuse(
                "This post may have been made more than a day ago, and the homeserver would not"
                " know it again: it could come out twice. Look in the room, then drop it."
            )
        return (await self._store.replay(item.id, replay_notices))[1]

    async def catch_up(self, room_id: str, wait_s: float = CATCH_UP_WAIT_S) -> CaughtUp | None:
        """Has them answered, in that room or ("") in all: by whichever process runs the bridge.

        Returns None if none does within ``wait_s``; it is done as soon as one does.

        Raises:
            Misuse: nothing is held there.
        """
        room_id = room_id.strip()
        if room_id and not room_id.startswith("!"):
            raise Misuse(f"{room_id[:80]!r} is no id of a room: such an id begins with !.")
        if not await self._store.count_held(room_id):
            where = f"in {room_id[:80]}" if room_id else "anywhere"
            raise Misuse(f"Nothing is left to catch up on {where}.")
        errand = await self._store.request_errand("catch_up", room_id)
        answer = await self._store.wait_for(partial(self._store.find_errand_answer, errand), wait_s)
        return CaughtUp(**json.loads(answer)) if answer is not None else None

    async def cancel(self, name: str, reason: str, wait_s: float = STOP_WAIT_S) -> Item:
        """Ends the item, or the item of the event, ``name``: at once if it has not begun, else by
        whichever process runs the bridge, which stops the agent. Its room is told.

        Returns it as it then is: still open if that took longer than ``wait_s``; it ends all the
        same, when a process runs the bridge. Raises NotFound, and Misuse if it has ended.
        """
        name = name.strip()
        found = await self._store.find_delivery(name)
        if found is None or found.item is None:
            raise NotFound("item", name[:80], advice="`homeroom tail` shows ids.")
        tell = telling_statuses(cancel_notices) if self._status_events else cancel_notices
        item = await self._store.cancel(found.item.id, reason, tell)
        return await Mailbox(self._store).wait_ended(item.id, wait_s)

    async def follow(self, last: int) -> AsyncIterator[Moved]:
        """The newest ``last`` changes of items and then each further one, for ever, in order."""
        seq = await self._store.last_change(last)
        while True:
            changed = self._store.changed
            moved = await self._store.list_changes(seq, _FOLLOWED_AT_ONCE)
            for one in moved:
                seq = one.seq
                yield one
            if not moved:
                await changed.wait()

    async def drop(self, item_id: str, reason: str) -> None:
        """Ends a parked item as cancelled. Its room is told.

        Raises NotFound, or Misuse if it is not parked.
        """
        await self._store.drop(ItemId(item_id.strip()), reason, self._dropped)

    def _dropped(self, item: Item) -> list[NewItem]:
        said = drop_statuses(item) if self._status_events else []
        return [*drop_notices(item), *said]


def parked_page(
    found: Sequence[Parked], total: int, held: Mapping[RoomId, int], *,
    limit: int, before: str = "", after: str = "",
) -> ParkedPage:  # fmt: skip
    """The page of ``limit`` items and as many rooms that follows the item ``before`` and the room
    ``after``. Pure. ``found`` are items after that one, one more than the page if there are."""
    rooms = sorted(room for room in held if room > after)
    late = {room: held[room] for room in rooms[:limit]}
    last = max(late, default=after)
    items = tuple(
        replace(parked, cursor=write_cursor(parked.item.id, last)) for parked in found[:limit]
    )
    has_more = len(found) > limit or len(rooms) > limit
    more = write_cursor(items[-1].item.id if items else before, last) if has_more else ""
    return ParkedPage(items, total, late, len(held), more)


def tell(of: Delivery) -> Story:
    """The story of one message. Pure."""
    steps = _steps_of_event(of.event) if of.event else []
    if of.item:
        steps += _steps_of_item(of.item, of.changes)
        for post, changes in of.posts:
            steps += _steps_of_post(post, changes)
        for other in of.also:
            text = f"It was for {other.payload['ghost']}, too: explain {other.id} tells of that."
            steps.append(Step(other.created_ms, text))
    state, now = _standing(of)
    payload = of.item.payload if of.item else {}
    if of.event and of.item and len(events_of(payload)) > 1:
        now += f" It is one turn with others of the same person; see item {of.item.id}."
    room = payload.get("room_id") or payload.get("mirror_room_id") or ""
    if of.own:
        what = _what_post(of.own)
        if of.item and of.item.id != of.own.id:
            what += f" to item {of.item.id}" if what == _ANSWER else f", of item {of.item.id}"
        now = f"It is one of our own: the {what}. {now}"
    return Story(
        state=state,
        now=now,
        steps=tuple(sorted(steps, key=lambda step: step.at_ms)),
        item_id=of.item.id if of.item else "",
        event_id=of.event.id if of.event else "",
        room_id=of.event.room_id if of.event else str(room),
        sender=of.event.sender if of.event else _sender_of(payload),
    )


def _sender_of(payload: Json) -> str:
    return str(payload.get("from_agent") or payload.get("client") or "")


def _steps_of_event(event: HeardEvent) -> list[Step]:
    # The sender's homeserver may have another clock, so its time is told and not sorted by.
    sent = f"sent {utc_text(event.sent_ms)} by the homeserver's clock"
    steps = [Step(event.received_ms, f"Received from {event.sender} in {event.room_id}, {sent}.")]
    if event.outcome and event.outcome != "relayed":
        steps.append(Step(event.received_ms, f"Not relayed, by this rule: {event.outcome}."))
    return steps


def _steps_of_item(item: Item, changes: tuple[Change, ...]) -> list[Step]:
    if item.kind is not ItemKind.TURN:
        return _steps_of_post(item, changes)
    payload = item.payload
    whom = f"agent {payload['agent_id']}"
    asked_by = "" if payload.get("event_id") else f" from {payload.get('client') or 'a tool'}"
    if sender := payload.get("from_agent"):
        asked_by = f" from agent {sender} (hop {payload['hop']} between agents)"
    steps, attempts = [], 0
    for number, change in enumerate(changes):
        if change.reason.startswith(STOP_ASKED):
            why = change.reason.removeprefix(STOP_ASKED)
            steps.append(Step(change.at_ms, f"It was to be stopped from here on: {why}."))
            continue
        match change.state:
            case ItemState.WAITING if number == 0:
                text = f"Accepted{asked_by} for {whom} as item {item.id}."
            case ItemState.WAITING if change.reason.startswith(JOINED):
                text = f"Still waiting, {change.reason}: one turn is to answer all of them."
            case ItemState.WAITING:
                text = _put_off(change)
            case ItemState.CANCELLED:
                text = f"{'Stopped' if _was_stopped(item) else 'Dropped'}: {change.reason}"
            case ItemState.EXPIRED:
                text = f"Expired: {change.reason}."
            case ItemState.CLAIMED:
                attempts += 1
                text = f"Taken up (attempt {attempts})."
            case ItemState.DELIVERING:
                text = "Handed to the agent."
            case ItemState.DONE:
                text = "The agent ended its turn with an answer."
                if item.result is not None and not str(item.result.get("text", "")).strip():
                    text = "The agent ended its turn and said nothing."
            case ItemState.PARKED:
                text = f"Given up: {change.reason}"
        steps.append(Step(change.at_ms, text))
    return steps


def _was_stopped(item: Item) -> bool:
    """Whether a person has ended, or wants to end, a turn that had begun."""
    return item.stop is not None and (item.begun or not item.state.has_ended)


def _steps_of_post(post: Item, changes: tuple[Change, ...]) -> list[Step]:
    name = f"The {_what_post(post)}"
    room = post.payload["room_id"]
    steps = []
    for number, change in enumerate(changes):
        match change.state:
            case ItemState.WAITING if number:
                steps.append(Step(change.at_ms, f"{name} was not posted. {_put_off(change)}"))
            case ItemState.DONE if left_out := (post.result or {}).get("left_out"):
                steps.append(Step(change.at_ms, f"{name} was left out: {left_out}."))
            case ItemState.DONE:
                event_id = (post.result or {}).get("event_id", "an unknown event")
                steps.append(Step(change.at_ms, f"{name} was posted in {room} as {event_id}."))
            case ItemState.PARKED:
                steps.append(Step(change.at_ms, f"{name} could not be posted: {change.reason}"))
            case ItemState.CANCELLED:
                steps.append(Step(change.at_ms, f"{name} was dropped: {change.reason}"))
            case _:
                pass
    return steps


def _what_post(post: Item) -> str:
    what = {
        "reply": _ANSWER,
        "mirror": "message, shown in the room of the agent",
        "delay": "notice that it has to wait",
        "parked": "notice why not",
        "replay": "notice that it is taken up again",
        "expired": "notice that its time was up",
        "cancelled": "notice that it was cancelled",
        "stopped": "notice that it was stopped",
        "dropped": "notice that it was dropped",
        "status": "status",
    }
    return what.get(post.dedupe_key.partition(":")[0], "message of the agent")


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
            return (
                "held",
                f"It is kept: {CATCH_UP} in its room, or `homeroom catchup`, has it answered.",
            )
        return "ignored", "It was decided not to relay it, and it will not be."
    if item.state is ItemState.EXPIRED:
        return "expired", "Its time was up before it could be delivered; there will be no answer."
    if item.stop and not item.state.has_ended:
        return "working", "It is being stopped, as a person wants; there will be no answer."
    if item.state is ItemState.WAITING:
        ahead = f"{of.place} earlier ones of its lane come first" if of.place else "it is next"
        return "waiting", f"It waits; {ahead}."
    if item.state is ItemState.CLAIMED:
        return "working", "It is being worked on; nothing of it was sent yet."
    if item.state is ItemState.DELIVERING:
        return "working", "It is being delivered."
    if item.state is ItemState.PARKED:
        how = "is looked for before it is sent" if item.begun else "is sent as if it were new"
        return "parked", (
            f"It was given up and is kept: `homeroom parked replay {item.id}` (it {how}) or"
            f" `homeroom parked drop {item.id}`."
        )
    if item.state is ItemState.CANCELLED:
        if _was_stopped(item):
            return "cancelled", (
                "It was stopped by a person, and there will be no answer. What the agent had"
                " already done for it may have happened."
            )
        return "cancelled", "It was dropped by a person, and there will be no answer."
    if item.kind is not ItemKind.TURN:
        return "posted", "What followed from it was posted."
    answers = [post for post, _ in of.posts if post.dedupe_key.startswith("reply:")]
    stuck = [post for post in answers if post.state is ItemState.PARKED]
    on_the_way = [post for post in answers if not post.state.has_ended]
    if stuck:
        return "parked", f"The agent answered; its answer, item {stuck[0].id}, was given up."
    if any(post.state is ItemState.CANCELLED for post in answers):
        return "cancelled", "The agent answered; its answer was dropped by a person."
    if on_the_way:
        return "working", "The agent answered, and its answer is on the way to the room."
    return "answered", "It was answered."
