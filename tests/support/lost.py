"""An agent's one room, seen from outside: where its alias leads."""

from __future__ import annotations

import httpx

from support.home import Home
from support.matrix import as_ghost
from support.rooms import ghost_of
from support.synapse import Homeserver

OFTEN = {"HOMEROOM_SYNC_INTERVAL_S": "1"}
NAME = "Ada - Letta Agent Chat"
CLIENT = "/_matrix/client/v3"


async def new_agent(home: Home, name: str = "Ada") -> str:
    """The ghost of an agent that was just made."""
    return ghost_of(await home.letta.create_agent(name))


def alias_of(ghost: str) -> str:
    return "#" + ghost[1:]


def rooms_of(homeserver: Homeserver, ghost: str) -> set[str]:
    return set(as_ghost(homeserver, ghost, "GET", f"{CLIENT}/joined_rooms")["joined_rooms"])


def leads_to(homeserver: Homeserver, ghost: str) -> str:
    """Where the alias of that ghost leads."""
    path = f"{CLIENT}/directory/room/{alias_of(ghost).replace('#', '%23')}"
    answer = httpx.get(homeserver.url + path, trust_env=False)
    return str(answer.json().get("room_id", ""))


def leave(homeserver: Homeserver, user: str, room: str) -> None:
    as_ghost(homeserver, user, "POST", f"{CLIENT}/rooms/{room}/leave")
