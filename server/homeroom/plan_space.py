"""What surrounds an agent's room: the space it hangs in, and the pictures. Pure, part of ``plan``.

Every action here is a side action: one that fails is reported and waits, and nothing else waits
for it. What hangs where is read from what the rooms themselves were last heard to say.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping as Dict
from dataclasses import dataclass, replace
from typing import Any, TypeVar, get_args

from homeroom.avatar import MIME_TYPE, SIZE_PX, avatar_digest, avatar_png
from homeroom.model import (
    HUB_LOCALPART,
    SPACE_AGENT,
    SPACE_LOCALPART,
    Action,
    ActionKind,
    AgentId,
    Avatar,
    Mapping,
    RoomId,
    RoomView,
    SideKind,
    Space,
    StateEvent,
)

SIDE_KINDS: frozenset[ActionKind] = frozenset(get_args(SideKind))
"""Kinds of which a failure is a matter of that action alone."""
LONE_KINDS: frozenset[ActionKind] = SIDE_KINDS | {"write_history", "invite_person"}
"""Kinds of which a failure delays nothing else, so that each is put off by itself."""
INVITATIONS: frozenset[ActionKind] = frozenset({"invite_person", "invite_to_space"})
AVATAR_KINDS: frozenset[ActionKind] = frozenset({"upload_avatar", "set_avatar", "set_room_avatar"})
HUB_SEED = HUB_LOCALPART
"""What the picture of the hub and of the space is drawn from; no id of Letta's is like it."""

Step = tuple[ActionKind, str, str]
"""Kind, reason and value of an action whose agent is known."""
Row = TypeVar("Row", Mapping, Space)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the configuration wants around the agents' rooms."""

    server_name: str
    space_name: str = ""
    """Empty: no space."""
    invite: tuple[str, ...] = ()
    avatars: bool = False
    ask_again: bool = False
    """Ask again what was refused for good."""

    @property
    def space_alias(self) -> str:
        return f"#{SPACE_LOCALPART}:{self.server_name}"

    @property
    def hub(self) -> str:
        return f"@{HUB_LOCALPART}:{self.server_name}"


def is_there(space: Space, rooms: Dict[RoomId, RoomView], hub: str) -> bool:
    """Whether the space is made and, for all that was heard, can still be used."""
    if space.room_id is None:
        return False
    view = rooms.get(space.room_id)
    return view is None or not (view.closed or view.members.get(hub, "join") != "join")


def absent_from(space: Space, rooms: Dict[RoomId, RoomView], hub: str) -> frozenset[str]:
    """Whom of those who were invited the space has lost, because they left or declined.

    Where the hub is out, it is as it was before: a space that is deleted puts everybody out.
    """
    view = rooms.get(space.room_id) if space.room_id else None
    if view is None or not view.known or view.members.get(hub) != "join":
        return space.absent
    return space.invited - view.users("join", "invite", "knock")


def plan_space(
    space: Space, rooms: Dict[RoomId, RoomView], wish: Surroundings, *, keep_name: bool
) -> list[Action]:
    """What is to be done to the space and the hub; ``keep_name``: as a person has set it."""
    steps: list[Step] = []
    there = is_there(space, rooms, wish.hub)
    if wish.avatars:  # a new space is created with it
        room_id = space.room_id if wish.space_name and there else None
        steps += _plan_avatar(HUB_SEED, space.avatar, room_id, wish, space.refused_actions)
    if wish.space_name:
        if not there:
            why = "the space is gone" if space.room_id else "the rooms have no space"
            steps.append(("make_space", why, wish.space_alias))
        else:
            assert space.room_id
            steps += _plan_name(space, rooms.get(space.room_id), wish, keep_name)
            if space.alias_room not in (None, space.room_id):
                why = f"its alias leads to {space.alias_room or 'no room'}"
                steps.append(("set_space_alias", why, wish.space_alias))
            steps += [
                ("invite_to_space", "belongs in the space", person)
                for person in wish.invite
                if person not in space.invited
            ]
    return _actions(SPACE_AGENT, wish.space_name or "the hub", steps, space.refused_actions, wish)


