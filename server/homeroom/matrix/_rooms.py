"""What an agent's room looks like when it is created. Pure."""

from __future__ import annotations

from typing import Any

from homeroom.model import MARKER_TYPE, GhostId, RoomSpec

CHILD_TYPE = "m.space.child"
PARENT_TYPE = "m.space.parent"

_CREATOR_LISTED = frozenset(str(number) for number in range(1, 12))
"""Versions in which the creator's power is written down like everybody's; later ones forbid it."""


def power_levels(creator: GhostId, spec: RoomSpec) -> dict[str, Any]:
    """The whole power-level content: ``events`` given in part would replace the defaults whole.

    Source: https://spec.matrix.org/v1.16/rooms/v12/ (privileged creators) and
    https://spec.matrix.org/v1.16/client-server-api/#mroompower_levels
    """
    users = {user: 100 for user in spec.admins if user != creator}
    listed = spec.version in _CREATOR_LISTED
    if listed:
        users[creator] = 100
    return {
        "users": users,
        "users_default": 0,
        "events": {
            MARKER_TYPE: 100,
            "m.room.name": 50,
            "m.room.topic": 50,
            "m.room.avatar": 50,
            "m.room.canonical_alias": 50,
            "m.room.history_visibility": 100,
            "m.room.guest_access": 100,
            "m.room.join_rules": 100,
            "m.room.encryption": 100,
            "m.room.power_levels": 100,
            "m.room.server_acl": 100,
            "m.room.tombstone": 100 if listed else 150,
        },
        # A space is no place to talk in.
        "events_default": 100 if spec.is_space else 0,
        "state_default": 50,
        "invite": 50,
        "kick": 50,
        "ban": 50,
        "redact": 50,
        "notifications": {"room": 50},
    }


def initial_state(spec: RoomSpec, server_name: str) -> list[dict[str, Any]]:
    """The state that goes into the room with its creation, and so before anybody is invited."""
    state = [
        (MARKER_TYPE, "", dict(spec.marker)),
        ("m.room.history_visibility", "", {"history_visibility": "shared"}),
        ("m.room.guest_access", "", {"guest_access": "forbidden"}),
    ]
    if spec.avatar:
        state.append(("m.room.avatar", "", dict(spec.avatar)))
    if spec.parent:
        state.append((PARENT_TYPE, spec.parent, parent_content(server_name)))
    return [{"type": kind, "state_key": key, "content": content} for kind, key, content in state]


def child_content(server_name: str) -> dict[str, Any]:
    """How a space says that a room of ours hangs in it.

    Source: https://spec.matrix.org/v1.16/client-server-api/#mspacechild
    """
    return {"via": [server_name]}


def parent_content(server_name: str) -> dict[str, Any]:
    """How a room of ours says in which space it hangs.

    Source: https://spec.matrix.org/v1.16/client-server-api/#mspaceparent
    """
    return {"via": [server_name], "canonical": True}


def invitees(creator: GhostId, spec: RoomSpec) -> list[str]:
    """Everybody to invite, once each, without the creator."""
    return [user for user in dict.fromkeys(spec.invite) if user != creator]
