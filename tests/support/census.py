"""Everything a homeserver has, counted by an administrator: what a bridge may not do twice."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from support.synapse import PASSWORD, Homeserver

_ADMIN = "registrar"
_HUB = "agent_hub"


@dataclass(frozen=True)
class Room:
    id: str
    name: str
    members: frozenset[str]
    invites: Counter[str]
    """How often each user was invited, ever."""
    joins: Counter[str]
    """How often each user came in, ever (a change of their name is none)."""
    children: frozenset[str] | None = None
    """Of a space: the rooms that hang in it. None: it is no space."""


class Census:
    """An administrator who is logged in."""

    def __init__(self, homeserver: Homeserver) -> None:
        self._admin = homeserver.person(_ADMIN, admin=True)
        self._server_name = homeserver.server_name
        self._as_token = homeserver.registration.as_token.get_secret_value()
        self._http = httpx.Client(base_url=homeserver.url, trust_env=False, timeout=30)
        body = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": _ADMIN},
            "password": PASSWORD,
        }
        token = self._ask("POST", "/_matrix/client/v3/login", json=body)["access_token"]
        self._http.headers["Authorization"] = f"Bearer {token}"

    def __enter__(self) -> Census:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def ghosts(self) -> list[str]:
        """All users in our namespace but the hub."""
        found = self._ask("GET", "/_synapse/admin/v2/users?limit=100000&guests=false")["users"]
        names = [str(user["name"]) for user in found]
        hub = f"@{_HUB}:{self._server_name}"
        return sorted(name for name in names if name.startswith("@agent_") and name != hub)

    def rooms(self) -> list[Room]:
        """All rooms there are but spaces, whoever made them."""
        return [room for room in self._all() if room.children is None]

    def spaces(self) -> list[Room]:
        return [room for room in self._all() if room.children is not None]

    def files(self, user: str) -> list[str]:
        """The address of every file the user has uploaded; one that was only reserved is none.

        Source: https://element-hq.github.io/synapse/latest/admin_api/user_admin_api.html
        """
        found = self._ask("GET", f"/_synapse/admin/v1/users/{quote(user)}/media")["media"]
        full = [file["media_id"] for file in found if file["media_length"]]
        return [f"mxc://{self._server_name}/{media_id}" for media_id in full]

    def _all(self) -> list[Room]:
        """Source: https://element-hq.github.io/synapse/latest/admin_api/rooms.html"""
        listed = self._ask("GET", "/_synapse/admin/v1/rooms?limit=100000")["rooms"]
        return [self._room(entry) for entry in listed]

    def _room(self, entry: dict[str, Any]) -> Room:
        room_id, name = str(entry["room_id"]), str(entry["name"] or "")
        at = f"/_synapse/admin/v1/rooms/{quote(room_id, safe='')}"
        members = self._ask("GET", f"{at}/members")["members"]
        invites: Counter[str] = Counter()
        joins: Counter[str] = Counter()
        for event in self._timeline(at):
            if event["type"] == "m.room.member":
                before = event.get("unsigned", {}).get("prev_content", {}).get("membership")
                now = event["content"]["membership"]
                if now == "invite":
                    invites[event["state_key"]] += 1
                elif now == "join" and before != "join":
                    joins[event["state_key"]] += 1
        children = self._children(at) if entry["room_type"] == "m.space" else None
        return Room(room_id, name, frozenset(members), invites, joins, children)

    def _children(self, at: str) -> frozenset[str]:
        state = self._ask("GET", f"{at}/state")["state"]
        links = [event for event in state if event["type"] == "m.space.child" and event["content"]]
        return frozenset(str(event["state_key"]) for event in links)

    def _timeline(self, at: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        start = ""
        while True:
            page = self._ask("GET", f"{at}/messages?dir=b&limit=500" + (start and f"&from={start}"))
            found += page["chunk"]
            if not page["chunk"] or "end" not in page:
                return found
            start = str(page["end"])

    def _ask(self, method: str, url: str, **how: Any) -> dict[str, Any]:
        answer = self._http.request(method, url, **how)
        assert answer.is_success, answer.text
        found: dict[str, Any] = answer.json()
        return found


def assert_one_of_each(census: Census, agents: int, person: str) -> None:
    """Every agent has one ghost and one room, with the hub in it and ``person`` invited; each was
    invited once, and came once. All of them hang in the one space, of which the same is true."""
    rooms, spaces = census.rooms(), census.spaces()
    assert len(census.ghosts()) == agents
    assert len(rooms) == agents, [room.name for room in rooms]
    assert len({room.name for room in rooms}) == agents
    for room in rooms:
        assert sum(member.startswith("@agent_") for member in room.members) == 2, room
    assert [space.children for space in spaces] == [frozenset(room.id for room in rooms)]
    for room in (*rooms, *spaces):
        assert max(room.invites.values()) == max(room.joins.values()) == 1, room
        assert room.invites[person] == 1, room
        assert any(member.startswith(f"@{_HUB}:") for member in room.members), room
