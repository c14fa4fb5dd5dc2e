"""The glossary as types: ids and frozen records that every module shares.

Pure: no I/O, no clock, no logging. Ids are opaque: nobody but the function that makes one may
parse it. Times are milliseconds since the epoch (``_ms``) where they come from a protocol or the
store, and seconds (``_s``) for durations.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping as Dict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal, NewType

AgentId = NewType("AgentId", str)
"""Letta's id of an agent; it survives renames."""
ConversationId = NewType("ConversationId", str)
"""Letta's id of an isolated context of one agent."""
PersonId = NewType("PersonId", str)
"""Matrix user id of a human."""
GhostId = NewType("GhostId", str)
"""Matrix user id that we drive for one agent (or the hub)."""
RoomId = NewType("RoomId", str)
EventId = NewType("EventId", str)
ItemId = NewType("ItemId", str)
"""Id of a mailbox item. Sorts by time of creation; follows a message from end to end."""

Json = Dict[str, Any]


def utc_text(ms: int) -> str:
    """A point in time for people to read: UTC, to the second."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


# --- Letta ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Agent:
    """A Letta agent as Letta last described it."""

    id: AgentId
    name: str
    description: str = ""
    tags: tuple[str, ...] = ()


def encodable(text: object) -> str:
    """``text`` without what no database and no other service takes: lone surrogates. A missing
    text is empty."""
    return str(text or "").encode("utf-8", "replace").decode()


@dataclass(frozen=True, slots=True)
class Block:
    """One memory block (on the App Server: one memory file) of one agent.

    ``limit`` is in characters, 0 where the back end has none. ``revision`` changes whenever
    ``value`` does and is what a writer hands back to prove it read the newest one.
    """

    label: str
    value: str
    limit: int = 0
    read_only: bool = False
    description: str = ""

    @property
    def revision(self) -> str:
        """The first 12 hex digits of the value's SHA-256: equal text, equal revision."""
        return hashlib.sha256(self.value.encode(errors="surrogatepass")).hexdigest()[:12]


BackendName = Literal["rest", "app-server", "openai"]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the Letta back end in use can do; asked once when it is opened."""

    backend: BackendName
    version: str = ""
    conversations: bool = False
    """Isolated contexts per agent. Without them an agent has a single lane."""
    memory: bool = False
    cancel: bool = False
    finds_turns: bool = False
    """``find_turn`` can tell whether a turn was taken."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One finished run of an agent: its final text (may be empty) and why it stopped."""

    text: str
    stop_reason: str = "end_turn"
    run_id: str = ""


# --- Matrix --------------------------------------------------------------------------------------

GHOST_PREFIX = "agent_"
HUB_LOCALPART = "agent_hub"


def ghost_localpart(agent_id: AgentId) -> str:
    """The localpart of an agent's ghost and of its room alias: ``agent_<id with underscores>``.

    Letta's own ``agent-`` prefix is not repeated. The map is injective: an id that does not
    survive it (upper case, characters Matrix forbids, an underscore that a dash could also have
    become, the hub's own name) keeps a readable part and gets a digest.

    Source: https://spec.matrix.org/v1.16/appendices/#user-identifiers (grammar of localparts).
    """
    bare = agent_id.removeprefix("agent-")
    if re.fullmatch(r"[a-z0-9-]{1,200}", bare) and bare not in ("hub", ""):
        return GHOST_PREFIX + bare.replace("-", "_")
    readable = re.sub(r"[^a-z0-9]+", "_", bare.lower()).strip("_")[:60]
    digest = hashlib.sha256(agent_id.encode()).hexdigest()[:12]
    return f"{GHOST_PREFIX}{readable or 'x'}_{digest}"


@dataclass(frozen=True, slots=True)
class RoomEvent:
    """One timeline event as the homeserver sent it. ``content`` is untrusted."""

    id: EventId
    room_id: RoomId
    sender: str
    type: str
    content: Json
    origin_server_ts_ms: int
    state_key: str | None = None
    late_ms: int = 0
    """How long it had been there when Homeroom first saw it; 0 for one that was seen live."""


@dataclass(frozen=True, slots=True)
class Member:
    """Somebody's membership in a room, as the hub's sync told it."""

    room_id: RoomId
    user_id: str
    membership: str
    display_name: str = ""
    at_ms: int = field(default=0, compare=False)
    """When it became so, by the homeserver's clock."""


@dataclass(frozen=True, slots=True)
class SyncBatch:
    """What one /sync of the hub brought, gaps already filled.

    ``events`` are in the homeserver's order within a room. ``cursor`` goes into the store in the
    same commit as the rest, never before.
    """

    cursor: str
    events: tuple[RoomEvent, ...] = ()
    members: tuple[Member, ...] = ()
    left_rooms: tuple[RoomId, ...] = ()
    has_more: bool = False
    """There is more of the backlog, which the next step brings."""


