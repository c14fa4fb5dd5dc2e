"""Pairs of agents that talk with each other: what they sent, and which of them are paused."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import partial

from homeroom.exchange import HOUR_MS, Exchange, Guard, Home, Pair, admit, resume
from homeroom.items import TellPair, lane_of_turns
from homeroom.model import AgentId, GhostId, RoomId
from homeroom.store.items import Items

_TURNS_WITH_THE_AGENT = """
SELECT max(coalesce(json_extract(payload, '$.hop'), 0)) AS hop FROM item
WHERE lane >= ? AND lane < ? AND kind = 'turn' AND created_ms > ?
AND state IN ('waiting', 'claimed', 'delivering') AND (state != 'waiting' OR begun)"""
"""What waits again and may have been delivered counts: the agent may be at work on it."""


class Exchanges(Items):
    """Statements about pairs of agents. None needs the lease: any process may serve an agent."""

    def _admit(self, guard: Guard, on_paused: TellPair) -> tuple[Exchange, int]:
        """The exchange after its next message, and the hop of that; written down.

        If it is paused now, the message must not be put. Both homes are told when a pause begins.
        """
        now_ms = self._now_ms()
        known = self._remembered(guard.between)
        hop = 1 + self._hop_of(guard.sender, known.resumed_ms)
        after = admit(known, hop, now_ms, guard.limits)
        if after != known:
            self._save_exchange(after)
            if after.is_paused(now_ms):
                self._tell_pair(after, on_paused)
        return after, hop

    def _remembered(self, pair: Exchange) -> Exchange:
        row = self._row("SELECT * FROM exchange WHERE low = ? AND high = ?", pair.pair)
        if row is None:
            return pair
        known = _exchange(row)
        if known.is_paused(self._now_ms()):
            return known
        return _exchange(row, pair.names)

    def _hop_of(self, agent_id: AgentId, since_ms: int) -> int:
        """The highest hop of what the agent may be at work on and was told after ``since_ms``."""
        first = lane_of_turns(agent_id, "")
        lanes = first, f"{first[:-1]};"  # the next character after the colon
        row = self._row(_TURNS_WITH_THE_AGENT, (*lanes, since_ms))
        return int(row["hop"] or 0) if row else 0

    def _save_exchange(self, of: Exchange) -> None:
        self._conn.execute(
            "INSERT OR REPLACE INTO exchange (low, high, low_name, high_name, hour_from_ms, count,"
            " why, reached, paused_ms, until_ms, resumed_ms)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*of.pair, *of.names, of.hour_from_ms, of.count, of.why, of.limit, of.paused_ms,
             of.until_ms, of.resumed_ms),
        )  # fmt: skip

    def _tell_pair(self, of: Exchange, tell: TellPair) -> None:
        rows = self._rows(
            "SELECT agent_id, ghost, room_id FROM mapping"
            " WHERE agent_id IN (?, ?) AND room_id IS NOT NULL ORDER BY agent_id",
            of.pair,
        )
        homes = [
            Home(AgentId(row["agent_id"]), GhostId(row["ghost"]), RoomId(row["room_id"]))
            for row in rows
        ]
        for item in tell(of, homes):
            self._put(item)

    async def list_paused(self) -> list[Exchange]:
        """The exchanges that are paused now, the newest pause first."""
        return await self._run(self._paused)

    def _paused(self, where: str = "", args: Sequence[str] = ()) -> list[Exchange]:
        rows = self._rows(
            f"SELECT * FROM exchange WHERE why != '' AND until_ms > ? {where}"
            " ORDER BY paused_ms DESC, low, high",
            (self._now_ms(), *args),
        )
        return [_exchange(row) for row in rows]

    async def resume_pair(self, pair: Pair, tell: TellPair) -> bool:
        """Lets a paused exchange go on, with ``tell`` in both homes. False if it is not paused."""
        found = partial(self._paused, "AND low = ? AND high = ?", pair)
        return await self._write(lambda: self._resume_all(found(), tell) > 0)

    def _resume_of(self, agent_id: AgentId, tell: TellPair) -> int:
        """Lets every paused exchange of an agent go on. Returns how many there were."""
        mine = self._paused("AND (low = ? OR high = ?)", (agent_id, agent_id))
        return self._resume_all(mine, tell)

    def _resume_all(self, paused: Sequence[Exchange], tell: TellPair) -> int:
        for one in paused:
            self._save_exchange(resume(one, self._now_ms()))
            self._tell_pair(one, tell)
        return len(paused)

    def _prune_exchanges(self, before_ms: int) -> None:
        """Forgets pairs that have been silent since, and that nobody resumed since."""
        self._conn.execute(
            "DELETE FROM exchange WHERE max(hour_from_ms, paused_ms, until_ms, resumed_ms) < ?",
            (before_ms - HOUR_MS,),
        )


def _exchange(row: sqlite3.Row, names: tuple[str, str] | None = None) -> Exchange:
    return Exchange(
        pair=(AgentId(row["low"]), AgentId(row["high"])),
        names=names or (row["low_name"], row["high_name"]),
        hour_from_ms=row["hour_from_ms"], count=row["count"], why=row["why"], limit=row["reached"],
        paused_ms=row["paused_ms"], until_ms=row["until_ms"], resumed_ms=row["resumed_ms"],
    )  # fmt: skip
