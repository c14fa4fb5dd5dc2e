"""The one process that runs the bridge: its lease, and the loops that live as long as it holds.

Owns who runs which loop and when. Builds no vendor object and speaks no wire. Invariants: no loop
outlives the lease; one that dies ends the process; a service that is away does not.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

import anyio

from homeroom.adopt import adopt
from homeroom.background import background
from homeroom.claim import LOOK_S, HomeserverClaim
from homeroom.config import Config
from homeroom.courtesy import Receipts
from homeroom.decide import decide, held_notices, presence_items, unread_notice
from homeroom.errors import HomeroomError, LeaseLost, Rejected, Unsupported
from homeroom.guests import Guests
from homeroom.intake import IntakeState, run_intake
from homeroom.items import ItemKind
from homeroom.letta import Letta
from homeroom.mailbox import POSTS_IN_FLIGHT, Mailbox
from homeroom.matrix import Matrix
from homeroom.model import RoomId, SyncProgress, SyncReport
from homeroom.old_homes import Adoption, OldHome, dump_adoptions, read_homes
from homeroom.people import askable
from homeroom.progress import ProgressNote
from homeroom.relay import Relay
from homeroom.reports import dump_error, dump_report
from homeroom.residence import Fault
from homeroom.retry import pause_s
from homeroom.service import Service
from homeroom.speaking import Speaking
from homeroom.statuses import StatusCourier, with_statuses
from homeroom.store import Decide, Store, SyncWish
from homeroom.sync import Reconciler
from homeroom.sync_run import OnAction

log = logging.getLogger(__name__)

LEASE_MS = 6_000
"""A bridge that stopped renewing is replaced after this; a standby looks three times as often."""
DAY_S = 86_400.0
RETRY_S = 1.0
"""What failed is not tried again sooner than this, whatever the jitter says."""
REST_S = 10.0
"""Between two syncs that changes call for lies nine times what the first took, but at most this."""
NOTICE_S = 1.0
"""A change that Letta tells of is acted on after this: changes come in bursts."""
BURST_S = 0.1
"""Commits come in bursts: one look at the store serves them all."""
FIRST_LOOK_S = 5.0
"""So long the mailbox rests at first until the homeserver has told who else is at work."""
SILENT_MS = 120_000
"""What the hub's sync told longer ago than this may not be so any more."""


