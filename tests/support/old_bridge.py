"""What an older bridge left: a user and a room of an agent, and the file that names them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx

from support.home import Home
from support.matrix import as_ghost
from support.person import Person

SECRET = "the-old-password"


def old_entry(agent_id: str, user: str, room: str, name: str = "Ada") -> dict[str, Any]:
    return {
        "agent_id": agent_id, "agent_name": name, "matrix_user_id": user,
        "matrix_password": SECRET, "created": True, "room_id": room, "room_created": True,
    }  # fmt: skip


async def old_home(home: Home, localpart: str, person: Person) -> tuple[str, str]:
    """A user and a room as the bridge before made them, with ``person`` in the room."""
    user = f"@{localpart}:{home.homeserver.server_name}"
    token = home.homeserver.registration.as_token.get_secret_value()
    async with httpx.AsyncClient(base_url=home.homeserver.url, trust_env=False) as client:
        made = await client.post(
            "/_matrix/client/v3/register",
            headers={"Authorization": f"Bearer {token}"},
            json={
                "type": "m.login.application_service",
                "username": localpart,
                "inhibit_login": True,
            },
        )
    assert made.is_success, made.text
    room = {"preset": "trusted_private_chat", "name": "what it was called", "invite": [person.id]}
    path = "/_matrix/client/v3/createRoom"
    room_id = str(as_ghost(home.homeserver, user, "POST", path, room)["room_id"])
    await person.join(room_id)
    return user, room_id


def write(home: Home, *entries: dict[str, Any]) -> Path:
    path = home.directory / "mappings.json"
    path.write_text(json.dumps({entry["agent_id"]: entry for entry in entries}))
    return path
