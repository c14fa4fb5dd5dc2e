"""One step of the hub's /sync, with the holes in it filled.

Owns the filter, the reading of raw events and the cursor. A busy room comes with a hole between
the last step and its newest events; the hole is read forwards, oldest first, a bounded number of
pages per step. What is left of it travels in the cursor, so the next step (even of another
process) goes on where this one stopped. Invariant: within a room every event comes once and in
order, and a cursor never runs ahead of what was returned.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from homeroom.errors import Rejected, Unavailable
from homeroom.model import EventId, GhostId, Member, RoomEvent, RoomId, SyncBatch

_TYPES = [
    "m.room.message",
    "m.room.encrypted",
    "m.room.member",
    "m.room.name",
    "m.room.topic",
    "m.room.canonical_alias",
    "m.room.encryption",
    "m.room.redaction",
    "m.room.tombstone",
]
_TIMELINE_LIMIT = 100
"""Synapse serves no more (``filter_timeline_limit``)."""
_PAGE_SIZE = 500
_PAGES_PER_STEP = 8
"""At most 4000 events of backlog in memory at once."""
_ANSWER_MARGIN_S = 30.0
"""What the homeserver may take beyond the time it was asked to wait."""
_GAPS = "gaps:"
"""Begins a cursor that carries unread holes; no homeserver's token begins so."""

_NONE: dict[str, Any] = {"types": []}
_SYNC_FILTER = json.dumps(
    {
        "presence": _NONE,
        "account_data": _NONE,
        "room": {
            "timeline": {"types": _TYPES, "limit": _TIMELINE_LIMIT},
            "state": {"types": ["m.room.member"]},
            "ephemeral": _NONE,
            "account_data": _NONE,
        },
    },
    separators=(",", ":"),
)
_PAGE_FILTER = json.dumps({"types": _TYPES}, separators=(",", ":"))


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
    """Events of a room after token ``start`` and up to token ``end`` that were not returned yet."""

    room_id: str
    start: str
    end: str


@dataclass(slots=True)
class _Room:
    """One room's part of a step. ``gap`` lies before ``timeline``."""

    id: str
    timeline: list[dict[str, Any]] = field(default_factory=list)
    gap: _Gap | None = None


async def read_batch(
    ask: Ask,
    hub: GhostId,
    since: str,
    timeout_ms: int,
    *,
    page_size: int = _PAGE_SIZE,
    page_limit: int = _PAGES_PER_STEP,
) -> SyncBatch:
    """What is new since ``since``; see ``Matrix.sync``."""
    token, gaps = _unpack(since)
    members: list[Member] = []
    left: list[RoomId] = []
    rooms = [_Room(gap.room_id, gap=gap) for gap in gaps]
    if not gaps:
        query = {"filter": _SYNC_FILTER, "timeout": str(timeout_ms), "set_presence": "offline"}
        if token:
            query["since"] = token
        body = await ask(
            "GET",
            ("_matrix", "client", "v3", "sync"),
            ghost=hub,
            query=query,
            timeout_s=timeout_ms / 1000 + _ANSWER_MARGIN_S,
        )
        rooms, members, left = _read_rooms(body, token, hub)
        next_batch = body.get("next_batch")
        if not isinstance(next_batch, str):
            # Not an empty step: whoever takes it for one asks again at once, for ever.
            raise Unavailable("matrix", "what answered its sync does not speak Matrix")
        token = next_batch

    events: list[RoomEvent] = []
    open_gaps: list[_Gap] = []
    for room in rooms:
        found, rest, pages = await _read_gap(ask, hub, room.gap, page_size, page_limit)
        page_limit -= pages
        if rest is None:
            found += room.timeline
        else:
            # The timeline comes after the hole, so it has to wait: read on to the end of this step.
            open_gaps.append(_Gap(rest.room_id, rest.start, token))
        events += _read_events(room.id, found)
    return SyncBatch(
        _pack(token, open_gaps), tuple(events), tuple(members), tuple(left), bool(open_gaps)
    )


async def _read_gap(
    ask: Ask, hub: GhostId, gap: _Gap | None, page_size: int, page_limit: int
) -> tuple[list[dict[str, Any]], _Gap | None, int]:
    """The gap's events oldest first, what is left of it, and how many pages that took.

    One event is asked for even when the pages are used up: it tells an empty gap, whose room is
    done with (a room the hub has just joined), from one that has to wait for the next step.
    """
    found: list[dict[str, Any]] = []
    pages = 0
    size = page_size if page_limit > 0 else 1
    while gap is not None and pages < max(page_limit, 1):
        try:
            body = await ask(
                "GET",
                ("_matrix", "client", "v3", "rooms", gap.room_id, "messages"),
                ghost=hub,
                query={
                    "dir": "f",
                    "from": gap.start,
                    "to": gap.end,
                    "limit": str(size),
                    "filter": _PAGE_FILTER,
                },
            )
        except Rejected as refusal:
            if refusal.code not in ("M_FORBIDDEN", "M_NOT_FOUND"):
                raise
            # The hub was put out of the room meanwhile: nobody may read this gap any more, and
            # it must not hold up the other rooms.
            return found, None, pages + 1
        pages += 1
        found += _dicts(body.get("chunk"))
        end = body.get("end")
        gap = _Gap(gap.room_id, end, gap.end) if isinstance(end, str) and end != gap.start else None
    return found, gap, pages


def _read_rooms(
    body: dict[str, Any], since: str, hub: GhostId
) -> tuple[list[_Room], list[Member], list[RoomId]]:
    rooms: list[_Room] = []
    members: list[Member] = []
    sections = _dict(body.get("rooms"))
    for section in ("join", "leave"):
        for room_id, part in _dict(sections.get(section)).items():
            timeline = _dict(_dict(part).get("timeline"))
            room = _Room(room_id, _dicts(timeline.get("events")))
            start = timeline.get("prev_batch")
            if since and timeline.get("limited") and isinstance(start, str):
                room.gap = _Gap(room_id, since, start)
            rooms.append(room)
            state = _dicts(_dict(_dict(part).get("state")).get("events"))
            members += _read_members(room_id, [*state, *room.timeline])
    for room_id, part in _dict(sections.get("invite")).items():
        state = _dicts(_dict(_dict(part).get("invite_state")).get("events"))
        # Of a room that one is only invited to, nothing but one's own membership is trustworthy.
        own = [raw for raw in state if raw.get("state_key") == hub]
        members += _read_members(room_id, own)
    return rooms, members, [RoomId(room_id) for room_id in _dict(sections.get("leave"))]


def _read_members(room_id: str, raw_events: Iterable[dict[str, Any]]) -> list[Member]:
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
                _sent_ms(raw),
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
            origin_server_ts_ms=_sent_ms(raw),
            state_key=state_key if isinstance(state_key, str) else None,
        )
        found.setdefault(event_id, event)
    return list(found.values())


def _sent_ms(raw: dict[str, Any]) -> int:
    sent_ms = raw.get("origin_server_ts")
    return sent_ms if isinstance(sent_ms, int) else 0


def _pack(token: str, gaps: list[_Gap]) -> str:
    if not gaps:
        return token
    rest = [[gap.room_id, gap.start, gap.end] for gap in gaps]
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
