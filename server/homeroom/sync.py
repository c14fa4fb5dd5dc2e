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
from homeroom.audit import Seen
from homeroom.audits import Audits
from homeroom.breaker import Breaker
from homeroom.config import Config
from homeroom.drift import Word
from homeroom.errors import HomeroomError, LeaseLost, Misuse, Rejected, Unavailable
from homeroom.history import past_items
from homeroom.homes import Homes
from homeroom.items import NewItem
from homeroom.letta import Letta
from homeroom.matrix import OUR_FAULT, Matrix
from homeroom.model import (
    SPACE_AGENT,
    Action,
    ActionKind,
    Agent,
    AgentId,
    Failure,
    GhostId,
    Mapping,
    Outage,
    RoomId,
    SyncReport,
)
from homeroom.patience import Patience, task_of
from homeroom.plan import (
    apply_to_mapping,
    new_mapping,
    observe_missing,
    plan,
    policy_of,
)
from homeroom.plan_space import AVATAR_KINDS, LONE_KINDS, SIDE_KINDS, with_refusal
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
        # Letta is asked one thing by one asker, so one failure tells all.
        self._letta_breaker = Breaker("letta", self._now_ms, threshold=1)
        self._matrix_breaker = Breaker("matrix", self._now_ms)
        self._homes, self._sides = Homes(config, store), Sides(config, store)
        self._new_ghosts: set[GhostId] = set()
        self._audits = Audits(store, matrix, config.audit_interval_s)

    @property
    def outages(self) -> tuple[Outage, ...]:
        """The services that are left alone for now."""
        both = (self._letta_breaker.outage, self._matrix_breaker.outage)
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
        dry_run: bool = False,
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
            agents = {agent.id: agent for agent in await self._list_agents(asked)}
            await self._patience.load()
            mappings, rooms = await self._store.list_mappings(), await self._store.list_rooms()
            space = await self._store.get_space()
            now_ms, record = self._now_ms(), None if dry_run else fence
            seen, space = await self._audits.look(
                mappings, rooms, space, asked=audit, now_ms=now_ms, fence=record
            )
            if seen:
                mappings, rooms = mappings | seen.mappings, seen.rooms
            missing = observe_missing(agents.keys(), mappings, now_ms)
            mappings |= missing
            policy = replace(
                policy_of(self._config), ask_again=asked, confirm_removals=confirm_removals,
                removals_confirmed_ms=await self._store.removals_confirmed_ms(),
            )  # fmt: skip
            changed, space = await self._homes.observe_people(
                mappings, space, policy, invite, record
            )
            mappings |= changed
            planned = plan(agents.values(), mappings, rooms, policy, now_ms, space)
            around = Around(space, rooms, policy, fence)
            run = Run([], agents, mappings, rooms, policy, around, on_action, on_progress, asked)
            run.extend(planned)
            if not dry_run:
                await self._store.save_missing(missing.values(), fence)
                run.tell("")
                # At no agent's expense, and whether or not one needs anything: who else would?
                await self._matrix_breaker.probe(self._probe_matrix, at_once=asked)
                await self._apply_space(run)
                await self._apply_all(run, decide, fence, asked)
                if confirm_removals:
                    await self._store.confirm_removals(fence)
            return self._report(run, seen, round(time.monotonic() - started, 3), dry_run)

    def _report(self, run: Run, seen: Seen | None, duration_s: float, dry_run: bool) -> SyncReport:
        report = SyncReport(
            agent_count=len(run.agents),
            planned=tuple(run.planned),
            applied=tuple(run.applied),
            failures=tuple(run.failures),
            duration_s=duration_s,
            dry_run=dry_run,
            outages=self.outages,
            audited=seen is not None,
            unread=tuple(seen.unread) if seen else (),
        )
        log.info(
            "sync_finished",
            extra={"agents": report.agent_count, "planned": len(report.planned),
                   "applied": len(report.applied), "failed": len(report.failures),
                   "duration_s": duration_s},
        )  # fmt: skip
        return report

    async def _list_agents(self, asked: bool) -> list[Agent]:
        """All agents. A Letta that is away is asked again after a pause, or when a person asks."""
        self._letta_breaker.check(at_once=asked)
        try:
            agents = await (await self._letta()).list_agents()
        except HomeroomError as error:
            self._letta_breaker.failed(error, "list")
            raise
        except BaseException:
            self._letta_breaker.gave_up()
            raise
        self._letta_breaker.succeeded()
        return agents

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """No reconciliation runs while the block does."""
        async with self._one_run:
            yield

    async def _apply_all(self, run: Run, decide: Decide, fence: int, asked: bool) -> None:
        limiter = anyio.CapacityLimiter(AGENTS_AT_ONCE)

        async def one(agent_id: AgentId, actions: list[Action]) -> None:
            async with limiter:
                await self._apply_agent(run, agent_id, actions, decide, fence)

        by_agent: dict[AgentId, list[Action]] = {}
        for action in run.planned:
            if not action.held and action.agent_id != SPACE_AGENT:
                by_agent.setdefault(action.agent_id, []).append(action)
        await self._forget_healed(run, decide, fence)
        async with anyio.create_task_group() as group:
            for agent_id, mine in by_agent.items():
                failure = self._patience.put_off(mine[0], run.mappings.get(agent_id))
                if failure and not asked:
                    run.failures.append(failure)
                else:
                    group.start_soon(one, agent_id, mine)

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
        self, run: Run, agent_id: AgentId, actions: list[Action], decide: Decide, fence: int
    ) -> None:
        """Applies an agent's actions in order; the first failure ends them (a refused invitation
        does not: the others still count)."""
        known = run.mappings.get(agent_id)
        agent = run.agents.get(agent_id) or Agent(agent_id, known.agent_name if known else "")
        mapping = known or new_mapping(agent, run.policy.server_name)
        queue, dropped = deque(actions), set[ActionKind]()
        while queue:
            action, after_s = queue.popleft(), None
            if action.kind in dropped or self._sides.is_blocked(action, mapping, run.around):
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
                failure, after_s = done.failure, done.after_s
                if action.kind in LONE_KINDS:
                    mapping, failure = await self._note_lone_failure(
                        mapping, failure, after_s, decide, fence
                    )
            if action.kind in LONE_KINDS:
                run.failures.append(failure)
                dropped |= AVATAR_KINDS if action.kind == "upload_avatar" else {action.kind}
                continue
            if action.kind == "invite_person" and failure.final:
                run.failures.append(failure)
                refused = (*mapping.refused, (action.value, failure.reason))
                mapping = replace(mapping, refused=tuple(dict(refused).items()))
                await self._store.save_mapping(mapping, decide, fence)
                continue
            run.failures.append(await self._note_trouble(mapping, failure, after_s, decide, fence))
            return
        await self._patience.forget(agent_id, fence)
        if mapping.problem:
            await self._store.save_mapping(replace(mapping, problem=""), decide, fence)

    async def _apply_space(self, run: Run) -> None:
        """Applies the actions on the space and the hub, each on its own."""
        around, queue = run.around, deque(a for a in run.planned if a.agent_id == SPACE_AGENT)
        dropped = set[ActionKind]()
        while queue:
            action = queue.popleft()
            if action.held or action.kind in dropped:
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
            dropped |= AVATAR_KINDS if action.kind == "upload_avatar" else set()

    async def _apply_to_space(self, action: Action, around: Around) -> None:
        await self._sides.apply_to_space(await self._matrix(), action, around)

    async def _attempt(
        self, run: Run, action: Action, step: Callable[[], Awaitable[T]]
    ) -> T | Failed:
        """What the step gives, or why it failed; either is told."""
        failure, after_s = None, None
        try:
            async with self._beside_people():
                done = await step()
        except LeaseLost:
            raise
        except HomeroomError as error:
            # A homeserver that does not know us says nothing about what was asked.
            refused = isinstance(error, Rejected) and error.code not in OUR_FAULT
            failure = Failure(action, str(error), final=refused or isinstance(error, Misuse))
            self._matrix_breaker.failed(error, action.agent_id)
            after_s = error.retry_after_s if isinstance(error, Unavailable) else None
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
        return Failed(failure, after_s)

    def _find_pause(self, action: Action, run: Run) -> Failure | None:
        """Why an action that stands alone has to wait, unless a person asked."""
        if run.asked:
            return None
        fight = self._sides.find_fight(action, self._now_ms())
        return fight or self._patience.put_off_alone(action)

    async def _note_lone_failure(
        self, mapping: Mapping, failure: Failure, after_s: float | None, decide: Decide, fence: int
    ) -> tuple[Mapping, Failure]:
        """The row, and the failure with when it is tried again: not by itself if it is a refusal,
        which the row remembers."""
        if stored := await self._store.find_mapping(mapping.agent_id):
            mapping = replace(mapping, avatar=stored.avatar)  # an address may have been reserved
        if not failure.final:
            return mapping, await self._patience.note(failure, after_s, fence)
        if failure.action.kind == "write_history":
            mapping = replace(mapping, history_due=False)
        else:
            mapping = with_refusal(mapping, failure.action, failure.reason)
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
        self, mapping: Mapping, failure: Failure, after_s: float | None, decide: Decide, fence: int
    ) -> Failure:
        """Puts the agent off. Returns the failure with when it is tried again."""
        if stored := await self._store.find_mapping(mapping.agent_id):
            # A write that failed may have been carried out: what the row has forgotten stays so.
            mapping = replace(mapping, room_name=stored.room_name, topic=stored.topic)
        await self._store.save_mapping(replace(mapping, problem=failure.reason), decide, fence)
        return await self._patience.note(failure, after_s, fence)

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
