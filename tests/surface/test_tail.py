"""``homeroom tail`` and ``homeroom cancel`` as processes of their own, beside whoever works."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from homeroom.decide import chat_items
from homeroom.items import ItemKind, ItemState, NewItem
from homeroom.model import AgentId, GhostId, Mapping, RoomId
from homeroom.store import Store, open_store
from support.fake_process import import_path

SECRET = "the text that no line tells"
ROOM = RoomId("!r:hs.test")
HOME = Mapping(AgentId("agent-1"), GhostId("@agent_1:hs.test"), ROOM)
START_S = 30.0


def chat(key: str) -> list[NewItem]:
    client = "Desk\x1b[31m\nfake line"
    return chat_items(HOME.agent_id, HOME, SECRET, client=client, mirror=True, key=key)[:1]


def settings(directory: Path) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("HOMEROOM_")}
    return inherited | {
        "PYTHONPATH": import_path(),
        "HOMEROOM_LETTA_URL": "http://127.0.0.1:9",
        "HOMEROOM_DATA_DIR": str(directory),
    }


@contextmanager
def tail(
    directory: Path, *options: str, stdout: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "homeroom", "tail", *options],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env=settings(directory),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    with anyio.fail_after(START_S):
        return await anyio.to_thread.run_sync(process.stdout.readline, abandon_on_cancel=True)


async def work_one(store: Store, state: ItemState, reason: str = "") -> None:
    fence = (await store.take_lease("me", rank=1, ttl_ms=60_000)).fence
    item, _ = await store.claim([ItemKind.TURN], fence)
    assert item
    await store.begin(item, fence)
    await store.finish(item, state, fence=fence, reason=reason)
    await store.release_lease(fence)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a child there")
async def test_each_change_of_an_item_is_a_line_and_ctrl_c_is_a_good_end(tmp_path: Path) -> None:
    async with open_store(tmp_path / "homeroom.db") as store:
        (old,) = await store.put(chat("old"))
        with tail(tmp_path, "--last", "1") as process:
            first = await next_line(process)
            assert old in first and "waiting" in first
            await work_one(store, ItemState.PARKED, "Letta refused\x1b[2J: no.")
            lines = [await next_line(process) for _ in range(3)]
            (item_id,) = await store.put(chat("new"))
            lines.append(await next_line(process))
            process.send_signal(signal.SIGINT)
            rest, errors = process.communicate(timeout=START_S)
    assert process.returncode == 0, errors
    assert (rest, errors) == ("", "")
    states = [line.split("  ")[2].strip() for line in lines]
    assert states == ["claimed", "delivering", "parked", "waiting"]
    for line in (first, *lines):
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC  [0-9a-f]{33}  ", line)
        assert "Desk" in line and "agent-1" in line and ROOM in line
        assert SECRET not in line and "\x1b" not in line, "plain in a pipe"
    assert "Letta refused" in lines[2] and item_id in lines[3]


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo terminals there")
async def test_on_a_terminal_states_have_colours(tmp_path: Path) -> None:
    async with open_store(tmp_path / "homeroom.db") as store:
        await store.put(chat("1"))
    ours, theirs = pty.openpty()
    with tail(tmp_path, stdout=theirs), os.fdopen(ours, "rb", buffering=0) as screen:
        with anyio.fail_after(START_S):
            shown = await anyio.to_thread.run_sync(screen.read, 4096, abandon_on_cancel=True)
        os.close(theirs)
    assert b"\x1b[36mwaiting" in shown


async def test_whoever_stops_reading_ends_it_without_a_traceback(tmp_path: Path) -> None:
    async with open_store(tmp_path / "homeroom.db") as store:
        await store.put(chat("1"))
        with tail(tmp_path) as process:
            assert "waiting" in await next_line(process)
            assert process.stdout and process.stderr
            process.stdout.close()
            await store.put(chat("2"))
            with anyio.fail_after(START_S):
                code = await anyio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
            assert (code, process.stderr.read()) == (0, "")


async def test_a_message_that_waits_is_cancelled_and_one_that_ended_is_not(tmp_path: Path) -> None:
    def cancel(item_id: str, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "homeroom", "cancel", item_id, *options],
            capture_output=True,
            text=True,
            env=settings(tmp_path),
            timeout=START_S,
        )

    async with open_store(tmp_path / "homeroom.db") as store:
        (item_id,) = await store.put(chat("1"))
        done = await anyio.to_thread.run_sync(cancel, item_id)
        assert (done.returncode, done.stdout) == (0, f"{item_id} is cancelled\n"), done.stderr
        item = await store.get_item(item_id)
        assert (item.state, item.reason) == (ItemState.CANCELLED, "a person cancelled it")
        again = await anyio.to_thread.run_sync(cancel, item_id)
        assert again.returncode == 1 and "is cancelled already" in again.stderr
        unknown = await anyio.to_thread.run_sync(cancel, "nope")
        assert unknown.returncode == 1 and "no item 'nope'" in unknown.stderr
        assert "Traceback" not in again.stderr + unknown.stderr
