"""The durable hand-over: writers put items on lanes, the worker takes them one lane at a time.

Owns what a store of lanes must promise (``Lanes``), and what becomes of an item whose work fails.
Knows neither Letta nor Matrix: what to do with an item is the courier's business. Invariants: a
lane is worked strictly in order, one item at a time; an item that was accepted ends as done,
expired, parked or cancelled, never as nothing.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import anyio
import anyio.abc

from homeroom.background import background
from homeroom.errors import HomeroomError, LeaseLost, Stopped, Unavailable, Uncertain
from homeroom.items import Item, ItemKind, ItemState, LeaseState, NewItem, Tell
from homeroom.model import ItemId, Json
from homeroom.retry import pause_s

log = logging.getLogger(__name__)

POSTS_IN_FLIGHT = 8
"""More requests at once do not make a homeserver faster (measured on Synapse)."""
REPEATABLE = (ItemKind.POST, ItemKind.STATUS)
"""Kinds whose effect is idempotent by key. Their delivery begins with the claim: to know more
exactly how far one got is not worth a commit of its own."""
PATIENCE_S = {ItemKind.TURN: 3600.0, ItemKind.POST: 20 * 3600.0, ItemKind.STATUS: 600.0}
"""An item that has kept failing for longer is parked, and whoever sent it is told. A homeserver
knows a transaction id for 24 hours: until then a post may be repeated, afterwards not."""
POST_KEY_KEPT_S = 86_400.0
"""How long a homeserver knows a transaction id again; measured on Synapse, which keeps 24 hours."""
UNCERTAIN_LIMIT = 5
"""So often the answer to a turn may get lost before a person must look."""
CRASH_LIMIT = 10
"""So many processes may die in a turn that has begun before it is given up for what kills them.
More than a few, because a restart that has other reasons counts as well."""
CLAIM_CRASH_LIMIT = 50
"""So many may die with an item merely in hand: claimed, or a post on its way. Many more, because
whatever keeps killing a process catches the same few items each time."""

STOP_LIMIT_S = 30.0
"""So long what a person wants to end may take to: then the lane goes on without it."""
STOP_PATIENCE_S = 60.0
"""A service that is away is waited for no longer than this, once a person wants a turn to end."""
STOP_LOOK_S = 0.02
"""Commits come in bursts: one look for what shall end serves them all."""

CLOCK_STEP_S = 2.0
"""A clock that went on by so much more or less than time passed was set, or the machine slept."""

Begin = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the work on an item came to, and the items that follow from it."""

    result: Json
    then: Sequence[NewItem] = ()


class Courier(Protocol):
    """Who carries items out. Raises the errors of ``homeroom.errors``."""

    async def deliver(self, item: Item, begin: Begin) -> Outcome:
        """Awaits ``begin`` right before the first request that has an effect."""

    async def stop(self, item: Item) -> bool:
        """Has the effect of an item end that is under way; whether it does. While that is tried,
        ``deliver`` goes on, so that it may see how it ends."""

    def on_delay(self, item: Item, error: Unavailable | Uncertain) -> Sequence[NewItem]:
        """What to tell whom when an item has to wait for a service. Pure."""

    def on_parked(self, item: Item, reason: str, *, delivered: bool) -> Sequence[NewItem]:
        """What to tell whom when an item was given up. Pure."""

    def on_expired(self, item: Item) -> Sequence[NewItem]:
        """What to tell whom when an item's time was up before it was delivered. Pure."""

    def on_stopped(self, item: Item, *, delivered: bool, goes_on: bool) -> Sequence[NewItem]:
        """What to tell whom when a person has ended an item (``item.stop``) on which somebody
        worked. ``goes_on``: its effect may. Pure."""


