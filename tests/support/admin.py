"""What the administrator of a homeserver does behind everybody's back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import anyio
import httpx

from support.person import Person
from support.synapse import PASSWORD, Homeserver


class Admin:
    """Synapse's admin API. Use ``admin_of``.

    Source: https://element-hq.github.io/synapse/latest/usage/administration/admin_api/
    """

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def delete_room(self, room: str, *, block: bool = False) -> None:
        """Puts everybody out of the room and forgets it."""
        await self._ask("DELETE", f"v1/rooms/{quote(room)}", {"purge": not block, "block": block})

    async def deactivate(self, user: str) -> None:
        await self._ask("POST", f"v1/deactivate/{quote(user)}", {"erase": False})

    async def _ask(self, method: str, path: str, body: dict[str, Any]) -> None:
        with anyio.fail_after(60):
            while True:
                answer = await self._client.request(method, f"/_synapse/admin/{path}", json=body)
                # It fails by itself where something else is written into the room meanwhile.
                if answer.status_code != 500:
                    break
                await anyio.sleep(0.5)
        assert answer.is_success, answer.text


@asynccontextmanager
async def admin_of(homeserver: Homeserver, localpart: str) -> AsyncIterator[Admin]:
    """An administrator with that localpart, who is registered first."""
    homeserver.person(localpart, admin=True)
    async with Person.login(homeserver.url, localpart, PASSWORD) as person:
        headers = {"Authorization": f"Bearer {person._client.access_token}"}
        async with httpx.AsyncClient(
            base_url=homeserver.url, headers=headers, trust_env=False, timeout=60
        ) as client:
            yield Admin(client)
