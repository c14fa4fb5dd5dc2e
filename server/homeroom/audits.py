"""When the rooms themselves are looked at, and what becomes of what is seen there.

Owns how often that is. It is due when somebody asks, when the last time is long ago, and for a room
of which nothing is known: one of a store older than the keeping of state. Invariant: whatever could
not be looked at is reported and keeps nothing else from its sync.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from collections.abc import Mapping as Dict
from dataclasses import dataclass, field, replace

from homeroom.audit import Seen, audit
from homeroom.errors import HomeroomError
from homeroom.matrix import Matrix
from homeroom.model import SPACE_LOCALPART, AgentId, Mapping, RoomId, RoomView, Space
from homeroom.spaces import look_at_space
from homeroom.store import AUDITED_MS, Store


@dataclass(slots=True)
class Audits:
    """Looks whenever it is time to."""

    store: Store
    matrix: Callable[[], Awaitable[Matrix]]
    interval_s: float
    _looked_at: set[RoomId] = field(default_factory=set)

    async def look(
        self, mappings: dict[AgentId, Mapping], rooms: dict[RoomId, RoomView], space: Space, *,
        asked: bool, now_ms: int, fence: int | None,
    ) -> tuple[Seen | None, Space]:  # fmt: skip
        """What an audit sees, if one is due, and the row of the space after it; recorded unless
        there is no ``fence``."""
        since_ms = now_ms - int(await self.store.get_meta(AUDITED_MS) or 0)
        # A time that lies ahead was written by a clock that has been set back since.
        whole = asked or not 0 <= since_ms < self.interval_s * 1000
        unknown = self._unknown(mappings, rooms)
        which = mappings if whole else unknown
        if not which and not (whole and space.room_id):
            if whole and fence is not None:  # a new store: what it makes, it knows
                await self.store.save_audit({}, {}, {}, {}, fence, audited_ms=now_ms)
            return None, space
        matrix = await self.matrix()
        seen, before = await audit(matrix, which, rooms), space
        if whole and space.room_id and seen.complete:
            space = await self._look_at_space(matrix, space, space.room_id, seen)
        if fence is not None:
            self._looked_at |= {row.room_id for row in unknown.values() if row.room_id}
            done_ms = now_ms if whole and seen.complete else None
            await self.store.save_audit(
                which, seen.mappings, rooms, seen.told, fence, audited_ms=done_ms
            )
            if space != before:
                await self.store.save_space(space, fence)
        return seen, space

    def _unknown(
        self, mappings: Dict[AgentId, Mapping], rooms: Dict[RoomId, RoomView]
    ) -> dict[AgentId, Mapping]:
        return {
            agent_id: row
            for agent_id, row in mappings.items()
            if row.room_id and row.hub_joined and row.room_id not in self._looked_at
            and not rooms.get(row.room_id, RoomView(row.room_id)).known
        }  # fmt: skip

    async def _look_at_space(
        self, matrix: Matrix, space: Space, room_id: RoomId, seen: Seen
    ) -> Space:
        try:
            await look_at_space(matrix, room_id, seen.rooms, seen.told)
            alias_room = await matrix.find_room(matrix.alias(SPACE_LOCALPART))
        except HomeroomError as error:
            seen.unread.append(f"the space: {error}")
            return space
        return replace(space, alias_room=alias_room or "")
