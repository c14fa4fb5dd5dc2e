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
_SURROGATES = re.compile("[\ud800-\udfff]")


# --- Letta ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Agent:
    """A Letta agent as Letta last described it."""

    id: AgentId
    name: str
    description: str = ""
    tags: tuple[str, ...] = ()


def encodable(text: object) -> str:
    """``text`` as it is, but for lone surrogates, which no protocol and no database takes: each
    becomes U+FFFD. A missing text is empty."""
    return _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", str(text or ""))


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
    history: bool = False
    """``list_history`` can tell what was said before."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One finished run of an agent: its final text (may be empty) and why it stopped."""

    text: str
    stop_reason: str = "end_turn"
    run_id: str = ""


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a person said to an agent and what it answered, with the times (ms). Untrusted."""

    asked: str
    answered: str
    asked_ms: int
    answered_ms: int


# --- Matrix --------------------------------------------------------------------------------------

MARKER_TYPE = "org.homeroom.room"
"""State event by which we know our own room again."""
GHOST_PREFIX = "agent_"
HUB_LOCALPART = "agent_hub"
SPACE_LOCALPART = "agent_space"
"""Of the alias of the space that holds the agents' rooms."""


def ghost_localpart(agent_id: AgentId) -> str:
    """The localpart of an agent's ghost and of its room alias: ``agent_<id with underscores>``.

    Letta's own ``agent-`` prefix is not repeated. The map is injective: an id that does not
    survive it (upper case, characters Matrix forbids, an underscore that a dash could also have
    become, the names of the hub and of the space) keeps a readable part and gets a digest.

    Source: https://spec.matrix.org/v1.16/appendices/#user-identifiers (grammar of localparts).
    """
    bare = agent_id.removeprefix("agent-")
    if re.fullmatch(r"[a-z0-9-]{1,200}", bare) and bare not in ("hub", "space", ""):
        return GHOST_PREFIX + bare.replace("-", "_")
    readable = re.sub(r"[^a-z0-9]+", "_", bare.lower()).strip("_")[:60]
    digest = hashlib.sha256(agent_id.encode()).hexdigest()[:12]
    return f"{GHOST_PREFIX}{readable or 'x'}_{digest}"


def localpart_of(ghost: GhostId) -> str:
    """The localpart of a ghost; that of an agent which was imported is not made of its id."""
    return ghost.removeprefix("@").partition(":")[0]


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
class StateEvent:
    """What a room says of itself under one type and key. ``content`` is untrusted."""

    room_id: RoomId
    type: str
    state_key: str
    content: Json
    sender: str


@dataclass(frozen=True, slots=True)
class Detail:
    """A name, topic or avatar (an ``mxc:`` URL) of a room, and who gave it; empty if nobody did."""

    text: str = ""
    sender: str = ""


@dataclass(frozen=True, slots=True)
class RoomView:
    """A room as the hub's sync (or an audit) last told it. Whatever it says is untrusted.

    Nothing newer is told of a room that the hub has left.
    """

    room_id: RoomId
    known: bool = False
    """Its state was told. Of an unknown room nothing but memberships may be here."""
    name: Detail = Detail()
    topic: Detail = Detail()
    avatar: Detail = Detail()
    canonical_alias: str = ""
    room_type: str = ""
    """``m.space`` for a space."""
    closed: bool = False
    """It has a tombstone."""
    replacement: RoomId | None = None
    """The room that its tombstone names."""
    marker: Json = field(default_factory=dict)
    """Content of its ``org.homeroom.room``; empty unless ``marked_by`` set one."""
    marked_by: str = ""
    power_levels: Json = field(default_factory=dict)
    parents: frozenset[RoomId] = frozenset()
    """Spaces that it says it is in."""
    children: frozenset[RoomId] = frozenset()
    """Rooms that it, a space, says are in it."""
    members: Dict[str, str] = field(default_factory=dict)
    """User id to membership (``join``, ``invite``, ``leave``, ``ban``, ``knock``)."""

    def users(self, *memberships: str) -> frozenset[str]:
        """Everybody with one of these memberships."""
        return frozenset(user for user, what in self.members.items() if what in memberships)


@dataclass(frozen=True, slots=True)
class RoomTold:
    """A room as we know it without the hub's sync: because we made it, or went to look."""

    state: tuple[StateEvent, ...]
    members: tuple[Member, ...]
    ghosts: frozenset[str]
    """Which of the members are ours."""


@dataclass(frozen=True, slots=True)
class SyncBatch:
    """What one /sync of the hub brought, gaps already filled.

    ``events`` are in the homeserver's order within a room. ``cursor`` goes into the store in the
    same commit as the rest, never before.
    """

    cursor: str
    events: tuple[RoomEvent, ...] = ()
    members: tuple[Member, ...] = ()
    state: tuple[StateEvent, ...] = ()
    """What changed in the rooms' state, memberships apart; of one type and key the last counts."""
    left_rooms: tuple[RoomId, ...] = ()
    has_more: bool = False
    """There is more of the backlog, which the next step brings."""
    joined_ms: Dict[RoomId, int] = field(default_factory=dict)
    """Rooms that the hub has just come into, and when; also in each step of their backlog."""
    since: str = ""
    """The homeserver's token after which this came: it stands before all that was left."""
    now_ms: int = 0
    """What the homeserver's clock said when it answered; 0 if it did not tell."""
    left_ms: Dict[RoomId, int] = field(default_factory=dict)
    """When the hub went out of ``left_rooms``, as far as that was told."""
    unread: tuple[Unread, ...] = ()
    """What was said while none of ours could read it."""


