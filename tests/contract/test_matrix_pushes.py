"""A homeserver that is told to push, and Homeroom where it pushes to."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import pytest

from homeroom.errors import Unavailable
from homeroom.local.child import free_port
from homeroom_tools.serve import Site, Tokens, build_server, run_http
from support.fake_app import FakeApp
from support.matrix import connect, move_in, text
from support.synapse import Homeserver, prepare_homeserver

LIMIT_S = 20.0


@pytest.fixture
def push_port() -> int:
    return free_port()


@pytest.fixture
def pushing(tmp_path: Path, push_port: int) -> Iterator[Homeserver]:
    """A running homeserver that pushes to ``push_port``."""
    homeserver = prepare_homeserver(tmp_path, push_url=f"http://127.0.0.1:{push_port}")
    try:
        homeserver.synapse.start()
        yield homeserver
    finally:
        homeserver.synapse.stop()


@asynccontextmanager
async def serving(port: int, hs_token: str) -> AsyncIterator[None]:
    """The HTTP service as ``serve --http`` makes it, with a token for its clients as well."""
    app, stop, ready = FakeApp(), anyio.Event(), anyio.Event()
    serve = partial(
        run_http, build_server(app),
        Site(port=port, tokens=Tokens(None, "for-clients"), hs_token=hs_token),
        health=app.health, stop=stop, on_ready=lambda port: ready.set(),
    )  # fmt: skip
    async with anyio.create_task_group() as group:
        group.start_soon(serve)
        await ready.wait()
        try:
            yield
        finally:
            stop.set()


@asynccontextmanager
async def watched(port: int, onward: int) -> AsyncIterator[asyncio.Queue[tuple[str, str]]]:
    """Hands requests to ``port`` on to ``onward``; tells the first lines of each and its answer."""
    seen: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", onward)
        try:
            request, body = await read_message(reader)
            back.write(request + body)
            answer, body = await read_message(there)
            writer.write(answer.replace(b"\r\n", b"\r\nConnection: close\r\n", 1) + body)
            seen.put_nowait((first_line(request), first_line(answer)))
        finally:
            for one in (back, writer):
                one.close()
                await one.wait_closed()

    async with await asyncio.start_server(carry, "127.0.0.1", port):
        yield seen


async def read_message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    (size,) = re.findall(rb"content-length: *(\d+)", head.lower())
    return head, await reader.readexactly(int(size))


def first_line(head: bytes) -> str:
    return head.partition(b"\r\n")[0].decode()


async def test_doctors_ping_comes_back_through_the_homeserver(
    pushing: Homeserver, push_port: int
) -> None:
    hs_token = pushing.registration.hs_token.get_secret_value()
    async with serving(push_port, hs_token), connect(pushing) as matrix:
        await matrix.check()
        took_ms = await matrix.ping()
        assert took_ms is not None and 0 <= took_ms < LIMIT_S * 1000


async def test_a_homeserver_with_another_hs_token_cannot_reach_us(
    pushing: Homeserver, push_port: int
) -> None:
    async with serving(push_port, "another-token"), connect(pushing) as matrix:
        await matrix.check()
        with pytest.raises(Unavailable, match="502"):
            await matrix.ping()


async def test_what_the_homeserver_pushes_is_taken(pushing: Homeserver, push_port: int) -> None:
    port = free_port()
    async with (
        serving(port, pushing.registration.hs_token.get_secret_value()),
        watched(push_port, port) as seen,
        connect(pushing) as matrix,
    ):
        ghost, room = await move_in(matrix, "agent_pushed")
        await matrix.post(ghost, room, text("hello"), "1")
        asked, answered = await asyncio.wait_for(seen.get(), LIMIT_S)
        assert asked.startswith("PUT /_matrix/app/v1/transactions/")
        assert answered == "HTTP/1.1 200 OK"
        assert "access_token" not in asked, "this homeserver sends the token in the header alone"
