"""Who lives where: the right of an agent to serve a room, and what is found when that is looked at.

Pure, as ``model`` is, on which it stands. An agent has one home; every other room it was taken into
(a direct chat, a room that several agents share) is a further room.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from homeroom.model import AgentId, GhostId, Mapping, RoomId

ClaimKind = Literal["home", "further"]
Stage = Literal["joining", "open", "leaving", "left"]
"""Where a claim stands. The first two are valid; ``joining`` and ``leaving`` have steps to do."""


@dataclass(frozen=True, slots=True)
class Invitation:
    """An invitation of a ghost, as the ghost's own sync shows it. All of it is untrusted but the
    room, the ghost and the inviter, which homeservers check."""

    room_id: RoomId
    ghost: GhostId
    inviter: str
    is_direct: bool = False
    is_space: bool = False
    predecessor: RoomId | None = None
    """The room that this one says it replaces."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The right of an agent to serve a room. Times are milliseconds of our clock, but for
    ``heard_from_ms``, which is the homeserver's."""

    room_id: RoomId
    agent_id: AgentId
    kind: ClaimKind = "further"
    stage: Stage = "joining"
    since_ms: int = 0
    invited_by: str = ""
    is_direct: bool = False
    heard_from_ms: int = 0
    """When the agent was invited: what is older is not answered."""
    problem: str = ""
    """Why the hub is not there yet, which a person has to mend; empty: no reason."""
    opened_ms: int = 0
    """When the hub came in first; 0 before."""
    ended_ms: int = 0
    end_reason: str = ""

    @property
    def is_valid(self) -> bool:
        return self.stage in ("joining", "open")


@dataclass(frozen=True, slots=True)
class Guest(Mapping):
    """An agent in a further room: its row, with that room and its time in the place of the home's.

    ``others`` are the ghosts of the other agents there, each with the name it goes by.
    """

    others: tuple[tuple[GhostId, str], ...] = ()
    is_first: bool = True
    """It has been there the longest, so it is the one who speaks for all."""

    @classmethod
    def of(
        cls, mapping: Mapping, claim: Claim, others: tuple[tuple[GhostId, str], ...], is_first: bool
    ) -> Guest:
        values = {part.name: getattr(mapping, part.name) for part in fields(Mapping)}
        values |= {
            "room_id": claim.room_id, "heard_from_ms": claim.heard_from_ms,
            "hub_joined": claim.stage == "open",
        }  # fmt: skip
        return cls(**values, others=others, is_first=is_first)


@dataclass(frozen=True, slots=True)
class Refusal:
    """What agents did not go along with in one room, and how often."""

    kind: Literal["invitation", "conflict"]
    """``conflict``: a ghost in a room that belongs to another agent."""
    room_id: RoomId
    ghost: GhostId
    who: str
    """Who invited it; empty if that is not known."""
    reason: str
    count: int
    last_ms: int


# --- what a look at the rooms finds --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Absence:
    """What is known of a room that the hub has just come into, or that has a hole to read."""

    ghost: GhostId
    """Who was there all the time and may read it, too."""
    since: str = ""
    """A token from before the hub was put out; empty if nobody saw it leave."""
    was_in: bool = False
    """The hub was there when it was last heard of."""
    out_ms: int = 0
    """When it was put out, by the homeserver's clock; 0 if nobody saw it."""
    known_ms: int = 0
    """Up to then all that matters of the room is known: its newest message that is."""
    reach_ms: float = math.inf
    """What was said so long before the hub came in matters no more."""


FaultKind = Literal[
    "conflict", "stale_claim", "stray_ghost", "duplicate", "no_people", "hub_missing", "failing"
]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something in a room that should not be so. ``remedy`` says what a person can do about it."""

    kind: FaultKind
    detail: str
    remedy: str
    ghost: str = ""
    """Whom it is about, if it is about one of ours."""
    fixable: bool = False
    fixed: bool = False


@dataclass(frozen=True, slots=True)
class ServedBy:
    agent_id: AgentId
    agent_name: str
    ghost: GhostId
    since_ms: int


@dataclass(frozen=True, slots=True)
class RoomState:
    """One room of Homeroom's, who serves it, and what is wrong there."""

    room_id: RoomId
    kind: Literal["home", "further", "none"]
    served_by: tuple[ServedBy, ...] = ()
    people_count: int = 0
    hub_is_in: bool = False
    is_direct: bool = False
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True)
class RoomsReport:
    rooms: tuple[RoomState, ...]
    refusals: tuple[Refusal, ...] = ()
    refused_count: int = 0
    """Invitations that agents did not accept, since the store was made."""
    conflict_count: int = 0

    @property
    def fault_count(self) -> int:
        return sum(not fault.fixed for room in self.rooms for fault in room.faults)
