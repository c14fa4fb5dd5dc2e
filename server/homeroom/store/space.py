"""The row of the space, and what the reconciler itself has changed in the rooms."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from homeroom.model import Avatar, RoomId, RoomTold, Space, StateEvent
from homeroom.store.views import Views


class SpaceRow(Views):
    """Statements about the one space there is."""

    async def get_space(self) -> Space:
        """The row of the space; an empty one if nothing was done for it yet."""
        row = await self._run(partial(self._row, "SELECT * FROM space"))
        if row is None:
            return Space()
        return Space(
            room_id=row["room_id"], name=row["name"], invited=frozenset(json.loads(row["invited"])),
            avatar=read_avatar(row["avatar"]), refused_actions=read_pairs(row["refused_actions"]),
            alias_room=row["alias_room"], absent=frozenset(json.loads(row["absent"])),
        )  # fmt: skip

    async def save_space(self, space: Space, fence: int) -> None:
        """Records what was applied. Raises LeaseLost."""
        row = (
            space.room_id, space.name, json.dumps(sorted(space.invited)),
            dump_avatar(space.avatar), json.dumps(space.refused_actions), space.alias_room,
            json.dumps(sorted(space.absent)),
        )  # fmt: skip
        sql = (
            "INSERT OR REPLACE INTO space (only_one, room_id, name, invited, avatar,"
            " refused_actions, alias_room, absent) VALUES (1, ?, ?, ?, ?, ?, ?, ?)"
        )
        await self._write(lambda: self._conn.execute(sql, row), fence)

    async def save_state(self, events: Sequence[StateEvent], fence: int) -> None:
        """Records state that the homeserver took from us, before the hub's sync tells it back.

        So a sync that ends before then, or runs where nobody reads the rooms, plans it only once.
        """

        def write() -> None:
            self._record_state(events)
            self._note_changed({event.room_id for event in events})

        await self._write(write, fence)

    async def save_told(self, made: RoomTold, fence: int) -> None:
        """Records what a room of our making has in it; what was heard of it meanwhile stays."""
        await self._write(partial(self._record_made, made), fence)

    async def save_seen(self, room_id: RoomId, told: RoomTold, fence: int) -> None:
        """Records how a room was found when somebody went to look."""
        await self._write(partial(self._replace_room, room_id, told), fence)


def read_avatar(text: str) -> Avatar:
    return Avatar(**json.loads(text))


def dump_avatar(avatar: Avatar) -> str:
    return json.dumps(asdict(avatar))


def read_pairs(text: str) -> tuple[tuple[str, str], ...]:
    return tuple((key, value) for key, value in json.loads(text))
