"""The records of the mailbox: what waits, what became of it, and how that is told.

Pure, as ``model`` is, on which it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Literal

from homeroom.exchange import Exchange, Home
from homeroom.model import AgentId, EventId, GhostId, ItemId, Json, RoomId


class ItemKind(StrEnum):
    TURN = "turn"
    """Hand a message to an agent and take its answer."""
    POST = "post"
    """Post an event into a room as a ghost."""
    STATUS = "status"
    """Post how a message fares, for clients that show it; never in the way of a post."""


class ItemState(StrEnum):
    WAITING = "waiting"
    CLAIMED = "claimed"
    """A worker has it; nothing of it has reached the outside world yet."""
    DELIVERING = "delivering"
    """It is on its way to the outside world, and may have got there."""
    DONE = "done"
    PARKED = "parked"
    EXPIRED = "expired"
    """Its deadline passed before anybody could work on it; whoever sent it was told."""
    CANCELLED = "cancelled"
    """A person ended it while it waited, or after it was parked."""

    @property
    def has_ended(self) -> bool:
        """Whether nobody works on it any more (a parked item until a person replays it)."""
        return self not in OPEN_STATES


OPEN_STATES = frozenset({ItemState.WAITING, ItemState.CLAIMED, ItemState.DELIVERING})


class Origin(StrEnum):
    """Why an item is there."""

    ROOM_EVENT = "room_event"
    TOOL_CALL = "tool_call"
    SCHEDULE = "schedule"
    FOLLOW_UP = "follow_up"
    """It follows from another item or from a decision of ours: an answer, a notice, a status."""

    @property
    def may_overtake(self) -> bool:
        """Whether its items may have a priority.

        What people write in a room is answered in the order they wrote it, and what follows from
        that is posted in that order: such items count as normal, and on one lane none of them ever
        goes before another.
        """
        return self in (Origin.TOOL_CALL, Origin.SCHEDULE)


class Priority(IntEnum):
    """Which of the waiting items goes first, on its lane and among the lanes. What has begun is
    not disturbed, and what was tried before keeps the head of its lane."""

    LOW = 1
    NORMAL = 2
    HIGH = 3
    URGENT = 4


QUIET_LIMIT = 5
"""So many quiet times after the first of several messages their turn begins, however many more
come."""
JOINED_CHARS = 100_000
"""Messages are not joined to more than a single one may have."""
JOINED = "joined by the same person's next message"


def lane_of_room(room_id: str) -> str:
    """The lane of what is posted in one room."""
    return f"room:{room_id}"


def lane_of_turns(agent_id: AgentId, scope: str) -> str:
    """The lane of what an agent is told in one room, or in private."""
    return f"agent:{agent_id}:{scope}"


@dataclass(frozen=True, slots=True)
class NewItem:
    """What a writer puts on a lane.

    ``dedupe_key`` names the cause (an event id, a caller's key): a second put with the same key
    is the first item, not a new one. Raises ValueError for a priority that its origin forbids.
    """

    lane: str
    kind: ItemKind
    payload: Json
    dedupe_key: str
    origin: Origin = Origin.FOLLOW_UP
    who: str = ""
    """Who sent it: a Matrix id, or a client's name for itself (untrusted)."""
    priority: Priority = Priority.NORMAL
    delay_ms: int = 0
    """It is due so long after it was put, and holds its lane until then for all but more urgent
    items."""
    expires_after_ms: int = 0
    """It is given up, and its sender told, if it still waits so long after it was put and certainly
    was not delivered; 0: never."""
    quiet_ms: int = 0
    """The same person's next message joins it while it waits; it waits at least so long for one."""

    def __post_init__(self) -> None:
        if self.priority is not Priority.NORMAL and not self.origin.may_overtake:
            raise ValueError(f"an item of origin {self.origin} has no priority: its order counts")


def join_turns(earlier: Json, later: Json) -> Json | None:
    """The payload of one turn for two messages; None if they do not belong together.

    What is said of the turn refers to the later message; ``event_ids`` names all of them.
    """
    same = ("agent_id", "ghost", "scope", "room_id", "sender", "thread", "name_sender")
    if any(earlier.get(key) != later.get(key) for key in same) or not later.get("event_id"):
        return None
    text = f"{earlier['text']}\n\n{later['text']}"
    if len(text) > JOINED_CHARS:
        return None
    return {**later, "text": text, "event_ids": [*events_of(earlier), later["event_id"]]}


def events_of(payload: Json) -> list[str]:
    """The events that a turn answers for, oldest first; none for the chat of a tool."""
    last = payload.get("event_id")
    return list(payload.get("event_ids") or ([last] if last else []))


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of the mailbox as the store holds it."""

    id: ItemId
    lane: str
    kind: ItemKind
    payload: Json
    dedupe_key: str
    state: ItemState
    attempts: int
    created_ms: int
    begun: bool = False
    """An earlier delivery ended without a verdict: its effect may already have happened."""
    generation: int = 0
    """How often its effect is known to have failed cleanly; part of the key it is sent with."""
    not_before_ms: int = 0
    failing_since_ms: int = 0
    """When the first of its attempts failed; 0 as long as none has."""
    uncertain_count: int = 0
    """How many attempts ended with their answer lost."""
    result: Json | None = None
    reason: str = ""
    replay_count: int = 0
    """How often a person has put it back after it was parked."""
    origin: Origin = Origin.FOLLOW_UP
    who: str = ""
    priority: Priority = Priority.NORMAL
    expires_ms: int = 0
    """Its deadline; 0 if it has none."""
    crash_count: int = 0
    """How many processes have died in a turn that had begun since it last came to a verdict."""
    claim_crash_count: int = 0
    """How many have died with it merely in hand: claimed, or a post on its way. That they did says
    little about it, for whatever kills a process catches what it has in hand."""
    begun_ms: int = 0
    """When a delivery with its present key began, a turn's last and a post's first; 0 if none has.
    An agent's server may still be busy with the last; a homeserver knows a key since the first."""

    @property
    def cause(self) -> str:
        """What names it as the cause of a notice: a replay is told of like a new message."""
        return f"{self.id}.{self.replay_count}" if self.replay_count else self.id

    @property
    def key(self) -> str:
        """The idempotency key of the effect: the same until a clean failure, then a fresh one."""
        return f"{self.id}.{self.generation}" if self.generation else self.id


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of an item's history. ``next_try_ms`` is 0 where it was not put off."""

    at_ms: int
    state: ItemState
    reason: str = ""
    next_try_ms: int = 0


@dataclass(frozen=True, slots=True)
class Moved:
    """One change as ``homeroom tail`` shows it. ``seq`` grows with every change."""

    seq: int
    item: Item
    change: Change


@dataclass(frozen=True, slots=True)
class LeaseState:
    """Who runs the bridge. ``fence`` is 0 when it is not us."""

    owner: str
    until_ms: int
    fence: int
    taken_ms: int = 0
    """Since when; 0 if an older release took it."""
    problem: str = ""
    """Why its holder can read no room now, in its own words; empty if it can."""


@dataclass(frozen=True, slots=True)
class HeardEvent:
    """What is kept of a room event: who, when, where and the rule that decided it. No text."""

    id: EventId
    room_id: RoomId
    sender: str
    sent_ms: int
    """By the clock of the sender's homeserver."""
    received_ms: int
    outcome: str
    """Empty while it has not been decided: no agent is known to live in the room."""
    held: bool = False


@dataclass(frozen=True, slots=True)
class Delivery:
    """All that the store knows of one message: its event, its item and what followed from it.

    ``event`` is None for a message of a tool, ``item`` for one that was not relayed.
    """

    event: HeardEvent | None
    item: Item | None
    changes: tuple[Change, ...] = ()
    place: int = 0
    """How many open items of its lane come first."""
    posts: tuple[tuple[Item, tuple[Change, ...]], ...] = ()
    """The answer's posts and the notices about it, each with its history."""
    also: tuple[Item, ...] = ()
    """The turns of other agents that the message was for, too."""
    own: Item | None = None
    """The post of ours that was asked for; the rest is what it followed from, if that is known."""


@dataclass(frozen=True, slots=True)
class Parked:
    """An item that was given up and waits for a person."""

    item: Item
    parked_ms: int


@dataclass(frozen=True, slots=True)
class ParkedPage:
    """Some of what was given up, newest first."""

    items: tuple[Parked, ...]
    total: int
    next_cursor: str = ""


Tell = Callable[[Item], Sequence[NewItem]]
"""What to tell whom about an item. Pure: stores call it inside of a transaction."""
TellPair = Callable[[Exchange, Sequence[Home]], Sequence[NewItem]]
"""What the homes of two agents are told of their exchange. Pure: called inside a transaction."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a room event: items for the mailbox, and the rule that decided it."""

    outcome: str
    items: tuple[NewItem, ...] = ()
    held: bool = False
    """It came too late to be answered by itself: it is kept until somebody asks for it."""
    releases_held: bool = False
    """What is held of the room is decided anew, as if it were not late; ``items`` are for the
    case that nothing is."""
    resumes: TellPair | None = None
    """The paused exchanges of the agent go on, which is told so; ``items`` are for the case that
    there are none."""
    asks: tuple[str, ...] = ()
    """People who ask to be invited again wherever they are not."""
    if_full: tuple[NewItem, ...] = ()
    """Instead of ``items``, where too many turns wait on their lane already."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The newest message of a room that a commit accepted for its agent."""

    ghost: GhostId
    room_id: RoomId
    event_id: EventId


@dataclass(frozen=True, slots=True)
class ReplyView:
    """Where a chat stands. ``status`` ``failed`` carries the reason; the others a reply or none."""

    reply_id: str
    status: Literal["complete", "pending", "failed"]
    agent_id: AgentId
    reply: str = ""
    reason: str = ""
    place_in_lane: int = 0
    """How many items of the same lane come first; 0 means it is being worked on or done."""


StoryState = Literal[
    "undecided",
    "ignored",
    "held",
    "waiting",
    "working",
    "answered",
    "posted",
    "parked",
    "expired",
    "cancelled",
]


@dataclass(frozen=True, slots=True)
class Step:
    at_ms: int
    text: str


@dataclass(frozen=True, slots=True)
class Story:
    """What happened to one message, in sentences and without its text."""

    state: StoryState
    now: str
    """Where it stands and what can be done."""
    steps: tuple[Step, ...]
    """In the order of time."""
    item_id: str = ""
    event_id: str = ""
    room_id: str = ""
    sender: str = ""


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """How many messages that came too late are answered now, and how many are still held because
    too many wait already, or their agent is retired."""

    answered: int
    left: int
