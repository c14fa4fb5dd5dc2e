"""How much two agents may say to each other before a person has to look. Pure.

Owns the two limits on messages from agent to agent, and when a pause begins and ends. Knows no
clock and no store. Invariants: no message counts while its pair is paused; a pause ends by itself
within an hour, and at once when a person ends it; then both limits count anew.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from homeroom.model import AgentId, GhostId, RoomId
from homeroom.times import utc_text

HOUR_MS = 3_600_000

Pair = tuple[AgentId, AgentId]
"""Two agents, or one twice, in the order of their ids: who speaks makes no difference."""
PauseReason = Literal["", "hops", "budget"]


@dataclass(frozen=True, slots=True)
class Limits:
    """HOMEROOM_HOP_LIMIT and HOMEROOM_PAIR_BUDGET."""

    hops: int = 6
    per_hour: int = 60


@dataclass(frozen=True, slots=True)
class Exchange:
    """What is remembered of a pair of agents that talk with each other."""

    pair: Pair
    names: tuple[str, str] = ("", "")
    """What each of the pair was last called (untrusted)."""
    hour_from_ms: int = 0
    """When the present hour began: with its first message."""
    count: int = 0
    """Messages of the present hour."""
    why: PauseReason = ""
    """Which limit the last pause was for; empty if there was none, or a person has ended it."""
    limit: int = 0
    """What that limit was."""
    paused_ms: int = 0
    until_ms: int = 0
    resumed_ms: int = 0
    """When a person last ended a pause: what agents were told before counts as nobody's hop."""

    def is_paused(self, now_ms: int) -> bool:
        return bool(self.why) and now_ms < self.until_ms

    @property
    def reason(self) -> str:
        """Why it is paused, in words that can follow a colon."""
        if self.why == "hops":
            return f"one message between agents had led to the next {self.limit} times"
        return f"they had sent each other {self.limit} messages within an hour"

    @property
    def until(self) -> str:
        return utc_text(self.until_ms)


@dataclass(frozen=True, slots=True)
class Home:
    """An agent's own room and its user there."""

    agent_id: AgentId
    ghost: GhostId
    room_id: RoomId


@dataclass(frozen=True, slots=True)
class Guard:
    """What a message of an agent is measured by."""

    sender: AgentId
    between: Exchange
    """The pair and its names; what is remembered of it the store knows."""
    limits: Limits


def between(sender: AgentId, sender_name: str, to: AgentId, to_name: str) -> Exchange:
    """The exchange of two agents of which nothing is remembered yet."""
    (low, low_name), (high, high_name) = sorted([(sender, sender_name), (to, to_name)])
    return Exchange((low, high), (low_name, high_name))


def admit(known: Exchange, hop: int, now_ms: int, limits: Limits) -> Exchange:
    """The exchange once one of the pair wanted to send the other a message with this ``hop``.

    The message may go if it is not paused now, and is counted then. A pause for the budget ends
    with the hour that the budget was for, one for the hops an hour after it began.
    """
    if known.is_paused(now_ms):
        return known
    is_same_hour = known.count and 0 <= now_ms - known.hour_from_ms < HOUR_MS
    hour = known if is_same_hour else replace(known, hour_from_ms=now_ms, count=0)
    if hop > limits.hops:
        return replace(
            hour, why="hops", limit=limits.hops, paused_ms=now_ms, until_ms=now_ms + HOUR_MS
        )
    if hour.count >= limits.per_hour:
        until_ms = hour.hour_from_ms + HOUR_MS
        return replace(
            hour, why="budget", limit=limits.per_hour, paused_ms=now_ms, until_ms=until_ms
        )
    return replace(hour, count=hour.count + 1, why="")


def resume(paused: Exchange, now_ms: int) -> Exchange:
    """The exchange after a person has let it go on."""
    return Exchange(paused.pair, paused.names, resumed_ms=now_ms)
