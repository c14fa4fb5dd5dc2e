"""What the hub missed of a room: how two readers' parts fit together, and what neither could read.

Pure, but for the walk back to where a room is known. Events are raw, as the homeserver tells them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from collections.abc import Mapping as Dict
from typing import Any

from homeroom.model import GhostId, Member, RoomId, Unread
from homeroom.residence import Absence
from homeroom.times import point_in_time_ms

VISIBILITY = "m.room.history_visibility"
_MEMBERS_ONLY = ("joined", "invited")
"""Under these a member sees nothing that was said while they were out; else all of it.
Source: https://spec.matrix.org/v1.16/client-server-api/#room-history-visibility"""
PAGES_BACK = 20
"""A walk back ends after this many pages: a few seconds, and ten thousand events."""

Raw = dict[str, Any]
ReadBack = Callable[[str], Awaitable[tuple[Sequence[Raw], str]]]
"""The page of a room that ends at a token, newest first, and the token where it begins; both are
empty where there is none."""


def merge(timeline: Sequence[Raw], found: Sequence[Raw]) -> list[Raw]:
    """Two readers' events of one stretch, each in order, as one. What only the timeline has stands
    before the next that both have, or else at the end."""
    place = {raw.get("event_id"): number for number, raw in enumerate(found)}
    before: dict[int, list[Raw]] = {}
    waiting: list[Raw] = []
    for raw in timeline:
        if (number := place.get(raw.get("event_id"))) is None:
            waiting.append(raw)
        else:
            before.setdefault(number, []).extend(waiting)
            waiting = []
    merged = [
        raw for number, shared in enumerate(found) for raw in (*before.get(number, ()), shared)
    ]
    return merged + waiting


def comes_in(raw: Raw) -> bool:
    """Whether that is somebody's coming in, and not a new name of one who is in.

    Source: https://spec.matrix.org/v1.16/client-server-api/#room-event-format (``prev_content``).
    """
    if raw.get("type") != "m.room.member":
        return False
    now, unsigned = raw.get("content"), raw.get("unsigned")
    before = unsigned.get("prev_content") if isinstance(unsigned, dict) else None
    was = before.get("membership") if isinstance(before, dict) else None
    return isinstance(now, dict) and now.get("membership") == "join" and was != "join"


def place_of_return(chunk: Sequence[Raw], user: str, back_ms: int) -> int | None:
    """Where the user comes in at that time; None if the page does not tell of it."""
    for number, raw in enumerate(chunk):
        is_then = raw.get("origin_server_ts") == back_ms
        if is_then and raw.get("state_key") == user and comes_in(raw):
            return number
    return None


def find_unread(
    room_id: str, absence: Absence, members: Sequence[Member], came_in: Dict[str, int],
    found: Sequence[Raw], *, hub: GhostId, out_ms: int, visibility: str,
) -> Unread | None:  # fmt: skip
    """When neither the hub, out since ``out_ms``, nor the ghost could read the room.

    ``members`` are what the step told of it, ``came_in`` who came in and when, ``found`` what was
    read of the time in between. None if one of them was there all the time, or may read it now.
    """
    here = {member.user_id: member for member in members if member.room_id == room_id}
    ghost, hub_in_ms = here.get(absence.ghost), came_in.get(hub, 0)
    if visibility not in _MEMBERS_ONLY or ghost is None or not hub_in_ms:
        return None
    left = [
        point_in_time_ms(raw.get("origin_server_ts"))
        for raw in found
        if raw.get("type") == "m.room.member" and raw.get("state_key") == absence.ghost
        and isinstance(content := raw.get("content"), dict)
        and content.get("membership") in ("leave", "ban")
    ]  # fmt: skip
    is_in = ghost.membership == "join"
    if not is_in:
        left.append(ghost.at_ms)
    ghost_in_ms = came_in.get(absence.ghost, 0) if is_in else hub_in_ms
    if not left and ghost_in_ms <= out_ms:
        return None
    # One that came back and of which nobody saw when it went was out before the hub was.
    from_ms = max(out_ms, *left, 0)
    to_ms = min(hub_in_ms, ghost_in_ms or hub_in_ms)
    return Unread(RoomId(room_id), from_ms, to_ms) if from_ms < to_ms else None


async def walk_back(read: ReadBack, end: str, until_ms: int) -> str:
    """A token from which on a room is to be read so that nothing after ``until_ms`` is left out;
    ``end`` itself where nothing lies before it."""
    start = end
    for _ in range(PAGES_BACK):
        chunk, before = await read(start)
        if not before or before == start:
            break
        start = before
        if any(point_in_time_ms(raw.get("origin_server_ts")) <= until_ms for raw in chunk):
            break
    return start