def _plan_name(
    space: Space, view: RoomView | None, wish: Surroundings, keep_name: bool
) -> Iterable[Step]:
    if space.name != wish.space_name:
        why = "the setting changed" if space.name else "its name is not known"
        yield "set_space_name", why, wish.space_name
    elif view and view.name.sender and view.name.text != wish.space_name and not keep_name:
        yield "set_space_name", "somebody renamed it", wish.space_name


def plan_picture(mapping: Mapping, wish: Surroundings) -> list[Action]:
    """What is to be done so that an agent's ghost and room show its picture."""
    if not wish.avatars:
        return []
    refused = mapping.refused_actions
    room_id = None if mapping.room_gone else mapping.room_id
    steps = _plan_avatar(mapping.agent_id, mapping.avatar, room_id, wish, refused)
    return _actions(mapping.agent_id, mapping.agent_name, steps, refused, wish)


def _plan_avatar(
    seed: str,
    avatar: Avatar,
    room_id: RoomId | None,
    wish: Surroundings,
    refused: Iterable[tuple[str, str]],
) -> list[Step]:
    digest = avatar_digest(seed)
    steps: list[Step] = []
    if avatar.digest != digest:
        why = "it was drawn anew" if avatar.digest else "its picture is not on the homeserver"
        steps.append(("upload_avatar", why, digest))
        if "upload_avatar" in dict(refused) and not wish.ask_again:
            return steps  # nothing to show
    if avatar.profile != digest:
        steps.append(("set_avatar", "its user shows no picture", digest))
    if room_id and (avatar.room_id, avatar.room) != (room_id, digest):
        steps.append(("set_room_avatar", "the room shows no picture", digest))
    return steps


def plan_place(
    mapping: Mapping, space: Space, rooms: Dict[RoomId, RoomView], wish: Surroundings
) -> list[Action]:
    """What is to be done so that an agent's room hangs in the space, as both of them say.

    Rooms of retired agents stay: whoever looks for an old conversation finds it where it was.
    """
    if not wish.space_name:
        return []
    if mapping.room_gone:
        mapping = replace(mapping, room_id=None)
    there = is_there(space, rooms, wish.hub)
    view = rooms.get(space.room_id) if there and space.room_id else None
    children = view.children if view else frozenset[RoomId]()
    steps: list[Step] = []
    if mapping.room_id not in children:
        steps.append(("add_to_space", "its room is not in the space", wish.space_alias))
    home = rooms.get(mapping.room_id) if mapping.room_id else None
    if mapping.room_id and not (
        home and there and space.room_id in home.parents and not old_spaces(home, space, rooms)
    ):
        steps.append(("set_parent", "its room does not name the space", wish.space_alias))
    steps += [
        ("remove_from_space", "the agent does not live there any more", child)
        for child in sorted(children)
        if child != mapping.room_id and _was_home_of(mapping, rooms.get(child))
    ]
    refused = mapping.refused_actions
    return _actions(mapping.agent_id, mapping.agent_name, steps, refused, wish)


def old_spaces(home: RoomView, space: Space, rooms: Dict[RoomId, RoomView]) -> list[RoomId]:
    """Spaces of ours that the room still names, although another one has taken their place."""
    return sorted(
        parent
        for parent in home.parents
        if parent != space.room_id and parent in rooms and rooms[parent].marker.get("space")
    )


def _was_home_of(mapping: Mapping, view: RoomView | None) -> bool:
    if view is None or mapping.room_id is None:
        return False
    return view.marked_by == mapping.ghost and view.marker.get("agent_id") == mapping.agent_id


