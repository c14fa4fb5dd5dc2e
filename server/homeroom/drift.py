"""Rules about rooms that changed behind our back: what a home becomes, and when to stop. Pure."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import replace
from typing import Literal

from homeroom.model import Mapping, RoomId, RoomView

Word = Literal["name", "topic"]

HOUR_MS = 3_600_000
PUT_BACK_LIMIT = 3
"""So often within an hour a name or topic is put back. Whoever changes it again means it, or is a
program that would go on for ever: a person decides."""

_GHOST_KINDS = ("upload_avatar", "set_avatar")
"""Side actions that concern the agent's user and no room."""

FIGHT = (
    "somebody, perhaps a bot, has changed it again after it was put back {count} times within an"
    " hour. Find out who, or let theirs win (HOMEROOM_KEEP_EDITS); then run homeroom sync, or"
    " sync_agents"
)
CLOSED = (
    "its room was closed and names no room that follows, or one that leads back. Redact its"
    " m.room.tombstone and run homeroom sync --audit, or send one that names the new room, or have"
    " the room deleted: then a new one is made"
)


def with_gone_room(mapping: Mapping) -> Mapping:
    """The row once its room is known to be gone: the room is kept, so that it is known again."""
    return replace(
        mapping, room_gone=True, hub_joined=False, invited=frozenset(), refused=(), problem="",
        refused_actions=_of_the_ghost(mapping),
    )  # fmt: skip


def followed(mapping: Mapping, old: RoomView, room_id: RoomId) -> Mapping:
    """The row after its agent moved from the room ``old`` to the one that replaces it.

    Whoever was in the old one, or invited, belongs in the new one as well; who had left has not
    changed their mind.
    """
    return replace(
        mapping, room_id=room_id, room_gone=False, hub_joined=False, room_name="", topic="",
        invited=mapping.invited - old.users("join", "invite"), refused=(), alias_room=None,
        put_back=(), refused_actions=_of_the_ghost(mapping),
    )  # fmt: skip


def _of_the_ghost(mapping: Mapping) -> tuple[tuple[str, str], ...]:
    """What was refused to the agent's user: what one room refused says nothing of another."""
    return tuple(pair for pair in mapping.refused_actions if pair[0] in _GHOST_KINDS)


def successor(mapping: Mapping, rooms: Dict[RoomId, RoomView]) -> RoomId | None:
    """The room that the agent's closed one names as its successor; None if it names none, or if
    one leads back to another: whoever followed those would go round for ever."""
    assert mapping.room_id
    room_id, seen = rooms[mapping.room_id].replacement, {mapping.room_id}
    while room_id:
        if room_id in seen:
            return None
        seen.add(room_id)
        view = rooms.get(room_id)
        room_id = view.replacement if view and view.closed else None
    return rooms[mapping.room_id].replacement


def is_fought_over(mapping: Mapping, word: Word) -> bool:
    """Whether that detail was put back so often that somebody must decide.

    That stays so until a person asks for a sync, or theirs is what the agent is called.
    """
    return sum(what == word for what, _ in mapping.put_back) >= PUT_BACK_LIMIT


def with_put_back(mapping: Mapping, word: Word, now_ms: int) -> Mapping:
    """The row after that detail was put back. What is more than an hour ago does not count."""
    recent = [pair for pair in mapping.put_back if now_ms - pair[1] < HOUR_MS or pair[0] != word]
    return replace(mapping, put_back=(*recent, (word, now_ms)))


def without_fight(mapping: Mapping) -> Mapping:
    """The row after a person asked for a sync: the counting begins anew."""
    return replace(mapping, put_back=())


def is_deserted(view: RoomView | None, server_name: str) -> bool:
    """Whether, as far as is known, nobody of another homeserver is in the room.

    Of this one nobody is, if it says that there is no such room.
    """
    if view is None:
        return True
    return all(user.endswith(f":{server_name}") for user in view.users("join"))
