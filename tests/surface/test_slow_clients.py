"""Whoever never finishes a request is given up, and nobody else waits for that."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import httpx2
import pytest

from homeroom_tools import web
from homeroom_tools.serve import Site, Tokens, build_server, run_http
from support.fake_app import FakeApp
from support.fake_http import ACCEPT, INITIALIZE
from support.fake_process import START_LIMIT_S

LIMIT_S = 0.5
DRIP_S = 0.05
HEAD = b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@asynccontextmanager
async def serving(token: str = "") -> AsyncIterator[int]:
    app, stop, ready = FakeApp(), anyio.Event(), anyio.Event()
    ports: list[int] = []

    def on_ready(port: int) -> None:
        ports.append(port)
        ready.set()

    async def run() -> None:
        site = Site(tokens=Tokens(None, token))
        await run_http(build_server(app), site, health=app.health, stop=stop, on_ready=on_ready)  # type: ignore[arg-type]

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await ready.wait()
        try:
            yield ports[0]
        finally:
            stop.set()


async def drip(port: int, first: bytes, drop: bytes) -> bytes:
    """Sends ``first`` and then ``drop`` for ever; returns what came back until the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def send() -> None:
        writer.write(first)
        while True:
            writer.write(drop)
            await writer.drain()
            await asyncio.sleep(DRIP_S)

    sender, answer = asyncio.create_task(send()), b""
    try:
        async with asyncio.timeout(START_LIMIT_S):
            while piece := await reader.read(65_536):
                answer += piece
            while not sender.done():  # until the other side takes nothing any more
                await asyncio.wait([sender], timeout=DRIP_S)
        return answer
    except ConnectionResetError:
        return answer
    finally:
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)
        writer.close()


@pytest.mark.parametrize(
    ("first", "drop", "status"),
    [
        (b"", b"P", b"HTTP/1.1 408 "),
        (HEAD, b"X-Drop: 1\r\n", b"HTTP/1.1 408 "),
        (HEAD + b"Content-Length: 1000000\r\n\r\n", b"{", b"HTTP/1.1 408 "),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n{\r\n", b"HTTP/1.1 408 "),
    ],
    ids=["a line without end", "a head without end", "a body", "chunks"],
)
async def test_a_request_that_only_drips_in_is_given_up(
    first: bytes, drop: bytes, status: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "REQUEST_LIMIT_S", LIMIT_S)
    async with serving() as port, httpx2.AsyncClient() as client:
        answers = await asyncio.gather(*(drip(port, first, drop) for _ in range(5)))
        assert all(answer.startswith(status) for answer in answers), answers
        url = f"http://127.0.0.1:{port}/mcp"
        assert (await client.post(url, headers=ACCEPT, json=INITIALIZE)).status_code == 200


async def test_whoever_was_refused_cannot_go_on_dripping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "REQUEST_LIMIT_S", LIMIT_S)
    async with serving("a token") as port:
        answer = await drip(port, HEAD + b"Content-Length: 1000000\r\n\r\n", b"{")
    assert answer.startswith(b"HTTP/1.1 401 ")


async def test_a_stream_whose_request_never_ends_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "REQUEST_LIMIT_S", LIMIT_S)
    head = b"GET /sse HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n"
    async with serving() as port:
        answer = await drip(port, head, b"{")
    assert answer.startswith(b"HTTP/1.1 200 ") and b"event: endpoint" in answer


async def test_who_says_nothing_at_all_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "REQUEST_LIMIT_S", LIMIT_S)
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(START_LIMIT_S):
            assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
        writer.close()


async def test_a_long_answer_is_no_slow_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "REQUEST_LIMIT_S", LIMIT_S)
    call = {"name": "chat_with_agent", "arguments": {"agent": "Slow Sam", "message": "x"}}
    call["arguments"]["wait_s"] = 3 * LIMIT_S  # type: ignore[index]
    async with serving() as port, httpx2.AsyncClient(timeout=START_LIMIT_S) as client:
        url = f"http://127.0.0.1:{port}/mcp"
        opened = await client.post(url, headers=ACCEPT, json=INITIALIZE)
        session = ACCEPT | {"Mcp-Session-Id": opened.headers["mcp-session-id"]}
        done = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        await client.post(url, headers=session, json=done)
        request = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call}
        answer = await client.post(url, headers=session, json=request)
        said = [line for line in answer.text.splitlines() if line.startswith("data: {")]
        assert (
            "pending" in json.loads(said[-1].removeprefix("data: "))["result"]["content"][0]["text"]
        )


async def test_too_many_connections_are_told_so_and_room_frees_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(web, "MAX_CONNECTIONS", 3)
    async with serving() as port, httpx2.AsyncClient() as client:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        url = f"http://127.0.0.1:{port}/health"
        assert (await client.get(url, headers={"Connection": "close"})).status_code == 503
        for _, writer in held:
            writer.close()
        async with asyncio.timeout(START_LIMIT_S):
            status = 0
            while status != 200:
                status = (await client.get(url, headers={"Connection": "close"})).status_code
