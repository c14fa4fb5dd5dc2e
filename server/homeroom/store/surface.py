"""What tools ask of the store and the bridge does not: chats sent twice, rooms, memory's past."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from homeroom.errors import ExchangePaused, Misuse
from homeroom.exchange import Exchange, Guard
from homeroom.items import NewItem, Parked, TellPair, lane_of_room
from homeroom.model import AgentId, Block, ItemId, RoomId
from homeroom.reading import BlockVersion, RoomState, ServedRoom
from homeroom.store.history import History
from homeroom.store.item_rows import item_of

VERSIONS_KEPT = 20
"""Versions of one memory block that are kept."""


class Surface(History):
    """Statements for tools. Their writes need no lease: any process may serve a tool."""

    # --- chats -----------------------------------------------------------------------------------

    async def put_chat(
        self, items: Sequence[NewItem], *, same_within_ms: int, guard: Guard | None = None,
        on_paused: TellPair = lambda exchange, homes: (),
    ) -> ItemId:  # fmt: skip
        """Puts a turn and what its room sees of it; the turn's id.

        A message of an agent has a ``guard``: it gets its hop, and is counted, in the same commit.

        One with the same dedupe key, or (``same_within_ms`` not 0) with the same fingerprint and
        that young, is the one it has already: then nothing is put. One that has ended and certainly
        was never delivered has no fingerprint any more: who asks again means it anew.

        Raises:
            Misuse: the dedupe key belongs to another message.
            LimitExceeded: too many messages wait on the lane.
            ExchangePaused: by the guard; that the exchange is paused is written down and told.
        """
        turn = items[0]
        fingerprint = turn.payload["fingerprint"]

        def write() -> ItemId | Exchange:
            if known := self._row(
                "SELECT id, json_extract(payload, '$.fingerprint') AS mark FROM item"
                " WHERE dedupe_key = ?",
                (turn.dedupe_key,),
            ):
                if known["mark"] != fingerprint:
                    raise Misuse(
                        "This idempotency_key was used for another message. Nothing was sent; give"
                        " every message a key of its own."
                    )
                return ItemId(known["id"])
            now = self._now_ms()
            # The order of ids is that of time, so this reads a few rows at the end of the table.
            if recent := self._row(
                "SELECT id FROM item WHERE id >= ? AND kind = ? AND created_ms BETWEEN ? AND ?"
                " AND json_extract(payload, '$.fingerprint') = ? AND (begun OR state"
                " NOT IN ('cancelled', 'expired', 'parked')) ORDER BY id LIMIT 1",
                (
                    f"{max(0, now - same_within_ms) * 1000:013x}", turn.kind,
                    now - same_within_ms + 1, now, fingerprint,
                ),
            ):  # fmt: skip
                return ItemId(recent["id"])
            for item in items:
                self._check_room(item)
            marked = turn
            if guard:
                after, hop = self._admit(guard, on_paused)
                if after.is_paused(now):
                    return after
                marked = replace(turn, payload={**turn.payload, "hop": hop})
            turn_id, *_ = [self._put(item) for item in (marked, *items[1:])]
            return turn_id

        done = await self._write(write)
        if isinstance(done, Exchange):
            raise ExchangePaused(done.pair, done.reason, done.limit, done.until)
        return done

    # --- what was given up -----------------------------------------------------------------------

    async def page_parked(self, agent_id: str, limit: int, before: str) -> tuple[list[Parked], int]:
        """The newest ``limit`` parked items older than the item ``before`` (empty: all), newest
        first, and how many there are in all; those of one agent if ``agent_id`` is given."""

        def read() -> tuple[list[Parked], int]:
            parked = "FROM item WHERE state = 'parked'"
            args: tuple[str, ...] = ()
            if agent_id:
                # A post names no agent, but the ghost it is posted as.
                parked += (
                    " AND (json_extract(payload, '$.agent_id') = ? OR json_extract(payload,"
                    " '$.ghost') = (SELECT ghost FROM mapping WHERE agent_id = ?))"
                )
                args = (agent_id, agent_id)
            total = self._row(f"SELECT count(*) AS n {parked}", args)
            rows = self._rows(
                f"SELECT * {parked} AND (? = '' OR id < ?) ORDER BY id DESC LIMIT ?",
                (*args, before, before, limit),
            )
            return [self._parked(item_of(row)) for row in rows], total["n"] if total else 0

        return await self._run(read)

    # --- rooms -----------------------------------------------------------------------------------

    async def list_served_rooms(self) -> list[ServedRoom]:
        """Every room that Homeroom serves: the home of each agent, and for each agent the further
        rooms that it was taken into."""

        def read() -> list[ServedRoom]:
            homes = (
                "SELECT m.room_id AS room, m.room_name AS name, m.*, 1 AS is_home,"
                " m.problem AS trouble FROM mapping AS m WHERE m.room_id IS NOT NULL"
            )
            further = (
                "SELECT c.room_id AS room, coalesce((SELECT json_extract(content, '$.name') FROM"
                "  room_state AS s WHERE s.room_id = c.room_id AND s.type = 'm.room.name'), '')"
                "  AS name, m.*, 0 AS is_home, c.problem AS trouble FROM room_claim AS c"
                " JOIN mapping AS m USING (agent_id)"
                " WHERE c.kind = 'further' AND c.stage = 'open'"
            )
            rows = self._rows(
                "SELECT r.*,"
                " (SELECT count(*) FROM member AS p WHERE p.room_id = r.room"
                "  AND p.membership = 'join' AND NOT p.is_ghost) AS people_count,"
                " (SELECT max(received_ms) FROM event AS e WHERE e.room_id = r.room) AS heard,"
                " (SELECT max(created_ms) FROM item AS i WHERE i.lane = ? || r.room) AS said"
                f" FROM ({homes} UNION ALL {further}) AS r",
                (lane_of_room(""),),
            )
            return [_served(row) for row in rows]

        return await self._run(read)

    async def room_stamps(self, room_ids: Sequence[str]) -> dict[str, str]:
        """For each room what changes whenever a message is heard or posted in it."""

        def read() -> dict[str, str]:
            # In the order of the indexes, so that each reads one row and not a room's whole past.
            sql = (
                "SELECT (SELECT seq FROM event WHERE room_id = ?"
                "  ORDER BY received_ms DESC, seq DESC LIMIT 1) AS heard,"
                " (SELECT id FROM item WHERE lane = ? AND state = 'done'"
                "  ORDER BY created_ms DESC, id DESC LIMIT 1) AS said"
            )
            rows = {room: self._row(sql, (room, lane_of_room(room))) for room in room_ids}
            return {room: f"{row['heard']} {row['said']}" for room, row in rows.items() if row}

        return await self._run(read)

    # --- memory ----------------------------------------------------------------------------------

    async def note_block(
        self, agent_id: AgentId, block: Block, *, replaced: str = "", caller: str = "",
        then: Sequence[NewItem] = (),
    ) -> None:  # fmt: skip
        """Records a value of a block as its newest version, unless it is that already, and puts
        the items ``then`` that follow. A ``caller`` is written into one that somebody else read
        before the caller could be noted."""

        def write() -> None:
            newest = self._row(
                "SELECT seq, revision FROM memory_version WHERE agent_id = ? AND label = ?"
                " ORDER BY seq DESC LIMIT 1",
                (agent_id, block.label),
            )
            if newest and newest["revision"] == block.revision:
                if caller:
                    self._conn.execute(
                        "UPDATE memory_version SET caller = ? WHERE seq = ? AND caller = ''",
                        (caller, newest["seq"]),
                    )
            else:
                self._conn.execute(
                    "INSERT INTO memory_version (agent_id, label, revision, replaced, value, at_ms,"
                    " caller) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (agent_id, block.label, block.revision,
                     replaced or (newest["revision"] if newest else ""), block.value,
                     self._now_ms(), caller),
                )  # fmt: skip
                self._conn.execute(
                    "DELETE FROM memory_version WHERE agent_id = ? AND label = ? AND seq NOT IN"
                    " (SELECT seq FROM memory_version WHERE agent_id = ? AND label = ?"
                    "  ORDER BY seq DESC LIMIT ?)",
                    (agent_id, block.label, agent_id, block.label, VERSIONS_KEPT),
                )
            for item in then:
                self._put(item)

        await self._write(write)

    async def take_edit(self, agent_id: AgentId, label: str, owner: str, ttl_ms: int) -> bool:
        """Whether ``owner`` alone, of all processes, may change the block for ``ttl_ms`` from now.
        Whoever has that right already has it longer; that of whoever died lapses."""

        def write() -> bool:
            now = self._now_ms()
            taken = self._conn.execute(
                "INSERT INTO memory_edit VALUES (?, ?, ?, ?) ON CONFLICT (agent_id, label)"
                " DO UPDATE SET owner = excluded.owner, until_ms = excluded.until_ms"
                " WHERE owner = excluded.owner OR until_ms <= ?",
                (agent_id, label, owner, now + ttl_ms, now),
            )
            return taken.rowcount == 1

        return await self._write(write)

    async def end_edit(self, agent_id: AgentId, label: str, owner: str) -> None:
        """Gives the right up, if ``owner`` still has it."""
        sql = "DELETE FROM memory_edit WHERE agent_id = ? AND label = ? AND owner = ?"
        await self._write(lambda: self._conn.execute(sql, (agent_id, label, owner)))

    async def list_block_versions(self, agent_id: AgentId, label: str = "") -> list[BlockVersion]:
        """What is kept of a block (of all blocks of the agent, without a label), newest first."""
        where, args = ("AND label = ?", (agent_id, label)) if label else ("", (agent_id,))
        sql = f"SELECT * FROM memory_version WHERE agent_id = ? {where} ORDER BY seq DESC"
        return [_version(row) for row in await self._run(partial(self._rows, sql, args))]

    async def memory_stamps(self, agent_ids: Sequence[str]) -> dict[tuple[str, str], str]:
        """What the newest known change of each block differs by from any other, by agent and label.
        The oldest version that is known is no change: it was only looked at."""

        def read() -> dict[tuple[str, str], str]:
            marks = ", ".join("?" for _ in agent_ids)
            rows = self._rows(
                "SELECT agent_id, label, max(seq) AS seq FROM memory_version"
                f" WHERE agent_id IN ({marks}) AND replaced != '' GROUP BY agent_id, label",
                tuple(agent_ids),
            )
            return {(row["agent_id"], row["label"]): str(row["seq"]) for row in rows}

        return await self._run(read)

    async def count_ended_turns(self, agent_ids: Sequence[str]) -> dict[str, int]:
        """How often a turn of each of these agents has ended, in whichever process and however."""
        sql = f"SELECT * FROM ended_turns WHERE agent_id IN ({', '.join('?' for _ in agent_ids)})"
        rows = await self._run(partial(self._rows, sql, tuple(agent_ids)))
        return dict.fromkeys(agent_ids, 0) | {row["agent_id"]: row["count"] for row in rows}


def _served(row: sqlite3.Row) -> ServedRoom:
    state: RoomState = "home" if row["hub_joined"] or not row["is_home"] else "moving_in"
    if row["retired"]:
        state = "retired"
    elif row["trouble"]:
        state = "failing"
    return ServedRoom(
        id=RoomId(row["room"]), agent_id=AgentId(row["agent_id"]),
        agent_name=row["agent_name"], name=row["name"], state=state,
        people_count=row["people_count"], active_ms=max(row["heard"] or 0, row["said"] or 0),
        problem=row["trouble"], is_home=bool(row["is_home"]),
    )  # fmt: skip


def _version(row: sqlite3.Row) -> BlockVersion:
    return BlockVersion(
        label=row["label"], revision=row["revision"], replaced=row["replaced"], value=row["value"],
        at_ms=row["at_ms"], caller=row["caller"],
    )  # fmt: skip
