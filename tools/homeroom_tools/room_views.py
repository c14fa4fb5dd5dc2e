"""What a model reads back of rooms. The rules of ``views`` hold."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from homeroom.reading import RoomMessage, RoomPage, RoomState, RoomTranscript, ServedRoom
from homeroom.times import utc_iso
from homeroom_tools.long_rows import BEGINNING, LongPage, LongRow, Place
from homeroom_tools.text import LINE_CHARS, NAME_CHARS, clean, clean_line
from homeroom_tools.toolkit import UNTRUSTED, ListPage, Row
from homeroom_tools.views import AgentIdField

KIND_CHARS = 40
MESSAGE_CHARS = 8_000
"""Longest message that a page of a room shows, in characters; alone on its page it is whole, unless
the homeserver lets events be longer than 64 KiB.
Source: https://spec.matrix.org/v1.16/client-server-api/#size-limits
"""


class Message(LongRow):
    long_field: ClassVar[str] = "text"

    id: str = Field(description=UNTRUSTED + "Matrix event")
    sender: str = Field(description=UNTRUSTED + "Matrix id")
    time: str | None = Field(description="UTC")
    from_agent: bool = Field(description="an agent posted it")
    kind: str | None = Field(default=None, description=UNTRUSTED + "if not text")
    text: str = Field(description=UNTRUSTED + "message")


class Transcript(LongPage):
    rows_field: ClassVar[str] = "messages"
    most_chars: ClassVar[int] = MESSAGE_CHARS

    room: str = Field(description=UNTRUSTED + "Matrix id")
    messages: list[Message] = Field(description="Newest first.")


class RoomEntry(Row):
    id: str = Field(description=UNTRUSTED + "Matrix id")
    name: str = Field(description=UNTRUSTED + "of the room")
    agent_id: AgentIdField
    state: RoomState = Field(description="retired: agent gone")
    people: int = Field(description="in it")
    last_active: str | None = Field(default=None, description="UTC")
    alias: str | None = Field(default=None, description=UNTRUSTED + "Matrix alias")
    problem: str | None = Field(default=None, description=UNTRUSTED + "why failing")


class RoomList(ListPage):
    rows_field: ClassVar[str] = "rooms"

    rooms: list[RoomEntry] = Field(description="Last active first.")


def transcript(page: RoomTranscript, limit: int, place: Place = BEGINNING) -> Transcript:
    """The page of ``limit`` messages at ``place``. Raises Misuse if that is gone."""
    shown = Transcript(
        next_cursor=page.next_cursor or None,
        room=clean_line(page.room.id, LINE_CHARS),
        messages=[_message(message, page.ghosts) for message in page.messages],
    )
    # The newest messages are others by the time that somebody asks for the rest of one of them.
    return shown.opened(replace(place, cursor=place.cursor or page.cursor), limit)


def room_list(page: RoomPage, *, full: bool) -> RoomList:
    return RoomList(
        total=page.total,
        next_cursor=page.next_cursor or None,
        rooms=[_room(room, full=full).leading_to(room.cursor) for room in page.rooms],
    )


def _message(message: RoomMessage, ghosts: frozenset[str]) -> Message:
    return Message(
        id=clean_line(message.id, LINE_CHARS),
        sender=clean_line(message.sender, NAME_CHARS),
        time=utc_iso(message.sent_ms),
        from_agent=message.sender in ghosts,
        kind=None if message.kind == "text" else clean_line(message.kind, KIND_CHARS),
        text=clean(message.text),
    )


def _room(room: ServedRoom, *, full: bool) -> RoomEntry:
    return RoomEntry(
        id=clean_line(room.id, LINE_CHARS),
        name=clean_line(room.name, NAME_CHARS),
        agent_id=clean_line(room.agent_id, LINE_CHARS),
        state=room.state,
        people=room.people_count,
        last_active=utc_iso(room.active_ms),
        alias=(clean_line(room.alias, LINE_CHARS) or None) if full else None,
        problem=(clean_line(room.problem, LINE_CHARS) or None) if full else None,
    )
