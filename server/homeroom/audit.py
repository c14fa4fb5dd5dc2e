"""A slow look at everything the hub's sync should have told: rooms, members, aliases, ghosts.

Owns what is asked of the homeserver, and how much at once. Changes nothing there, and decides
nothing: what it saw goes into the store, and ``plan`` acts on it. Invariant: whatever could not be
looked at is left as it was and reported, and stops nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import dataclass, field, replace

import anyio

from homeroom.errors import HomeroomError, Rejected
from homeroom.matrix import Matrix
from homeroom.model import AgentId, Mapping, RoomId, RoomTold, RoomView, ghost_localpart
from homeroom.room_view import view_of
from homeroom.store import GHOST_IS_OUT, HUB_IS_OUT

AT_ONCE = 4
"""Homes looked at side by side: an audit has time, and people are waiting for answers."""


@dataclass(slots=True)
class Seen:
    """What an audit saw, laid over what was known."""

    mappings: dict[AgentId, Mapping]
    rooms: dict[RoomId, RoomView]
    told: dict[RoomId, RoomTold] = field(default_factory=dict)
    """The rooms that are not as they were known."""
    unread: list[str] = field(default_factory=list)
    """What could not be looked at, and why."""
    complete: bool = True
    """Single homes aside, all was looked at."""


async def audit(
    matrix: Matrix, which: Dict[AgentId, Mapping], rooms: Dict[RoomId, RoomView]
) -> Seen:
    """Looks at the homes ``which``: their state and members, their alias, their ghost's name."""
    seen = Seen(dict(which), dict(rooms))
    try:
        hubs = await matrix.joined_rooms(matrix.hub)
    except HomeroomError as error:
        seen.unread.append(f"the hub's rooms: {error}")
        seen.complete = False
        return seen
    limiter = anyio.CapacityLimiter(AT_ONCE)

    async def one(mapping: Mapping) -> None:
        async with limiter:
            try:
                await _look(matrix, mapping, hubs, seen)
            except HomeroomError as error:
                seen.unread.append(f"{mapping.agent_name or mapping.agent_id}: {error}")

    async with anyio.create_task_group() as group:
        for _, mapping in sorted(which.items()):
            group.start_soon(one, mapping)
    return seen


async def _look(matrix: Matrix, mapping: Mapping, hubs: frozenset[RoomId], seen: Seen) -> None:
    row = mapping
    name = await matrix.find_display_name(mapping.ghost)
    if mapping.ghost_ready and name is None:
        row = replace(row, ghost_ready=False, display_name="")
    elif mapping.display_name and name is not None:
        row = replace(row, display_name=name)
    if mapping.room_id and not mapping.room_gone:
        alias = matrix.alias(ghost_localpart(mapping.agent_id))
        row = replace(row, alias_room=await matrix.find_room(alias) or "")
        hub_is_in = mapping.room_id in hubs
        view = await _look_into(matrix, mapping, mapping.room_id, hub_is_in, seen)
        ghost_is_in = view is not None and view.members.get(mapping.ghost) == "join"
        if row.hub_joined and not (hub_is_in and ghost_is_in):
            problem = GHOST_IS_OUT if hub_is_in else HUB_IS_OUT
            row = replace(row, hub_joined=False, problem=problem)
    seen.mappings[mapping.agent_id] = row


async def _look_into(
    matrix: Matrix, mapping: Mapping, room_id: RoomId, hub_is_in: bool, seen: Seen
) -> RoomView | None:
    """The room as it is now; None if neither the hub nor the ghost is in it, and may see that."""
    reader = matrix.hub if hub_is_in else mapping.ghost
    try:
        state, members = await matrix.room_state(reader, room_id)
    except Rejected as refusal:
        if refusal.code not in ("M_FORBIDDEN", "M_NOT_FOUND"):
            raise
        return None
    view = view_of(room_id, state, {member.user_id: member.membership for member in members})
    if view.members.get(reader) != "join":
        return None  # what one who has left is shown is the past
    if view != seen.rooms.get(room_id):
        ghosts = frozenset(m.user_id for m in members if matrix.is_ghost(m.user_id))
        seen.told[room_id] = RoomTold(state, members, ghosts)
        seen.rooms[room_id] = view
    return view
