"""One step of the hub's /sync, with the holes in it filled.

Owns the filter, the reading of raw events and the cursor. A busy room comes with a hole between
the last step and its newest events, and one that the hub was put out of with all that was said
until it came back. Either hole is read forwards, oldest first, a bounded number of pages per step,
by the hub or by the ghost of the room. What is left of it travels in the cursor, so the next step
(even of another process) goes on where this one stopped. Invariant: within a room every event comes
in order, and a cursor never runs ahead of what was returned. An event comes once, but for those
around an absence of the hub, which the store knows again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from collections.abc import Mapping as Dict
from dataclasses import astuple, dataclass, field, replace
from typing import Any, Protocol

from homeroom.errors import Rejected, Unavailable
from homeroom.matrix._absences import (
    VISIBILITY,
    Raw,
    comes_in,
    find_unread,
    merge,
    place_of_return,
    walk_back,
)
from homeroom.model import (
    MARKER_TYPE,
    EventId,
    GhostId,
    Member,
    RoomEvent,
    RoomId,
    StateEvent,
    SyncBatch,
    Unread,
)
from homeroom.residence import Absence
from homeroom.times import point_in_time_ms

log = logging.getLogger(__name__)

STATE_TYPES = (
    "m.room.create",
    "m.room.name",
    "m.room.topic",
    "m.room.avatar",
    "m.room.canonical_alias",
    "m.room.tombstone",
    "m.room.power_levels",
    "m.space.parent",
    "m.space.child",
    MARKER_TYPE,
)
"""What is read of a room's state, memberships apart."""
_TYPES = [
    "m.room.message",
    "m.room.encrypted",
    "m.room.member",
    "m.room.encryption",
    "m.room.redaction",
    VISIBILITY,
    *STATE_TYPES,
]
_TIMELINE_LIMIT = 100
"""Synapse serves no more (``filter_timeline_limit``)."""
_PAGE_SIZE = 500
_PAGES_PER_STEP = 8
"""At most 4000 events of backlog in memory at once."""
_ANSWER_MARGIN_S = 30.0
"""What the homeserver may take beyond the time it was asked to wait."""
_FIRST_ANSWER_S = 300.0
"""The first answer has every room whole: a busy Synapse took 29 s for a thousand (measured)."""
_GAPS = "gaps:"
"""Begins a cursor that carries unread holes; no homeserver's token begins so."""

_NONE: dict[str, Any] = {"types": []}
_SYNC_FILTER = json.dumps(
    {
        "presence": _NONE,
        "account_data": _NONE,
        "room": {
            "timeline": {"types": _TYPES, "limit": _TIMELINE_LIMIT},
            # Members are never loaded lazily: who is there decides who is invited.
            "state": {"types": ["m.room.member", VISIBILITY, *STATE_TYPES]},
            "ephemeral": _NONE,
            "account_data": _NONE,
        },
    },
    separators=(",", ":"),
)
_PAGE_FILTER = json.dumps({"types": _TYPES}, separators=(",", ":"))


_CANNOT_READ = ("M_FORBIDDEN", "M_NOT_FOUND")
_NOT_OF_HERE = ("M_UNKNOWN", "M_INVALID_PARAM")
"""How a homeserver refuses a token that it did not give: it is another one than before."""

FindAbsences = Callable[[Collection[RoomId]], Awaitable[Dict[RoomId, Absence]]]
"""What is known of these rooms; those that no ghost lives in are left out."""


class Ask(Protocol):
    """``Wire.ask``, as much of it as is used here."""

    def __call__(
        self,
        method: str,
        path: tuple[str, ...],
        *,
        ghost: GhostId | None = None,
        query: dict[str, str] | None = None,
        timeout_s: float = 60.0,
    ) -> Awaitable[dict[str, Any]]: ...


@dataclass(frozen=True, slots=True)
class _Gap:
    """Events of a room after token ``start`` and up to token ``end`` that were not returned yet.

    ``joined_ms`` is when the hub came into the room, if that is why they were not, and ``out_ms``
    when it went out. ``ghost`` is in the room besides the hub, as far as is known. ``again`` is
    where the hub begins to read it once more: what it may see and the ghost, which was out, too,
    may not. ``back_ms`` is when the ghost came back, if the hub had by then: that the ghost reads
    no further."""

    room_id: str
    start: str
    end: str
    joined_ms: int = 0
    ghost: str = ""
    out_ms: int = 0
    again: str = ""
    back_ms: int = 0

    def readers(self, hub: GhostId) -> list[GhostId]:
        """Who may read it, the likelier first: a room may show its members only what was said
        while they were in."""
        ghosts = [GhostId(self.ghost)] if self.ghost else []
        return [*ghosts, hub] if self.joined_ms else [hub, *ghosts]


