"""The records of what is read back for tools: agents, rooms and what was said there, memory.

Pure, as ``model`` is, on which it stands. Texts in them are other people's: untrusted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from homeroom.model import Agent, AgentId, Block, EventId, RoomId

# --- agents ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AgentView:
    """An agent as the tools show it: Letta's description joined with its home in Matrix."""

    agent: Agent
    ghost: str
    room_id: str
    state: Literal["home", "moving_in", "no_matrix", "not_synced", "not_selected", "failing"]
    problem: str = ""
    cursor: str = ""
    """Where a page goes on that ends with this agent."""


@dataclass(frozen=True, slots=True)
class AgentPage:
    agents: tuple[AgentView, ...]
    total: int
    next_cursor: str = ""


# --- rooms ---------------------------------------------------------------------------------------

RoomState = Literal["home", "moving_in", "retired", "failing"]


@dataclass(frozen=True, slots=True)
class ServedRoom:
    """A room that Homeroom serves, as the store knows it."""

    id: RoomId
    agent_id: AgentId
    agent_name: str
    name: str
    state: RoomState
    people_count: int = 0
    """How many people are in it, our own ghosts not counted."""
    active_ms: int = 0
    """When somebody last wrote in it, or the agent last answered; 0 if nobody has yet."""
    problem: str = ""
    is_home: bool = True
    """The room that Homeroom made for the agent, which has an alias."""
    alias: str = ""
    cursor: str = ""
    """Where a page goes on that ends with this room."""


@dataclass(frozen=True, slots=True)
class RoomPage:
    rooms: tuple[ServedRoom, ...]
    total: int
    next_cursor: str = ""


@dataclass(frozen=True, slots=True)
class RoomMessage:
    """One message of a room, as the homeserver has it now (edits applied)."""

    id: EventId
    sender: str
    sent_ms: int
    """By the clock of the sender's homeserver."""
    text: str
    kind: str
    """Its msgtype without the ``m.``; ``encrypted`` has no text."""


@dataclass(frozen=True, slots=True)
class RoomTranscript:
    """One page of a room, newest message first."""

    room: ServedRoom
    messages: tuple[RoomMessage, ...]
    ghosts: frozenset[str] = frozenset()
    """The senders among them that Homeroom drives: agents, and itself."""
    next_cursor: str = ""
    cursor: str = ""
    """Where this page begins, also when there are newer messages."""


@dataclass(frozen=True, slots=True)
class Watched:
    """Something that a client wants to hear of when it changes."""

    kind: Literal["agent", "memory", "room"]
    id: str
    """The agent's id, or the room's."""
    label: str = ""
    """The block's, for memory."""


# --- memory --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BlockVersion:
    """One value that a memory block had, as Homeroom saw it come about."""

    label: str
    revision: str
    replaced: str
    """The revision before it; empty for the oldest one that is known."""
    value: str
    at_ms: int
    caller: str
    """Who wrote it through Homeroom; empty: it was changed elsewhere, and seen then."""
    diff: str = ""
    """What it changed against the version before, where that is known."""


EditMode = Literal["replace", "replace_text", "append"]


@dataclass(frozen=True, slots=True)
class Edit:
    """What a memory block shall be: ``value`` as a whole, in the place of ``old_text``, or after
    what is there; or, with ``undo_of``, what it was before that revision."""

    value: str = ""
    mode: EditMode = "replace"
    old_text: str = ""
    expected_revision: str = ""
    force: bool = False
    undo_of: str = ""
    restores: bool = False
    """The value is one the block had before."""


@dataclass(frozen=True, slots=True)
class MemoryView:
    agent: Agent
    blocks: tuple[Block, ...]
    versions: tuple[BlockVersion, ...] = ()
    """Newest first; empty unless they were asked for."""


@dataclass(frozen=True, slots=True)
class MemoryChange:
    """A block after it was written."""

    agent: Agent
    block: Block
    old_revision: str
    diff: str


@dataclass(frozen=True, slots=True)
class Passage:
    """One passage of an agent's archival memory."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Recall:
    """What a back end's own search over archival memory found, best first."""

    method: Literal["semantic", "text"]
    passages: tuple[Passage, ...] = ()


@dataclass(frozen=True, slots=True)
class MemoryHit:
    """One place in an agent's memory that fits a query."""

    source: Literal["block", "passage"]
    name: str
    """The block's label, or the passage's id."""
    text: str
    is_excerpt: bool = False
    """There is more around it in the block."""


@dataclass(frozen=True, slots=True)
class MemoryHits:
    agent: Agent
    hits: tuple[MemoryHit, ...]
    total: int
    method: Literal["semantic", "text"]
    """How passages were searched; blocks are always searched for the words themselves."""
    next_cursor: str = ""
