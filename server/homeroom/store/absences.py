"""From where a room is to be read when the hub, which was put out of it, comes back."""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import partial

from homeroom.model import Absence, GhostId, RoomId, SyncBatch
from homeroom.store.connection import Connection

_SERVED = "SELECT room_id FROM room_claim WHERE stage IN ('joining', 'open')"


class Absences(Connection):
    """Statements about the hub's absences."""

    async def find_absences(self, hub: GhostId, rooms: Collection[RoomId]) -> dict[RoomId, Absence]:
        """What is known of those of the rooms that agents serve; of several, the ghost of the one
        that has been there the longest."""
        rows = await self._run(
            partial(
                self._rows,
                "SELECT c.room_id, m.ghost, coalesce(a.since, '') AS since, EXISTS (SELECT 1 FROM"
                " member AS b WHERE b.room_id = c.room_id AND b.user_id = ?"
                " AND b.membership = 'join') AS was_in"
                " FROM room_claim AS c JOIN mapping AS m ON m.agent_id = c.agent_id"
                " LEFT JOIN hub_absence AS a ON a.room_id = c.room_id"
                " WHERE c.room_id IN (SELECT value FROM json_each(?))"
                " AND c.stage IN ('joining', 'open') ORDER BY c.since_ms DESC, c.agent_id DESC",
                (hub, json.dumps(list(rooms))),
            )
        )
        return {
            RoomId(row["room_id"]): Absence(
                GhostId(row["ghost"]), row["since"], bool(row["was_in"])
            )
            for row in rows
        }

    def _note_absences(self, batch: SyncBatch) -> None:
        """Before the claims end of which the batch tells. A hub that goes twice without anybody
        having read what was in between is missed from the first time on."""
        for room_id in batch.joined_ms:  # its backlog travels in the cursor of the same commit
            self._conn.execute("DELETE FROM hub_absence WHERE room_id = ?", (room_id,))
        if not (batch.left_rooms and batch.since):
            return
        # Where it has left of itself, or nobody serves any more, nothing is missed.
        self._conn.execute(f"DELETE FROM hub_absence WHERE room_id NOT IN ({_SERVED})")
        self._conn.executemany(
            f"INSERT OR IGNORE INTO hub_absence SELECT ?, ? WHERE ? IN ({_SERVED})",
            [(room_id, batch.since, room_id) for room_id in batch.left_rooms],
        )