class Bridge:
    """Runs the bridge whenever it is this process's turn."""

    def __init__(
        self,
        config: Config,
        store: Store,
        letta: Service[Letta],
        matrix: Service[Matrix] | None,
        speaking: Speaking,
    ) -> None:
        self.config, self._store, self._mailbox = config, store, Mailbox(store)
        self.letta, self.matrix, self._speaking = letta, matrix, speaking
        self._relay: Relay | None = None
        self.reconciler = Reconciler(
            config, store, letta.get, self.get_matrix, presence_items,
            people_talk=lambda: self._relay is not None and self._relay.people_talk,
        )  # fmt: skip
        self.owner = f"{_machine()}/{os.getpid()}"
        self._bridge_owner = ""
        self._noticed_s = float("-inf")
        """When Letta last told that its agents changed."""
        self.intake = IntakeState()
        self._is_copy = False
        """Whether a copy of our store runs the bridge, so that ours must rest."""
        self._guests: Guests | None = None

    async def get_matrix(self) -> Matrix:
        if self.matrix is None:
            raise Unsupported(
                "Matrix is not set up: set HOMEROOM_MATRIX_URL, HOMEROOM_MATRIX_SERVER_NAME and"
                " HOMEROOM_MATRIX_REGISTRATION, then restart."
            )
        return await self.matrix.get()

    async def sync_once(
        self, on_action: OnAction, on_progress: Callable[[SyncProgress], None], *,
        confirm_removals: bool = False, audit: bool = False, invite: Collection[str] = (),
    ) -> SyncReport | None:  # fmt: skip
        """One reconciliation by this process; None if another one runs the bridge.

        Where nobody has read the hub's sync for a while, the rooms themselves are looked at.
        """
        async with self._turn() as fence:
            if not fence:
                return None
            matrix = await self.get_matrix()
            progress = ProgressNote(self._store, fence, on_progress)
            async with background(progress.run):
                report = await self.reconciler.sync(
                    decide=self._decide(matrix), fence=fence, asked=True,
                    confirm_removals=confirm_removals, invite=invite, on_action=on_action,
                    on_progress=progress.note, audit=audit or await self._is_silent(),
                )  # fmt: skip
            await self._store.finish_sync_requests([], dump_report(report), fence)
            return report

    async def preview_sync(
        self, *, confirm_removals: bool = False, audit: bool = False, invite: Collection[str] = ()
    ) -> SyncReport:
        """What ``sync_once`` would do; changes nothing, whoever runs the bridge."""
        return await self.reconciler.preview(
            asked=True, confirm_removals=confirm_removals, invite=invite,
            audit=audit or await self._is_silent(),
        )  # fmt: skip

    async def _is_silent(self) -> bool:
        """Whether what the hub's sync told last is so long ago that it may not be so any more."""
        return time.time_ns() // 1_000_000 - await self._store.get_heard_ms() > SILENT_MS

    async def fix_rooms(self) -> list[tuple[RoomId, Fault]] | None:
        """Mends the rooms once, by this process; None if another one, or a loop of this one, runs
        the bridge."""
        async with self._turn() as fence:
            if not fence:
                return None
            matrix = await self.get_matrix()
            decide_here = self._decide(matrix)
            return await Guests(
                self.config, self._store, matrix, decide_here, fence=fence
            ).fix()  # fmt: skip

    def hint_invitations(self, ghosts: Collection[str]) -> None:
        """The homeserver has pushed that these were invited somewhere (or nobody, for now)."""
        if self._guests:
            self._guests.hint(ghosts, pushed=True)

    async def import_once(self, homes: Sequence[OldHome]) -> list[Adoption] | None:
        """One import by this process; None if another one runs the bridge."""
        async with self._turn() as fence:
            if not fence:
                return None
            return await self._import(homes, self._decide(await self.get_matrix()), fence)

    async def preview_import(self, homes: Sequence[OldHome]) -> list[Adoption]:
        """What an import would adopt; changes nothing."""
        return await self._adopt(homes)

    async def _import(
        self, homes: Sequence[OldHome], decide_here: Decide, fence: int
    ) -> list[Adoption]:
        async with self.reconciler.paused():  # or it would make the rooms meanwhile
            return await self._adopt(homes, decide_here, fence)

    async def _adopt(
        self, homes: Sequence[OldHome], decide_here: Decide | None = None, fence: int = 0
    ) -> list[Adoption]:
        letta, matrix = await self.letta.get(), await self.get_matrix()
        return await adopt(
            homes, await letta.list_agents(), self._store, matrix,
            now_ms=time.time_ns() // 1_000_000, decide=decide_here, fence=fence,
        )  # fmt: skip

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[int]:
        """The fence while this process alone does the bridge's work; 0 if it is not its turn."""
        lease = await self._store.take_lease(self.owner, rank=0, ttl_ms=LEASE_MS, is_gone=_is_gone)
        if not lease.fence:
            yield 0
            return
        try:
            async with background(partial(self._run_renewal, lease.fence)):
                yield lease.fence
        finally:
            with anyio.CancelScope(shield=True):
                await self._store.release_lease(lease.fence)

    async def run(self) -> None:
        """Runs the bridge, or waits for its turn to, until cancelled."""
        while True:
            # A process with Matrix may replace one without: only it can do all the work.
            lease = await self._store.take_lease(
                self.owner, rank=2 if self.matrix else 1, ttl_ms=LEASE_MS, is_gone=_is_gone
            )
            if lease.owner != self._bridge_owner:
                self._bridge_owner = lease.owner
                log.info(
                    "bridge_owner_changed", extra={"owner": lease.owner, "us": bool(lease.fence)}
                )
            if not lease.fence:
                await self._store.wait_changed(LEASE_MS / 1000 / 3)
                continue
            try:
                await self._hold_bridge(lease.fence)
            except* LeaseLost as lost:
                log.warning("lease_lost", extra={"reason": str(lost.exceptions[0])})
            finally:
                with anyio.CancelScope(shield=True):
                    await self._store.release_lease(lease.fence)

    async def _hold_bridge(self, fence: int) -> None:
        in_flight = {ItemKind.TURN: self.config.max_turns}
        if self.matrix:
            in_flight |= {ItemKind.POST: POSTS_IN_FLIGHT, ItemKind.STATUS: 1}
        async with anyio.create_task_group() as loops:
            loops.start_soon(self._run_renewal, fence)
            loops.start_soon(self._run_pruning, fence)
            loops.start_soon(self._speaking.run, fence)
            self._relay = relay = Relay(
                self._store, self.letta.get, self.get_matrix, loops,
                fence=fence, on_progress=self._speaking.note,
            )  # fmt: skip
            courier = StatusCourier(relay) if self.config.status_events else relay
            work = partial(
                self._mailbox.run_worker, courier, fence=fence, in_flight=in_flight,
                holds=relay.holds,
            )  # fmt: skip
            if self.matrix:
                may_work = anyio.Event()
                loops.start_soon(self._run_matrix, self.matrix, fence, may_work)
                loops.start_soon(self._wait_first_look, self.matrix, may_work)
                await may_work.wait()
            loops.start_soon(work)

    async def _run_renewal(self, fence: int) -> None:
        while True:
            await anyio.sleep(LEASE_MS / 1000 / 3)
            await self._store.renew_lease(fence, LEASE_MS, self._reading_problem)

    @property
    def _reading_problem(self) -> str:
        """Why we read no rooms; empty if we do, or are not to. The other processes show it."""
        return self.matrix.problem or self.intake.problem if self.matrix else ""

    async def _run_pruning(self, fence: int) -> None:
        while True:
            total = 0
            while count := await self._store.prune(
                int(self.config.keep_days * DAY_S * 1000), fence
            ):
                total += count
            log.info("store_pruned", extra={"rows": total})
            await anyio.sleep(DAY_S)

    async def _wait_first_look(self, service: Service[Matrix], may_work: anyio.Event) -> None:
        """Has the mailbox worked if the homeserver cannot tell whether a copy of our store is at
        work elsewhere, with the same items: agents can be talked to without rooms, too."""
        with anyio.move_on_after(FIRST_LOOK_S):
            if await service.is_connected():
                await may_work.wait()
        if not self._is_copy:
            may_work.set()

    async def _run_matrix(
        self, service: Service[Matrix], fence: int, may_work: anyio.Event
    ) -> None:
        """Reads the rooms and keeps them in step, from when the homeserver can be reached.

        Raises:
            LeaseLost: a copy of our store turns out to be at work elsewhere, with the same items.
        """
        matrix = await service.wait()
        decide_here = self._decide(matrix)
        claim = HomeserverClaim(matrix, self._store, self.owner, fence)
        try:
            while True:
                self.intake.problem = await claim.take()
                self._is_copy = claim.is_copied
                if not self._is_copy:
                    may_work.set()
                elif may_work.is_set():
                    raise LeaseLost(claim.rival, "it is stopped")
                if self.intake.problem:
                    if not claim.is_asking:  # else it is known in a moment
                        await self._refuse_syncs(self.intake.problem, fence)
                    await anyio.sleep(LOOK_S)
                    continue
                syncs = partial(self._run_sync, decide_here, fence)
                imports = partial(self._run_imports, decide_here, fence)
                catch_ups = partial(self._run_catch_ups, decide_here, fence)
                async with background(syncs, imports, catch_ups) as loops:
                    told = (held_notices, Receipts(matrix, loops).show)
                    intake = partial(
                        run_intake, fence=fence, state=self.intake, tell_unread=unread_notice,
                        reach_ms=self.config.keep_days * DAY_S * 1000,
                    )  # fmt: skip
                    loops.start_soon(self._run_notice)
                    loops.start_soon(intake, self._store, matrix, decide_here, *told)
                    self._guests = Guests(
                        self.config, self._store, matrix, decide_here, fence=fence
                    )
                    loops.start_soon(self._guests.run)
                    await claim.keep()
        finally:
            self._guests = None
            await claim.release()

    async def _refuse_syncs(self, why: str, fence: int) -> None:
        if requests := await self._store.pending_sync_requests():
            refusal = dump_error(Rejected("matrix", why))
            await self._store.finish_sync_requests([*requests], refusal, fence)
        for request in await self._store.pending_imports():
            await self._store.finish_import(request, dump_error(Rejected("matrix", why)), fence)

    async def _run_catch_ups(self, decide_here: Decide, fence: int) -> None:
        """Has answered what other processes ask to have answered of what came too late."""
        while True:
            changed = self._store.changed
            for errand, room in (await self._store.pending_errands("catch_up")).items():
                await self._store.answer_held(errand, room, decide_here, fence)
            await _wait_burst(changed)

    async def _run_imports(self, decide_here: Decide, fence: int) -> None:
        """Carries out what other processes ask to have imported."""
        while True:
            changed = self._store.changed
            for request, entries in (await self._store.pending_imports()).items():
                try:
                    done = await self._import(read_homes(entries), decide_here, fence)
                    text = dump_adoptions(done)
                except LeaseLost:
                    raise
                except HomeroomError as error:
                    text, done = dump_error(error), []
                await self._store.finish_import(request, text, fence)
                if any(adoption.outcome == "adopted" for adoption in done):
                    await self._store.request_sync()
            await _wait_burst(changed)

    async def _run_notice(self) -> None:
        """Has a sync come soon after Letta tells of a change, where it does."""

        def note() -> None:
            self._noticed_s = time.monotonic()
            self._store.wake()

        await (await self.letta.wait()).run_changes(note)

    async def _run_sync(self, decide_here: Decide, fence: int) -> None:
        next_s, ended_s, rest_s, in_vain = 0.0, float("-inf"), 0.0, 0
        while True:
            changed, now_s = self._store.changed, time.monotonic()
            requests = await self._store.pending_sync_requests()
            due_s = next_s
            if self._noticed_s > float("-inf"):
                # However often changes come, most of the time is left to others.
                due_s = min(next_s, max(self._noticed_s + NOTICE_S, ended_s + rest_s))
            if requests or now_s >= due_s:
                self._noticed_s = float("-inf")
                begun = await self._sync_and_record(requests, decide_here, fence)
                ended_s = time.monotonic()
                rest_s = min(9 * (ended_s - now_s), REST_S)
                in_vain = 0 if begun else in_vain + 1
                next_s = ended_s + self._pause_after_sync_s(in_vain)
                continue
            with anyio.move_on_after(due_s - now_s):
                await _wait_burst(changed)

    def _pause_after_sync_s(self, in_vain: int) -> float:
        """The interval, or less if something that failed is to be tried again before that."""
        interval_s, again_s = self.config.sync_interval_s, self.reconciler.next_try_s
        if in_vain:
            again_s = max(again_s or 0.0, pause_s(in_vain))
        return interval_s if again_s is None else min(interval_s, max(again_s, RETRY_S))

    async def _sync_and_record(
        self, requests: Mapping[int, SyncWish], decide_here: Decide, fence: int
    ) -> bool:
        """Whether there could be a sync at all."""
        progress, begun = ProgressNote(self._store, fence), True
        try:
            async with background(progress.run):
                report = await self.reconciler.sync(
                    decide=decide_here, fence=fence, asked=bool(requests),
                    confirm_removals=any(wish.confirm_removals for wish in requests.values()),
                    audit=any(wish.audit for wish in requests.values()),
                    on_progress=progress.note,
                )  # fmt: skip
            text = dump_report(report)
        except LeaseLost:
            raise
        except HomeroomError as error:
            log.warning("sync_failed", extra={"reason": str(error)})
            text, begun = dump_error(error, self.reconciler.outages), False
        await self._store.finish_sync_requests([*requests], text, fence)
        return begun

    def _decide(self, matrix: Matrix) -> Decide:
        decide_here = partial(
            decide,
            is_ghost=matrix.is_ghost,
            catch_up_ms=self.config.catch_up_s * 1000,
            keep_ms=self.config.keep_days * DAY_S * 1000,
            quiet_ms=int(self.config.quiet_s * 1000),
            people=askable(self.config),
        )
        return with_statuses(decide_here) if self.config.status_events else decide_here


async def _wait_burst(changed: anyio.Event) -> None:
    """Returns after the next commit, and those that come with it: one look for all of them."""
    await changed.wait()
    await anyio.sleep(BURST_S)


def _machine() -> str:
    """Where a process id means something: this host and, on Linux, this PID namespace."""
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        namespace = 0
    return f"{socket.gethostname()}/{namespace}"


def _is_gone(owner: str) -> bool:
    """Whether the owner of a lease was a process of this machine that has died."""
    machine, _, pid = owner.rpartition("/")
    if machine != _machine() or sys.platform == "win32":
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False
