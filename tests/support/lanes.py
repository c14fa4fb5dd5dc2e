"""Implementations of ``mailbox.Lanes`` by name, for the contract suite and its processes.

A second implementation is a second entry of ``IMPLEMENTATIONS``: the suite runs over each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from homeroom.background import background
from homeroom.errors import Unavailable, Uncertain
from homeroom.items import Item, ItemKind, NewItem, Origin
from homeroom.mailbox import Begin, Lanes, Mailbox, Outcome
from homeroom.model import ItemId
from homeroom.store import open_store

OpenLanes = Callable[..., AbstractAsyncContextManager[Lanes]]
"""(directory, **limits) -> the lanes that live there; whoever opens it again finds the same."""


def _open_sqlite(directory: Path, **limits: Any) -> AbstractAsyncContextManager[Lanes]:
    return open_store(directory / "mailbox.db", **limits)


IMPLEMENTATIONS: dict[str, OpenLanes] = {"sqlite": _open_sqlite}


def turn(lane: str, key: str, origin: Origin = Origin.TOOL_CALL, **more: Any) -> NewItem:
    """An item whose payload is empty unless ``payload`` says otherwise."""
    payload = more.pop("payload", {})
    return NewItem(lane, ItemKind.TURN, payload, key, origin=origin, **more)


class Recorder:
    """A courier that writes down what it was given, and ends an item when the test lets it."""

    def __init__(self, *held: str) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.stopped: list[str] = []
        self.working: set[str] = set()
        """Lanes that are being worked."""
        self._gates = {key: anyio.Event() for key in held}
        self._changed = anyio.Event()

    def let(self, key: str) -> None:
        """Lets an item end that was held."""
        self._gates[key].set()

    async def wait_begun(self, *keys: str) -> None:
        """Returns when all of them have begun."""
        while not set(keys) <= set(self.begun):
            await self._changed.wait()

    def _note(self, where: list[str], key: str) -> None:
        where.append(key)
        self._changed.set()
        self._changed = anyio.Event()

    async def stop(self, item: Item) -> bool:
        """Ends what is held; whether it does, an item's ``unstoppable`` says."""
        self._note(self.stopped, item.dedupe_key)
        if item.payload.get("unstoppable"):
            return False
        if item.dedupe_key in self._gates:
            self.let(item.dedupe_key)
        await anyio.sleep_forever()
        return True

    async def deliver(self, item: Item, begin: Begin) -> Outcome:
        assert item.lane not in self.working, f"two at once on {item.lane}"
        self.working.add(item.lane)
        try:
            await begin()
            self._note(self.begun, item.dedupe_key)
            if gate := self._gates.get(item.dedupe_key):
                await gate.wait()
            error = item.payload.get("errors", {}).get(str(item.attempts))
            if error:
                raise {"away": Unavailable("letta"), "lost": Uncertain("letta", item.key)}[error]
            if item.payload.get("sick"):
                raise ZeroDivisionError
            self._note(self.ended, item.dedupe_key)
            return Outcome({"text": item.dedupe_key})
        finally:
            self.working.discard(item.lane)

    def on_delay(self, item: Item, error: Unavailable | Uncertain) -> Sequence[NewItem]:
        return ()

    def on_parked(self, item: Item, reason: str, *, delivered: bool) -> Sequence[NewItem]:
        return (turn("told", f"parked:{item.dedupe_key}"),)

    def on_expired(self, item: Item) -> Sequence[NewItem]:
        return (turn("told", f"expired:{item.dedupe_key}"),)

    def on_stopped(self, item: Item, *, delivered: bool, goes_on: bool) -> Sequence[NewItem]:
        assert item.stop
        told = {"by": item.stop.who, "delivered": delivered, "goes_on": goes_on}
        return (turn("told", f"stopped:{item.dedupe_key}", payload=told),)


async def take(lanes: Lanes, owner: str = "me", ttl_ms: int = 600_000) -> int:
    """The fence of the lease."""
    lease = await lanes.take_lease(owner, rank=1, ttl_ms=ttl_ms)
    assert lease.fence, f"held by {lease.owner}"
    return lease.fence


def worker(
    lanes: Lanes, courier: Recorder, fence: int, at_once: int = 10,
    holds: Callable[[Item], str] = lambda item: "",
) -> AbstractAsyncContextManager[object]:  # fmt: skip
    """Works in the background for as long as it is open."""
    in_flight = {ItemKind.TURN: at_once, ItemKind.POST: 4}
    work = partial(
        Mailbox(lanes).run_worker, courier, fence=fence, in_flight=in_flight, holds=holds
    )
    return background(work)


async def wait_all(lanes: Lanes, ids: Sequence[ItemId], limit_s: float = 30.0) -> list[Item]:
    """The items, when all of them have ended."""
    with anyio.fail_after(limit_s):
        return [await Mailbox(lanes).wait_ended(item_id, limit_s) for item_id in ids]
