"""A person at a Matrix client: an independent witness of what the bridge did.

Logs in with a password and shares no code with Homeroom. It reads raw events, so it sees rooms of
every version, and keeps all of them in the order they came.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
import nio

Event = dict[str, Any]

_FILTER = json.dumps({"room": {"timeline": {"limit": 100}}, "presence": {"types": []}})
_POLL_MS = 30_000
_RECONNECT_S = 0.1
_PATIENCE_S = 60.0
"""Far more than any wait takes: the machine may be busy with other tests."""


class ServerFault(AssertionError):
    """The homeserver failed by a fault of its own; another try may succeed."""


class Person:
    """Use ``async with Person.login(url, localpart, password) as person``."""

    def __init__(self, client: nio.AsyncClient) -> None:
        self._client = client
        self._changed = asyncio.Condition()
        self._failure: BaseException | None = None
        self._invites: dict[str, list[Event]] = {}
        self._space_invites: dict[str, list[Event]] = {}
        self.id: str = client.user_id
        self.events: list[Event] = []
        """Everything seen since login, with ``room_id`` in each; ephemeral events too."""

    @classmethod
    @asynccontextmanager
    async def login(cls, url: str, localpart: str, password: str) -> AsyncIterator[Person]:
        """A person who is logged in and has seen their first sync."""
        config = nio.AsyncClientConfig(
            max_limit_exceeded=0, max_timeouts=0, encryption_enabled=False
        )
        client = nio.AsyncClient(url, localpart, config=config)
        try:
            answer = await client.login(password)
            assert isinstance(answer, nio.LoginResponse), f"{localpart} cannot log in: {answer}"
            person = cls(client)
            since = await person._sync_once("")
            task = asyncio.create_task(person._sync_forever(since))
            try:
                yield person
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        finally:
            await client.close()

    # --- doing -----------------------------------------------------------------------------------

    async def join(self, room: str) -> str:
        """Joins a room by id or alias; returns its id."""
        body = await self._ask("POST", ("join", room), body={})
        return str(body["room_id"])

    async def create_room(self, **wishes: Any) -> str:
        """A room of the person's own; returns its id."""
        return str((await self._ask("POST", ("createRoom",), body=wishes))["room_id"])

    async def leave(self, room: str) -> None:
        await self._ask("POST", ("rooms", room, "leave"), body={})

    async def say(self, room: str, text: str, **content: Any) -> str:
        """Says ``text``; ``content`` is laid over the message. Returns the event id."""
        return await self.send(room, {"msgtype": "m.text", "body": text} | content)

    async def send(self, room: str, content: Event, event_type: str = "m.room.message") -> str:
        path = ("rooms", room, "send", event_type, uuid.uuid4().hex)
        return str((await self._ask("PUT", path, body=content))["event_id"])

    async def send_state(
        self, room: str, event_type: str, content: Event, state_key: str = ""
    ) -> str:
        path = ("rooms", room, "state", event_type, state_key)
        return str((await self._ask("PUT", path, body=content))["event_id"])

    # --- seeing ----------------------------------------------------------------------------------

    def invites(self) -> list[str]:
        """Rooms (and no spaces) this person is invited to right now, as far as the sync told."""
        return list(self._invites)

    def invite_state(self, room: str) -> list[Event]:
        """What whoever is invited there is told of the room."""
        return self._invites[room]

    def space_invites(self) -> list[str]:
        """The same for spaces."""
        return list(self._space_invites)

    async def wait_event(
        self, predicate: Callable[[Event], bool], timeout_s: float = _PATIENCE_S
    ) -> Event:
        """The first event since login that satisfies ``predicate``, waiting for it if need be."""
        seen = 0

        def found() -> Event | None:
            nonlocal seen
            while seen < len(self.events):
                seen += 1
                if predicate(self.events[seen - 1]):
                    return self.events[seen - 1]
            return None

        event = await self._wait(found, timeout_s, "event")
        assert isinstance(event, dict)
        return event

    async def wait_more(self, count: int, timeout_s: float = _PATIENCE_S) -> None:
        """Returns once more than ``count`` events have been seen."""
        await self._wait(lambda: len(self.events) > count or None, timeout_s, "event")

    async def wait_invite(self, timeout_s: float = _PATIENCE_S, room: str | None = None) -> str:
        """A room this person is invited to (``room``, if given), waiting for it if need be."""

        def found() -> str | None:
            rooms = [name for name in self._invites if room in (None, name)]
            return rooms[0] if rooms else None

        return str(await self._wait(found, timeout_s, "invite"))

    async def wait_space_invite(self, timeout_s: float = _PATIENCE_S, besides: str = "") -> str:
        """A space this person is invited to, and not ``besides``, waiting for it if need be."""

        def found() -> str | None:
            return next((room for room in self._space_invites if room != besides), None)

        return str(await self._wait(found, timeout_s, "invite to a space"))

    async def hierarchy(self, space: str) -> dict[str, Event]:
        """What the space holds, as clients list it: room id -> what is told of the room."""
        path = f"/_matrix/client/v1/rooms/{quote(space, safe='')}/hierarchy?limit=100"
        rooms: list[Event] = (await self._ask_at("GET", path))["rooms"]
        return {room["room_id"]: room for room in rooms if room["room_id"] != space}

    async def fetch_media(self, mxc: str) -> bytes:
        """The file at that address."""
        path = "/_matrix/client/v1/media/download/" + mxc.removeprefix("mxc://")
        headers = {"Authorization": f"Bearer {self._client.access_token}"}
        response = await self._client.send("GET", path, None, headers, timeout=60)
        assert response.status == 200, await response.text()
        return bytes(await response.read())

    async def profile(self, user: str) -> Event:
        return await self._ask("GET", ("profile", user))

    async def messages(
        self, room: str, types: tuple[str, ...] = ("m.room.message",)
    ) -> list[Event]:
        """The room's whole history, oldest first; ``types`` empty means events of every type."""
        query = {"dir": "f", "limit": "200"}
        if types:
            query["filter"] = json.dumps({"types": types})
        found: list[Event] = []
        while True:
            body = await self._ask("GET", ("rooms", room, "messages"), query=query)
            found += body["chunk"]
            if body.get("end") in (None, query.get("from")):
                return found
            query["from"] = body["end"]

    async def bodies(self, room: str) -> list[str]:
        """The text of every message of the room, oldest first."""
        return [str(event["content"].get("body")) for event in await self.messages(room)]

    async def state(self, room: str, event_type: str, state_key: str = "") -> Event:
        """Content of a state event. Raises AssertionError if there is none."""
        return await self._ask("GET", ("rooms", room, "state", event_type, state_key))

    async def whole_state(self, room: str) -> list[Event]:
        """Every state event of the room."""
        path = f"/_matrix/client/v3/rooms/{quote(room, safe='')}/state"
        answer: Any = await self._ask_at("GET", path)
        return list(answer)

    async def resolve(self, alias: str) -> str:
        """The room that the alias points to."""
        return str((await self._ask("GET", ("directory", "room", alias)))["room_id"])

    async def room_name(self, room: str) -> str:
        return str((await self.state(room, "m.room.name"))["name"])

    async def members(self, room: str) -> dict[str, str]:
        """User id to display name of everybody who is in the room."""
        joined = (await self._ask("GET", ("rooms", room, "joined_members")))["joined"]
        return {user: profile.get("display_name") or "" for user, profile in joined.items()}

    # --- the wire --------------------------------------------------------------------------------

    async def _wait(
        self, found: Callable[[], object | None], timeout_s: float, what: str
    ) -> object:
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                while (result := found()) is None:
                    assert self._failure is None, f"the sync of {self.id} died: {self._failure!r}"
                    await self._changed.wait()
                return result
        except TimeoutError:
            last = [(e["type"], e.get("sender"), e["content"]) for e in self.events[-5:]]
            raise AssertionError(
                f"{self.id} saw no such {what} in {timeout_s} s; the last events were {last}"
            ) from None

    async def _sync_forever(self, since: str) -> None:
        while self._failure is None:
            try:
                since = await self._sync_once(since)
            except (aiohttp.ClientError, OSError, ServerFault):
                await asyncio.sleep(_RECONNECT_S)  # like any client while its homeserver is unwell
            except (AssertionError, LookupError, ValueError) as error:
                async with self._changed:
                    self._failure = error
                    self._changed.notify_all()

    async def _sync_once(self, since: str) -> str:
        query = {"filter": _FILTER, "timeout": str(_POLL_MS if since else 0)}
        if since:
            query["since"] = since
        body = await self._ask("GET", ("sync",), query=query)
        rooms = body.get("rooms", {})
        async with self._changed:
            for room, part in rooms.get("invite", {}).items():
                events = part["invite_state"]["events"]
                is_space = any(event["content"].get("type") == "m.space" for event in events)
                (self._space_invites if is_space else self._invites)[room] = events
            for section in ("join", "leave"):
                for room, part in rooms.get(section, {}).items():
                    self._invites.pop(room, None)
                    self._space_invites.pop(room, None)
                    for kind in ("timeline", "ephemeral"):
                        raw = part.get(kind, {}).get("events", [])
                        self.events += [event | {"room_id": room} for event in raw]
            self._changed.notify_all()
        return str(body["next_batch"])

    async def _ask(
        self,
        method: str,
        path: tuple[str, ...],
        *,
        query: dict[str, str] | None = None,
        body: Event | None = None,
    ) -> Event:
        url = "/_matrix/client/v3/" + "/".join(quote(part, safe="") for part in path)
        if query:
            url += "?" + urlencode(query)
        return await self._ask_at(method, url, body)

    async def _ask_at(self, method: str, url: str, body: Event | None = None) -> Event:
        response = await self._client.send(
            method,
            url,
            None if body is None else json.dumps(body),
            {
                "Authorization": f"Bearer {self._client.access_token}",
                "Content-Type": "application/json",
            },
            timeout=60,
        )
        answer: Event = await response.json()
        said = f"{method} {url} as {self.id}: {response.status} {answer}"
        if response.status >= 500:
            raise ServerFault(said)
        assert response.status == 200, said
        return answer
