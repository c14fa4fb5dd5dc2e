"""The rows about rooms: mappings, events, members, conversations, and the hub's cursor."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from homeroom.errors import Rejected
from homeroom.model import (
    Accepted,
    AgentId,
    ConversationId,
    Decision,
    EventId,
    GhostId,
    ItemId,
    ItemKind,
    Mapping,
    Member,
    NewItem,
    RoomEvent,
    RoomId,
    SyncBatch,
)
from homeroom.store.items import Items

Decide = Callable[[RoomEvent, Mapping, int], Decision]
"""(event, the mapping of its room, how many people are in the room) -> what becomes of it. Pure."""

Announce = Callable[[Mapping, EventId, int, int], Sequence[NewItem]]
"""(mapping, oldest held event, how many, since when) -> what its room is told. Pure."""


def _tell_nothing(*_: object) -> Sequence[NewItem]:
    return ()


HUB_IS_OUT = "The hub is not in the room any more, so nothing said there is heard."
GHOST_IS_OUT = "The agent's user is not in the room any more, so it cannot answer there."
INVITED_AGAIN = "Invited into the room again; the next sync accepts."


class Rooms(Items):
    """Statements about rooms; routing an event puts its items in the same commit."""

    async def list_mappings(self) -> dict[AgentId, Mapping]:
        rows = await self._run(partial(self._rows, "SELECT * FROM mapping"))
        return {AgentId(row["agent_id"]): _mapping(row) for row in rows}

    async def find_mapping(self, agent_id: AgentId) -> Mapping | None:
        row = await self._run(
            partial(self._row, "SELECT * FROM mapping WHERE agent_id = ?", (agent_id,))
        )
        return _mapping(row) if row else None

    async def save_mapping(
        self, mapping: Mapping, decide: Decide, fence: int, then: Sequence[NewItem] = ()
    ) -> None:
        """Records what was applied; events that waited for this room are routed in the same commit,
        and the items ``then`` that follow from it are put.

        Raises:
            Rejected: the room already belongs to another agent.
            LeaseLost: another process runs the bridge.
        """

        def save() -> None:
            try:
                self._conn.execute(
                    f"INSERT OR REPLACE INTO mapping ({_COLUMNS}) VALUES ({_PLACES})",
                    _mapping_row(mapping),
                )
            except sqlite3.IntegrityError as error:
                raise Rejected(
                    "store", f"room or ghost is taken by another agent: {error}"
                ) from None
            if mapping.room_id:
                self._route_unrouted(mapping, decide)
            for item in then:
                self._put(item)

        def guarded() -> None:
            taken = self._row(
                "SELECT agent_id FROM mapping WHERE agent_id != ? AND (ghost = ? OR room_id = ?)",
                (mapping.agent_id, mapping.ghost, mapping.room_id),
            )
            if taken:  # OR REPLACE would silently delete the other agent's row
                raise Rejected("store", f"its ghost or room already belongs to {taken['agent_id']}")
            save()

        await self._write(guarded, fence)

    async def save_missing(self, mappings: Iterable[Mapping], fence: int) -> None:
        """Records since when these agents are missing in Letta, and nothing else of their rows."""
        rows = [(m.missing_since_ms, m.missing_seen, m.agent_id) for m in mappings]

        def save() -> None:
            self._conn.executemany(
                "UPDATE mapping SET missing_since_ms = ?, missing_seen = ? WHERE agent_id = ?", rows
            )

        if rows:
            await self._write(save, fence)

    # --- events -------------------------------------------------------------------------------

    async def get_cursor(self) -> str:
        """Where the hub's sync continues; empty on the very first start."""
        return await self.get_meta("hub_cursor")

    async def get_heard_ms(self) -> int:
        """When the hub had last heard all there was (ms, our clock); 0 before the first time."""
        return int(await self.get_meta("hub_heard_ms") or 0)

    async def record_batch(
        self, batch: SyncBatch, decide: Decide, is_ghost: Callable[[str], bool], fence: int,
        announce: Announce = _tell_nothing,
    ) -> list[Accepted]:  # fmt: skip
        """Stores events, memberships and the cursor, and routes what can be routed: one commit.

        An event that is there already (by its id) is left alone. A mapping whose room the hub or
        the ghost is no longer in is marked for the next sync, with the problem. What came too late
        is announced in its room once the backlog is complete.

        Returns the newest message of each room that was accepted for its agent.
        """

        def record() -> list[Accepted]:
            now, accepted = self._now_ms(), list[Accepted]()
            for member in batch.members:
                self._conn.execute(
                    "INSERT OR REPLACE INTO member VALUES (?, ?, ?, ?, ?)",
                    (member.room_id, member.user_id, member.membership, member.display_name,
                     int(is_ghost(member.user_id))),
                )  # fmt: skip
                if is_ghost(member.user_id):
                    self._note_membership(member)
            for room_id in batch.left_rooms:
                self._conn.execute(
                    "UPDATE mapping SET hub_joined = 0, problem = ? WHERE room_id = ?",
                    (HUB_IS_OUT, room_id),
                )
            for event in batch.events:
                self._conn.execute(
                    "INSERT OR IGNORE INTO event (event_id, room_id, sender, type, content,"
                    " origin_ms, received_ms, late_ms, outcome)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, '')",
                    (event.id, event.room_id, event.sender, event.type, json.dumps(event.content),
                     event.origin_server_ts_ms, now, event.late_ms),
                )  # fmt: skip
            for room_id in dict.fromkeys(event.room_id for event in batch.events):
                row = self._row("SELECT * FROM mapping WHERE room_id = ?", (room_id,))
                if row and (newest := self._route_unrouted(_mapping(row), decide)):
                    accepted.append(Accepted(row["ghost"], room_id, newest))
            self._conn.execute(
                "INSERT OR REPLACE INTO meta VALUES ('hub_cursor', ?)", (batch.cursor,)
            )
            if not batch.has_more:
                self._conn.execute(
                    "INSERT OR REPLACE INTO meta VALUES ('hub_heard_ms', ?)", (str(now),)
                )
                self._announce_held(announce)
            return accepted

        return await self._write(record, fence)

    def _note_membership(self, member: Member) -> None:
        """What a change of one of our own means to the next sync."""
        if member.membership == "invite":  # so a sync that has given up may try again
            self._conn.execute(
                "UPDATE mapping SET problem = ?"
                " WHERE room_id = ? AND hub_joined = 0 AND problem != ''",
                (INVITED_AGAIN, member.room_id),
            )
        if member.membership in ("leave", "ban"):
            self._conn.execute(
                "UPDATE mapping SET hub_joined = 0, problem = ? WHERE room_id = ? AND ghost = ?",
                (GHOST_IS_OUT, member.room_id, member.user_id),
            )

    def _route_unrouted(self, mapping: Mapping, decide: Decide) -> EventId | None:
        """Decides what has not been decided yet. Returns the newest message it accepted."""
        newest: EventId | None = None
        people = self._row(
            "SELECT count(*) AS n FROM member WHERE room_id = ? AND membership = 'join'"
            " AND NOT is_ghost",
            (mapping.room_id,),
        )
        assert people is not None
        rows = self._rows(
            "SELECT * FROM event WHERE room_id = ? AND outcome = '' ORDER BY seq",
            (mapping.room_id,),
        )
        for row in rows:
            decision = decide(_event(row), mapping, people["n"])
            if decision.releases_held:
                held = self._rows(
                    "SELECT * FROM event WHERE room_id = ? AND held > 0 ORDER BY seq",
                    (mapping.room_id,),
                )
                done = self._release(held, lambda e: decide(e, mapping, people["n"]))
                if held:
                    items = () if done else decision.if_full
                    decision = replace(decision, items=items)
            decision = self._settle(row["seq"], decision)
            turns = any(item.kind is ItemKind.TURN for item in decision.items)
            if turns or decision.releases_held:
                newest = EventId(row["event_id"])
        return newest

    def _release(self, held: list[sqlite3.Row], decide: Callable[[RoomEvent], Decision]) -> int:
        """Decides held events as if they were not late, while their lane has room for them.

        What is left stays held and is announced again. Returns how many were decided.
        """
        for number, row in enumerate(held):
            decision = decide(replace(_event(row), late_ms=0))
            if any(self._is_full(item) for item in decision.items):
                self._conn.execute(
                    "UPDATE event SET held = 1 WHERE room_id = ? AND held > 0 AND seq >= ?",
                    (row["room_id"], row["seq"]),
                )
                return number
            self._settle(row["seq"], decision)
        return len(held)

    def _settle(self, seq: int, decision: Decision) -> Decision:
        """Writes down what was decided about an event, and puts what follows.

        Returns the decision as it stands: a turn for which its lane has no room is refused.
        """
        if any(self._is_full(item) for item in decision.items):
            outcome = f"refused: {self.max_waiting} messages are waiting for the agent here"
            decision = Decision(outcome, decision.if_full)
        ids = [self._put(item) for item in decision.items]
        # What will not be relayed is not kept either: only its id, so that it stays known.
        self._conn.execute(
            "UPDATE event SET outcome = ?, item_id = ?, held = ?,"
            " content = iif(?, content, '{}') WHERE seq = ?",
            (decision.outcome, ids[0] if ids else None, int(decision.held), int(decision.held),
             seq),
        )  # fmt: skip
        return decision

    def _announce_held(self, announce: Announce) -> None:
        rows = self._rows(
            "SELECT m.*, count(*) AS n, min(e.origin_ms) AS since_ms, min(e.seq) AS first"
            " FROM event AS e JOIN mapping AS m ON m.room_id = e.room_id WHERE e.held = 1"
            " GROUP BY e.room_id"
        )
        for row in rows:
            oldest = self._row("SELECT event_id FROM event WHERE seq = ?", (row["first"],))
            assert oldest is not None
            event_id = EventId(oldest["event_id"])
            for notice in announce(_mapping(row), event_id, row["n"], row["since_ms"]):
                self._put(notice)
            self._conn.execute(
                "UPDATE event SET held = 2 WHERE room_id = ? AND held = 1", (row["room_id"],)
            )

    async def get_event_outcome(self, event_id: EventId) -> tuple[str, ItemId | None] | None:
        """The rule that decided an event and its item; None if it never arrived."""
        row = await self._run(
            partial(self._row, "SELECT outcome, item_id FROM event WHERE event_id=?", (event_id,))
        )
        return (row["outcome"], row["item_id"]) if row else None

    async def display_name(self, room_id: RoomId, user_id: str) -> str:
        """How a member calls himself in a room (untrusted), or an empty string."""
        row = await self._run(
            partial(
                self._row,
                "SELECT display_name FROM member WHERE room_id = ? AND user_id = ?",
                (room_id, user_id),
            )
        )
        return str(row["display_name"]) if row else ""

    async def find_conversation(self, agent_id: AgentId, scope: str) -> ConversationId | None:
        row = await self._run(
            partial(
                self._row,
                "SELECT conversation_id FROM conversation WHERE agent_id = ? AND scope = ?",
                (agent_id, scope),
            )
        )
        return ConversationId(row["conversation_id"]) if row else None

    async def save_conversation(
        self, agent_id: AgentId, scope: str, conversation_id: ConversationId, fence: int
    ) -> None:
        def save() -> None:
            self._conn.execute(
                "INSERT OR REPLACE INTO conversation VALUES (?, ?, ?)",
                (agent_id, scope, conversation_id),
            )

        await self._write(save, fence)


