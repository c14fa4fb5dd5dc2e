"""An LLM client's window closes while an agent is at work: the process ends, all released.

With a real Letta and a real homeserver; what only the process itself does is in ``surface``.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import anyio
import pytest

from homeroom.store import Store, open_store
from support.fake_process import END_LIMIT_S, START_LIMIT_S
from support.home import Home
from support.wire import INITIALIZE, Wire

ENDS = ["eof", signal.SIGTERM, signal.SIGINT]
CHAT = {
    "name": "chat_with_agent",
    "arguments": {"agent": "Ada", "message": "!delay 60\n!say late", "mirror": False},
}


@pytest.fixture
def wire(home: Home) -> Iterator[Wire]:
    environ = {**home.environ, "HOMEROOM_LOG_LEVEL": "DEBUG"}
    wire = Wire([sys.executable, "-m", "homeroom", "serve"], environ)
    try:
        yield wire
    finally:
        wire.close()


def store_of(home: Home) -> AbstractAsyncContextManager[Store]:
    return open_store(Path(home.environ["HOMEROOM_DATA_DIR"]) / "homeroom.db")


async def wait_at_work(home: Home) -> None:
    """Returns when the message was handed to the agent."""
    with anyio.fail_after(START_LIMIT_S):
        async with store_of(home) as store:
            while "delivering" not in await store.count_items():
                await store.wait_changed(0.2)


async def check_released(home: Home) -> None:
    """Whoever starts next can go on at once: nobody runs the bridge, and what was in hand waits."""
    async with store_of(home) as store:
        assert await store.get_lease() is None
        counts = await store.count_items()
    assert counts["waiting"] and not {"claimed", "delivering"} & set(counts)


@pytest.mark.parametrize("end", ENDS)
async def test_a_process_that_is_told_to_end_does_so_and_releases_its_claims(
    home: Home, wire: Wire, end: str | signal.Signals
) -> None:
    await home.letta.create_agent("Ada")
    wire.handshake()
    wire.send("tools/call", CHAT, id_=7)
    await wait_at_work(home)
    if isinstance(end, signal.Signals):
        wire.process.send_signal(end)
        assert wire.wait() == 128 + end
    else:
        wire.close_stdin()
        assert wire.wait() == 0
    assert all(json.loads(line)["jsonrpc"] == "2.0" for line in [*wire.lines, *wire.rest()])
    await check_released(home)


async def test_a_process_whose_parent_vanishes_ends_and_releases_its_claims(home: Home) -> None:
    await home.letta.create_agent("Ada")
    # This test holds the other end of stdin as well, so the parent's death brings no EOF.
    read, write = os.pipe()
    stdout_read, stdout_write = os.pipe()
    start = (
        "import signal, subprocess, sys; "
        "subprocess.Popen([sys.executable, '-m', 'homeroom', 'serve']); signal.pause()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", start], stdin=read, stdout=stdout_write,
        stderr=subprocess.DEVNULL, env=home.environ,
    )  # fmt: skip
    os.close(stdout_write)
    try:
        for number, (method, params) in enumerate(
            [("initialize", INITIALIZE), ("notifications/initialized", {}), ("tools/call", CHAT)]
        ):
            frame = {"jsonrpc": "2.0", "method": method, "params": params}
            if not method.startswith("notifications/"):
                frame["id"] = number
            os.write(write, json.dumps(frame).encode() + b"\n")
        await wait_at_work(home)
        parent.kill()
        parent.wait()
        deadline_s = time.monotonic() + END_LIMIT_S
        while True:  # nobody holds the other end of stdout once the orphan has ended
            ready, _, _ = select.select([stdout_read], [], [], deadline_s - time.monotonic())
            assert ready, "there is an orphan"
            if not os.read(stdout_read, 65_536):
                break
        await check_released(home)
    finally:
        parent.kill()
        parent.wait()
        for fd in (read, write, stdout_read):
            os.close(fd)
