"""The rows about rooms: mappings, events, members, conversations, and the hub's cursor."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Mapping as Dict
from dataclasses import replace
from functools import partial

from homeroom.errors import Rejected
from homeroom.items import Accepted, NewItem, lane_of_turns
from homeroom.model import (
    AgentId,
    ConversationId,
    Mapping,
    Member,
    RoomId,
    RoomTold,
    RoomView,
    SyncBatch,
)
from homeroom.store.absences import Absences
from homeroom.store.claims import GHOST_WAS_PUT_OUT, NOBODY_LEFT, WAS_UPGRADED
from homeroom.store.mappings import COLUMNS, PLACES, dump_mapping, read_mapping
from homeroom.store.routing import Announce, Decide, Routing, TellUnread
from homeroom.store.space import SpaceRow


def _tell_nothing(*_: object) -> Sequence[NewItem]:
    return ()


HUB_IS_OUT = "The hub is not in the room any more, so nothing said there is heard."
GHOST_IS_OUT = "The agent's user is not in the room any more, so it cannot answer there."
_AT_ONCE = 50
"""Rooms of one commit: others write meanwhile."""
AUDITED_MS = "audited_ms"
"""Names when (ms) everything was last looked at."""
INVITED_AGAIN = "Invited into the room again; the next sync accepts."


class Rooms(SpaceRow, Absences, Routing):
    """Statements about rooms; routing an event puts its items in the same commit."""

    async def list_mappings(self) -> dict[AgentId, Mapping]:
        rows = await self._run(partial(self._rows, "SELECT * FROM mapping"))
        return {AgentId(row["agent_id"]): read_mapping(row) for row in rows}

    async def find_mapping(self, agent_id: AgentId) -> Mapping | None:
        row = await self._run(
            partial(self._row, "SELECT * FROM mapping WHERE agent_id = ?", (agent_id,))
        )
        return read_mapping(row) if row else None

    async def find_homes(self, name: str) -> list[Mapping]:
        """The rows of the agents with that id or exactly that name that are not retired."""
        sql = "SELECT * FROM mapping WHERE NOT retired AND ? IN (agent_id, agent_name)"
        return [read_mapping(row) for row in await self._run(partial(self._rows, sql, (name,)))]

    async def save_mapping(
        self, mapping: Mapping, decide: Decide, fence: int, then: Sequence[NewItem] = (), *,
        joined: bool = False, made: RoomTold | None = None,
    ) -> None:  # fmt: skip
        """Records what was applied; events that waited for this room are routed in the same commit,
        and the items ``then`` that follow from it are put.

        That the hub is out of the room may have been heard meanwhile: only who has just had it
        ``joined`` overrules that. ``made`` is what a room of our making has in it. Agent and
        conversations move along when the room is another one than before.

        Raises:
            Rejected: the room already belongs to another agent.
            LeaseLost: another process runs the bridge.
        """

        def save(mapping: Mapping) -> None:
            try:
                self._conn.execute(
                    f"INSERT OR REPLACE INTO mapping ({COLUMNS}) VALUES ({PLACES})",
                    dump_mapping(mapping),
                )
            except sqlite3.IntegrityError as error:
                raise Rejected(
                    "store", f"room or ghost is taken by another agent: {error}"
                ) from None
            if made:
                self._record_made(made)
            self._claim_home(mapping)
            if mapping.room_id:
                self._route_room(mapping.room_id, decide)
            for item in then:
                self._put(item)

        def guarded() -> None:
            taken = self._row(
                "SELECT agent_id FROM mapping WHERE agent_id != ? AND (ghost = ? OR room_id = ?)",
                (mapping.agent_id, mapping.ghost, mapping.room_id),
            )
            if taken:  # OR REPLACE would silently delete the other agent's row
                raise Rejected("store", f"its ghost or room already belongs to {taken['agent_id']}")
            old = self._row("SELECT * FROM mapping WHERE agent_id = ?", (mapping.agent_id,))
            if old and old["room_id"] and mapping.room_id and old["room_id"] != mapping.room_id:
                self._move_conversations(mapping.agent_id, old["room_id"], mapping.room_id)
            out = old and old["room_id"] == mapping.room_id and not old["hub_joined"]
            save(replace(mapping, hub_joined=mapping.hub_joined and (joined or not out)))

        await self._write(guarded, fence)

    async def ask_audit(self, fence: int) -> None:
        """Has the next sync look at everything itself."""

        def forget() -> None:
            self._conn.execute("DELETE FROM meta WHERE key = ?", (AUDITED_MS,))

        await self._write(forget, fence)

    async def save_audit(
        self, before: Dict[AgentId, Mapping], after: Dict[AgentId, Mapping],
        rooms: Dict[RoomId, RoomView], told: Dict[RoomId, RoomTold], fence: int, *,
        audited_ms: int | None = None,
    ) -> None:  # fmt: skip
        """Records what an audit saw, which began when the rows were ``before`` and the rooms
        ``rooms``. What has changed since then was told by somebody who knows better, and stays."""

        def save(ids: Sequence[RoomId]) -> None:
            for room_id in ids:
                if self._views(room_id).get(room_id) == rooms.get(room_id):
                    self._replace_room(room_id, told[room_id])

        def save_rows() -> None:
            self._conn.executemany(
                "UPDATE mapping SET ghost_ready = ?, display_name = ?, alias_room = ?,"
                " hub_joined = ?, problem = ? WHERE agent_id = ? AND room_id IS ?"
                " AND hub_joined = ? AND problem = ?",
                [
                    (int(now.ghost_ready), now.display_name, now.alias_room, int(now.hub_joined),
                     now.problem, now.agent_id, now.room_id, int(old.hub_joined), old.problem)
                    for now, old in ((row, before[agent_id]) for agent_id, row in after.items())
                    if now != old
                ],
            )  # fmt: skip
            if audited_ms is not None:
                self._conn.execute(
                    "INSERT OR REPLACE INTO meta VALUES (?, ?)", (AUDITED_MS, str(audited_ms))
                )

        ids = sorted(told)
        for start in range(0, len(ids), _AT_ONCE):
            await self._write(partial(save, ids[start : start + _AT_ONCE]), fence)
        await self._write(save_rows, fence)

    def _move_conversations(self, agent_id: AgentId, old: RoomId, new: RoomId) -> None:
        """What was said in the old room is known in the new one, and what waits there comes first.

        So the agent is still given one message at a time.
        """
        self._conn.execute(
            "UPDATE OR IGNORE conversation SET scope = ? WHERE agent_id = ? AND scope = ?",
            (new, agent_id, old),
        )
        lanes = [lane_of_turns(agent_id, scope) for scope in (new, old)]
        self._conn.execute(
            "UPDATE item SET lane = ?, payload = json_set(payload, '$.scope', ?)"
            " WHERE lane = ? AND state IN ('waiting', 'claimed', 'delivering', 'parked')",
            (lanes[0], new, lanes[1]),
        )

    async def save_missing(self, mappings: Iterable[Mapping], fence: int) -> None:
        """Records since when these agents are missing in Letta, and nothing else of their rows."""
        rows = [(m.missing_since_ms, m.missing_seen, m.agent_id) for m in mappings]

        def save() -> None:
            self._conn.executemany(
                "UPDATE mapping SET missing_since_ms = ?, missing_seen = ? WHERE agent_id = ?", rows
            )

        if rows:
            await self._write(save, fence)

    async def save_people(
        self, mappings: Iterable[Mapping], errands: Iterable[int], fence: int
    ) -> None:
        """Records whom these agents have invited, and nothing else of their rows; with it the
        errands are done that asked for it."""
        rows = [
            (json.dumps(sorted(m.invited)), json.dumps(m.refused), m.agent_id) for m in mappings
        ]

        def save() -> None:
            self._conn.executemany(
                "UPDATE mapping SET invited = ?, refused = ? WHERE agent_id = ?", rows
            )
            self._finish_errands(errands)

        await self._write(save, fence)

    async def list_rooms_of(self, user_id: str) -> frozenset[RoomId]:
        """The rooms that a user is in or invited to, as far as the hub knows."""
        sql = "SELECT room_id FROM member WHERE user_id = ? AND membership IN ('join', 'invite')"
        rows = await self._run(partial(self._rows, sql, (user_id,)))
        return frozenset(RoomId(row["room_id"]) for row in rows)

    # --- events -------------------------------------------------------------------------------

    async def get_cursor(self) -> str:
        """Where the hub's sync continues; empty on the very first start."""
        return await self.get_meta("hub_cursor")

    async def get_heard_ms(self) -> int:
        """When the hub had last heard all there was (ms, our clock); 0 before the first time."""
        return int(await self.get_meta("hub_heard_ms") or 0)

    async def record_batch(
        self, batch: SyncBatch, decide: Decide, is_ghost: Callable[[str], bool], fence: int,
        announce: Announce = _tell_nothing, tell_unread: TellUnread = _tell_nothing,
    ) -> list[Accepted]:  # fmt: skip
        """Stores events, state, memberships and the cursor, and routes what can be routed: one
        commit.

        An event that is there already (by its id) is left alone. A mapping whose room the hub or
        the ghost is no longer in is marked for the next sync, with the problem. What came too late
        is announced in its room once the backlog is complete, and so is when nobody could read it
        (``tell_unread``), as soon as a ghost can.

        Returns the newest message of each room that was accepted for its agent.
        """

        def record() -> list[Accepted]:
            now, accepted = self._now_ms(), list[Accepted]()
            for member in batch.members:
                self._record_member(member, is_ghost(member.user_id))
                if is_ghost(member.user_id):
                    self._note_membership(member)
            self._record_state(batch.state)
            if batch.members or batch.state:
                changed = {event.room_id for event in batch.state}
                self._note_changed(changed | {member.room_id for member in batch.members})
            self._note_absences(batch)
            self._note_further_rooms(batch, is_ghost)
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
                accepted += self._route_room(room_id, decide)
            self._conn.execute(
                "INSERT OR REPLACE INTO meta VALUES ('hub_cursor', ?)", (batch.cursor,)
            )
            if not batch.has_more:
                self._conn.execute(
                    "INSERT OR REPLACE INTO meta VALUES ('hub_heard_ms', ?)", (str(now),)
                )
                self._announce_held(announce)
                self._announce_unread(tell_unread)
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

    def _note_further_rooms(self, batch: SyncBatch, is_ghost: Callable[[str], bool]) -> None:
        """Ends the claims of ghosts that are out, and of rooms that people have given up."""
        # A room that the hub has just joined tells of comings and goings long past, too.
        last = {(member.room_id, member.user_id): member for member in batch.members}
        for member in last.values():
            if member.membership not in ("leave", "ban"):
                continue
            if is_ghost(member.user_id):
                which = "agent_id = (SELECT agent_id FROM mapping WHERE ghost = ?)"
                self._end_claims(member.room_id, GHOST_WAS_PUT_OUT, which, member.user_id)
            elif not self._people_in(member.room_id, "join", "invite"):
                self._end_claims(member.room_id, NOBODY_LEFT)
        for event in batch.state:
            if event.type == "m.room.tombstone" and event.content:
                self._end_claims(event.room_id, WAS_UPGRADED)
        for room_id in batch.left_rooms:
            self._note_hub_out(room_id)
        if batch.members or batch.left_rooms:
            self.people_version += 1

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
