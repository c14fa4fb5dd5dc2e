"""What a ghost's own /sync says of its invitations: nobody else may see them.

Owns a filter that leaves everything else out. Of a room that one is only invited to, nothing is
proved but the invitation itself.
"""

from __future__ import annotations

import json
from typing import Any

from homeroom.errors import Rejected, Unavailable
from homeroom.matrix._sync import Ask
from homeroom.model import GhostId, RoomId
from homeroom.residence import Invitation
from homeroom.times import point_in_time_ms

_NONE: dict[str, Any] = {"types": []}
_FILTER = json.dumps(
    {
        "presence": _NONE,
        "account_data": _NONE,
        "room": {
            "timeline": {"types": [], "limit": 1},
            "state": _NONE,
            "ephemeral": _NONE,
            "account_data": _NONE,
        },
    },
    separators=(",", ":"),
)


async def read_invitations(
    ask: Ask, ghost: GhostId, since: str
) -> tuple[tuple[Invitation, ...], str]:
    """See ``Matrix.invitations``."""
    query = {"filter": _FILTER, "timeout": "0", "set_presence": "offline"}
    if since:
        query["since"] = since
    path = ("_matrix", "client", "v3", "sync")
    body = await ask("GET", path, ghost=ghost, query=query)
    next_batch = body.get("next_batch")
    if not isinstance(next_batch, str):
        raise Unavailable("matrix", "what answered the sync of a ghost does not speak Matrix")
    rooms = _dict(_dict(body.get("rooms")).get("invite"))
    found = [_invitation(RoomId(room), ghost, part) for room, part in rooms.items()]
    return tuple(invitation for invitation in found if invitation), next_batch


async def read_invited_ms(ask: Ask, ghost: GhostId, room_id: RoomId) -> int:
    """See ``Matrix.invited_ms``.

    Source: https://spec.matrix.org/v1.16/client-server-api/#mroommember
    (``unsigned.replaces_state`` names the membership before.)
    """
    room = ("_matrix", "client", "v3", "rooms", room_id)
    try:
        path = (*room, "state", "m.room.member", ghost)
        own = await ask("GET", path, ghost=ghost, query={"format": "event"})
        before = _dict(own.get("unsigned")).get("replaces_state")
        if not isinstance(before, str):
            return 0
        event = await ask("GET", (*room, "event", before), ghost=ghost)
    except Rejected:  # not visible to us, which no retry changes
        return 0
    is_invite = _dict(event.get("content")).get("membership") == "invite"
    return point_in_time_ms(event.get("origin_server_ts")) if is_invite else 0


def _invitation(room_id: RoomId, ghost: GhostId, part: object) -> Invitation | None:
    events = _dict(_dict(part).get("invite_state")).get("events")
    events = [raw for raw in events if isinstance(raw, dict)] if isinstance(events, list) else []
    own = _first(events, "m.room.member", ghost)
    create = _dict(_first(events, "m.room.create", "").get("content"))
    inviter = own.get("sender")
    if not isinstance(inviter, str) or _dict(own.get("content")).get("membership") != "invite":
        return None
    old = _dict(create.get("predecessor")).get("room_id")
    return Invitation(
        room_id=room_id,
        ghost=ghost,
        inviter=inviter,
        is_direct=_dict(own.get("content")).get("is_direct") is True,
        is_space=create.get("type") == "m.space",
        predecessor=RoomId(old) if isinstance(old, str) else None,
    )


def _first(events: list[dict[str, Any]], type_: str, state_key: str) -> dict[str, Any]:
    of_type = (raw for raw in events if raw.get("type") == type_)
    return next((raw for raw in of_type if raw.get("state_key") == state_key), {})


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