class Lanes(Protocol):
    """What a store of lanes promises: all that the worker, the relay and the app know of it.

    Every call is one commit, and what it returned is on disk. Ids sort by time, and so do lanes:
    one item at a time, what was tried before first, then by priority, then by id. Whoever works
    holds the lease, whose fencing number goes with every claim and verdict; one that is not the
    newest is refused with LeaseLost, and nothing of it is written.
    """

    @property
    def changed(self) -> anyio.Event:
        """Set at the next commit of any process. Take it *before* reading what you wait for."""

    async def take_lease(
        self, owner: str, *, rank: int, ttl_ms: int, is_gone: Callable[[str], bool] = ...
    ) -> LeaseState:
        """The lease if it was free; else who has it. Claims of the holder before wait again, and
        nothing has been failing for as long as nobody had it."""

    async def renew_lease(self, fence: int, ttl_ms: int) -> None: ...

    async def release_lease(self, fence: int) -> None:
        """Gives it up if it is still ours, and every claim with it."""

    async def put(self, items: Sequence[NewItem]) -> list[ItemId]:
        """All of them or, with LimitExceeded, none; a known dedupe key gives the item it has."""

    async def claim(
        self, kinds: Sequence[ItemKind], fence: int, *, begin: Sequence[ItemKind] = ...,
        on_expired: Tell = ..., held: Sequence[str] = ...,
    ) -> tuple[Item | None, int | None]:  # fmt: skip
        """The next item that may be worked on, now ours; else None and when to look again (ms).
        Lanes whose names begin with one of ``held`` are left alone."""

    async def begin(self, item: Item, fence: int) -> None:
        """From now on the item may have been delivered. Raises Stopped if it is to end."""

    async def finish(
        self, item: Item, state: ItemState, *, fence: int, result: Json | None = ...,
        reason: str = ..., delivered: bool = ..., then: Sequence[NewItem] = ...,
        claim_next: Sequence[ItemKind] = ...,
    ) -> Item | None:  # fmt: skip
        """Ends a claim, puts what follows, and claims the next item of ``claim_next`` if any.
        Raises Stopped if it is to end, and this is not CANCELLED."""

    async def retry(
        self, item: Item, *, fence: int, delay_ms: int, reason: str, delivered: bool,
        uncertain: bool = ..., then: Sequence[NewItem] = ...,
    ) -> None:  # fmt: skip
        """Hands a claim back to the head of its lane, for later. Raises Stopped if it is to end and
        nothing of it was delivered."""

    async def follow_clock(self, step_ms: int, fence: int) -> None:
        """The clock was set by that much: what was put off is due no later for it (but for a
        schedule, which goes by the clock), and a turn has not been failing for longer."""

    async def cancel(self, item_id: ItemId, reason: str, tell: Tell, who: str = ...) -> Item:
        """Ends an item of which certainly nothing was delivered, at once; another turn has its
        ``stop`` from now on, for whoever works on it. Raises Misuse if it has ended."""

    async def list_stopping(self) -> list[Item]:
        """What is worked on and to end."""

    async def replay(self, item_id: ItemId, tell: Tell) -> tuple[Item, int]:
        """Puts a parked item back at its old place; it and how many come first."""

    async def drop(self, item_id: ItemId, reason: str, tell: Tell) -> None:
        """Ends a parked item."""

    async def get_item(self, item_id: ItemId) -> Item:
        """Raises NotFound."""

    async def place_in_lane(self, item: Item) -> int:
        """How many open items of its lane come first."""

    async def count_items(self) -> dict[str, int]:
        """How many items are in each state."""


