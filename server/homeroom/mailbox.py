"""The durable hand-over: writers put items on lanes, the worker takes them one lane at a time.

Owns the order of work and what becomes of an item whose work fails. Knows neither Letta nor
Matrix: what to do with an item is the courier's business. Invariants: a lane is worked strictly
in order, one item at a time; an item that was accepted ends as done or parked (and a parked one as
replayed or dropped by a person), never as nothing.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import anyio
import anyio.abc

from homeroom.errors import HomeroomError, LeaseLost, Unavailable, Uncertain
from homeroom.model import Item, ItemId, ItemKind, ItemState, Json, NewItem
from homeroom.retry import pause_s
from homeroom.store import Store

log = logging.getLogger(__name__)

POSTS_IN_FLIGHT = 8
"""More requests at once do not make a homeserver faster (measured on Synapse)."""
PATIENCE_S = {ItemKind.TURN: 3600.0, ItemKind.POST: 20 * 3600.0}
"""An item that has kept failing for longer is parked, and whoever sent it is told. A homeserver
knows a transaction id for 24 hours: until then a post may be repeated, afterwards not."""
UNCERTAIN_LIMIT = 5
"""So often the answer to a turn may get lost before a person must look."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the work on an item came to, and the items that follow from it."""

    result: Json
    then: Sequence[NewItem] = ()


class Courier(Protocol):
    """Who carries items out. Raises the errors of ``homeroom.errors``."""

    async def deliver(self, item: Item) -> Outcome: ...

    def on_delay(self, item: Item, error: Unavailable | Uncertain) -> Sequence[NewItem]:
        """What to tell whom when an item has to wait for a service. Pure."""

    def on_parked(self, item: Item, reason: str, *, delivered: bool) -> Sequence[NewItem]:
        """What to tell whom when an item was given up. Pure."""


