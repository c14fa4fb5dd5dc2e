"""A room's state events read into a view. Pure.

Everything in them was written by others, so a view takes what has the right shape and no more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from collections.abc import Mapping as Dict

from homeroom.model import MARKER_TYPE, Detail, Json, RoomId, RoomView, StateEvent

_ROOM_ID = re.compile(r"![\x21-\x7e]{1,254}")
"""Source: https://spec.matrix.org/v1.16/appendices/#room-ids"""


def view_of(room_id: RoomId, state: Iterable[StateEvent], members: Dict[str, str]) -> RoomView:
    """The view of a room with that state, at most one event of a type and key."""
    found: dict[tuple[str, str], tuple[Json, str]] = {}
    links: dict[str, set[RoomId]] = {"m.space.parent": set(), "m.space.child": set()}
    for event in state:
        content = event.content
        found[event.type, event.state_key] = content, event.sender
        # Without servers to go by, a link is none: that is how one is taken back.
        # Source: https://spec.matrix.org/v1.16/client-server-api/#mspacechild
        if event.type in links and isinstance(content.get("via"), list) and content["via"]:
            links[event.type].add(RoomId(event.state_key))

    def of(type_: str) -> tuple[Json, str]:
        return found.get((type_, ""), ({}, ""))

    tombstone, marker = of("m.room.tombstone"), of(MARKER_TYPE)
    replacement = _text(tombstone[0], "replacement_room")
    if not _ROOM_ID.fullmatch(replacement):
        replacement = ""
    return RoomView(
        room_id=room_id,
        known=("m.room.create", "") in found,
        name=_detail(*of("m.room.name"), "name"),
        topic=_detail(*of("m.room.topic"), "topic"),
        avatar=_detail(*of("m.room.avatar"), "url"),
        canonical_alias=_text(of("m.room.canonical_alias")[0], "alias"),
        room_type=_text(of("m.room.create")[0], "type"),
        closed=bool(tombstone[0]),
        replacement=RoomId(replacement) if replacement else None,
        marker=marker[0],
        marked_by=marker[1],
        power_levels=of("m.room.power_levels")[0],
        parents=frozenset(links["m.space.parent"]),
        children=frozenset(links["m.space.child"]),
        members=members,
    )


def _detail(content: Json, sender: str, key: str) -> Detail:
    return Detail(_text(content, key), sender)


def _text(content: Json, key: str) -> str:
    value = content.get(key)
    return value if isinstance(value, str) else ""
