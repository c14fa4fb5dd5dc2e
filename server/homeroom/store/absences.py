"""From where a room is to be read when the hub, which was put out of it, comes back, and what of
it nobody could read."""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import partial

from homeroom.model import GhostId, RoomId, SyncBatch, Unread
from homeroom.residence import Absence
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
                "SELECT c.room_id, m.ghost, coalesce(a.since, '') AS since,"
                " coalesce(a.out_ms, 0) AS out_ms, max(iif(c.kind = 'home', m.heard_from_ms,"
                " c.since_ms), coalesce((SELECT max(e.origin_ms) FROM event AS e"
                " WHERE e.room_id = c.room_id), 0)) AS known_ms, EXISTS (SELECT 1 FROM"
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
                GhostId(row["ghost"]),
                row["since"],
                bool(row["was_in"]),
                row["out_ms"],
                row["known_ms"],
            )
            for row in rows
        }

    async def note_hub_lost(self, hub: GhostId, fence: int) -> None:
        """The homeserver has lost the hub: it is in no room, and no token of before leads back."""

        def note() -> None:
            self._conn.execute(
                "UPDATE member SET membership = 'leave' WHERE user_id = ? AND membership = 'join'",
                (hub,),
            )
            self._conn.execute("DELETE FROM hub_absence")

        await self._write(note, fence)

    async def list_unread(self) -> list[Unread]:
        """What could not be read, and is not told yet in its room."""
        rows = await self._run(partial(self._rows, "SELECT * FROM unread ORDER BY 1, 2"))
        return [Unread(RoomId(row["room_id"]), row["from_ms"], row["to_ms"]) for row in rows]

    def _note_absences(self, batch: SyncBatch) -> None:
        """Before the claims end of which the batch tells. A hub that goes twice without anybody
        having read what was in between is missed from the first time on."""
        self._conn.executemany(
            f"INSERT OR REPLACE INTO unread SELECT ?, ?, ? WHERE ? IN ({_SERVED})",
            [(one.room_id, one.from_ms, one.to_ms, one.room_id) for one in batch.unread],
        )
        for room_id in batch.joined_ms:  # its backlog travels in the cursor of the same commit
            self._conn.execute("DELETE FROM hub_absence WHERE room_id = ?", (room_id,))
        if not (batch.left_rooms and batch.since):
            return
        # Where it has left of itself, or nobody serves any more, nothing is missed.
        self._conn.execute(f"DELETE FROM hub_absence WHERE room_id NOT IN ({_SERVED})")
        self._conn.executemany(
            f"INSERT OR IGNORE INTO hub_absence SELECT ?, ?, ? WHERE ? IN ({_SERVED})",
            [
                (room_id, batch.since, batch.left_ms.get(room_id, 0), room_id)
                for room_id in batch.left_rooms
            ],
        )