class Mailbox:
    """Lanes of items over the store, and the worker of the process that holds the lease."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def put(self, items: Sequence[NewItem]) -> list[ItemId]:
        """Accepts items durably; a known dedupe key gives the item it has already."""
        return await self._store.put(items)

    async def get(self, item_id: ItemId) -> Item:
        """Raises NotFound."""
        return await self._store.get_item(item_id)

    async def wait_ended(self, item_id: ItemId, timeout_s: float) -> Item:
        """The item, as soon as it has ended, or as it stands after ``timeout_s``."""
        deadline = anyio.current_time() + timeout_s
        while True:
            changed = self._store.changed
            item = await self._store.get_item(item_id)
            left_s = deadline - anyio.current_time()
            if item.state.has_ended or left_s <= 0:
                return item
            with anyio.move_on_after(left_s):
                await changed.wait()

    async def run_worker(
        self, courier: Courier, *, fence: int, in_flight: Mapping[ItemKind, int]
    ) -> None:
        """Works items until cancelled, at most ``in_flight`` of each kind at once.

        Raises LeaseLost when another process has taken over: nothing more may be written.
        """
        slots = _Slots(in_flight)

        async def work(item: Item) -> None:
            while True:
                # The post of an answer is claimed with the commit that records the answer.
                post = slots.take(ItemKind.POST)
                follower: Item | None = None
                try:
                    claim_next = (ItemKind.POST,) if post else ()
                    follower = await self._work(item, courier, fence, claim_next)
                finally:
                    slots.give(item.kind)
                    if post and follower is None:
                        slots.give(ItemKind.POST)
                if follower is None:
                    return
                item = follower

        async with anyio.create_task_group() as workers:
            while True:
                changed, freed, kinds = self._store.changed, slots.freed, slots.free_kinds()
                due_ms = None
                if kinds:
                    item, due_ms = await self._store.claim(kinds, fence)
                    if item:
                        slots.take(item.kind)
                        workers.start_soon(work, item)
                        continue
                wait_s = max(0.0, due_ms / 1000 - time.time()) if due_ms else 60.0
                await _first_of(wait_s, changed, freed)

    async def _work(
        self, item: Item, courier: Courier, fence: int, claim_next: Sequence[ItemKind]
    ) -> Item | None:
        """Carries one item out and writes down what came of it. One sick item harms no other.

        Returns the item that was claimed along with that, if any.
        """
        try:
            outcome = await courier.deliver(item)
        except LeaseLost:
            raise
        except Unavailable as error:
            # What an earlier claim left open stays open: the service being away proves nothing.
            await self._put_off(item, error, courier, fence, delivered=item.begun)
        except Uncertain as error:
            await self._put_off(item, error, courier, fence, delivered=True)
        except HomeroomError as error:
            # A refusal proves nothing about what an earlier claim left open.
            await self._park(item, str(error), courier, fence, delivered=item.begun)
        except Exception:
            incident = secrets.token_hex(4)
            log.exception("item_work_failed", extra={"item_id": item.id, "incident": incident})
            reason = f"a fault in Homeroom, incident {incident}; its log has the rest"
            await self._park(item, reason, courier, fence, delivered=True)
        else:
            return await self._store.finish(
                item, ItemState.DONE, fence=fence, result=outcome.result, then=outcome.then,
                claim_next=claim_next,
            )  # fmt: skip
        return None

    async def _put_off(
        self, item: Item, error: Unavailable | Uncertain, courier: Courier, fence: int,
        *, delivered: bool,
    ) -> None:  # fmt: skip
        uncertain = isinstance(error, Uncertain)
        failing_s = time.time() - item.failing_since_ms / 1000 if item.failing_since_ms else 0.0
        left_s = PATIENCE_S[item.kind] - failing_s
        repeatable = item.kind is ItemKind.POST
        lost_often = uncertain and not repeatable and item.uncertain_count >= UNCERTAIN_LIMIT
        if left_s <= 0 or lost_often:
            await self._park(item, str(error), courier, fence, delivered=delivered)
            return
        after_s = error.retry_after_s if isinstance(error, Unavailable) else None
        await self._store.retry(
            item,
            fence=fence,
            # No service may put an item off for longer than it is kept for.
            delay_ms=int(min(pause_s(item.attempts + 1, after_s), left_s) * 1000),
            reason=str(error),
            delivered=delivered,
            uncertain=uncertain,
            then=courier.on_delay(item, error),
        )

    async def _park(
        self, item: Item, reason: str, courier: Courier, fence: int, *, delivered: bool
    ) -> None:
        log.warning("item_parked", extra={"item_id": item.id, "lane": item.lane, "reason": reason})
        await self._store.finish(
            item,
            ItemState.PARKED,
            fence=fence,
            reason=reason,
            delivered=delivered,
            then=courier.on_parked(item, reason, delivered=delivered),
        )


class _Slots:
    """How many more items of each kind may be worked on."""

    def __init__(self, counts: Mapping[ItemKind, int]) -> None:
        self._free = dict(counts)
        self.freed = anyio.Event()
        """Set when the next slot becomes free."""

    def free_kinds(self) -> list[ItemKind]:
        return [kind for kind, count in self._free.items() if count > 0]

    def take(self, kind: ItemKind) -> bool:
        """Whether there was one to take."""
        if self._free.get(kind, 0) <= 0:
            return False
        self._free[kind] -= 1
        return True

    def give(self, kind: ItemKind) -> None:
        self._free[kind] += 1
        self.freed.set()
        self.freed = anyio.Event()


async def _first_of(timeout_s: float, *events: anyio.Event) -> None:
    """Returns when the first event is set, at the latest after ``timeout_s``."""
    with anyio.move_on_after(timeout_s):
        async with anyio.create_task_group() as waiters:

            async def wait(event: anyio.Event) -> None:
                await event.wait()
                waiters.cancel_scope.cancel()

            for event in events:
                waiters.start_soon(wait, event)
