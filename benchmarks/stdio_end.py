"""From the end of the client to that of the process, as whoever quits an LLM client waits for it.

A client closes stdin or sends SIGTERM, and kills what still runs two seconds later: then nothing is
released, and others wait for the lease to lapse. Idle it runs a bridge; with chats in flight it has
no homeserver, so that every run begins with a store and agents of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import anyio

from benchmarks.stand import Stand
from benchmarks.stdio_start import BARE, ERAS, OURS
from benchmarks.table import Row, in_turns
from homeroom.store import Store, open_store

LIMIT_MS = 2000.0
"""Source: the specification has a client wait before it kills; the Python SDK waits for 2 s."""
CHATS = 5
_READY_S = 60.0
_GIVEN_UP_S = 60.0
_SETTLED_S = 0.2

Prepare = Callable[[subprocess.Popen[bytes]], Awaitable[None]]
End = Callable[[subprocess.Popen[bytes]], None]


def _close(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()


def _terminate(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)


ENDS: Mapping[str, End] = {"EOF": _close, "SIGTERM": _terminate}


async def measure(count: int, servers: Stand) -> list[Row]:
    """One row per way to end it, idle and with chats in flight. The other side is a bare SDK
    server, which has nothing to release: SIGTERM kills it."""
    rows = []
    for name, end in ENDS.items():
        for what, ours in (("idle", _idle), (f"{CHATS} chats in flight", _in_flight)):

            async def ending(
                ours: Callable[[Stand, End], Awaitable[float]] = ours, end: End = end
            ) -> float:
                return await ours(servers, end)

            async def ending_bare(end: End = end) -> float:
                return await _end_ms(BARE, servers.environ("stdio-end"), end, _answered)

            samples = await in_turns(count, ending, ending_bare)
            title = f"stdio: {name} to the end, {what}"
            rows.append(Row(title, *samples, limit=LIMIT_MS))
    return rows


async def _idle(servers: Stand, end: End) -> float:
    environ = servers.environ("stdio-end")

    async def prepare(process: subprocess.Popen[bytes]) -> None:
        await _answered(process)
        await _wait_store(environ, _is_run)

    return await _end_ms(OURS, environ, end, prepare)


async def _in_flight(servers: Stand, end: End) -> float:
    run = f"stdio-end-{uuid.uuid4().hex[:8]}"
    environ = {
        name: value
        for name, value in servers.environ(run).items()
        if not name.startswith("HOMEROOM_MATRIX_")
    }
    agents = [(await servers.letta.create_agent(f"{run} {n}")).id for n in range(CHATS)]

    async def prepare(process: subprocess.Popen[bytes]) -> None:
        await _answered(process)
        _send(process, "notifications/initialized", {})
        for number, agent in enumerate(agents):
            chat = {"agent": agent, "message": "!delay 60\n!say late"}
            call = {"name": "chat_with_agent", "arguments": chat}
            _send(process, "tools/call", call, id_=2 + number)
        await _wait_store(environ, _is_at_work)

    return await _end_ms(OURS, environ, end, prepare)


async def _end_ms(
    argv: Sequence[str], environ: Mapping[str, str], end: End, prepare: Prepare
) -> float:
    """How long it takes to end once it is told to, in milliseconds."""
    with subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **environ},
    ) as process:
        try:
            await prepare(process)
            await anyio.sleep(_SETTLED_S)
            told_s = time.perf_counter()
            end(process)
            process.wait(_GIVEN_UP_S)
            return (time.perf_counter() - told_s) * 1000
        finally:
            process.kill()


async def _answered(process: subprocess.Popen[bytes]) -> None:
    _send(process, "initialize", ERAS["initialize"], id_=1)
    assert process.stdout is not None
    assert b'"result"' in process.stdout.readline()


def _send(
    process: subprocess.Popen[bytes], method: str, params: object, id_: int | None = None
) -> None:
    frame = {"jsonrpc": "2.0", "method": method, "params": params}
    if id_ is not None:
        frame["id"] = id_
    assert process.stdin is not None
    process.stdin.write(json.dumps(frame).encode() + b"\n")
    process.stdin.flush()


async def _wait_store(
    environ: Mapping[str, str], is_so: Callable[[Store], Awaitable[bool]]
) -> None:
    with anyio.fail_after(_READY_S):
        async with open_store(Path(environ["HOMEROOM_DATA_DIR"]) / "homeroom.db") as store:
            while not await is_so(store):
                await store.wait_changed(0.1)


async def _is_run(store: Store) -> bool:
    return await store.get_lease() is not None


async def _is_at_work(store: Store) -> bool:
    return (await store.count_items()).get("delivering", 0) == CHATS