@dataclass(slots=True)
class _Room:
    """One room's part of a step. ``gap`` lies before ``timeline``, or reaches over it to the end
    of the step, which is so if the hub ``was_out``."""

    id: str
    timeline: list[dict[str, Any]] = field(default_factory=list)
    gap: _Gap | None = None
    came_in: dict[str, int] = field(default_factory=dict)
    """Who has come into the room, and when, as far as this step tells."""
    was_out: bool = False
    before: str = ""
    """The token where the timeline begins, if more lies before it."""
    visibility: str = "shared"
    absence: Absence | None = None

    def after(self, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What the room brought in this step, when ``found`` is all that the gap had left."""
        if not self.was_out:
            return found + self.timeline
        return merge(self.timeline, found)


@dataclass(slots=True)
class _Told:
    """What a step says of the rooms themselves."""

    members: list[Member] = field(default_factory=list)
    state: list[StateEvent] = field(default_factory=list)
    left: list[RoomId] = field(default_factory=list)

    def joined_ms(self, room_id: str, user: str) -> int:
        """When the user has just come into the room; 0 if that is no news."""
        last = 0
        for member in self.members:
            if (member.room_id, member.user_id) == (room_id, user):
                last = member.at_ms if member.membership == "join" else 0
        return last

    def left_ms(self, room_id: str, user: str) -> int:
        """When the user last went out of the room; 0 if that is no news."""
        return max(
            (member.at_ms for member in self.members
             if (member.room_id, member.user_id) == (room_id, user)
             and member.membership in ("leave", "ban")),
            default=0,
        )  # fmt: skip


async def read_batch(
    ask: Ask,
    hub: GhostId,
    since: str,
    timeout_ms: int,
    find_absences: FindAbsences | None = None,
    *,
    page_size: int = _PAGE_SIZE,
    page_limit: int = _PAGES_PER_STEP,
) -> SyncBatch:
    """What is new since ``since``; see ``Matrix.sync``."""
    token, gaps = _unpack(since)
    began = token
    told = _Told()
    rooms = [_Room(gap.room_id, gap=gap) for gap in gaps]
    if not gaps:
        body = await _ask_sync(ask, hub, token, timeout_ms)
        rooms, told = _read_rooms(body, token, hub)
        next_batch = body.get("next_batch")
        if not isinstance(next_batch, str):
            # Not an empty step: whoever takes it for one asks again at once, for ever.
            raise Unavailable("matrix", "what answered its sync does not speak Matrix")
        token = next_batch
        concerned = [room for room in rooms if room.gap or hub in room.came_in]
        absences: Dict[RoomId, Absence] = {}
        if find_absences and concerned:
            absences = await find_absences([RoomId(room.id) for room in concerned])
        for room in concerned:
            if absence := absences.get(RoomId(room.id)):
                _mind_absence(room, absence, began, token, told, hub)
                await _reach_back(ask, hub, room, absence, told, page_size)

    events, open_gaps, unread = list[RoomEvent](), list[_Gap](), list[Unread]()
    for room in rooms:
        found, rest, pages, is_cut = await _read_gap(ask, hub, room.gap, page_size, page_limit)
        page_limit -= pages
        unread += _unread_of(room, told, found, hub, is_cut)
        if rest is None:
            found = room.after(found)
        else:
            # The timeline comes after the hole, so it has to wait: read on to the end of this step.
            joined_ms = told.joined_ms(room.id, hub) or rest.joined_ms
            open_gaps.append(replace(rest, end=token, joined_ms=joined_ms))
        events += _read_events(room.id, found)
    return SyncBatch(
        _pack(token, open_gaps),
        tuple(events),
        tuple(told.members),
        tuple(told.state),
        tuple(told.left),
        bool(open_gaps),
        {
            RoomId(room.id): at_ms
            for room in rooms
            if (at_ms := told.joined_ms(room.id, hub) or (room.gap.joined_ms if room.gap else 0))
        },
        began,
        left_ms={room_id: told.left_ms(room_id, hub) for room_id in told.left},
        unread=tuple(unread),
    )


async def _ask_sync(ask: Ask, hub: GhostId, token: str, timeout_ms: int) -> dict[str, Any]:
    query = {"filter": _SYNC_FILTER, "timeout": str(timeout_ms), "set_presence": "offline"}
    if token:
        query["since"] = token
    return await ask(
        "GET",
        ("_matrix", "client", "v3", "sync"),
        ghost=hub,
        query=query,
        timeout_s=timeout_ms / 1000 + (_ANSWER_MARGIN_S if token else _FIRST_ANSWER_S),
    )


def _mind_absence(
    room: _Room, absence: Absence, began: str, end: str, told: _Told, hub: GhostId
) -> None:
    """Has the ghost read what the hub was not there for: up to the end of the step, because of
    what was said while it was out the timeline may have nothing, or holes. Where the ghost was out,
    too, the hub reads it after that."""
    start = absence.since or (began if absence.was_in else "")
    if hub in room.came_in and start:
        ghost, out_ms = absence.ghost, absence.out_ms or told.left_ms(room.id, hub)
        is_in = bool(told.joined_ms(room.id, ghost))
        was_in = is_in and room.came_in.get(ghost, 0) <= out_ms
        joined_ms, again = told.joined_ms(room.id, hub), "" if was_in else start
        ghost_ms = room.came_in.get(ghost, 0) if is_in else 0
        back_ms = ghost_ms if again and ghost_ms > joined_ms else 0
        room.gap = _Gap(room.id, start, end, joined_ms, ghost, out_ms, again, back_ms)
        room.was_out, room.absence = True, absence
    elif room.gap:
        room.gap = replace(room.gap, ghost=absence.ghost)


async def _reach_back(
    ask: Ask, hub: GhostId, room: _Room, absence: Absence, told: _Told, page_size: int
) -> None:
    """Makes the room's gap begin where the room is known, or what was said matters no more: no
    token leads back to when the hub was there, and the timeline is short."""
    joined_ms = told.joined_ms(room.id, hub)
    until_ms = int(max(absence.known_ms, joined_ms - absence.reach_ms))
    times = [point_in_time_ms(raw.get("origin_server_ts")) for raw in room.timeline]
    if room.was_out or not (room.before and joined_ms) or min(times, default=joined_ms) <= until_ms:
        return
    gap = _Gap(room.id, "", room.before, joined_ms, absence.ghost)

    async def read(end: str) -> tuple[list[Raw], str]:
        body = await _read_page(ask, hub, gap, page_size, {"dir": "b", "from": end})
        before = (body or {}).get("end")
        return _dicts((body or {}).get("chunk")), before if isinstance(before, str) else ""

    start = await walk_back(read, room.before, until_ms)
    if start != room.before:
        room.gap = replace(gap, start=start)


def _unread_of(
    room: _Room, told: _Told, found: list[Raw], hub: GhostId, is_cut: bool
) -> list[Unread]:
    """When none of ours could read the room, if that is known now. ``is_cut``: nobody of ours may
    read the rest of its gap any more."""
    gap = room.gap
    if gap is None or not gap.joined_ms:
        return []
    if is_cut:
        known = gap.out_ms and gap.out_ms < gap.joined_ms
        return [Unread(RoomId(room.id), gap.out_ms, gap.joined_ms)] if known else []
    if room.absence is None:
        return []
    one = find_unread(
        room.id, room.absence, told.members, room.came_in, found, hub=hub, out_ms=gap.out_ms,
        visibility=room.visibility,
    )  # fmt: skip
    return [one] if one else []


async def _read_gap(
    ask: Ask, hub: GhostId, gap: _Gap | None, page_size: int, page_limit: int
) -> tuple[list[dict[str, Any]], _Gap | None, int, bool]:
    """The gap's events oldest first, what is left of it, how many pages that took, and whether
    nobody may read the rest.

    One event is asked for even when the pages are used up: it tells an empty gap, whose room is
    done with (a room the hub has just joined), from one that has to wait for the next step. One
    that the hub was put out of has that in it at least, and waits unasked.
    """
    found: list[dict[str, Any]] = []
    if gap and gap.joined_ms and page_limit <= 0:
        return found, gap, 0, False
    pages = 0
    size = page_size if page_limit > 0 else 1
    while gap is not None and pages < max(page_limit, 1):
        pages += 1
        stretch = {"dir": "f", "from": gap.start, "to": gap.end}
        if (body := await _read_page(ask, hub, gap, size, stretch)) is None:
            return found, None, pages, True
        chunk = _dicts(body.get("chunk"))
        back = place_of_return(chunk, gap.ghost, gap.back_ms)
        found += chunk[:back]
        end = body.get("end")
        if back is None and isinstance(end, str) and end != gap.start:
            gap = replace(gap, start=end)
        elif gap.again:
            gap = _Gap(gap.room_id, gap.again, gap.end, gap.joined_ms, out_ms=gap.out_ms)
        else:
            gap = None
    return found, gap, pages, False


async def _read_page(
    ask: Ask, hub: GhostId, gap: _Gap, size: int, stretch: dict[str, str]
) -> dict[str, Any] | None:
    """A page of the gap's room; None if nobody of ours may read it any more: hub and ghost are both
    out of the room, and it must not hold up the others."""
    query = {**stretch, "limit": str(size), "filter": _PAGE_FILTER}
    path = ("_matrix", "client", "v3", "rooms", gap.room_id, "messages")
    harmless = (*_CANNOT_READ, *(_NOT_OF_HERE if gap.joined_ms else ()))
    for reader in gap.readers(hub):
        try:
            return await ask("GET", path, ghost=reader, query=query)
        except Rejected as refusal:
            if refusal.code not in harmless:
                raise
    log.warning("gap_unreadable", extra={"room": gap.room_id})
    return None


def _read_rooms(body: dict[str, Any], since: str, hub: GhostId) -> tuple[list[_Room], _Told]:
    rooms: list[_Room] = []
    told = _Told()
    sections = _dict(body.get("rooms"))
    for section in ("join", "leave"):
        for room_id, part in _dict(sections.get(section)).items():
            timeline = _dict(_dict(part).get("timeline"))
            room = _Room(room_id, _dicts(timeline.get("events")))
            start = timeline.get("prev_batch")
            if timeline.get("limited") and isinstance(start, str):
                room.before = start
                room.gap = _Gap(room_id, since, start) if since else None
            rooms.append(room)
            # First what became of the hole before the timeline, then the timeline: the last wins.
            # So nothing of the state is taken from the hole itself, which is read later.
            state = _dicts(_dict(_dict(part).get("state")).get("events"))
            for raw in (*state, *room.timeline):
                if comes_in(raw):
                    at_ms = point_in_time_ms(raw.get("origin_server_ts"))
                    room.came_in[str(raw.get("state_key"))] = at_ms
                elif raw.get("type") == VISIBILITY:
                    room.visibility = str(_dict(raw.get("content")).get("history_visibility"))
            told.members += read_members(room_id, [*state, *room.timeline])
            told.state += read_state(room_id, [*state, *room.timeline])
    for room_id, part in _dict(sections.get("invite")).items():
        state = _dicts(_dict(_dict(part).get("invite_state")).get("events"))
        # Of a room that one is only invited to, nothing but one's own membership is trustworthy.
        own = [raw for raw in state if raw.get("state_key") == hub]
        told.members += read_members(room_id, own)
    told.left = [RoomId(room_id) for room_id in _dict(sections.get("leave"))]
    return rooms, told


def read_state(room_id: str, raw_events: Iterable[dict[str, Any]]) -> list[StateEvent]:
    """The state events of ``STATE_TYPES``; of one type and key the last."""
    found: dict[tuple[str, str], StateEvent] = {}
    for raw in raw_events:
        type_, key, sender = raw.get("type"), raw.get("state_key"), raw.get("sender")
        if type_ in STATE_TYPES and isinstance(key, str) and isinstance(sender, str):
            content = _dict(raw.get("content"))
            found[type_, key] = StateEvent(RoomId(room_id), type_, key, content, sender)
    return list(found.values())


def read_members(room_id: str, raw_events: Iterable[dict[str, Any]]) -> list[Member]:
    found = []
    for raw in raw_events:
        content = _dict(raw.get("content"))
        user, membership = raw.get("state_key"), content.get("membership")
        if raw.get("type") != "m.room.member" or not isinstance(user, str):
            continue
        name = content.get("displayname")
        found.append(
            Member(
                RoomId(room_id),
                user,
                str(membership),
                name if isinstance(name, str) else "",
                point_in_time_ms(raw.get("origin_server_ts")),
            )
        )
    return found


def _read_events(room_id: str, raw_events: Iterable[dict[str, Any]]) -> list[RoomEvent]:
    """Each event once. Ids, senders and types are checked by homeservers, contents by nobody."""
    found: dict[str, RoomEvent] = {}
    for raw in raw_events:
        event_id, sender, type_ = raw.get("event_id"), raw.get("sender"), raw.get("type")
        if not (isinstance(event_id, str) and isinstance(sender, str) and isinstance(type_, str)):
            continue
        state_key = raw.get("state_key")
        event = RoomEvent(
            id=EventId(event_id),
            room_id=RoomId(room_id),
            sender=sender,
            type=type_,
            content=_dict(raw.get("content")),
            origin_server_ts_ms=point_in_time_ms(raw.get("origin_server_ts")),
            state_key=state_key if isinstance(state_key, str) else None,
        )
        found.setdefault(event_id, event)
    return list(found.values())


def _pack(token: str, gaps: list[_Gap]) -> str:
    if not gaps:
        return token
    rest = [list(astuple(gap)) for gap in gaps]
    return _GAPS + json.dumps([token, rest], separators=(",", ":"))


def _unpack(cursor: str) -> tuple[str, list[_Gap]]:
    if not cursor.startswith(_GAPS):
        return cursor, []
    token, rest = json.loads(cursor.removeprefix(_GAPS))
    return token, [_Gap(*gap) for gap in rest]


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _dicts(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
