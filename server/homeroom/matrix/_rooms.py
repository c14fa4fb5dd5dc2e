"""What an agent's room looks like when it is created. Pure."""

from __future__ import annotations

from typing import Any

from homeroom.model import GhostId, RoomSpec

MARKER_TYPE = "org.homeroom.room"
"""State event by which we know our own room again."""

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
        "events_default": 0,
        "state_default": 50,
        "invite": 50,
        "kick": 50,
        "ban": 50,
        "redact": 50,
        "notifications": {"room": 50},
    }


def initial_state(spec: RoomSpec) -> list[dict[str, Any]]:
    """The state that goes into the room with its creation, and so before anybody is invited."""
    return [
        {"type": MARKER_TYPE, "state_key": "", "content": dict(spec.marker)},
        {
            "type": "m.room.history_visibility",
            "state_key": "",
            "content": {"history_visibility": "shared"},
        },
        {"type": "m.room.guest_access", "state_key": "", "content": {"guest_access": "forbidden"}},
    ]


def invitees(creator: GhostId, spec: RoomSpec) -> list[str]:
    """Everybody to invite, once each, without the creator."""
    return [user for user in dict.fromkeys(spec.invite) if user != creator]
