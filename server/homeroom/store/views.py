"""What is known of the rooms: the state and the members that the hub's sync and audits told.

Every reconciliation reads all of it and hardly any changes it, so it is kept in memory. A token in
the store, new with every change, tells whether another process has changed it.
"""

from __future__ import annotations

import json
import secrets
from collections import defaultdict
from collections.abc import Iterable
from functools import partial

from homeroom.model import Detail, Member, RoomId, RoomTold, RoomView, StateEvent
from homeroom.room_view import view_of
from homeroom.store.items import Items

_TOKEN = "rooms_token"


class Views(Items):
    """Statements about rooms as they are, whoever lives in them."""

    _known: dict[RoomId, RoomView] | None = None
    _known_token = ""
    _stale: frozenset[RoomId] = frozenset()
    """Rooms that we have changed since they were read."""

    async def list_rooms(self, only: RoomId | None = None) -> dict[RoomId, RoomView]:
        """Every room (or the ``only`` one) of which anything is known."""
        return await self._run(partial(self._views, only) if only else self._all_views)

    def _all_views(self) -> dict[RoomId, RoomView]:
        token = self._rooms_token()
        if self._known is None or token != self._known_token:
            self._known = self._views()
        else:
            for room_id in self._stale:
                self._known.pop(room_id, None)
                self._known |= self._views(room_id)
        self._known_token, self._stale = token, frozenset()
        return dict(self._known)

    def _rooms_token(self) -> str:
        row = self._row("SELECT value FROM meta WHERE key = ?", (_TOKEN,))
        return str(row["value"]) if row else ""

    def _note_changed(self, rooms: Iterable[RoomId]) -> None:
        """Belongs to every change of the two tables, in the same commit."""
        ours = self._rooms_token() == self._known_token
        token = secrets.token_hex(8)
        self._conn.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_TOKEN, token))
        if ours:  # else somebody else's changes are read with these
            self._known_token, self._stale = token, self._stale | frozenset(rooms)

    async def note_written(self, event: StateEvent, before: Detail, fence: int) -> None:
        """Records a name or topic that we have just given a room instead of ``before``.

        So nobody takes the old one for a change while the hub's sync is on its way. What that has
        told meanwhile counts for more and stays.
        """

        def write() -> None:
            view = self._views(event.room_id).get(event.room_id, RoomView(event.room_id))
            seen = view.name if event.type == "m.room.name" else view.topic
            if view.known and seen == before:
                self._record_state([event])
                self._note_changed([event.room_id])

        await self._write(write, fence)

    def _views(self, room_id: RoomId | None = None) -> dict[RoomId, RoomView]:
        which, args = ("WHERE room_id = ?", (room_id,)) if room_id else ("", ())
        state: dict[str, list[StateEvent]] = defaultdict(list)
        members: dict[str, dict[str, str]] = defaultdict(dict)
        for row in self._rows(f"SELECT * FROM room_state {which}", args):
            content = json.loads(row["content"])
            state[row["room_id"]].append(
                StateEvent(row["room_id"], row["type"], row["state_key"], content, row["sender"])
            )
        for row in self._rows(f"SELECT room_id, user_id, membership FROM member {which}", args):
            members[row["room_id"]][row["user_id"]] = row["membership"]
        rooms = [RoomId(name) for name in sorted(state.keys() | members.keys())]
        return {room: view_of(room, state[room], members[room]) for room in rooms}

    def _replace_room(self, room_id: RoomId, told: RoomTold) -> None:
        self._conn.execute("DELETE FROM room_state WHERE room_id = ?", (room_id,))
        self._conn.execute("DELETE FROM member WHERE room_id = ?", (room_id,))
        self._record_state(told.state)
        for member in told.members:
            self._record_member(member, member.user_id in told.ghosts)
        self._note_changed([room_id])

    def _record_made(self, made: RoomTold) -> None:
        """What a room of our making has in it; what was heard of it meanwhile stays."""
        self._record_state(made.state, known_wins=True)
        for member in made.members:
            self._record_member(member, member.user_id in made.ghosts, known_wins=True)
        self._note_changed({told.room_id for told in made.state})

    def _record_state(self, events: Iterable[StateEvent], *, known_wins: bool = False) -> None:
        """``known_wins``: what is there already stays."""
        self._conn.executemany(
            f"INSERT OR {'IGNORE' if known_wins else 'REPLACE'} INTO room_state"
            " VALUES (?, ?, ?, ?, ?)",
            [
                (event.room_id, event.type, event.state_key, json.dumps(event.content),
                 event.sender)
                for event in events
            ],
        )  # fmt: skip

    def _record_member(self, member: Member, is_ghost: bool, *, known_wins: bool = False) -> None:
        self._conn.execute(
            f"INSERT OR {'IGNORE' if known_wins else 'REPLACE'} INTO member"
            " VALUES (?, ?, ?, ?, ?)",
            (member.room_id, member.user_id, member.membership, member.display_name,
             int(is_ghost)),
        )  # fmt: skip
