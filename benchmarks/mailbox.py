"""The mailbox alone: what an item costs, how soon it is begun, how soon work goes on after kill -9.

"Without" is the least that could do the same on the same disk: three commits of a bare SQLite for
one item, and the same process with an empty mailbox and nothing to recover.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import anyio

from benchmarks.table import Row, in_turns
from homeroom.items import Item, ItemKind, ItemState, NewItem
from homeroom.mailbox import Begin, Mailbox, Outcome
from homeroom.store import Store, open_store
from support import lane_process
from support.fake_process import environment
from support.lanes import Recorder, take, turn, worker

BATCH = 50
"""Items of one sample: one commit more or less on a busy disk shall not decide it."""
WAITING = 1_000
LANES = 50
CROWD = 10_000
LEASE_MS = 6_000
LEASE_OURS_MS = 3_600_000
"""Nobody renews it here."""


async def measure(count: int, directory: Path) -> list[Row]:
    """``count`` samples of each; what is made lives in ``directory``."""
    directory.mkdir(parents=True)
    rows = [await _cost(count, directory / "cost"), await _through_worker(count, directory)]
    rows += [await _idle_here(count, directory), await _idle_elsewhere(count, directory)]
    rows.append(await _look(count, directory))
    return [*rows, await _recovery(max(3, count // 8), directory)]


# --- what an item costs --------------------------------------------------------------------------


async def _cost(count: int, directory: Path) -> Row:
    directory.mkdir()
    number = 0
    async with open_store(directory / "ours.db") as store:
        fence = await take(store, ttl_ms=LEASE_OURS_MS)

        async def ours() -> float:
            nonlocal number
            began_s = perf_counter()
            for _ in range(BATCH):
                number += 1
                await store.put([turn("a", str(number), payload={"text": "x" * 200})])
                item, _ = await store.claim([ItemKind.TURN], fence, begin=[ItemKind.TURN])
                assert item
                await store.finish(item, ItemState.DONE, fence=fence, result={"text": "y" * 200})
            return (perf_counter() - began_s) * 1000 / BATCH

        samples, base = await _beside_bare(count, ours, directory / "bare.db")
    note = f"{1000 / median(samples):,.0f} items/s one after the other; without: three bare commits"
    return Row("mailbox: put + claim + done", samples, base, note=note)


async def _beside_bare(
    count: int, ours: Callable[[], Awaitable[float]], path: Path
) -> tuple[list[float], list[float]]:
    with _bare_sqlite(path) as bare:
        return await in_turns(count, ours, partial(anyio.to_thread.run_sync, bare))


@contextmanager
def _bare_sqlite(path: Path) -> Iterator[Callable[[], float]]:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, payload TEXT, state TEXT, result TEXT)")

    def batch() -> float:
        began_s = perf_counter()
        for _ in range(BATCH):
            payload = json.dumps({"text": "x" * 200})
            put = db.execute("INSERT INTO item (payload, state) VALUES (?, 'waiting')", (payload,))
            db.execute("UPDATE item SET state = 'claimed' WHERE id = ?", (put.lastrowid,))
            result = json.dumps({"text": "y" * 200})
            db.execute(
                "UPDATE item SET state = 'done', result = ? WHERE id = ?", (result, put.lastrowid)
            )
        return (perf_counter() - began_s) * 1000 / BATCH

    yield batch
    db.close()


class _Noting(Recorder):
    """A courier that has nothing to do and notes when."""

    def __init__(self) -> None:
        super().__init__()
        self.began_s: dict[str, float] = {}

    async def deliver(self, item: Item, begin: Begin) -> Outcome:
        # Both clocks: an item of another process carries the wall clock's time.
        late_s = time.time() - float(item.payload["at_s"]) if "at_s" in item.payload else 0.0
        self.began_s[item.dedupe_key] = late_s or perf_counter()
        self._note(self.begun, item.dedupe_key)
        await begin()
        return Outcome({})

    async def wait(self, key: str) -> float:
        with anyio.fail_after(60):
            await self.wait_begun(key)
        return self.began_s[key]

    def on_parked(self, item: Item, reason: str, *, delivered: bool) -> Sequence[NewItem]:
        raise AssertionError(reason)


@asynccontextmanager
async def _working(path: Path) -> AsyncIterator[tuple[Store, _Noting]]:
    noting = _Noting()
    async with (
        open_store(path) as store,
        worker(store, noting, await take(store, ttl_ms=LEASE_OURS_MS)),
    ):
        yield store, noting


async def _through_worker(count: int, directory: Path) -> Row:
    number = 0
    async with _working(directory / "worker.db") as (store, _):

        async def ours() -> float:
            nonlocal number
            number += 1
            items = [turn(f"lane {n % 10}", f"{number}:{n}") for n in range(BATCH)]
            began_s = perf_counter()
            for item_id in await store.put(items):
                await Mailbox(store).wait_ended(item_id, 60)
            return (perf_counter() - began_s) * 1000 / BATCH

        samples, base = await _beside_bare(count, ours, directory / "bare.db")
    note = f"{1000 / median(samples):,.0f} items/s; begins and verdicts share their commits"
    return Row("… through the worker, 50 on 10 lanes", samples, base, note=note)


# --- how soon an item is begun -------------------------------------------------------------------


async def _idle(
    count: int, path: Path, put: Callable[[Store, str], Awaitable[float | None]]
) -> list[float]:
    """How long (ms) after its put each item was begun by an idle worker."""
    samples = []
    async with _working(path) as (store, noting):
        for number in range(-3, count):
            await anyio.sleep(0.01 + 0.037 * (number % 3))  # idle, and not in step with any clock
            at_s = await put(store, str(number))
            begun_s = await noting.wait(str(number))
            if number >= 0:
                samples.append((begun_s - (at_s or 0.0)) * 1000)
    return samples


async def _idle_here(count: int, directory: Path) -> Row:
    async def put(store: Store, key: str) -> float:
        at_s = perf_counter()
        await store.put([turn("a", key)])
        return at_s

    samples = await _idle(count * 4, directory / "here.db", put)
    return Row("mailbox, idle: put to begun, same process", samples, note="two commits")


async def _idle_elsewhere(count: int, directory: Path) -> Row:
    home = directory / "elsewhere"
    home.mkdir()
    with _process("prompted", home) as process:
        assert process.stdin

        async def put(store: Store, key: str) -> None:
            process.stdin.write(key + "\n")
            process.stdin.flush()

        samples = await _idle(count * 4, home / "mailbox.db", put)
    return Row("… put by another process", samples, note="promised: 100 ms and the two commits")


# --- what a look costs when nothing may start -----------------------------------------------------


async def _look(count: int, directory: Path) -> Row:
    async with (
        _all_busy(directory / "many.db", CROWD) as ours,
        _all_busy(directory / "few.db", LANES) as bare,
    ):
        samples, base = await in_turns(count, ours, bare)
    note = f"behind {LANES} lanes in hand; without: {LANES} waiting"
    return Row(f"mailbox: a look, {CROWD:,} waiting", samples, base, target=1.5, note=note)


@asynccontextmanager
async def _all_busy(path: Path, waiting: int) -> AsyncIterator[Callable[[], Awaitable[float]]]:
    """What a look takes (ms) while every lane is worked and so many items wait behind."""
    async with open_store(path) as store:
        fence = await take(store, ttl_ms=LEASE_OURS_MS)
        await store.put([turn(f"lane {n % LANES}", str(n)) for n in range(LANES + waiting)])
        for _ in range(LANES):
            assert (await store.claim([ItemKind.TURN], fence))[0]

        async def look() -> float:
            began_s = perf_counter()
            for _ in range(BATCH):
                assert (await store.claim([ItemKind.TURN], fence))[0] is None
            return (perf_counter() - began_s) * 1000 / BATCH

        yield look


# --- how soon work goes on -----------------------------------------------------------------------


@contextmanager
def _process(role: str, home: Path, *numbers: int) -> Iterator[subprocess.Popen[str]]:
    arguments = [role, "sqlite", str(home), *map(str, numbers)]
    with subprocess.Popen(
        [sys.executable, lane_process.__file__, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def _first_begun_s(home: Path, store: Store, pid: int) -> None:
    """Returns when that process has begun an item."""
    with anyio.fail_after(60):
        while True:
            changed = store.changed
            if any(line["pid"] == pid for line in lane_process.Sink(home).lines()):
                return
            await changed.wait()


async def _recovery(count: int, directory: Path) -> Row:
    number = 0

    async def once(waiting: int, kill: bool) -> float:
        nonlocal number
        number += 1
        home = directory / f"recovery-{number}"
        home.mkdir()
        async with open_store(home / "mailbox.db") as store:
            slow = {"work_s": 0.2}
            await store.put(
                [turn(f"lane {n % LANES}", str(n), payload=slow) for n in range(waiting)]
            )
            if kill:
                with _process("work", home, LEASE_MS) as dying:
                    await _first_begun_s(home, store, dying.pid)
            began_s = perf_counter()  # it is dead, and its process id is free
            with _process("work", home, LEASE_MS) as heir:
                await _first_begun_s(home, store, heir.pid)
                return (perf_counter() - began_s) * 1000

    ours, bare = await in_turns(count, partial(once, WAITING, True), partial(once, 1, False))
    note = "start of the next process to its first item; without: nothing to recover"
    return Row(f"mailbox: kill -9 with {WAITING:,} waiting", ours, bare, note=note)
