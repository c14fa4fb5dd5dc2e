"""One process over a mailbox, made to be killed.

lane_process.py produce IMPLEMENTATION DIRECTORY LANES COUNT   puts COUNT items on each lane, says
                                                             "done" and waits; again: from the start
lane_process.py batches IMPLEMENTATION DIRECTORY               puts batches of ten for ever
lane_process.py prompted IMPLEMENTATION DIRECTORY              puts an item for each line it reads
lane_process.py work IMPLEMENTATION DIRECTORY TTL_MS           takes the lease when it is free, says
                                                             "working" and works until killed

What an item's payload can say: ``work_s`` how long it takes, ``two_steps`` that a post follows,
``die`` at which point the process kills itself (once; ``die_always`` each time), ``stop`` that it
says "stopped" with its lane and waits for the file ``go``.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import anyio

from homeroom.background import background
from homeroom.errors import LeaseLost, Unavailable, Uncertain
from homeroom.items import Item, ItemKind, NewItem
from homeroom.mailbox import Begin, Lanes, Mailbox, Outcome
from support.lanes import IMPLEMENTATIONS, turn

CAP = 64
LOST = 3
"""Exit code of a worker that another one has replaced."""


def say(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201


class Sink:
    """The outside world: an append-only file of lines, each written in one piece."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "sink.jsonl"
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, what: str, item: Item) -> None:
        line = {"what": what, "lane": item.lane, "cause": item.dedupe_key, "key": item.key}
        os.write(self._fd, (json.dumps(line | {"pid": os.getpid()}) + "\n").encode())

    def has(self, cause: str) -> bool:
        return any(line["what"] == "effect" and line["cause"] == cause for line in self.lines())

    def lines(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self._path.read_text().splitlines()]


class SinkCourier:
    """A turn cannot be repeated, so it is looked for first; a post is known again by its key."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._sink = directory, Sink(directory)

    async def deliver(self, item: Item, begin: Begin) -> Outcome:
        self._sink.write("start", item)
        self._perhaps_die(item, "claimed")
        if item.kind is ItemKind.POST or not (item.begun and self._sink.has(item.dedupe_key)):
            await begin()
            self._perhaps_die(item, "begun")
            if item.payload.get("stop"):
                say("stopped", item.lane)
                while not (self._directory / "go").exists():  # noqa: ASYNC110  # files have no event
                    await anyio.sleep(0.02)
            self._sink.write("effect", item)
        self._perhaps_die(item, "sent")
        await anyio.sleep(float(item.payload.get("work_s", 0)))
        self._sink.write("end", item)
        then = ()
        if item.payload.get("two_steps"):
            payload = item.payload.get("post", {})
            then = (NewItem("room", ItemKind.POST, payload, f"reply:{item.dedupe_key}"),)
        return Outcome({"text": item.dedupe_key}, then)

    def _perhaps_die(self, item: Item, point: str) -> None:
        once = self._directory / f"died-{item.kind}-{point}"
        if item.payload.get("die_always") != point:
            if item.payload.get("die") != point or once.exists():
                return
            once.touch()
        os.kill(os.getpid(), signal.SIGKILL)

    def on_delay(self, item: Item, error: Unavailable | Uncertain) -> Sequence[NewItem]:
        return ()

    def on_parked(self, item: Item, reason: str, *, delivered: bool) -> Sequence[NewItem]:
        return ()

    def on_expired(self, item: Item) -> Sequence[NewItem]:
        return ()

    async def stop(self, item: Item) -> bool:
        self._perhaps_die(item, "stopping")
        return True

    def on_stopped(self, item: Item, *, delivered: bool, goes_on: bool) -> Sequence[NewItem]:
        return ()


async def produce(lanes: Lanes, lane_count: int, count: int) -> None:
    say("producing")
    for number in range(count):
        for lane in range(lane_count):
            payload = {"work_s": 0.002}
            await lanes.put([turn(f"lane {lane}", f"{lane}:{number}", payload=payload)])
    say("done")
    await anyio.sleep_forever()


async def batches(lanes: Lanes) -> None:
    say("producing")
    number = 0
    while True:
        number += 1
        await lanes.put([turn("a", f"{os.getpid()}:{number}:{part}") for part in range(10)])


async def prompted(lanes: Lanes) -> None:
    while key := (await anyio.to_thread.run_sync(sys.stdin.readline)).strip():
        await lanes.put([turn("a", key, payload={"at_s": time.time()})])


def is_dead(owner: str) -> bool:
    """Whether the process that held the lease is known to be gone; one that is frozen is not."""
    try:
        os.kill(int(owner), 0)
    except ProcessLookupError:
        return True
    except ValueError:
        pass  # a test, which calls itself something else
    return False


async def work(lanes: Lanes, directory: Path, ttl_ms: int) -> None:
    taking = partial(lanes.take_lease, str(os.getpid()), rank=1, ttl_ms=ttl_ms, is_gone=is_dead)
    while not (fence := (await taking()).fence):
        with anyio.move_on_after(ttl_ms / 10_000):  # that a lease lapses is no commit
            await lanes.changed.wait()

    async def renew() -> None:
        while True:
            await anyio.sleep(ttl_ms / 3000)
            await lanes.renew_lease(fence, ttl_ms)

    async def report() -> None:
        while True:  # CPU seconds of this process against the clock, for whoever wants to know
            await anyio.sleep(1)
            used = resource.getrusage(resource.RUSAGE_SELF)
            say("cpu", time.monotonic(), used.ru_utime + used.ru_stime)

    say("working")
    in_flight = {ItemKind.TURN: CAP, ItemKind.POST: 8}
    courier = SinkCourier(directory)
    async with background(renew, report):
        await Mailbox(lanes).run_worker(courier, fence=fence, in_flight=in_flight)


async def main(role: str, implementation: str, directory: Path, *numbers: str) -> None:
    async with IMPLEMENTATIONS[implementation](directory) as lanes:
        if role == "produce":
            await produce(lanes, *map(int, numbers))
        elif role == "batches":
            await batches(lanes)
        elif role == "prompted":
            await prompted(lanes)
        else:
            await work(lanes, directory, int(numbers[0]))


if __name__ == "__main__":
    role, implementation, place, *rest = sys.argv[1:]
    try:
        anyio.run(partial(main, role, implementation, Path(place), *rest))
    except BaseExceptionGroup as group:
        lost, other = group.split(LeaseLost)
        if lost is None or other is not None:
            raise
        sys.exit(LOST)
    except LeaseLost:
        sys.exit(LOST)