def _actions(
    agent_id: str,
    agent_name: str,
    steps: Iterable[Step],
    refused: Iterable[tuple[str, str]],
    wish: Surroundings,
) -> list[Action]:
    reasons = {} if wish.ask_again else dict(refused)
    return [
        Action(
            kind, AgentId(agent_id), agent_name, why, value,
            _held(kind, reasons.get(refused_key(kind, value), "")),
        )
        for kind, why, value in steps
    ]  # fmt: skip


def _held(kind: ActionKind, reason: str) -> str:
    if not reason:
        return ""
    part = "avatars" if kind in AVATAR_KINDS else "spaces"
    return f"{reason}. homeroom sync asks again; {part} in HOMEROOM_SWITCH_OFF leaves it to people"


def refused_key(kind: ActionKind, value: str) -> str:
    """Under which name a refusal is kept: one person's is not another's."""
    return value if kind == "invite_to_space" else kind


def with_refusal(row: Row, action: Action, reason: str) -> Row:
    """The row after the homeserver refused a side action for good."""
    refused = dict(row.refused_actions) | {refused_key(action.kind, action.value): reason}
    return replace(row, refused_actions=tuple(refused.items()))


def apply_to_space(space: Space, action: Action) -> Space:
    """The row after an action on the space or the hub (for ``make_space`` see ``new_space``)."""
    space = without_refusal(space, action)
    match action.kind:
        case "set_space_name":
            return replace(space, name=action.value)
        case "set_space_alias":
            return replace(space, alias_room=space.room_id)
        case "invite_to_space":
            return replace(space, invited=space.invited | {action.value})
        case _:
            return replace(space, avatar=apply_to_avatar(space.avatar, action, space.room_id))


def new_space(space: Space, room_id: RoomId, wish: Surroundings) -> Space:
    """The row after the space was created: the same call named it and invited everybody, but for
    the absent."""
    avatar = with_room(space.avatar, room_id) if wish.avatars else space.avatar
    return replace(
        space, room_id=room_id, name=wish.space_name, invited=frozenset(wish.invite), avatar=avatar,
        alias_room=room_id,
        refused_actions=tuple(pair for pair in space.refused_actions if pair[0] in AVATAR_KINDS),
    )  # fmt: skip


def without_refusal(row: Row, action: Action) -> Row:
    """The row after a side action succeeded: what was refused before counts no more."""
    key = refused_key(action.kind, action.value)
    return replace(
        row, refused_actions=tuple(pair for pair in row.refused_actions if pair[0] != key)
    )


def apply_to_avatar(avatar: Avatar, action: Action, room_id: RoomId | None) -> Avatar:
    """What is known of a picture after ``action``, if it is one of a picture."""
    match action.kind:
        case "upload_avatar":
            return replace(avatar, digest=action.value)
        case "set_avatar":
            return replace(avatar, profile=action.value)
        case "set_room_avatar":
            return replace(avatar, room_id=room_id, room=action.value)
        case _:
            return avatar


def with_room(avatar: Avatar, room_id: RoomId) -> Avatar:
    """The same after a room was created, which shows the picture if there was one by then."""
    return replace(avatar, room_id=room_id, room=avatar.digest) if avatar.digest else avatar


def avatar_content(seed: str, avatar: Avatar) -> dict[str, Any]:
    """Content of an ``m.room.avatar`` with that picture.

    Source: https://spec.matrix.org/v1.16/client-server-api/#mroomavatar
    """
    size = len(avatar_png(seed))
    info = {"mimetype": MIME_TYPE, "w": SIZE_PX, "h": SIZE_PX, "size": size}
    return {"url": avatar.mxc, "info": info}


def with_link(view: RoomView, event: StateEvent) -> RoomView:
    """The view of a room after it was linked to another, or no more."""
    key = frozenset({RoomId(event.state_key)})
    if event.type == "m.space.child":
        return replace(view, children=view.children | key if event.content else view.children - key)
    if event.type == "m.space.parent":
        return replace(view, parents=view.parents | key if event.content else view.parents - key)
    return view
