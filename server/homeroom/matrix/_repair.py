"""Requests that look at what became of ghosts, rooms and aliases, and that mend it.

They are what an audit and the healing of drift need beyond the making of rooms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from homeroom.errors import Rejected
from homeroom.matrix._sync import read_members, read_state
from homeroom.model import HUB_LOCALPART, MARKER_TYPE, GhostId, Json, Member, RoomId, StateEvent

if TYPE_CHECKING:
    from homeroom.matrix._client import Wire

_NO_WAY_IN = frozenset({"M_UNKNOWN", "M_NOT_FOUND"})


def is_gone(refusal: Rejected) -> bool:
    """Whether a refused join says that there is no such room (any more), or nobody of this
    homeserver in it; not that one has to be invited, which is ``M_FORBIDDEN``."""
    return refusal.code in _NO_WAY_IN


class Repair:
    """The part of ``Matrix`` that looks closer and mends."""

    _wire: Wire
    hub: GhostId
    server_name: str

    async def make_ghost(self, localpart: str) -> bool:
        """Registers the user with that localpart, with its device and without a login. False: it
        was there already.

        Source: https://spec.matrix.org/v1.16/application-service-api/#server-admin-style-permissions
        """
        body = {
            "type": "m.login.application_service",
            "username": localpart,
            "inhibit_login": True,
        }
        is_new = True
        try:
            await self._wire.ask("POST", ("_matrix", "client", "v3", "register"), body=body)
        except Rejected as refusal:
            if refusal.code == "M_EXCLUSIVE":
                raise Rejected(
                    "matrix",
                    f"{localpart!r} is outside the user namespace of the registration it has"
                    " loaded",
                    refusal.code,
                ) from None
            if refusal.code != "M_USER_IN_USE":
                raise
            is_new = False
        await self._wire.put_device(GhostId(f"@{localpart}:{self.server_name}"))
        return is_new

    async def revive_hub(self) -> bool:
        """Makes the hub anew if the homeserver does not know it. False: it does."""
        return await self.make_ghost(HUB_LOCALPART)

    async def find_display_name(self, ghost: GhostId) -> str | None:
        """The ghost's display name, empty if it has none; None if there is no such user."""
        try:
            # Asked as the hub: a ghost that does not exist may not ask.
            answer = await self._wire.call(self.hub, lambda nio: nio.get_displayname(ghost))
        except Rejected as refusal:
            if refusal.code != "M_NOT_FOUND":
                raise
            return None
        name = answer.get("displayname")
        return name if isinstance(name, str) else ""

    async def room_state(
        self, reader: GhostId, room_id: RoomId
    ) -> tuple[tuple[StateEvent, ...], tuple[Member, ...]]:
        """The room's state and memberships as ``reader`` sees them.

        One who has left sees them as they were then.
        """
        path = ("_matrix", "client", "v3", "rooms", room_id, "state")
        answer = await self._wire.ask("GET", path, ghost=reader, array_as="state")
        found = answer.get("state")
        raw = [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []
        return tuple(read_state(room_id, raw)), tuple(read_members(room_id, raw))

    async def point_alias(self, ghost: GhostId, alias: str, room_id: RoomId) -> None:
        """Has the alias lead to the room, wherever it led before.

        Source: https://spec.matrix.org/v1.16/client-server-api/#room-aliases
        """
        await self.remove_alias(ghost, alias)
        body = {"room_id": room_id}
        await self._wire.ask("PUT", self._directory(alias), ghost=ghost, body=body)

    async def remove_alias(self, ghost: GhostId, alias: str) -> None:
        """Has the alias lead nowhere."""
        try:
            await self._wire.ask("DELETE", self._directory(alias), ghost=ghost)
        except Rejected as refusal:
            if refusal.code != "M_NOT_FOUND":
                raise

    def _directory(self, alias: str) -> tuple[str, ...]:
        return ("_matrix", "client", "v3", "directory", "room", alias)

    async def knock(self, ghost: GhostId, room_id: RoomId) -> None:
        """Has the ghost ask to be let in. Rejected: the room takes no such requests."""
        path = ("_matrix", "client", "v3", "knock", room_id)
        await self._wire.ask("POST", path, ghost=ghost, body={})

    async def mark(self, ghost: GhostId, room_id: RoomId, marker: Json) -> None:
        """Writes into the room by what we know it again."""
        await self.put_state(ghost, room_id, MARKER_TYPE, marker)

    async def put_state(
        self, ghost: GhostId, room_id: RoomId, type_: str, content: Json, state_key: str = ""
    ) -> None:
        """Sets it; content that the room has already makes no new event."""
        body: dict[str, Any] = dict(content)
        await self._wire.call(
            ghost, lambda nio: nio.room_put_state(room_id, type_, body, state_key)
        )
