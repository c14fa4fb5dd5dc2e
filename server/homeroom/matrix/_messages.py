"""A page of a room's messages, read backwards as the hub sees them.

Owns the request and the reading of raw events; deleted ones and the events that are edits of
others are left out, and an edited message comes with its newest text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from homeroom.errors import Unavailable
from homeroom.matrix._sync import Ask
from homeroom.model import EventId, GhostId, RoomId
from homeroom.reading import RoomMessage
from homeroom.times import point_in_time_ms

_FILTER = json.dumps({"types": ["m.room.message", "m.room.encrypted"]}, separators=(",", ":"))
_PAGES = 5
"""So many answers of the homeserver are read for one page of ours: one may hold nothing to show."""


@dataclass(frozen=True, slots=True)
class Messages:
    messages: tuple[RoomMessage, ...]
    end: str = ""
    """Token of what came before; empty at the beginning of the room."""
    start: str = ""
    """Token that the same messages are read from again; empty if the homeserver tells none."""


async def read_messages(
    ask: Ask, hub: GhostId, room_id: RoomId, start: str, limit: int
) -> Messages:
    """Up to ``limit`` messages, newest first, that came before the token ``start``.

    Source: https://spec.matrix.org/v1.16/client-server-api/#get_matrixclientv3roomsroomidmessages
    """
    found: list[RoomMessage] = []
    token, begins = start, start
    for _ in range(_PAGES):
        # Never more than is wanted: the token that comes back is behind the last event of a page.
        query = {"dir": "b", "limit": str(limit - len(found)), "filter": _FILTER}
        body = await ask(
            "GET",
            ("_matrix", "client", "v3", "rooms", room_id, "messages"),
            ghost=hub,
            query=query | ({"from": token} if token else {}),
        )
        chunk = body.get("chunk")
        if not isinstance(chunk, list):
            raise Unavailable(
                "matrix", "what answered at HOMEROOM_MATRIX_URL does not speak Matrix"
            )
        found += [message for raw in chunk if (message := _message(raw))]
        told, end = body.get("start"), body.get("end")
        begins = begins or (told if isinstance(told, str) else "")
        token = end if isinstance(end, str) and chunk and end != token else ""
        if not token or len(found) >= limit:
            break
    return Messages(tuple(found), token, begins)


def _message(raw: Any) -> RoomMessage | None:
    event = raw if isinstance(raw, dict) else {}
    content = event.get("content")
    names = [event.get(name) for name in ("event_id", "sender", "type")]
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in names):
        return None
    event_id, sender, event_type = (str(name) for name in names)
    sent_ms = point_in_time_ms(event.get("origin_server_ts"))
    if event_type == "m.room.encrypted":
        return RoomMessage(EventId(event_id), sender, sent_ms, "", "encrypted") if content else None
    relation = content.get("m.relates_to")
    if isinstance(relation, dict) and relation.get("rel_type") == "m.replace":
        return None
    kind = content.get("msgtype")
    if not isinstance(kind, str):
        return None  # it was deleted
    body = _newest(event, sender).get("body", content.get("body"))
    text = body if isinstance(body, str) else ""
    return RoomMessage(EventId(event_id), sender, sent_ms, text, kind.removeprefix("m."))


def _newest(event: dict[str, Any], sender: str) -> dict[str, Any]:
    """The content that an edit by the same sender gave the message, else nothing.

    Source: https://spec.matrix.org/v1.16/client-server-api/#server-side-aggregation-of-mreplace-relationships
    """
    place: Any = event
    for key in ("unsigned", "m.relations", "m.replace"):
        place = place.get(key) if isinstance(place, dict) else None
    if not isinstance(place, dict) or place.get("sender", sender) != sender:
        return {}
    content = place.get("content")
    newest = content.get("m.new_content") if isinstance(content, dict) else None
    return newest if isinstance(newest, dict) else {}
