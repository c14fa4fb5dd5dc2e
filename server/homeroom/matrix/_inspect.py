"""A user and a room that others have made, looked at without touching them."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Protocol

from homeroom.errors import Rejected
from homeroom.model import MARKER_TYPE, GhostId, RoomId


class Ask(Protocol):
    def __call__(
        self, method: str, path: tuple[str, ...], *, query: dict[str, str]
    ) -> Awaitable[dict[str, Any]]: ...


@dataclass(frozen=True, slots=True)
class Home:
    """What the homeserver says of a user and a room, asked as that user."""

    exists: bool
    """Whether there is such a user at all."""
    may_drive: bool
    """Whether the homeserver takes our requests as theirs."""
    membership: str = ""
    """Theirs in the room; empty if they have never been in it, or there is no such room."""
    replaced_by: str = ""
    """The room that it was upgraded to."""
    encrypted: bool = False
    marked_for: str = ""
    """The agent that our marker in the room names."""


async def inspect_home(ask: Ask, ghost: GhostId, room_id: RoomId) -> Home:
    """Requests are made as ``ghost`` but with no device of theirs: giving it one is a change.

    Source: https://spec.matrix.org/v1.16/application-service-api/#identity-assertion
    """
    try:
        await ask("GET", ("_matrix", "client", "v3", "account", "whoami"), query={"user_id": ghost})
    except Rejected as refusal:
        if refusal.code not in ("M_FORBIDDEN", "M_EXCLUSIVE", "M_NOT_FOUND"):
            raise
        return Home(exists=await _exists(ask, ghost), may_drive=False)

    async def state(event_type: str, state_key: str = "") -> dict[str, Any]:
        path = ("_matrix", "client", "v3", "rooms", room_id, "state", event_type, state_key)
        try:
            return await ask("GET", path, query={"user_id": ghost})
        except Rejected as refusal:
            if refusal.code not in ("M_FORBIDDEN", "M_NOT_FOUND", "M_INVALID_PARAM"):
                raise
            return {}

    membership = _text(await state("m.room.member", ghost), "membership")
    if membership != "join":
        return Home(exists=True, may_drive=True, membership=membership)
    return Home(
        exists=True,
        may_drive=True,
        membership=membership,
        replaced_by=_text(await state("m.room.tombstone"), "replacement_room"),
        encrypted=bool(await state("m.room.encryption")),
        marked_for=_text(await state(MARKER_TYPE), "agent_id"),
    )


async def _exists(ask: Ask, ghost: GhostId) -> bool:
    try:
        await ask("GET", ("_matrix", "client", "v3", "profile", ghost), query={})
    except Rejected as refusal:
        # Synapse says the one or the other of a user that it does not have.
        if refusal.code not in ("M_NOT_FOUND", "M_UNKNOWN", "M_FORBIDDEN"):
            raise
        return False
    return True


def _text(content: dict[str, Any], field: str) -> str:
    value = content.get(field)
    return value if isinstance(value, str) else ""