class Mailbox:
    """Lanes of items, and the worker of the process that holds the lease."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes

    async def get(self, item_id: ItemId) -> Item:
        """Raises NotFound."""
        return await self._lanes.get_item(item_id)

    async def place_in_lane(self, item: Item) -> int:
        """How many open items of its lane come first."""
        return await self._lanes.place_in_lane(item)

    async def wait_ended(self, item_id: ItemId, timeout_s: float) -> Item:
        """The item, as soon as it has ended, or as it stands after ``timeout_s``."""
        deadline = anyio.current_time() + timeout_s
        while True:
            changed = self._lanes.changed
            item = await self._lanes.get_item(item_id)
            left_s = deadline - anyio.current_time()
            if item.state.has_ended or left_s <= 0:
                return item
            with anyio.move_on_after(left_s):
                await changed.wait()

    async def run_worker(
        self, courier: Courier, *, fence: int, in_flight: Mapping[ItemKind, int],
        holds: Callable[[Item], str] = lambda item: "",
    ) -> None:  # fmt: skip
        """Works items until cancelled, at most ``in_flight`` of each kind at once.

        While an item is worked on, the lanes whose names begin with what ``holds`` gives for it
        wait, too (empty: none but its own).

        Raises LeaseLost when another process has taken over: nothing more may be written.
        """
        slots, ahead_s = _Slots(in_flight), time.time() - time.monotonic()
        in_hand: dict[ItemId, _Job] = {}

        async def work(job: _Job) -> None:
            while True:
                in_hand[job.item.id] = job
                try:
                    follower = await self._work(job, courier, fence, slots)
                finally:
                    del in_hand[job.item.id]
                    slots.give(job.item.kind)
                if follower is None:
                    return
                job = _Job(follower)

        async with anyio.create_task_group() as workers:
            workers.start_soon(self._run_stops, in_hand)
            while True:
                changed, freed, kinds = self._lanes.changed, slots.freed, slots.free_kinds()
                due_ms = None
                before_s, ahead_s = ahead_s, time.time() - time.monotonic()
                if abs(ahead_s - before_s) > CLOCK_STEP_S:
                    await self._lanes.follow_clock(int((ahead_s - before_s) * 1000), fence)
                if kinds:
                    held = {name for job in in_hand.values() if (name := holds(job.item))}
                    item, due_ms = await self._lanes.claim(
                        kinds, fence, begin=REPEATABLE, on_expired=courier.on_expired,
                        held=sorted(held),
                    )  # fmt: skip
                    if item:
                        slots.take(item.kind)
                        job = in_hand[item.id] = _Job(item)
                        workers.start_soon(work, job)
                        continue
                wait_s = max(0.0, due_ms / 1000 - time.time()) if due_ms else 60.0
                await _first_of(wait_s, changed, freed)

    async def _run_stops(self, in_hand: Mapping[ItemId, _Job]) -> None:
        """Tells the jobs whose items somebody wants to end."""
        while True:
            changed = self._lanes.changed
            if any(job.item.kind is ItemKind.TURN for job in in_hand.values()):
                for item in await self._lanes.list_stopping():
                    if (job := in_hand.get(item.id)) and not job.to_stop.is_set():
                        job.begun |= item.state is ItemState.DELIVERING
                        job.stop = item.stop
                        job.to_stop.set()
            await changed.wait()
            await anyio.sleep(STOP_LOOK_S)

    async def _work(self, job: _Job, courier: Courier, fence: int, slots: _Slots) -> Item | None:
        """Carries one item out and writes down what came of it. One sick item harms no other.

        Returns the item that was claimed along with that, if any.
        """
        try:
            return await self._carry_out(job, courier, fence, slots)
        except Stopped:
            item = await self._lanes.get_item(job.item.id)  # who wants it to end, and why
            delivered, goes_on = job.begun, job.goes_on
            await self._lanes.finish(
                item, ItemState.CANCELLED, fence=fence, delivered=delivered,
                reason=item.stop.reason if item.stop else "",
                then=courier.on_stopped(item, delivered=delivered, goes_on=goes_on),
            )  # fmt: skip
            return None

    async def _carry_out(
        self, job: _Job, courier: Courier, fence: int, slots: _Slots
    ) -> Item | None:
        item = job.item

        async def begin() -> None:
            if item.kind not in REPEATABLE:
                await self._lanes.begin(item, fence)
            job.begun = True

        if item.crash_count >= CRASH_LIMIT or item.claim_crash_count >= CLAIM_CRASH_LIMIT:
            count = item.crash_count + item.claim_crash_count
            reason = f"Homeroom died {count} times while it worked on this."
            await self._park(job, reason, courier, fence, delivered=item.begun)
            return None
        try:
            outcome = await job.run(courier, begin)
        except (LeaseLost, Stopped):
            raise
        except Unavailable as error:
            # What an earlier claim left open stays open: the service being away proves nothing.
            await self._put_off(job, error, courier, fence, delivered=item.begun)
        except Uncertain as error:
            await self._put_off(job, error, courier, fence, delivered=True)
        except HomeroomError as error:
            # A refusal proves nothing about what an earlier claim left open.
            await self._park(job, str(error), courier, fence, delivered=item.begun)
        except Exception:
            incident = secrets.token_hex(4)
            log.exception("item_work_failed", extra={"item_id": item.id, "incident": incident})
            reason = f"a fault in Homeroom, incident {incident}; its log has the rest"
            await self._park(job, reason, courier, fence, delivered=job.begun)
        else:
            return await self._finish(item, outcome, fence, slots)
        return None

    async def _finish(self, item: Item, outcome: Outcome, fence: int, slots: _Slots) -> Item | None:
        """Ends an item. The post of an answer is claimed with the commit that records the answer,
        if one more may be worked on: not before, or a long turn would keep others from posting."""
        claim_next = (ItemKind.POST,) if slots.take(ItemKind.POST) else ()
        follower: Item | None = None
        try:
            follower = await self._lanes.finish(
                item, ItemState.DONE, fence=fence, result=outcome.result, then=outcome.then,
                claim_next=claim_next,
            )  # fmt: skip
        finally:
            if claim_next and follower is None:
                slots.give(ItemKind.POST)
        return follower

    async def _put_off(
        self, job: _Job, error: Unavailable | Uncertain, courier: Courier, fence: int,
        *, delivered: bool,
    ) -> None:  # fmt: skip
        item, job.begun = job.item, delivered
        uncertain = isinstance(error, Uncertain)
        failing_s = time.time() - item.failing_since_ms / 1000 if item.failing_since_ms else 0.0
        left_s = PATIENCE_S[item.kind] - failing_s
        if job.stop:
            left_s = STOP_PATIENCE_S - (time.time() - job.stop.at_ms / 1000)
            if left_s <= 0:
                job.goes_on = delivered
                raise Stopped
        may_repeat = item.kind in REPEATABLE
        lost_often = (
            uncertain and not may_repeat and item.uncertain_count >= UNCERTAIN_LIMIT
        ) and not job.stop
        if left_s <= 0 or lost_often:
            await self._park(job, str(error), courier, fence, delivered=delivered)
            return
        after_s = error.retry_after_s if isinstance(error, Unavailable) else None
        await self._lanes.retry(
            item,
            fence=fence,
            # No service may put an item off for longer than it is kept for.
            delay_ms=int(min(pause_s(item.attempts + 1, after_s), left_s) * 1000),
            reason=str(error),
            delivered=delivered,
            uncertain=uncertain,
            then=() if job.stop else courier.on_delay(item, error),
        )

    async def _park(
        self, job: _Job, reason: str, courier: Courier, fence: int, *, delivered: bool
    ) -> None:
        item, job.begun = job.item, delivered
        log.warning("item_parked", extra={"item_id": item.id, "lane": item.lane, "reason": reason})
        await self._lanes.finish(
            item,
            # Nobody needs to decide about a status: a newer one or the answer tells the same.
            ItemState.CANCELLED if item.kind is ItemKind.STATUS else ItemState.PARKED,
            fence=fence,
            reason=reason,
            delivered=delivered,
            then=courier.on_parked(item, reason, delivered=delivered),
        )


class _Job:
    """An item in hand, and what becomes of it."""

    def __init__(self, item: Item) -> None:
        self.item, self.stop = item, item.stop
        self.begun = item.begun or item.kind in REPEATABLE
        self.to_stop = anyio.Event()
        """Set when a person wants it to end."""
        if item.stop:
            self.to_stop.set()
        self.goes_on = False
        """Its effect may go on although a person has ended it."""

    async def run(self, courier: Courier, begin: Begin) -> Outcome:
        """What the courier makes of it.

        Raises:
            Stopped: it was broken off.
        """
        if self.item.kind is not ItemKind.TURN:
            return await courier.deliver(self.item, begin)
        with anyio.CancelScope() as work:
            async with background(partial(self._break_off, courier, work)):
                return await courier.deliver(self.item, begin)
        raise Stopped

    async def _break_off(self, courier: Courier, work: anyio.CancelScope) -> None:
        """Has the work end when somebody wants that, if it does not by itself."""
        await self.to_stop.wait()
        goes_on = self.begun
        if self.begun:
            with anyio.move_on_after(STOP_LIMIT_S):
                goes_on = not await courier.stop(self.item)
        self.goes_on = goes_on
        work.cancel()


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
