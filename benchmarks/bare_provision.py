"""Homes for agents without Homeroom: the same requests to the homeserver, and nothing in between.

No plan, no store, no record of what was done: four agents at once, each one request after the
other, as Homeroom makes them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp

from benchmarks.bare_relay import DEVICE_ID
from homeroom.avatar import avatar_png
from homeroom.matrix._rooms import CHILD_TYPE, child_content, initial_state, power_levels
from homeroom.model import Avatar, GhostId, RoomId, RoomSpec
from homeroom.plan_space import avatar_content

AT_ONCE = 4
_MEDIA_V1, _MEDIA_V3 = "/_matrix/media/v1", "/_matrix/media/v3"


class BareProvision:
    """Use ``provision``."""

    def __init__(
        self, http: aiohttp.ClientSession, url: str, as_token: str, server_name: str
    ) -> None:
        self._http, self._url, self._server_name = http, url, server_name
        self._headers = {"Authorization": f"Bearer {as_token}"}

    async def provision(self, names: Sequence[str], hub: str, person: str) -> None:
        """A ghost with a picture and a room in one space, with the hub in it and ``person``
        invited, for each name."""
        waiting = list(reversed(names))
        made = await self._ask(
            "POST", "/createRoom", hub,
            {"preset": "private_chat", "creation_content": {"type": "m.space"}, "invite": [person]},
        )  # fmt: skip
        space = RoomId(made["room_id"])

        async def work() -> None:
            while waiting:
                await self._one(waiting.pop(), hub, person, space)

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))

    async def _one(self, name: str, hub: str, person: str, space: RoomId) -> None:
        ghost = GhostId(f"@{name}:{self._server_name}")
        body: dict[str, Any] = {
            "type": "m.login.application_service", "username": name, "inhibit_login": True,
        }  # fmt: skip
        await self._ask("POST", "/register", None, body)
        device = {"display_name": "Homeroom"}
        await self._ask("PUT", f"/devices/{DEVICE_ID}", ghost, device, with_device=False)
        quoted = quote(ghost, safe="")
        await self._ask("PUT", f"/profile/{quoted}/displayname", ghost, {"displayname": name})
        mxc = (await self._ask("POST", "/create", ghost, {}, base=_MEDIA_V1))["content_uri"]
        picture = mxc.removeprefix("mxc://")
        await self._ask("PUT", f"/upload/{picture}", ghost, avatar_png(name), base=_MEDIA_V3)
        await self._ask("PUT", f"/profile/{quoted}/avatar_url", ghost, {"avatar_url": mxc})
        alias = quote(f"#{name}:{self._server_name}", safe="")
        await self._ask("GET", f"/directory/room/{alias}", hub, expect=404)
        spec = RoomSpec(
            name, f"{name} - Letta Agent Chat", "A topic", (hub, person), (person,), "11",
            avatar=avatar_content(name, Avatar(mxc=mxc)), parent=space,
        )  # fmt: skip
        room = await self._ask(
            "POST", "/createRoom", ghost,
            {
                "visibility": "private", "preset": "private_chat", "room_alias_name": name,
                "name": spec.name, "topic": spec.topic, "room_version": spec.version,
                "invite": [hub, person], "initial_state": initial_state(spec, self._server_name),
                "power_level_content_override": power_levels(ghost, spec),
            },
        )  # fmt: skip
        room_id = quote(room["room_id"], safe="")
        await self._ask("POST", f"/join/{room_id}", hub, {})
        hung = f"/rooms/{quote(space, safe='')}/state/{CHILD_TYPE}/{room_id}"
        await self._ask("PUT", hung, hub, child_content(self._server_name))

    async def _ask(
        self, method: str, path: str, user: str | None, body: Any = None,
        *, expect: int = 200, with_device: bool = True, base: str = "/_matrix/client/v3",
    ) -> Any:  # fmt: skip
        query: dict[str, str] = {}
        if user:
            query = {"user_id": user} | ({"device_id": DEVICE_ID} if with_device else {})
        url = f"{self._url}{base}{path}?{urlencode(query)}"
        data = body if body is None or isinstance(body, bytes) else json.dumps(body)
        async with self._http.request(method, url, data=data, headers=self._headers) as response:
            answer = json.loads(await response.read())
            assert response.status in (expect, 201), (method, path, answer)
            return answer
