"""Short ways to ghosts, rooms and broken homeservers, for the tests of the Matrix side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx

from homeroom.matrix import Matrix, open_matrix
from homeroom.model import GhostId, RoomEvent, RoomId, RoomSpec
from support.synapse import Homeserver, matrix_config


def connect(homeserver: Homeserver, **overrides: Any) -> AbstractAsyncContextManager[Matrix]:
    return open_matrix(matrix_config(homeserver, **overrides), homeserver.registration)


def room_spec(localpart: str, version: str = "11", *people: str, hub: str = "") -> RoomSpec:
    return RoomSpec(
        alias_localpart=localpart,
        name=f"Room of {localpart}",
        topic="What it is for",
        invite=(*([hub] if hub else []), *people),
        admins=people[:1],
        version=version,
        marker={"agent_id": localpart},
    )


async def move_in(
    matrix: Matrix, localpart: str, version: str = "11", *people: str
) -> tuple[GhostId, RoomId]:
    """A ghost in a room of its own with the hub in it and ``people`` invited."""
    await matrix.check()
    ghost = await matrix.ensure_ghost(localpart)
    room = await matrix.create_room(ghost, room_spec(localpart, version, *people, hub=matrix.hub))
    await matrix.ensure_joined(matrix.hub, room)
    return ghost, room


async def catch_up(matrix: Matrix) -> str:
    return (await matrix.sync("", 0)).cursor


async def events_until(matrix: Matrix, cursor: str, last_body: str) -> list[RoomEvent]:
    """Every event after ``cursor`` up to the message with that text."""
    found: list[RoomEvent] = []
    async with asyncio.timeout(60):
        while not any(event.content.get("body") == last_body for event in found):
            batch = await matrix.sync(cursor, 10_000)
            found += batch.events
            cursor = batch.cursor
    return found


def bodies(events: list[RoomEvent] | tuple[RoomEvent, ...]) -> list[str]:
    return [event.content["body"] for event in events if event.type == "m.room.message"]


def text(body: str) -> dict[str, str]:
    return {"msgtype": "m.text", "body": body}


def as_ghost(
    homeserver: Homeserver,
    ghost: str,
    method: str,
    path: str,
    body: dict[str, Any] | None = None,
) -> dict[str, Any]:
    token = homeserver.registration.as_token.get_secret_value()
    with httpx.Client(base_url=homeserver.url, trust_env=False) as client:
        answer = client.request(
            method,
            path,
            params={"user_id": ghost},
            headers={"Authorization": f"Bearer {token}"},
            json=body or {},
        )
    assert answer.is_success, answer.text
    found: dict[str, Any] = answer.json()
    return found


def devices(homeserver: Homeserver, ghost: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = as_ghost(homeserver, ghost, "GET", "/_matrix/client/v3/devices")[
        "devices"
    ]
    return found


def http_answer(status: int, body: bytes, content_type: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status} Whatever\r\nContent-Type: {content_type}\r\n"
    head += "Location: http://127.0.0.1:9/\r\n" if 300 <= status < 400 else ""
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


@asynccontextmanager
async def answering(homeserver: Homeserver | None, answer: bytes) -> AsyncIterator[str]:
    """A server that hands requests on to ``homeserver``, if any, and always says ``answer``."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        request, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if homeserver is not None:
            method, path, _ = request.split(" ")
            async with httpx.AsyncClient(trust_env=False) as client:
                await client.request(
                    method,
                    homeserver.url + path,
                    content=body,
                    headers={"Authorization": f"Bearer {_token(homeserver)}"},
                )
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def _token(homeserver: Homeserver) -> str:
    return homeserver.registration.as_token.get_secret_value()
