"""The one space in which all agent rooms hang: found again or made, and hung with rooms.

Owns what is asked of the homeserver for it. Invariant: before a space is made, every place is
looked at in which an earlier one could be.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from collections.abc import MutableMapping

from homeroom.errors import Rejected
from homeroom.matrix import CHILD_TYPE, PARENT_TYPE, Matrix, child_content, parent_content
from homeroom.model import (
    MARKER_TYPE,
    SPACE_LOCALPART,
    Action,
    GhostId,
    Json,
    Mapping,
    Member,
    RoomId,
    RoomSpec,
    RoomTold,
    RoomView,
    Space,
    StateEvent,
)
from homeroom.plan import Keep, may_write
from homeroom.room_view import view_of

SPACE_TOPIC = "The rooms of the Letta agents. One agent, one room."


def space_spec(
    name: str, invite: tuple[str, ...], admins: tuple[str, ...], version: str, store_id: str,
    avatar: Json,
) -> RoomSpec:  # fmt: skip
    """The space as it shall be created, by the hub."""
    return RoomSpec(
        alias_localpart=SPACE_LOCALPART, name=name, topic=SPACE_TOPIC, invite=invite,
        admins=admins, version=version, marker={"space": True, "store_id": store_id},
        avatar=avatar, is_space=True,
    )  # fmt: skip


async def find_space(
    matrix: Matrix, spec: RoomSpec, dead: RoomId | None, rooms: Dict[RoomId, RoomView]
) -> RoomId | None:
    """A space of ours that can be used: where the alias points, what took the place of the ``dead``
    one (which a person has upgraded), or any room of the hub's that is marked as the space. What
    ``rooms`` says of a room is not asked again.

    The alias is taken off anything else, so that a new space can have it.
    """
    gone = rooms.get(dead) if dead else None
    replacement = gone.replacement if gone else None
    if replacement and await _take_over(matrix, replacement, spec):
        return replacement
    alias = matrix.alias(SPACE_LOCALPART)
    named = await matrix.find_room(alias)
    joined = await matrix.joined_rooms(matrix.hub)
    others = sorted(room for room in joined - {named} if _may_be_one(rooms.get(room)))
    for room_id in [named, *others] if named in joined else others:
        if room_id and room_id != dead and await _is_usable(matrix, room_id, named):
            return room_id
    if named:
        await matrix.remove_alias(matrix.hub, alias)
    return None


def _may_be_one(view: RoomView | None) -> bool:
    return view is None or not view.known or bool(view.marker.get("space"))


async def _is_usable(matrix: Matrix, room_id: RoomId, named: RoomId | None) -> bool:
    """Whether the room is marked as the space. Anybody may take the hub into a room of theirs and
    mark that, so without our alias only a mark of our own counts."""
    marker, by = await matrix.find_state(matrix.hub, room_id, MARKER_TYPE) or ({}, "")
    if not marker.get("space") or not (room_id == named or matrix.is_ghost(by)):
        return False
    return await matrix.get_state(matrix.hub, room_id, "m.room.tombstone") is None


async def _take_over(matrix: Matrix, room_id: RoomId, spec: RoomSpec) -> bool:
    """Whether the hub is let into the room and may mark it, and so run it."""
    try:
        await matrix.ensure_joined(matrix.hub, room_id)
        await matrix.put_state(matrix.hub, room_id, MARKER_TYPE, spec.marker)
    except Rejected:
        return False
    return True


async def look_at_space(
    matrix: Matrix,
    space_id: RoomId,
    rooms: MutableMapping[RoomId, RoomView],
    told: MutableMapping[RoomId, RoomTold],
) -> None:
    """Lays over what is known of the space what the hub sees of it now: an audit's look.

    A space that was purged is no room that the hub has left, and its sync tells of neither.
    """
    if space_id in await matrix.joined_rooms(matrix.hub):
        state, members = await matrix.room_state(matrix.hub, space_id)
    else:  # what marks it is kept, so that the rooms that name it are known to name a former one
        state = (StateEvent(space_id, MARKER_TYPE, "", {"space": True}, matrix.hub),)
        members = (Member(space_id, matrix.hub, "leave"),)
    view = view_of(space_id, state, {member.user_id: member.membership for member in members})
    if view != rooms.get(space_id):
        ghosts = frozenset(m.user_id for m in members if matrix.is_ghost(m.user_id))
        told[space_id] = RoomTold(state, members, ghosts)
        rooms[space_id] = view


async def change_space(
    matrix: Matrix, action: Action, space: Space, keep: Keep
) -> list[StateEvent]:
    """Gives the space its name or its alias, or somebody an invitation. What has changed.

    A name that a person gave it stays where the policy says so, also if it is not known any more
    what we called it.
    """
    room_id, hub = space.room_id, matrix.hub
    assert room_id
    match action.kind:
        case "invite_to_space":
            await matrix.invite(hub, room_id, action.value)
        case "set_space_alias":
            await matrix.point_alias(hub, action.value, room_id)
        case _:
            content, sender = await matrix.find_state(hub, room_id, "m.room.name") or ({}, "")
            current = content.get("name")
            current = current if isinstance(current, str) else ""
            ours = matrix.is_ghost(sender) if sender else None
            if may_write("name", space.name, current, ours=ours, keep=keep):
                await matrix.set_name(hub, room_id, action.value)
                return [StateEvent(room_id, "m.room.name", "", {"name": action.value}, hub)]
    return []


async def apply_place(
    matrix: Matrix, action: Action, mapping: Mapping, space_id: RoomId, old: list[RoomId]
) -> list[StateEvent]:
    """Hangs an agent's room in the space, or takes a former room of it out. What has changed.

    ``old`` are spaces that the room shall not name any more.
    """
    room_id, hub, ghost = mapping.room_id, matrix.hub, mapping.ghost
    assert room_id
    child, parent = child_content(matrix.server_name), parent_content(matrix.server_name)
    match action.kind:
        case "add_to_space":
            changes = [StateEvent(space_id, CHILD_TYPE, room_id, child, hub)]
        case "remove_from_space":
            changes = [StateEvent(space_id, CHILD_TYPE, action.value, {}, hub)]
        case _:
            changes = [StateEvent(room_id, PARENT_TYPE, space_id, parent, ghost)]
            changes += [StateEvent(room_id, PARENT_TYPE, gone, {}, ghost) for gone in old]
    for event in changes:
        await matrix.put_state(
            GhostId(event.sender), event.room_id, event.type, event.content, event.state_key
        )
    return changes