@dataclass(frozen=True, slots=True)
class RoomSpec:
    """An agent's room as it shall be created."""

    alias_localpart: str
    name: str
    topic: str
    invite: tuple[str, ...]
    admins: tuple[str, ...]
    """Who gets power level 100 besides the creator."""
    version: str
    marker: Json = field(default_factory=dict)
    """Content of the ``org.homeroom.room`` state event by which we know our own room again."""


# --- The durable record of one agent's home ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mapping:
    """The durable row agent - ghost - room, with what was *applied*, field by field.

    An empty field means "not applied yet", so a crash between two calls heals by itself.
    """

    agent_id: AgentId
    ghost: GhostId
    room_id: RoomId | None = None
    ghost_ready: bool = False
    display_name: str = ""
    room_name: str = ""
    topic: str = ""
    hub_joined: bool = False
    invited: frozenset[str] = frozenset()
    refused: tuple[tuple[str, str], ...] = ()
    """(Matrix id, reason) of invitations the homeserver refused for good: asked once, not again."""
    heard_from_ms: int = 0
    """Events older than this are not relayed (0: all). Set when a room with a past is adopted."""
    agent_name: str = ""
    problem: str = ""
    """Why the last action on it failed; empty after a success."""
    missing_since_ms: int = 0
    """When a complete list of Letta's first lacked the agent; 0 while it is there."""
    missing_seen: int = 0
    """How many complete lists lacked it; not counted beyond what a plan asks for."""
    retired: bool = False
    """Its room says that the agent is gone from Letta."""


# --- The mailbox ---------------------------------------------------------------------------------


class ItemKind(StrEnum):
    TURN = "turn"
    """Hand a message to an agent and take its answer."""
    POST = "post"
    """Post an event into a room as a ghost."""


class ItemState(StrEnum):
    WAITING = "waiting"
    CLAIMED = "claimed"
    """A worker has it and may have touched the outside world."""
    DONE = "done"
    PARKED = "parked"
    CANCELLED = "cancelled"
    """A person dropped it after it was parked."""

    @property
    def has_ended(self) -> bool:
        """Whether nobody works on it any more (a parked item until a person replays it)."""
        return self not in (ItemState.WAITING, ItemState.CLAIMED)


@dataclass(frozen=True, slots=True)
class NewItem:
    """What a writer puts on a lane.

    ``dedupe_key`` names the cause (an event id, a caller's key): a second put with the same key
    is the first item, not a new one.
    """

    lane: str
    kind: ItemKind
    payload: Json
    dedupe_key: str


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
    """An earlier claim ended without a verdict: its effect may already have happened."""
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


@dataclass(frozen=True, slots=True)
class Parked:
    """An item that was given up and waits for a person."""

    item: Item
    parked_ms: int


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
    if_full: tuple[NewItem, ...] = ()
    """Instead of ``items``, where too many turns wait on their lane already."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The newest message of a room that a commit accepted for its agent."""

    ghost: GhostId
    room_id: RoomId
    event_id: EventId


# --- Sync ----------------------------------------------------------------------------------------

ActionKind = Literal[
    "register_ghost",
    "set_display_name",
    "create_room",
    "join_hub",
    "invite_person",
    "set_room_name",
    "set_topic",
    "retire_agent",
    "restore_agent",
]


@dataclass(frozen=True, slots=True)
class Action:
    """One idempotent change that brings Matrix one step nearer to Letta."""

    kind: ActionKind
    agent_id: AgentId
    agent_name: str
    reason: str
    value: str = ""
    """What it sets: the name, the topic, the alias or the Matrix id."""
    held: str = ""
    """Why it waits for a person to confirm it; empty: it may be carried out."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An action that did not succeed, and why."""

    action: Action
    reason: str
    final: bool
    """A person must act (a refusal); otherwise a later sync tries again."""
    next_try_ms: int = 0
    """When it is tried again by itself; 0: when a person asks for a sync."""


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What one reconciliation planned, did and left."""

    agent_count: int
    planned: tuple[Action, ...]
    applied: tuple[Action, ...]
    failures: tuple[Failure, ...]
    duration_s: float
    dry_run: bool = False

    @property
    def left(self) -> tuple[Action, ...]:
        """Actions planned and not applied: the drift that remains."""
        done = set(self.applied)
        return tuple(action for action in self.planned if action not in done)


# --- What the facade hands to the tools ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AgentView:
    """An agent as the tools show it: Letta's description joined with its home in Matrix."""

    agent: Agent
    ghost: str
    room_id: str
    alias: str
    state: Literal["home", "moving_in", "no_matrix", "not_synced", "not_selected", "failing"]
    problem: str = ""


@dataclass(frozen=True, slots=True)
class AgentPage:
    agents: tuple[AgentView, ...]
    total: int
    next_cursor: str = ""


@dataclass(frozen=True, slots=True)
class ReplyView:
    """Where a chat stands. ``status`` ``failed`` carries the reason; the others a reply or none."""

    reply_id: str
    status: Literal["complete", "pending", "failed"]
    agent_id: AgentId
    agent_name: str
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
