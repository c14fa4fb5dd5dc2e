"""What people do with rooms, and what they see happen in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio

from homeroom.model import AgentId, ghost_localpart
from support.person import Event, Person
from support.talk import REPLY_S

HUB = "@agent_hub:hs.test"


def ghost_of(agent: Any) -> str:
    return f"@{ghost_localpart(AgentId(agent.id))}:hs.test"


def says(room: str, words: str) -> Callable[[Event], bool]:
    """Whether an event is a message in that room with these words in it."""
    return lambda e: e["room_id"] == room and words in str(e["content"].get("body", ""))


def is_called(room: str, name: str) -> Callable[[Event], bool]:
    """Whether an event gives that room this name."""
    return lambda e: (
        e["type"] == "m.room.name" and ((e["room_id"], e["content"].get("name")) == (room, name))
    )


async def new_room(person: Person, *invite: str, direct: bool = False, **content: Any) -> str:
    """A room of the person's own, into which these are invited; a direct chat as clients make it.
    ``content`` is laid over the request."""
    preset = "trusted_private_chat" if direct else "private_chat"
    body = {"invite": list(invite), "is_direct": direct, "preset": preset, **content}
    return str((await person._ask("POST", ("createRoom",), body=body))["room_id"])


async def join_rooms(person: Person, count: int) -> dict[str, str]:
    """Agent's name (its first word) -> its room, of so many rooms as the person is invited to."""
    rooms: dict[str, str] = {}
    while len(rooms) < count:
        room = await person.join(await person.wait_invite())
        rooms[(await person.room_name(room)).partition(" ")[0]] = room
    return rooms


async def invite(person: Person, room: str, user: str) -> None:
    await person._ask("POST", ("rooms", room, "invite"), body={"user_id": user})


async def kick(person: Person, room: str, user: str) -> None:
    await person._ask("POST", ("rooms", room, "kick"), body={"user_id": user})


async def membership(person: Person, room: str, user: str) -> str:
    """What the user is in the room, as its members see it."""
    path = ("rooms", room, "members")
    events = (await person._ask("GET", path))["chunk"]
    return next((e["content"]["membership"] for e in events if e["state_key"] == user), "")


async def wait_membership(person: Person, room: str, user: str, *expected: str) -> None:
    """Returns once the user has one of these memberships, which the person's sync tells."""

    with anyio.fail_after(REPLY_S):
        seen = len(person.events)
        while await membership(person, room, user) not in expected:
            await person.wait_more(seen)
            seen = len(person.events)