def _mapping(row: sqlite3.Row) -> Mapping:
    return Mapping(
        agent_id=AgentId(row["agent_id"]), agent_name=row["agent_name"],
        ghost=GhostId(row["ghost"]),
        room_id=row["room_id"], ghost_ready=bool(row["ghost_ready"]),
        display_name=row["display_name"], room_name=row["room_name"], topic=row["topic"],
        hub_joined=bool(row["hub_joined"]), invited=frozenset(json.loads(row["invited"])),
        refused=tuple((person, why) for person, why in json.loads(row["refused"])),
        heard_from_ms=row["heard_from_ms"], problem=row["problem"],
        missing_since_ms=row["missing_since_ms"], missing_seen=row["missing_seen"],
        retired=bool(row["retired"]),
    )  # fmt: skip


_COLUMNS = (
    "agent_id, agent_name, ghost, room_id, ghost_ready, display_name, room_name, topic, hub_joined,"
    " invited, refused, heard_from_ms, problem, missing_since_ms, missing_seen, retired"
)
_PLACES = ", ".join("?" for _ in _COLUMNS.split(","))


def _mapping_row(mapping: Mapping) -> tuple[Any, ...]:
    return (
        mapping.agent_id, mapping.agent_name, mapping.ghost, mapping.room_id,
        int(mapping.ghost_ready), mapping.display_name, mapping.room_name, mapping.topic,
        int(mapping.hub_joined), json.dumps(sorted(mapping.invited)), json.dumps(mapping.refused),
        mapping.heard_from_ms, mapping.problem, mapping.missing_since_ms, mapping.missing_seen,
        int(mapping.retired),
    )  # fmt: skip


def _event(row: sqlite3.Row) -> RoomEvent:
    return RoomEvent(
        id=EventId(row["event_id"]), room_id=RoomId(row["room_id"]), sender=row["sender"],
        type=row["type"], content=json.loads(row["content"]),
        origin_server_ts_ms=row["origin_ms"], late_ms=row["late_ms"],
    )  # fmt: skip
