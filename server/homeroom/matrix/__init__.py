"""Ghosts, rooms, posts and the hub's sync, over one appservice token.

Owns every request to the homeserver. Knows nothing of agents, mailboxes or the store. Ghosts never
log in and have no secret of their own, so it works on servers that delegate authentication too.
Invariant: every request may be repeated (``ensure_``, fixed transaction ids, one alias per room),
and everything that goes wrong is an error of ``homeroom.errors``.

nio takes a third of a second to import, so it is loaded by ``open_matrix`` and not before.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from homeroom.errors import Rejected, Unavailable
from homeroom.matrix._inspect import Home, inspect_home
from homeroom.matrix._invitations import read_invitations, read_invited_ms
from homeroom.matrix._media import Media
from homeroom.matrix._messages import Messages, read_messages
from homeroom.matrix._repair import Repair, is_gone
from homeroom.matrix._rooms import (
    CHILD_TYPE,
    PARENT_TYPE,
    child_content,
    initial_state,
    invitees,
    parent_content,
    power_levels,
)
from homeroom.matrix._sync import FindAbsences, read_batch
from homeroom.model import (
    HUB_LOCALPART,
    MARKER_TYPE,
    EventId,
    GhostId,
    Json,
    RoomId,
    RoomSpec,
    SyncBatch,
    localpart_of,
)
from homeroom.residence import Invitation

if TYPE_CHECKING:
    from homeroom.config import Config
    from homeroom.matrix._client import Wire
    from homeroom.registration import Registration

__all__ = [
    "CHILD_TYPE",
    "MARKER_TYPE",
    "OUR_FAULT",
    "PARENT_TYPE",
    "Home",
    "Matrix",
    "Messages",
    "ServerInfo",
    "child_content",
    "is_gone",
    "open_matrix",
    "parent_content",
]

HUB_NAME = "Homeroom"
"""What rooms show as the hub's name."""
OUR_FAULT = {"M_UNKNOWN_TOKEN", "M_MISSING_TOKEN", "M_EXCLUSIVE", "M_USER_DEACTIVATED"}
"""Refusals that say nothing about the request: a person will mend them, and then it is granted."""
_NO_MATRIX = "what answers at HOMEROOM_MATRIX_URL does not speak Matrix"


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What the homeserver said of itself and of us."""

    versions: tuple[str, ...]
    whoami: str
    """The user our requests as the hub are taken for; empty: there is no hub (``read_only``)."""


@asynccontextmanager
async def open_matrix(
    config: Config, registration: Registration, *, read_only: bool = False
) -> AsyncIterator[Matrix]:
    """The homeserver of ``config``, acted on with the token of ``registration``.

    Makes no request; ``check`` does. ``read_only``: nothing there is ever changed by it.
    """
    from homeroom.matrix._client import open_wire

    token = registration.as_token.get_secret_value()
    async with open_wire(config.matrix_url, token, read_only=read_only) as wire:
        yield Matrix(wire, config.matrix_server_name, registration)


class Matrix(Media, Repair):
    """The homeserver as Homeroom uses it. Use ``open_matrix``.

    Every method may raise ``Unavailable`` (nothing happened, or repeating is harmless; 429 with
    ``retry_after_s``) and ``Rejected`` (a person must act). Others are named where they occur.
    """

    def __init__(self, wire: Wire, server_name: str, registration: Registration) -> None:
        self._wire = wire
        self._registration = registration
        self.server_name = server_name
        self.hub = self.ghost_id(HUB_LOCALPART)

    # --- names -----------------------------------------------------------------------------------

    def ghost_id(self, localpart: str) -> GhostId:
        """The Matrix id of the ghost with that localpart, whether it exists or not."""
        return GhostId(f"@{localpart}:{self.server_name}")

    def alias(self, localpart: str) -> str:
        """The room alias with that localpart."""
        return f"#{localpart}:{self.server_name}"

    def is_ghost(self, user_id: str) -> bool:
        """Whether we drive that user: any ghost, the hub, or the appservice's own sender."""
        if not user_id.endswith(f":{self.server_name}"):
            return False
        return user_id == self._sender or self._registration.owns_user(user_id)

    def may_be_agent(self, ghost: GhostId) -> bool:
        """Whether it is neither the hub nor the appservice's own sender."""
        return ghost not in (self.hub, self._sender)

    @property
    def _sender(self) -> str:
        return self.ghost_id(self._registration.sender_localpart)

    # --- the server ------------------------------------------------------------------------------

    async def check(self) -> ServerInfo:
        """Proves that we can work here: right server, token accepted, names ours, hub present.

        Registers the hub if it is missing, and gives it a name if it has none of its own (unless
        it is ``read_only``); otherwise changes nothing.

        Raises:
            Rejected: with what to correct in the registration or the configuration.
        """
        versions = (await self._wire.ask("GET", ("_matrix", "client", "versions"))).get("versions")
        sender = await self._whoami(None)
        if sender != self._sender:
            raise Rejected(
                "matrix",
                f"the as_token belongs to {sender[:255]}, not to {self._sender}. "
                "HOMEROOM_MATRIX_SERVER_NAME must be the homeserver's server_name and "
                "sender_localpart the one it has loaded",
            )
        alias = self.alias(HUB_LOCALPART)
        if not (self.is_ghost(self.hub) and self._registration.owns_alias(alias)):
            raise Rejected(
                "matrix",
                f"the registration's namespaces do not cover {self.hub} and {alias}. "
                "Generate a new registration for this server name and install it",
            )
        known = versions if isinstance(versions, list) else []
        whoami = await self._find_hub() if self._wire.read_only else await self._ensure_hub()
        return ServerInfo(tuple(str(v) for v in known), whoami)

    async def _ensure_hub(self) -> str:
        await self.ensure_ghost(HUB_LOCALPART)
        # Synapse names a new user after its localpart; any other name is somebody's choice.
        if await self.get_display_name(self.hub) in ("", HUB_LOCALPART):
            await self.set_display_name(self.hub, HUB_NAME)
        return await self._whoami(self.hub)

    async def _find_hub(self) -> str:
        try:
            return await self._whoami(self.hub)
        except Rejected as refusal:
            if refusal.code not in ("M_FORBIDDEN", "M_EXCLUSIVE", "M_NOT_FOUND"):
                raise
            return ""

    async def ping(self) -> int | None:
        """Milliseconds the homeserver takes to reach us; None if it is told not to push.

        Source: https://spec.matrix.org/v1.16/application-service-api/#pinging
        """
        path = ("_matrix", "client", "v1", "appservice", self._registration.id, "ping")
        try:
            answer = await self._wire.ask("POST", path, body={"transaction_id": "homeroom"})
        except Rejected as refusal:
            if refusal.code != "M_URL_NOT_SET":
                raise
            return None
        duration_ms = answer.get("duration_ms")
        return int(duration_ms) if isinstance(duration_ms, int | float) else 0

    async def probe(self) -> None:
        """Returns if the homeserver answers as it should to somebody it has to look up."""
        await self._whoami(self.hub)

    async def _whoami(self, ghost: GhostId | None) -> str:
        path = ("_matrix", "client", "v3", "account", "whoami")
        return _text(await self._wire.ask("GET", path, ghost=ghost), "user_id")

    # --- ghosts ----------------------------------------------------------------------------------

    async def ensure_ghost(self, localpart: str) -> GhostId:
        """The ghost with that localpart, registered and with its device. Never logs in."""
        await self.make_ghost(localpart)
        return self.ghost_id(localpart)

    async def set_display_name(self, ghost: GhostId, name: str) -> None:
        """Sets it; the rooms of the ghost follow within a second or so, in the background."""
        await self._wire.call(ghost, lambda nio: nio.set_displayname(name))

    async def get_display_name(self, ghost: GhostId) -> str:
        """The ghost's display name; empty if it has none or does not exist."""
        return await self.find_display_name(ghost) or ""

    # --- notes on the homeserver -----------------------------------------------------------------

    async def get_account_data(self, ghost: GhostId, event_type: str) -> dict[str, Any]:
        """What the ghost noted under that type; empty if nothing.

        Source: https://spec.matrix.org/v1.16/client-server-api/#client-config
        """
        try:
            return await self._wire.ask("GET", self._note(ghost, event_type), ghost=ghost)
        except Rejected as refusal:
            if refusal.code != "M_NOT_FOUND":
                raise
            return {}

    async def put_account_data(self, ghost: GhostId, event_type: str, content: Json) -> None:
        path = self._note(ghost, event_type)
        await self._wire.ask("PUT", path, ghost=ghost, body=dict(content))

    def _note(self, ghost: GhostId, event_type: str) -> tuple[str, ...]:
        return ("_matrix", "client", "v3", "user", ghost, "account_data", event_type)

    # --- rooms -----------------------------------------------------------------------------------

    async def find_room(self, alias: str) -> RoomId | None:
        """The room that the alias points to, or None."""
        try:
            answer = await self._wire.call(self.hub, lambda nio: nio.room_resolve_alias(alias))
        except Rejected as refusal:
            if refusal.code != "M_NOT_FOUND":
                raise
            return None
        return RoomId(_text(answer, "room_id"))

    async def create_room(self, ghost: GhostId, spec: RoomSpec) -> RoomId:
        """The room of ``spec``, created by ``ghost`` with everybody invited, in one request.

        If the alias is taken (an earlier try that died, or whose answer was lost) the room it
        points to is the result, and whoever it lacks is invited.

        Raises:
            Uncertain: the answer was lost; ``key`` is the alias, which makes a repeat safe.
        """
        from homeroom.matrix._client import PRIVATE, PRIVATE_CHAT

        alias = self.alias(spec.alias_localpart)
        guests = invitees(ghost, spec)
        try:
            answer = await self._wire.call(
                ghost,
                lambda nio: nio.room_create(
                    visibility=PRIVATE,
                    preset=PRIVATE_CHAT,
                    alias=spec.alias_localpart,
                    name=spec.name,
                    topic=spec.topic,
                    room_version=spec.version,
                    invite=guests,
                    initial_state=initial_state(spec, self.server_name),
                    power_level_override=power_levels(ghost, spec),
                    space=spec.is_space,
                ),
                key=alias,
            )
        except Rejected as refusal:
            room = await self.find_room(alias) if refusal.code == "M_ROOM_IN_USE" else None
            if room is None:
                raise
            for user in guests:
                await self.invite(ghost, room, user)
            return room
        return RoomId(_text(answer, "room_id"))

    async def ensure_joined(self, ghost: GhostId, room_id: RoomId) -> None:
        """Has the ghost join a room it was invited to; nothing if it is in it already."""
        await self._wire.call(ghost, lambda nio: nio.join(room_id))

    async def ensure_left(self, ghost: GhostId, room_id: RoomId, reason: str = "") -> None:
        """Has the ghost leave a room or decline its invitation; nothing if it is not there.

        ``reason`` is seen by those who are in the room.
        """
        path = ("_matrix", "client", "v3", "rooms", room_id, "leave")
        try:
            await self._wire.ask("POST", path, ghost=ghost, body={"reason": reason[:250]})
        except Rejected as refusal:
            if refusal.code not in ("M_FORBIDDEN", "M_NOT_FOUND", "M_UNKNOWN"):
                raise
            if room_id in await self.joined_rooms(ghost):
                raise

    async def invitations(self, ghost: GhostId, since: str) -> tuple[tuple[Invitation, ...], str]:
        """The invitations of a ghost that are new since ``since`` (empty: all that stand), and
        from where to go on. Returns at once."""
        return await read_invitations(self._wire.ask, ghost, since)

    async def invited_ms(self, ghost: GhostId, room_id: RoomId) -> int:
        """When the ghost, which has joined since, was invited into the room, by the homeserver's
        clock; 0 if that cannot be told."""
        return await read_invited_ms(self._wire.ask, ghost, room_id)

    async def invite(self, ghost: GhostId, room_id: RoomId, user_id: str) -> None:
        """Has ``ghost`` invite ``user_id``; one who is in the room or invited is left alone.

        Raises:
            Rejected: e.g. the ghost may not invite, or the user is banned.
        """
        try:
            await self._wire.call(ghost, lambda nio: nio.room_invite(room_id, user_id))
        except Rejected as refusal:
            if refusal.code not in ("M_FORBIDDEN", "M_BAD_STATE"):
                raise
            # "Already there" and "not allowed" have the same code; only the membership tells.
            member = await self.get_state(ghost, room_id, "m.room.member", user_id)
            if (member or {}).get("membership") not in ("join", "invite"):
                raise

    async def inspect_home(self, ghost: GhostId, room_id: RoomId) -> Home:
        """What a user and a room are that others have made; changes nothing."""
        return await inspect_home(self._wire.ask, ghost, room_id)

    async def set_name(self, ghost: GhostId, room_id: RoomId, name: str) -> None:
        await self.put_state(ghost, room_id, "m.room.name", {"name": name})

    async def set_topic(self, ghost: GhostId, room_id: RoomId, topic: str) -> None:
        await self.put_state(ghost, room_id, "m.room.topic", {"topic": topic})

    async def get_state(
        self, ghost: GhostId, room_id: RoomId, event_type: str, state_key: str = ""
    ) -> dict[str, Any] | None:
        """Content of a state event as ``ghost`` sees it; None if the room has no such event."""
        try:
            return await self._wire.call(
                ghost, lambda nio: nio.room_get_state_event(room_id, event_type, state_key)
            )
        except Rejected as refusal:
            if refusal.code != "M_NOT_FOUND":
                raise
            return None

    async def find_state(
        self, ghost: GhostId, room_id: RoomId, event_type: str
    ) -> tuple[dict[str, Any], str] | None:
        """A state event's content and who set it, or None if the room has no such event.

        The sender is empty where the homeserver gives the content alone.

        Source: https://spec.matrix.org/v1.16/client-server-api/
        #get_matrixclientv3roomsroomidstateeventtypestatekey (``format=event``).
        """
        path = ("_matrix", "client", "v3", "rooms", room_id, "state", event_type, "")
        try:
            answer = await self._wire.ask("GET", path, ghost=ghost, query={"format": "event"})
        except Rejected as refusal:
            if refusal.code != "M_NOT_FOUND":
                raise
            return None
        content, sender = answer.get("content"), answer.get("sender")
        if isinstance(content, dict) and isinstance(sender, str):
            return content, sender
        return answer, ""

    async def joined_rooms(self, ghost: GhostId) -> frozenset[RoomId]:
        """The rooms the ghost is in."""
        path = ("_matrix", "client", "v3", "joined_rooms")
        rooms = (await self._wire.ask("GET", path, ghost=ghost)).get("joined_rooms")
        if not isinstance(rooms, list):
            raise Unavailable("matrix", _NO_MATRIX)
        return frozenset(RoomId(room) for room in rooms if isinstance(room, str))

    async def joined_members(self, ghost: GhostId, room_id: RoomId) -> dict[str, str]:
        """User id to display name (empty where there is none) of everybody in the room."""
        answer = await self._wire.call(ghost, lambda nio: nio.joined_members(room_id))
        joined = answer.get("joined")
        if not isinstance(joined, dict):
            raise Unavailable("matrix", _NO_MATRIX)
        names = {
            user: profile.get("display_name") if isinstance(profile, dict) else None
            for user, profile in joined.items()
        }
        return {user: name if isinstance(name, str) else "" for user, name in names.items()}

    # --- messages --------------------------------------------------------------------------------

    async def post(
        self,
        ghost: GhostId,
        room_id: RoomId,
        content: Json,
        txn_id: str,
        event_type: str = "m.room.message",
        ts_ms: int = 0,
    ) -> EventId:
        """Posts an event as ``ghost``; the same ``txn_id`` posts once, however often it is sent.

        The key that goes out carries the ghost's localpart: a homeserver keeps transaction ids
        per appservice, and two ghosts with the same one would swallow each other's messages. It
        is safe to repeat for 24 hours, also across a crash of the homeserver. ``ts_ms`` gives it
        a time in the past; 0 is now.

        Source: https://spec.matrix.org/v1.16/application-service-api/#timestamp-massaging

        Raises:
            Uncertain: the answer was lost; ``key`` is the key that went out.
        """
        key = f"{localpart_of(ghost)}-{txn_id}"
        if ts_ms:
            path = ("_matrix", "client", "v3", "rooms", room_id, "send", event_type, key)
            query = {"ts": str(ts_ms)}
            sent = await self._wire.ask("PUT", path, ghost=ghost, query=query, body=dict(content))
            return EventId(_text(sent, "event_id"))
        answer = await self._wire.call(
            ghost, lambda nio: nio.room_send(room_id, event_type, dict(content), key), key=key
        )
        return EventId(_text(answer, "event_id"))

    async def is_unused(
        self, ghost: GhostId, room_id: RoomId, *, besides: GhostId | None = None
    ) -> bool:
        """Whether nobody has said anything in the room yet (nobody but ``besides``), as ``ghost``
        sees it."""
        only = {"types": ["m.room.message", "m.room.encrypted", "m.sticker"], "limit": 1}
        query = {
            "dir": "b",
            "limit": "1",
            "filter": json.dumps(only | ({"not_senders": [besides]} if besides else {})),
        }
        path = ("_matrix", "client", "v3", "rooms", room_id, "messages")
        while True:
            answer = await self._wire.ask("GET", path, ghost=ghost, query=query)
            if answer.get("chunk"):
                return False
            end = answer.get("end")
            if not isinstance(end, str) or end == query.get("from"):
                return True
            query["from"] = end  # a page may be empty because the filter left everything out

    async def messages(self, room_id: RoomId, start: str, limit: int) -> Messages:
        """Up to ``limit`` messages of a room as the hub sees it, newest first, going back from the
        token ``start`` (empty: from now).

        Raises:
            Rejected: the hub is not in the room, or the token is none of this room's.
        """
        return await read_messages(self._wire.ask, self.hub, room_id, start, limit)

    async def set_typing(
        self, ghost: GhostId, room_id: RoomId, on: bool, timeout_ms: int = 30_000
    ) -> None:
        """Shows or hides that the ghost is typing; it fades by itself after ``timeout_ms``."""
        await self._wire.call(ghost, lambda nio: nio.room_typing(room_id, on, timeout_ms))

    async def read_receipt(self, ghost: GhostId, room_id: RoomId, event_id: EventId) -> None:
        """Shows that the ghost has read up to ``event_id``, threads or not."""
        # nio names a thread in every receipt; one without covers the whole room.
        path = ("_matrix", "client", "v3", "rooms", room_id, "receipt", "m.read", event_id)
        await self._wire.ask("POST", path, ghost=ghost, body={})

    async def sync(
        self, since: str, timeout_ms: int, find_absences: FindAbsences | None = None
    ) -> SyncBatch:
        """What the hub has seen since the cursor ``since``; waits up to ``timeout_ms`` for it.

        Events come in order and without holes: what the homeserver leaves out of a busy room is
        read page by page. A backlog of thousands is spread over several calls, each with a cursor
        that knows the rest; within a room the order holds across calls. ``since`` empty is the
        first sync: its events are each room's most recent ones, and it is for the caller to
        decide what they mean. The events of a room that the hub has just joined reach back before
        ``since``, and if it was put out of it before, to then (``find_absences`` tells when); of
        these some may have been there already. Cancelling a call loses nothing.

        Source: https://spec.matrix.org/v1.16/client-server-api/#syncing
        """
        batch = await read_batch(self._wire.ask, self.hub, since, timeout_ms, find_absences)
        return replace(batch, now_ms=self._wire.date_ms)


def _text(answer: Json, field: str) -> str:
    value = answer.get(field)
    if not isinstance(value, str):
        raise Unavailable("matrix", _NO_MATRIX)
    return value
