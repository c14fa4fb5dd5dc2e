"""The reconciler: observe -> plan -> apply one action -> record what was applied.

Owns doing; never decides what to do (``plan`` does). Shares nothing with the relay but the store.
Invariants: each agent on its own, so that a sick one delays nobody; every action is idempotent
and recorded before the next; no action without a fence.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar

import anyio

from homeroom.adopt import mark_room
from homeroom.breaker import Breaker
from homeroom.config import Config
from homeroom.drift import Word
from homeroom.errors import (
    HomeroomError,
    LeaseLost,
    Misuse,
    Rejected,
    Unavailable,
    Uncertain,
    was_answered,
)
from homeroom.history import past_items
from homeroom.homes import Homes
from homeroom.items import NewItem
from homeroom.letta import Letta
from homeroom.matrix import OUR_FAULT, Matrix
from homeroom.model import (
    SPACE_AGENT,
    Action,
    Agent,
    AgentId,
    Failure,
    GhostId,
    Mapping,
    Outage,
    RoomId,
    SyncReport,
)
from homeroom.observing import Observed, Observer
from homeroom.patience import Patience, task_of, tasks_ended_by
from homeroom.plan import apply_to_mapping, new_mapping, plan
from homeroom.plan_space import INVITATIONS, LONE_KINDS, SIDE_KINDS, with_refusal
from homeroom.sides import Around, Sides
from homeroom.store import Decide, Store
from homeroom.sync_run import Failed, OnAction, OnProgress, Run

log = logging.getLogger(__name__)

AGENTS_AT_ONCE = 4
"""Synapse is one CPU-bound process: more in flight does not finish sooner (measured). While people
talk it is one: they wait for the same homeserver."""
LONGEST_PAUSE_S = 2.0
"""After one action while people talk: somebody waits for the homes, too."""

T = TypeVar("T")
Presence = Callable[[Mapping], Sequence[NewItem]]
"""What the room is told once the row says that its agent was retired, or that it is back. Pure."""


class Reconciler:
    """Brings Matrix in step with Letta, one idempotent action at a time."""

    def __init__(
        self,
        config: Config,
        store: Store,
        letta: Callable[[], Awaitable[Letta]],
        matrix: Callable[[], Awaitable[Matrix]],
        presence: Presence,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        people_talk: Callable[[], bool] = lambda: False,
    ) -> None:
        self._config, self._store = config, store
        self._letta, self._matrix = letta, matrix
        self._presence, self._now_ms = presence, now_ms
        self._people_talk = people_talk
        self._one_run, self._one_action = anyio.Lock(), anyio.Lock()
        self._patience = Patience(store, config.skip_after, self._now_ms)
        self._matrix_breaker = Breaker("matrix", self._now_ms)
        self._observer = Observer(config, store, letta, matrix, self._now_ms)
        self._homes, self._sides = Homes(config, store), Sides(config, store)
        self._new_ghosts: set[GhostId] = set()

    @property
    def outages(self) -> tuple[Outage, ...]:
        """The services that are left alone for now."""
        both = (self._observer.outage, self._matrix_breaker.outage)
        return tuple(outage for outage in both if outage)

    @property
    def next_try_s(self) -> float | None:
        """In how many seconds something that failed is to be tried again; None: nothing is."""
        # While a service is away, it alone says when: nobody can be tried before. Without Letta
        # not even the homeserver is.
        outage = next(iter(self.outages), None)
        next_ms = outage.next_try_ms if outage else self._patience.next_try_ms
        return None if next_ms is None else (next_ms - self._now_ms()) / 1000

    async def sync(
        self,
        *,
        decide: Decide,
        fence: int,
        asked: bool = False,
        confirm_removals: bool = False,
        audit: bool = False,
        invite: Collection[str] = (),
        on_action: OnAction = lambda action, failure: None,
        on_progress: OnProgress = lambda progress: None,
    ) -> SyncReport:
        """One reconciliation. ``asked``: a person wants it, so what was refused is asked again.
        ``confirm_removals``: a person says that all who are gone from Letta may be retired.
        ``audit``: look at the rooms themselves first, as is done once a day anyhow.
        ``invite``: people who ask to be invited again where they are not, beside those whose
        errands wait in the store.

        Raises:
            Unavailable, Rejected: Letta could not list its agents; nothing was changed.
            LeaseLost: another process runs the bridge.
        """
        async with self._one_run:
            started = time.monotonic()
            observed = await self._observer.observe(
                asked=asked, confirm_removals=confirm_removals, audit=audit, invite=invite,
                fence=fence,
            )  # fmt: skip
            await self._patience.load()
            run = Run.of(observed, fence, on_action, on_progress, asked)
            await self._store.save_missing(observed.missing.values(), fence)
            run.tell("")
            # At no agent's expense, and whether or not one needs anything: who else would?
            await self._matrix_breaker.probe(self._probe_matrix, at_once=asked)
            await self._apply_space(run)
            await self._apply_all(run, decide, fence)
            if confirm_removals:
                await self._store.confirm_removals(fence)
            return self._report(run, observed, started)

    async def preview(
        self, *, asked: bool, confirm_removals: bool = False, audit: bool = False,
        invite: Collection[str] = (),
    ) -> SyncReport:  # fmt: skip
        """What ``sync`` would do now. Changes nothing, so it waits for no sync under way.

        Raises:
            Unavailable, Rejected: Letta could not list its agents.
        """
        started = time.monotonic()
        observed = await self._observer.observe(
            asked=asked, confirm_removals=confirm_removals, audit=audit, invite=invite
        )
        return self._report(None, observed, started)

    def _report(self, run: Run | None, observed: Observed, started_s: float) -> SyncReport:
        """``run`` is None after a dry run."""
        seen = observed.seen
        report = SyncReport(
            agent_count=len(observed.agents),
            planned=tuple(run.planned if run else observed.planned),
            applied=tuple(run.applied if run else ()),
            failures=tuple(run.failures if run else ()),
            duration_s=round(time.monotonic() - started_s, 3),
            dry_run=run is None,
            outages=self.outages,
            audited=seen is not None,
            unread=tuple(seen.unread) if seen else (),
        )
        log.info(
            "sync_finished" if run else "sync_previewed",
            extra={"agents": report.agent_count, "planned": len(report.planned),
                   "applied": len(report.applied), "failed": len(report.failures),
                   "duration_s": report.duration_s},
        )  # fmt: skip
        return report

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """No reconciliation runs while the block does."""
        async with self._one_run:
            yield

    async def _apply_all(self, run: Run, decide: Decide, fence: int) -> None:
        limiter = anyio.CapacityLimiter(AGENTS_AT_ONCE)

        async def one(agent_id: AgentId, actions: list[Action], waits: bool) -> None:
            async with limiter:
                await self._apply_agent(run, agent_id, actions, decide, fence, home_waits=waits)

        by_agent: dict[AgentId, list[Action]] = {}
        for action in run.planned:
            if not action.held and action.agent_id != SPACE_AGENT:
                by_agent.setdefault(action.agent_id, []).append(action)
        await self._forget_healed(run, decide, fence)
        async with anyio.create_task_group() as group:
            for agent_id, mine in by_agent.items():
                first = next((action for action in mine if not task_of(action)), None)
                failure = None
                if first and not run.asked:
                    failure = self._patience.put_off(first, run.mappings.get(agent_id))
                if failure:
                    run.failures.append(failure)
                todo = [a for a in mine if a.kind in SIDE_KINDS] if failure else mine
                if todo:
                    group.start_soon(one, agent_id, todo, failure is not None)

    async def _forget_healed(self, run: Run, decide: Decide, fence: int) -> None:
        """Those in trouble for whom nothing is left to do are in trouble no more."""
        planned = [action for action in run.planned if not action.held]
        for agent_id in await self._patience.forget_but(planned, fence):
            mapping = run.mappings.get(agent_id)
            if mapping and mapping.problem:
                await self._store.save_mapping(replace(mapping, problem=""), decide, fence)

    async def _probe_matrix(self) -> None:
        await (await self._matrix()).probe()

    def _waits(self, action: Action) -> Failure | None:
        """Why nothing is asked of the homeserver now: nobody is asked, so nobody has failed."""
        if outage := self._matrix_breaker.outage:
            reason = f"waits: {Unavailable('matrix', outage.reason).what}"
            return Failure(action, reason, False, outage.next_try_ms)
        return None

    async def _apply_agent(
        self, run: Run, agent_id: AgentId, actions: list[Action], decide: Decide, fence: int, *,
        home_waits: bool,
    ) -> None:  # fmt: skip
        """Applies an agent's actions in order. The first failure of one that stands not alone ends
        them; what stands beside the home (``SIDE_KINDS``) is still done where the homeserver
        answers. ``home_waits``: only such actions are left, because the home is put off."""
        known = run.mappings.get(agent_id)
        agent = run.agents.get(agent_id) or Agent(agent_id, known.agent_name if known else "")
        mapping = known or new_mapping(agent, run.policy.server_name, self._now_ms())
        queue, dropped = deque(actions), set[str]()
        while queue:
            action = queue.popleft()
            if task_of(action) in dropped or self._sides.is_blocked(action, mapping, run.around):
                continue
            if waits := self._waits(action):
                run.failures.append(waits)
                return
            failure = self._find_pause(action, run)
            if failure is None:
                step = partial(self._apply, action, agent, mapping, run, decide, fence)
                done = await self._attempt(run, action, step)
                if isinstance(done, Mapping):
                    mapping = done
                    await self._patience.forget(agent_id, fence, task_of(action))
                    # One that was there already may lack people; one that is gone is made anew.
                    is_gone = action.kind == "join_hub" and mapping.room_gone
                    if is_gone or action.kind in ("create_room", "follow_room"):
                        queue = run.plan_again(agent, mapping, queue, dropped)
                    continue
                if action.kind not in LONE_KINDS:
                    mapping, failure = await self._note_trouble(mapping, done, decide, fence)
                    run.failures.append(failure)
                    if done.is_away:
                        return
                    home_waits = True
                    queue = deque(step for step in queue if step.kind in SIDE_KINDS)
                    continue
                mapping, failure = await self._note_lone_failure(mapping, done, decide, fence)
            run.failures.append(failure)
            dropped |= tasks_ended_by(action)
        if home_waits:
            return
        await self._patience.forget(agent_id, fence)
        if mapping.problem:
            await self._store.save_mapping(replace(mapping, problem=""), decide, fence)

    async def _apply_space(self, run: Run) -> None:
        """Applies the actions on the space and the hub, each on its own."""
        around, queue = run.around, deque(a for a in run.planned if a.agent_id == SPACE_AGENT)
        dropped = set[str]()
        while queue:
            action = queue.popleft()
            if action.held or task_of(action) in dropped:
                continue
            failure = self._waits(action) or self._find_pause(action, run)
            if failure is None:
                step = partial(self._apply_to_space, action, around)
                done = await self._attempt(run, action, step)
                if done is None:
                    await self._patience.forget(SPACE_AGENT, around.fence, task_of(action))
                    if action.kind == "make_space":  # one that was found may lack much
                        more = plan([], {}, around.rooms, run.policy, 0, around.space)
                        new = [step for step in more if step not in run.planned]
                        queue.extend(new)
                        run.extend(new)
                    continue
                failure = done.failure
                if failure.final:
                    around.space = with_refusal(around.space, action, failure.reason)
                    await self._store.save_space(around.space, around.fence)
                else:
                    failure = await self._patience.note(failure, done.after_s, around.fence)
            run.failures.append(failure)
            dropped |= tasks_ended_by(action)

    async def _apply_to_space(self, action: Action, around: Around) -> None:
        await self._sides.apply_to_space(await self._matrix(), action, around)

    async def _attempt(
        self, run: Run, action: Action, step: Callable[[], Awaitable[T]]
    ) -> T | Failed:
        """What the step gives, or why it failed; either is told."""
        failure, after_s, is_away = None, None, False
        try:
            async with self._beside_people():
                done = await step()
        except LeaseLost:
            raise
        except HomeroomError as error:
            # A homeserver that does not know us says nothing about what was asked.
            refused = isinstance(error, Rejected) and error.code not in OUR_FAULT
            failure = Failure(action, str(error), final=refused or isinstance(error, Misuse))
            if not _is_about_another_server(action, error, run.policy.server_name):
                self._matrix_breaker.failed(error, action.agent_id)
            after_s = error.retry_after_s if isinstance(error, Unavailable) else None
            is_away = isinstance(error, Unavailable | Uncertain) and not was_answered(error)
        except Exception:
            incident = secrets.token_hex(4)
            log.exception("action_failed", extra={"agent": action.agent_id, "incident": incident})
            failure = Failure(action, f"a fault in Homeroom, incident {incident}", final=False)
        run.tried += 1
        run.on_action(action, failure)
        run.tell(action.agent_name)
        if failure is None:
            run.applied.append(action)
            self._matrix_breaker.succeeded()
            return done
        log.warning(
            "action_failed",
            extra={"agent": action.agent_id, "action": action.kind, "reason": failure.reason},
        )
        return Failed(failure, after_s, is_away)

    def _find_pause(self, action: Action, run: Run) -> Failure | None:
        """Why an action that stands alone has to wait, unless a person asked."""
        if run.asked:
            return None
        fight = self._sides.find_fight(action, self._now_ms())
        return fight or self._patience.put_off_alone(action)

    async def _note_lone_failure(
        self, mapping: Mapping, failed: Failed, decide: Decide, fence: int
    ) -> tuple[Mapping, Failure]:
        """The row, and the failure with when it is tried again: not by itself if it is a refusal,
        which the row remembers."""
        failure, action = failed.failure, failed.failure.action
        if stored := await self._store.find_mapping(mapping.agent_id):
            mapping = replace(mapping, avatar=stored.avatar)  # an address may have been reserved
        if not failure.final:
            return mapping, await self._patience.note(failure, failed.after_s, fence)
        if action.kind == "write_history":
            mapping = replace(mapping, history_due=False)
        elif action.kind == "invite_person":
            refused = dict(mapping.refused) | {action.value: failure.reason}
            mapping = replace(mapping, refused=tuple(refused.items()))
        else:
            mapping = with_refusal(mapping, action, failure.reason)
        await self._store.save_mapping(mapping, decide, fence)
        return mapping, failure

    @asynccontextmanager
    async def _beside_people(self) -> AsyncIterator[None]:
        """While people talk, one action at a time, and after each as long a pause as it took."""
        if not self._people_talk():
            yield
            return
        async with self._one_action:
            began_s = time.monotonic()
            yield
            if self._people_talk():
                await anyio.sleep(min(time.monotonic() - began_s, LONGEST_PAUSE_S))

    async def _note_trouble(
        self, mapping: Mapping, failed: Failed, decide: Decide, fence: int
    ) -> tuple[Mapping, Failure]:
        """Puts the agent off. Returns its row, and the failure with when it is tried again."""
        reason = failed.failure.reason
        if stored := await self._store.find_mapping(mapping.agent_id):
            # A write that failed may have been carried out: what the row has forgotten stays so.
            mapping = replace(mapping, room_name=stored.room_name, topic=stored.topic)
        mapping = replace(mapping, problem=reason)
        await self._store.save_mapping(mapping, decide, fence)
        return mapping, await self._patience.note(failed.failure, failed.after_s, fence)

    async def _apply(
        self, action: Action, agent: Agent, mapping: Mapping, run: Run,
        decide: Decide, fence: int,
    ) -> Mapping:  # fmt: skip
        """Carries out one action and records it. Returns the row as it is now."""
        matrix, policy, homes = await self._matrix(), run.policy, self._homes
        if action.kind in SIDE_KINDS:
            save = partial(self._store.save_mapping, decide=decide, fence=fence)
            return await self._sides.apply(matrix, action, agent, mapping, run.around, save)
        view = run.rooms.get(mapping.room_id) if mapping.room_id else None
        past: Sequence[NewItem] = ()
        match action.kind:
            case "register_ghost":
                mapping, all_new = await homes.ensure_ghost(matrix, mapping, decide, fence)
                if all_new:
                    self._new_ghosts.add(mapping.ghost)
            case "set_display_name":
                await matrix.set_display_name(mapping.ghost, action.value)
            case "create_room":
                new, parent = mapping.ghost in self._new_ghosts, run.around.space_id
                self._new_ghosts.discard(mapping.ghost)
                mapping = await homes.ensure_room(
                    matrix, agent, mapping, policy, decide, fence, all_new=new, parent=parent
                )
                run.rooms |= await self._store.list_rooms(mapping.room_id)
                return mapping
            case "follow_room":
                assert view
                to = RoomId(action.value)
                return await homes.follow(matrix, mapping, view, to, decide, fence)
            case "join_hub":
                if gone := await homes.ensure_inside(matrix, mapping, view):
                    await self._store.save_mapping(gone, decide, fence)
                    return gone
            case "set_alias":
                await homes.set_alias(matrix, mapping, action.value)
            case "invite_person":
                assert mapping.room_id
                await matrix.invite(mapping.ghost, mapping.room_id, action.value)
            case "set_room_name" | "retire_agent" | "restore_agent" | "set_topic":
                word: Word = "topic" if action.kind == "set_topic" else "name"
                mapping = await homes.write_word(
                    matrix, mapping, action, word, policy, decide, fence, self._now_ms()
                )
            case "mark_room":
                await mark_room(matrix, mapping, await self._store.get_meta("store_id"))
            case "write_history" if mapping.history_due:
                count = self._config.history_count
                past = await past_items(await self._letta(), matrix, mapping, count)
        since_ms, is_in = mapping.missing_since_ms, action.kind == "join_hub"
        mapping = apply_to_mapping(mapping, action, agent, policy)
        mapping = replace(mapping, history_written=mapping.history_written or bool(past))
        is_out = view is not None and view.members.get(mapping.ghost, "join") != "join"
        tells = action.kind in ("retire_agent", "restore_agent") and not is_out
        if action.kind == "retire_agent":
            mapping = replace(mapping, retired_ms=self._now_ms())
        then = self._presence(replace(mapping, missing_since_ms=since_ms)) if tells else past
        await self._store.save_mapping(mapping, decide, fence, then, joined=is_in)
        return mapping


def _is_about_another_server(action: Action, error: HomeroomError, server_name: str) -> bool:
    """Whether an invitation failed in a way that says nothing of our own homeserver: it reaches
    that of whoever is invited, and if that is away it answers with a 502."""
    if action.kind not in INVITATIONS or not isinstance(error, Unavailable | Uncertain):
        return False
    return was_answered(error) or not action.value.endswith(f":{server_name}")