@dataclass(frozen=True, slots=True)
class Unread:
    """A time, by the homeserver's clock, of which none of ours can read what a room said."""

    room_id: RoomId
    from_ms: int
    to_ms: int


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
    avatar: Json = field(default_factory=dict)
    """Content of its ``m.room.avatar``; empty: none."""
    parent: RoomId | None = None
    """The space it hangs in."""
    is_space: bool = False


@dataclass(frozen=True, slots=True)
class Avatar:
    """A generated picture and where it was put; an empty field means "not yet"."""

    mxc: str = ""
    """Its address on the homeserver, reserved before the picture lies there."""
    digest: str = ""
    """Of the picture that lies there."""
    profile: str = ""
    """Of the picture that the ghost's profile was given."""
    room_id: RoomId | None = None
    room: str = ""
    """Of the picture for which ``room_id`` was seen to: it has ours, or keeps a person's."""


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
    history_due: bool = False
    """Its room is new, and what was said before shall be written into it, if that is wanted."""
    history_written: bool = False
    """That was done, in whichever room: never a second time."""
    marked: bool = True
    """Its room carries our marker and the agent's alias; one that was imported does not yet."""
    retired_ms: int = 0
    """Since when it says so; the brake counts who was retired of late."""
    avatar: Avatar = Avatar()
    refused_actions: tuple[tuple[str, str], ...] = ()
    """(kind, reason) of side actions that the homeserver refused for good: not asked again."""
    room_gone: bool = False
    """The room was deleted, or nobody is left in it who could let anybody in."""
    alias_room: str | None = None
    """Where its alias pointed when it was last looked at; empty: nowhere, None: never looked at."""
    made_ms: int = 0
    """Since when there is this row; 0: since before that was kept."""
    put_back: tuple[tuple[str, int], ...] = ()
    """(``name`` or ``topic``, when in ms) of what we wrote over what somebody else had written."""


@dataclass(frozen=True, slots=True)
class Space:
    """The durable row of the space that holds the agents' rooms, with what was applied."""

    room_id: RoomId | None = None
    name: str = ""
    invited: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()
    """Whom of them it has lost: they left or declined, as the hub saw while it was there."""
    avatar: Avatar = Avatar()
    """The space and the hub, which made it, show the same picture."""
    refused_actions: tuple[tuple[str, str], ...] = ()
    """(kind, or Matrix id where an invitation was it; reason), as in ``Mapping``."""
    alias_room: str | None = None
    """Where its alias led when it was last looked at; empty: nowhere, None: never looked at."""


# --- Sync ----------------------------------------------------------------------------------------

HomeKind = Literal[
    "register_ghost",
    "set_display_name",
    "create_room",
    "follow_room",
    "join_hub",
    "set_alias",
    "invite_person",
    "set_room_name",
    "set_topic",
    "retire_agent",
    "restore_agent",
    "mark_room",
    "write_history",
]
"""What gives an agent its home."""
SideKind = Literal[
    "make_space",
    "set_space_name",
    "set_space_alias",
    "invite_to_space",
    "add_to_space",
    "remove_from_space",
    "set_parent",
    "upload_avatar",
    "set_avatar",
    "set_room_avatar",
]
"""What stands beside it: a failure is a matter of that action alone."""
ActionKind = HomeKind | SideKind

SPACE_AGENT = AgentId("")
"""In the place of an agent's id: an action on the space or the hub."""


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
    failures: int = 0
    """How often in a row something of this agent's failed; 0: its service is away, not it."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """What keeps an agent from being in step: durable, so that a restart forgives nothing."""

    agent_id: AgentId
    failures: int
    """In a row, since something last worked."""
    final: bool
    """The last one was a refusal: a person must act."""
    next_try_ms: int
    problem: str
    """What its mapping says, too. Once that says something else, waiting has no more sense."""
    task: str = ""
    """The one action that it is about; empty: all that gives the agent its home."""


@dataclass(frozen=True, slots=True)
class Outage:
    """A service that the reconciler leaves alone for now, because it is away."""

    service: str
    reason: str
    since_ms: int
    next_try_ms: int
    """When one probe is let through."""


@dataclass(frozen=True, slots=True)
class SyncProgress:
    """How far a reconciliation has got."""

    done: int = 0
    """Actions that were tried."""
    total: int = 0
    """Actions that were planned so far; more may turn out to be needed."""
    agent_name: str = ""
    """Of the last one."""


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What one reconciliation planned, did and left."""

    agent_count: int
    planned: tuple[Action, ...]
    applied: tuple[Action, ...]
    failures: tuple[Failure, ...]
    duration_s: float
    dry_run: bool = False
    outages: tuple[Outage, ...] = ()
    audited: bool = False
    """The rooms themselves were looked at first."""
    unread: tuple[str, ...] = ()
    """What of them could not be looked at, and why."""

    @property
    def left(self) -> tuple[Action, ...]:
        """Actions planned and not applied: the drift that remains."""
        done = set(self.applied)
        return tuple(action for action in self.planned if action not in done)
