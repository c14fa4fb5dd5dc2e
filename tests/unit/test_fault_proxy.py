"""The proxy that the fault stories stand on does what it says, to plain clients."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from support.fault_proxy import (
    Fault,
    FaultProxy,
    bad_gateway,
    call,
    cut,
    delay,
    drop_after,
    drop_before,
    failing,
    half_json,
    hang,
    limited,
    message,
    path,
)
from support.loopback import Asked, Loopback, Say, frames, loopback


@asynccontextmanager
async def proxied() -> AsyncIterator[tuple[FaultProxy, httpx.AsyncClient, Loopback]]:
    """A server that says what it was asked, a client of it, and the proxy between them."""

    def answer(asked: Asked) -> Say:
        if asked.target == "/stream":
            return frames({"n": 1}, {"n": 2})
        return Say({"target": asked.target, "body": asked.body})

    async with loopback(answer) as server:
        with FaultProxy(server.url) as proxy:
            async with httpx.AsyncClient(base_url=proxy.url, trust_env=False, timeout=5) as client:
                yield proxy, client, server


async def test_what_no_rule_names_passes_unharmed() -> None:
    async with proxied() as (proxy, client, server):
        for number in range(3):  # over one connection
            answer = await client.post(f"/a?n={number}", json={"n": number})
            assert answer.json() == {"target": f"/a?n={number}", "body": {"n": number}}
        assert (await client.get("/stream")).text.count("data:") == 3
        assert proxy.count(path("/a")) == 3 == len(server.targets("POST"))
        assert proxy.requests[0].body == b'{"n":0}'


@pytest.mark.parametrize(
    ("fault", "reaches", "error"),
    [
        (drop_before(), False, httpx.TransportError),
        (drop_after(), True, httpx.TransportError),
        (cut(3), True, httpx.RemoteProtocolError),
        (hang(), False, httpx.ReadTimeout),
    ],
)
async def test_a_lost_answer_is_lost_before_or_after_the_server_had_the_request(
    fault: Fault, reaches: bool, error: type[Exception]
) -> None:
    async with proxied() as (proxy, client, server):
        proxy.on(path("/a"), fault, times=1)
        with pytest.raises(error):
            await client.get("/a", timeout=1)
        assert len(server.asked) == reaches
        assert (await client.get("/a")).status_code == 200, "the rule is used up"


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        (failing(), 500, "M_UNKNOWN"),
        (bad_gateway(), 502, "<p>upstream said 403</p>"),
        (limited(1500), 429, '"retry_after_ms": 1500'),
    ],
)
async def test_an_answer_in_the_servers_place_never_reaches_the_server(
    fault: Fault, status: int, words: str
) -> None:
    async with proxied() as (proxy, client, server):
        proxy.on(path("/a"), fault)
        for _ in range(2):
            answer = await client.get("/a")
            assert answer.status_code == status and words in answer.text
        assert not server.asked
        proxy.heal()
        assert (await client.get("/a")).status_code == 200


async def test_half_a_body_arrives_as_if_it_were_whole() -> None:
    async with proxied() as (proxy, client, server):
        whole = (await client.get("/a")).content
        proxy.on(path("/a"), half_json())
        answer = await client.get("/a")
        assert answer.content == whole[: len(whole) // 2] and len(server.asked) == 2
        with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
            answer.json()


async def test_a_rule_may_skip_some_and_hit_some_and_leaves_other_paths_and_methods_alone() -> None:
    async with proxied() as (proxy, client, _):
        proxy.on(path("/a$", "POST"), failing(), skip=1, times=2)
        codes = [(await client.post("/a")).status_code for _ in range(4)]
        assert codes == [200, 500, 500, 200]
        proxy.on(path("/a$", "POST"), failing())
        assert (await client.get("/a")).status_code == 200
        assert (await client.post("/ab")).status_code == 200


async def test_something_is_done_when_the_server_has_answered_and_before_the_client_knows() -> None:
    async with proxied() as (proxy, client, server):
        seen: list[int] = []
        done = threading.Event()

        def note() -> None:
            seen.append(len(server.asked))
            done.set()

        proxy.on(path("/a"), call(note) & delay(0.05), times=1)
        proxy.on(path("/a"), call(note) & drop_after(), times=1)
        began_s = monotonic()
        assert (await client.get("/a")).status_code == 200
        assert monotonic() - began_s >= 0.05 and seen == [1]
        with pytest.raises(httpx.TransportError):
            await client.get("/a")
        assert seen == [1, 2] and done.is_set()


async def test_requests_can_be_waited_for_and_a_wait_is_bounded() -> None:
    async with proxied() as (proxy, client, _):
        proxy.on(path("/a"), delay(0.2))
        asking = asyncio.create_task(client.get("/a"))
        await proxy.wait_count(path("/a"), 1, 5)
        await asking
        with pytest.raises(TimeoutError, match="1 of 2"):
            await proxy.wait_count(path("/a"), 2, 0.01)


async def test_a_server_that_is_not_there_is_a_broken_connection() -> None:
    with FaultProxy("http://127.0.0.1:9") as proxy:
        async with httpx.AsyncClient(trust_env=False) as client:
            with pytest.raises(httpx.TransportError):
                await client.get(f"{proxy.url}/a")


async def echo(socket: ServerConnection) -> None:
    async for text in socket:
        await socket.send(text)


async def test_websockets_pass_and_can_be_cut() -> None:
    async with serve(echo, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with FaultProxy(f"ws://127.0.0.1:{port}") as proxy:
            async with connect(proxy.url) as socket:
                for size in (1, 100_000):
                    await socket.send("x" * size)
                    assert len(await socket.recv()) == size
                proxy.cut_all()
                with pytest.raises(ConnectionClosed):
                    await asyncio.wait_for(socket.recv(), 5)
            proxy.on(lambda asked: asked.is_websocket, cut(1000), times=1)
            async with connect(proxy.url) as socket:
                await socket.send(os.urandom(5000))
                with pytest.raises(ConnectionClosed):
                    await asyncio.wait_for(socket.recv(), 5)
            async with connect(proxy.url) as socket:
                await socket.send("whole")
                assert await socket.recv() == "whole"


@pytest.mark.parametrize(
    ("fault", "arrives", "said"),
    [
        (drop_before(), False, None),
        (drop_after(), True, None),
        (cut(0), True, None),
        (half_json(), True, "two,"),
        (delay(0.1), True, "two, half"),
    ],
    ids=["drop_before", "drop_after", "cut", "half_json", "delay"],
)
async def test_a_fault_may_befall_one_message_of_a_websocket(
    fault: Fault, arrives: bool, said: str | None
) -> None:
    heard: list[str] = []

    async def echo_and_note(socket: ServerConnection) -> None:
        async for text in socket:
            heard.append(str(text))
            await socket.send(text)

    async with serve(echo_and_note, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with FaultProxy(f"ws://127.0.0.1:{port}") as proxy:
            proxy.on(message(b"two"), fault, times=1)
            async with connect(proxy.url) as socket:
                await socket.send("one")
                assert await socket.recv() == "one"
                await socket.send("two, half")
                if said is None:
                    with pytest.raises(ConnectionClosed):
                        await asyncio.wait_for(socket.recv(), 5)
                else:
                    assert await asyncio.wait_for(socket.recv(), 5) == said
            assert ("two, half" in heard) == arrives
            async with connect(proxy.url) as socket:
                await socket.send("two again")
                assert await socket.recv() == "two again"
