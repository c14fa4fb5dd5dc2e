"""The rooms that Homeroom serves, and what was said in them, for whoever asks through a tool.

Owns finding a room from what a person or a model calls it, and its cursors. Reads the homeserver
as the hub, and only rooms that the store names: what else the hub may be in is nobody's business.
"""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from homeroom.cursors import read_cursor, refused_cursor, write_cursor
from homeroom.directory import CANDIDATES
from homeroom.errors import Ambiguous, NotFound, Rejected, is_handle
from homeroom.matrix import Matrix
from homeroom.model import Agent
from homeroom.plan import alias_of
from homeroom.reading import RoomPage, RoomTranscript, ServedRoom
from homeroom.store import Store


class Rooms:
    """Served rooms by id, alias, name or agent."""

    def __init__(
        self,
        store: Store,
        matrix: Callable[[], Awaitable[Matrix]],
        find_agent: Callable[[str], Awaitable[Agent]],
        server_name: str,
    ) -> None:
        self._store, self._matrix, self._find_agent = store, matrix, find_agent
        self._server_name = server_name

    async def page(self, agent: str, limit: int, cursor: str) -> RoomPage:
        """Rooms (those of ``agent``, id or name, if given), the most lately active first.

        The cursor survives a restart; a room that becomes active meanwhile moves to the first page.

        Raises:
            NotFound, Ambiguous: no such agent.
            Misuse: a cursor that is none of ours.
        """
        rooms = await self._all()
        if agent:
            found = await self._find_agent(agent)
            rooms = [room for room in rooms if room.agent_id == found.id]
        rooms = sorted(rooms, key=_order)
        rest = rooms
        if cursor:
            active, last = read_cursor(cursor, int, str, tool="list_rooms")
            rest = [room for room in rooms if _order(room) > (active, last)]
        page = tuple(replace(room, cursor=write_cursor(*_order(room))) for room in rest[:limit])
        more = page[-1].cursor if len(rest) > limit else ""
        return RoomPage(page, len(rooms), more)

    async def read(self, name: str, limit: int, cursor: str) -> RoomTranscript:
        """Messages of one room, newest first, going back page by page.

        Raises:
            NotFound, Ambiguous: no such room.
            Misuse: a cursor that is none of this room's.
            Unsupported: Matrix is not configured.
            Rejected, Unavailable: the homeserver does not give them.
        """
        matrix = await self._matrix()
        room, start = await self.resolve(name), ""
        if cursor:
            of_room, start = read_cursor(cursor, str, str, tool="read_room")
            if of_room != room.id:
                raise refused_cursor("of another room")
        try:
            page = await matrix.messages(room.id, start, limit)
        except Rejected as refusal:
            if refusal.code not in ("M_FORBIDDEN", "M_NOT_FOUND"):
                raise
            which = room.id if is_handle(room.id) else "that room"
            raise Rejected(
                "matrix",
                f"{matrix.hub} may not read {which}: it has to be invited again",
                refusal.code,
            ) from None
        ghosts = frozenset(m.sender for m in page.messages if matrix.is_ghost(m.sender))
        more = write_cursor(room.id, page.end) if page.end else ""
        begins = cursor or (write_cursor(room.id, page.start) if page.start else "")
        return RoomTranscript(room, page.messages, ghosts, more, begins)

    async def resolve(self, name: str) -> ServedRoom:
        """The room with that id, alias or name, or the room of the agent with that id or name.

        Raises NotFound with ids that exist, Ambiguous with the ids that share the name.
        """
        name = name.strip()
        rooms = await self._all()
        if not name.startswith(("!", "#")):
            named = [room for room in rooms if room.name == name]
            agents = await self._rooms_of_agent(name, rooms)
            matching = agents or named
        else:
            matching = [room for room in rooms if name in (room.id, room.alias)]
        if len({room.id for room in matching}) == 1:
            return matching[0]
        if matching:
            raise Ambiguous("room", name, sorted({room.id for room in matching}))
        handles = {h for r in rooms for h in (r.agent_name, r.alias, r.id) if is_handle(h)}
        near = difflib.get_close_matches(name, handles, CANDIDATES, 0.4)
        raise NotFound("room", name, near, "list_rooms shows them.")

    async def _rooms_of_agent(self, name: str, rooms: Sequence[ServedRoom]) -> list[ServedRoom]:
        # By what the store knows first: rooms can be read while Letta is away.
        for same in (
            [room for room in rooms if room.agent_id == name],
            [room for room in rooms if room.agent_name == name],
        ):
            if same:
                return _homes_of(same)
        try:
            agent = await self._find_agent(name)
        except NotFound:
            return []
        return _homes_of([room for room in rooms if room.agent_id == agent.id])

    async def _all(self) -> list[ServedRoom]:
        return [
            replace(room, alias=alias_of(room.agent_id, self._server_name) if room.is_home else "")
            for room in await self._store.list_served_rooms()
        ]


def _homes_of(rooms: list[ServedRoom]) -> list[ServedRoom]:
    """What the name of an agent means among its rooms: its home, if it has one."""
    return [room for room in rooms if room.is_home] or rooms


def _order(room: ServedRoom) -> tuple[int, str]:
    return -room.active_ms, f"{room.id} {room.agent_id}"  # a room of several has a row for each
