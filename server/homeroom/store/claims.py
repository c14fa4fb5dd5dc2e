"""Which agent serves which room: one per room, unless people took several into one on purpose.

The rule stands in the schema: a home has one claim that is valid, an agent one valid home. Claims
that have ended are kept, so that it can be told who served a room and until when.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from homeroom.errors import Rejected
from homeroom.items import NewItem
from homeroom.model import MARKER_TYPE, AgentId, GhostId, Mapping, RoomId
from homeroom.residence import Claim, Refusal
from homeroom.store.errands import Errands
from homeroom.store.views import Views

_VALID = "stage IN ('joining', 'open')"
_REFUSALS_KEPT = 500
"""Rooms and ghosts of which a refusal is remembered; anybody may invite from any number."""
GHOST_WAS_PUT_OUT = "the agent's user left the room or was put out"
NOBODY_LEFT = "the last person left"
WAS_UPGRADED = "the room was replaced; the agent comes to the new one when it is invited there"
COUNTED = {"invitation": "refused_invitations", "conflict": "room_conflicts"}
"""Where refusals are counted for good."""


@dataclass(frozen=True, slots=True)
class Unsettled:
    """A further room with steps to do: somebody has to come in, or to leave."""

    claim: Claim
    ghost: GhostId
    agent_name: str
    hub_is_invited: bool
    is_last: bool
    """No other agent serves that room."""


@dataclass(frozen=True, slots=True)
class Intruder:
    """A ghost in, or invited to, the home of another agent."""

    room_id: RoomId
    ghost: GhostId
    agent_name: str
    own_room: RoomId | None
    host: GhostId
    host_name: str


class Claims(Views, Errands):
    """Statements about claims, and about what was refused."""

    people_version = 0
    """Counts the commits of this process that changed who is in a room or who serves it."""

    async def list_claims(self) -> list[Claim]:
        """Every claim there is or was, by room, the valid ones first and the oldest first."""
        sql = f"SELECT * FROM room_claim ORDER BY room_id, NOT ({_VALID}), since_ms, agent_id"
        rows = await self._run(partial(self._rows, sql))
        return [claim_of(row) for row in rows]

    async def open_claim(self, claim: Claim, fence: int) -> None:
        """Records that an agent is taken into a further room, before any step of it is done.

        Raises:
            Rejected: the room is a home, of this agent or of another.
        """

        def write() -> None:
            home = f"agent_id = ? AND room_id = ? AND kind = 'home' AND {_VALID}"
            if self._row(f"SELECT 1 FROM room_claim WHERE {home}", (claim.agent_id, claim.room_id)):
                raise Rejected("store", "the room is the agent's own home")
            try:
                self._conn.execute(
                    "INSERT INTO room_claim (room_id, agent_id, kind, stage, since_ms, invited_by,"
                    " is_direct, heard_from_ms) VALUES (?, ?, 'further', 'joining', ?, ?, ?, ?)"
                    " ON CONFLICT DO UPDATE SET kind = 'further', stage = 'joining',"
                    " since_ms = excluded.since_ms, invited_by = excluded.invited_by,"
                    " is_direct = excluded.is_direct, heard_from_ms = excluded.heard_from_ms,"
                    " problem = '', opened_ms = 0, ended_ms = 0, end_reason = ''",
                    (claim.room_id, claim.agent_id, claim.since_ms or self._now_ms(),
                     claim.invited_by, int(claim.is_direct), claim.heard_from_ms),
                )  # fmt: skip
            except sqlite3.IntegrityError as error:
                raise Rejected("store", str(error)) from None
            self.people_version += 1

        await self._write(write, fence)

    async def note_claim_problem(
        self, claim: Claim, hub: GhostId, problem: str, fence: int, then: Sequence[NewItem] = ()
    ) -> None:
        """Says why the hub is not in the room; it is not tried again until somebody invites it."""

        def write() -> None:
            self._conn.execute(
                "UPDATE room_claim SET problem = ? WHERE room_id = ? AND agent_id = ?",
                (problem, claim.room_id, claim.agent_id),
            )
            # An invitation that did not help is none any more.
            self._conn.execute(
                "UPDATE member SET membership = 'leave' WHERE room_id = ? AND user_id = ?"
                " AND membership = 'invite'",
                (claim.room_id, hub),
            )
            self._note_changed([claim.room_id])
            for item in then:
                self._put(item)

        await self._write(write, fence)

    async def end_claims(
        self, room_id: RoomId, reason: str, fence: int, agent_id: AgentId | None = None
    ) -> None:
        """Ends the claims on a further room, or one agent's; ghost and hub leave it in time."""

        def write() -> None:
            if agent_id is None:
                self._end_claims(room_id, reason)
            else:
                self._end_claims(room_id, reason, "agent_id = ?", agent_id)

        await self._write(write, fence)

    def _end_claims(self, room_id: str, reason: str, which: str = "1", *args: str) -> None:
        done = self._conn.execute(
            "UPDATE room_claim SET stage = 'leaving', problem = '', ended_ms = ?, end_reason = ?"
            f" WHERE room_id = ? AND kind = 'further' AND {_VALID} AND {which}",
            (self._now_ms(), reason, room_id, *args),
        )
        if done.rowcount:
            self.people_version += 1

    async def list_guests(self) -> list[tuple[Claim, GhostId]]:
        """The valid claims on further rooms, each with its ghost."""
        rows = await self._run(
            partial(
                self._rows,
                "SELECT c.*, m.ghost FROM room_claim AS c JOIN mapping AS m"
                f" ON m.agent_id = c.agent_id WHERE c.kind = 'further' AND c.{_VALID}"
                " ORDER BY c.room_id, c.agent_id",
            )
        )
        return [(claim_of(row), GhostId(row["ghost"])) for row in rows]

    async def note_hub_out(self, room_id: RoomId, fence: int) -> None:
        """The hub is not in a further room any more."""
        await self._write(partial(self._note_hub_out, room_id), fence)

    def _note_hub_out(self, room_id: str) -> None:
        self._conn.execute(
            "UPDATE room_claim SET stage = 'joining' WHERE room_id = ? AND kind = 'further'"
            " AND stage = 'open'",
            (room_id,),
        )
        self.people_version += 1

    async def retry_claims(self, room_id: RoomId, fence: int) -> None:
        """Forgets why the hub could not come into a further room."""

        def write() -> None:
            self._conn.execute("UPDATE room_claim SET problem = '' WHERE room_id = ?", (room_id,))
            self.people_version += 1

        await self._write(write, fence)

    async def end_stale_claims(self, fence: int) -> None:
        """Ends the claims that what the hub knows contradicts: the ghost is out, or everybody."""

        def write() -> None:
            rows = self._rows(
                "SELECT c.room_id, c.agent_id, b.membership AS ghost_is, (SELECT count(*) FROM"
                " member AS p WHERE p.room_id = c.room_id AND NOT p.is_ghost"
                " AND p.membership IN ('join', 'invite')) AS people"
                " FROM room_claim AS c JOIN mapping AS m ON m.agent_id = c.agent_id"
                " JOIN member AS b ON b.room_id = c.room_id AND b.user_id = m.ghost"
                " WHERE c.kind = 'further' AND c.stage = 'open'"
            )
            for row in rows:
                if row["ghost_is"] not in ("join", "invite"):
                    which = ("agent_id = ?", row["agent_id"])
                    self._end_claims(row["room_id"], GHOST_WAS_PUT_OUT, *which)
                elif not row["people"]:
                    self._end_claims(row["room_id"], NOBODY_LEFT)

        await self._write(write, fence)

    async def settle_claim_left(self, claim: Claim, fence: int) -> None:
        """Records that whoever had to leave has left."""

        def write() -> None:
            self._conn.execute(
                "UPDATE room_claim SET stage = 'left' WHERE room_id = ? AND agent_id = ?"
                " AND stage = 'leaving'",
                (claim.room_id, claim.agent_id),
            )

        await self._write(write, fence)

    def _claim_home(self, mapping: Mapping) -> None:
        """Makes the claims say what the row of an agent says. A home goes before further rooms."""
        held = self._row(
            f"SELECT room_id FROM room_claim WHERE agent_id = ? AND kind = 'home' AND {_VALID}",
            (mapping.agent_id,),
        )
        if (held["room_id"] if held else None) == mapping.room_id:
            return
        if held:
            self._conn.execute(
                "UPDATE room_claim SET stage = 'left', ended_ms = ?, end_reason = ?"
                " WHERE room_id = ? AND agent_id = ?",
                (self._now_ms(), "the agent lives elsewhere now", held["room_id"],
                 mapping.agent_id),
            )  # fmt: skip
        if mapping.room_id:
            others = (f"it is the home of {mapping.agent_id} now", "agent_id != ?")
            self._end_claims(mapping.room_id, *others, mapping.agent_id)
            self._conn.execute(
                "INSERT INTO room_claim (room_id, agent_id, kind, stage, since_ms)"
                " VALUES (?, ?, 'home', 'open', ?) ON CONFLICT DO UPDATE SET kind = 'home',"
                " stage = 'open', since_ms = excluded.since_ms, invited_by = '', is_direct = 0,"
                " problem = '', ended_ms = 0, end_reason = ''",
                (mapping.room_id, mapping.agent_id, self._now_ms()),
            )
        self.people_version += 1

    def _valid_claims(self, room_id: str) -> list[Claim]:
        rows = self._rows(
            f"SELECT * FROM room_claim WHERE room_id = ? AND {_VALID} ORDER BY since_ms, agent_id",
            (room_id,),
        )
        return [claim_of(row) for row in rows]

    # --- what has to be done ----------------------------------------------------------------------

    async def list_unsettled(self, hub: GhostId) -> list[Unsettled]:
        """The further rooms that have steps to do now, oldest first. One with a problem has none
        until the hub is invited there."""

        def read() -> list[Unsettled]:
            rows = self._rows(
                "SELECT c.*, m.ghost, m.agent_name, h.membership AS hub, NOT EXISTS ("
                " SELECT 1 FROM room_claim AS o WHERE o.room_id = c.room_id"
                " AND o.agent_id != c.agent_id AND o.stage IN ('joining', 'open')) AS is_last"
                " FROM room_claim AS c JOIN mapping AS m ON m.agent_id = c.agent_id"
                " LEFT JOIN member AS h ON h.room_id = c.room_id AND h.user_id = ?"
                " WHERE c.stage IN ('joining', 'leaving') AND (c.problem = '' OR"
                " h.membership = 'invite') ORDER BY c.since_ms, c.agent_id",
                (hub,),
            )
            return [
                Unsettled(
                    claim_of(row), GhostId(row["ghost"]), row["agent_name"],
                    row["hub"] == "invite", bool(row["is_last"]),
                )
                for row in rows
            ]  # fmt: skip

        return await self._run(read)

    async def list_intruders(self) -> list[Intruder]:
        """The ghosts of agents that are in, or invited to, the home of another agent."""

        def read() -> list[Intruder]:
            rows = self._rows(
                "SELECT b.room_id, b.user_id, g.agent_name, g.room_id AS own, h.ghost AS host,"
                " h.agent_name AS host_name FROM mapping AS h"
                " JOIN member AS b ON b.room_id = h.room_id"
                " JOIN mapping AS g ON g.ghost = b.user_id AND g.agent_id != h.agent_id"
                " WHERE b.is_ghost AND b.membership IN ('join', 'invite')"
                " ORDER BY b.room_id, b.user_id"
            )
            return [
                Intruder(
                    RoomId(row["room_id"]), GhostId(row["user_id"]), row["agent_name"], row["own"],
                    GhostId(row["host"]), row["host_name"],
                )
                for row in rows
            ]  # fmt: skip

        return await self._run(read)

    async def list_invited_ghosts(self) -> list[GhostId]:
        """The ghosts of agents that the hub has seen invited where it is, homes apart."""
        sql = (
            "SELECT DISTINCT g.ghost FROM member AS b JOIN mapping AS g ON g.ghost = b.user_id"
            " WHERE b.is_ghost AND b.membership = 'invite'"
            " AND NOT EXISTS (SELECT 1 FROM mapping AS h WHERE h.room_id = b.room_id)"
        )
        rows = await self._run(partial(self._rows, sql))
        return [GhostId(row["ghost"]) for row in rows]

    async def list_unclaimed(self, hub: GhostId) -> list[tuple[RoomId, AgentId]]:
        """Rooms in which the hub and agents with a home elsewhere are, and of which nothing was
        ever written down: the hub goes into no other, so a store before this one knew them."""
        sql = (
            "SELECT b.room_id, g.agent_id FROM mapping AS g"
            " JOIN member AS b ON b.user_id = g.ghost AND b.membership = 'join'"
            " JOIN member AS h ON h.room_id = b.room_id AND h.user_id = ? AND h.membership = 'join'"
            " JOIN room_state AS s ON s.room_id = b.room_id AND s.type = 'm.room.create'"
            " WHERE g.room_id IS NOT NULL AND json_extract(s.content, '$.type') IS NULL"
            " AND NOT EXISTS (SELECT 1 FROM room_claim AS c WHERE c.room_id = b.room_id)"
            " AND NOT EXISTS (SELECT 1 FROM mapping AS o WHERE o.room_id = b.room_id)"
            " AND NOT EXISTS (SELECT 1 FROM room_state AS t WHERE t.room_id = b.room_id"
            " AND t.type IN (?, 'm.room.tombstone'))"
            " AND EXISTS (SELECT 1 FROM member AS p WHERE p.room_id = b.room_id"
            " AND NOT p.is_ghost AND p.membership = 'join') ORDER BY b.room_id, g.agent_id"
        )
        rows = await self._run(partial(self._rows, sql, (hub, MARKER_TYPE)))
        return [(RoomId(row["room_id"]), AgentId(row["agent_id"])) for row in rows]

    # --- what was refused ------------------------------------------------------------------------

    async def note_refusal(
        self, refusal: Refusal, fence: int, then: Sequence[NewItem] = ()
    ) -> None:
        """Counts what agents did not go along with; the ghost counts as out of the room."""

        def write() -> None:
            self._conn.execute(
                "INSERT INTO refusal VALUES (?, ?, ?, ?, ?, 1, ?) ON CONFLICT DO UPDATE SET"
                " who = excluded.who, reason = excluded.reason, seen_count = seen_count + 1,"
                " last_ms = excluded.last_ms",
                (refusal.kind, refusal.room_id, refusal.ghost, refusal.who, refusal.reason,
                 self._now_ms()),
            )  # fmt: skip
            self._conn.execute(
                "INSERT INTO meta VALUES (?, '1') ON CONFLICT DO UPDATE SET value = value + 1",
                (COUNTED[refusal.kind],),
            )
            self._conn.execute(
                "UPDATE member SET membership = 'leave' WHERE room_id = ? AND user_id = ?",
                (refusal.room_id, refusal.ghost),
            )
            self._note_changed([refusal.room_id])
            self._conn.execute(
                "DELETE FROM refusal WHERE last_ms <= (SELECT last_ms FROM refusal"
                " ORDER BY last_ms DESC LIMIT 1 OFFSET ?)",
                (_REFUSALS_KEPT,),
            )
            for item in then:
                self._put(item)

        await self._write(write, fence)

    async def list_refusals(self) -> tuple[list[Refusal], dict[str, int]]:
        """What was refused, the newest first, and how often each kind of it ever was."""

        def read() -> tuple[list[Refusal], dict[str, int]]:
            rows = self._rows("SELECT * FROM refusal ORDER BY last_ms DESC")
            found = [
                Refusal(
                    row["kind"], RoomId(row["room_id"]), GhostId(row["ghost"]), row["who"],
                    row["reason"], row["seen_count"], row["last_ms"],
                )
                for row in rows
            ]  # fmt: skip
            counts = {}
            for kind, key in COUNTED.items():
                row = self._row("SELECT value FROM meta WHERE key = ?", (key,))
                counts[kind] = int(row["value"]) if row else 0
            return found, counts

        return await self._run(read)


def claim_of(row: sqlite3.Row) -> Claim:
    """A row of ``room_claim`` as a record."""
    return Claim(
        room_id=RoomId(row["room_id"]), agent_id=AgentId(row["agent_id"]), kind=row["kind"],
        stage=row["stage"], since_ms=row["since_ms"], invited_by=row["invited_by"],
        is_direct=bool(row["is_direct"]), heard_from_ms=row["heard_from_ms"],
        problem=row["problem"], opened_ms=row["opened_ms"], ended_ms=row["ended_ms"],
        end_reason=row["end_reason"],
    )  # fmt: skip
