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
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Literal

import anyio

from homeroom.config import Config
from homeroom.errors import HomeroomError, LeaseLost, Rejected
from homeroom.letta import Letta
from homeroom.matrix import Matrix
from homeroom.model import (
    Action,
    Agent,
    AgentId,
    Failure,
    Mapping,
    NewItem,
    RoomSpec,
    SyncReport,
    ghost_localpart,
)
from homeroom.plan import (
    Policy,
    apply_to_mapping,
    may_write,
    new_mapping,
    observe_missing,
    plan,
    policy_of,
    room_name,
    room_topic,
    with_new_room,
)
from homeroom.retry import pause_s
from homeroom.store import Decide, Store

log = logging.getLogger(__name__)

AGENTS_AT_ONCE = 4
"""Synapse is one CPU-bound process: more in flight does not finish sooner (measured)."""
LONGEST_PAUSE_S = 3600.0
"""A refusal is final until a person acts; this often we look whether one has."""

OnAction = Callable[[Action, Failure | None], None]
Presence = Callable[[Mapping], Sequence[NewItem]]
"""What the room is told once the row says that its agent was retired, or that it is back. Pure."""


@dataclass(slots=True)
class _Trouble:
    failures: int = 0
    next_try_at_s: float = 0.0
    final: bool = False
    problem: str = ""
    """What was recorded with it. Once the row says something else, waiting has no more sense."""


@dataclass(slots=True)
class _Run:
    planned: list[Action]
    agents: dict[AgentId, Agent]
    mappings: dict[AgentId, Mapping]
    policy: Policy
    on_action: OnAction
    applied: list[Action] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


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
    ) -> None:
        self._config, self._store = config, store
        self._letta, self._matrix = letta, matrix
        self._presence, self._now_ms = presence, now_ms
        self._one_run = anyio.Lock()
        self._trouble: dict[AgentId, _Trouble] = {}

    async def sync(
        self,
        *,
        decide: Decide,
        fence: int,
        dry_run: bool = False,
        asked: bool = False,
        confirm_removals: bool = False,
        on_action: OnAction = lambda action, failure: None,
    ) -> SyncReport:
        """One reconciliation. ``asked``: a person wants it, so what was refused is asked again.
        ``confirm_removals``: a person says that all who are gone from Letta may be retired.

        Raises:
            Unavailable, Rejected: Letta could not list its agents, or the homeserver the hub's
                rooms; nothing was changed.
            LeaseLost: another process runs the bridge.
        """
        async with self._one_run:
            started = time.monotonic()
            agents = {agent.id: agent for agent in await (await self._letta()).list_agents()}
            mappings = await self._observe(await self._store.list_mappings())
            now_ms = self._now_ms()
            missing = observe_missing(agents.keys(), mappings, now_ms)
            mappings |= missing
            policy = replace(
                policy_of(self._config), ask_again=asked, confirm_removals=confirm_removals
            )
            planned = plan(agents.values(), mappings, policy, now_ms)
            run = _Run(planned, agents, mappings, policy, on_action)
            if not dry_run:
                await self._store.save_missing(missing.values(), fence)
                await self._apply_all(run, decide, fence, asked)
            report = SyncReport(
                agent_count=len(agents),
                planned=tuple(run.planned),
                applied=tuple(run.applied),
                failures=tuple(run.failures),
                duration_s=round(time.monotonic() - started, 3),
                dry_run=dry_run,
            )
            log.info(
                "sync_finished",
                extra={"agents": len(agents), "planned": len(planned),
                       "applied": len(report.applied), "failed": len(report.failures),
                       "duration_s": report.duration_s},
            )  # fmt: skip
            return report

    async def _observe(self, mappings: dict[AgentId, Mapping]) -> dict[AgentId, Mapping]:
        """The mappings, corrected by where the hub really is.

        The hub's own sync tells of its removal too, but only once: a room must not stay deaf
        because that moment was missed.
        """
        if not any(mapping.hub_joined for mapping in mappings.values()):
            return mappings
        matrix = await self._matrix()
        rooms = await matrix.joined_rooms(matrix.hub)
        return {
            agent_id: replace(mapping, hub_joined=mapping.hub_joined and mapping.room_id in rooms)
            for agent_id, mapping in mappings.items()
        }

    async def _apply_all(self, run: _Run, decide: Decide, fence: int, asked: bool) -> None:
        limiter = anyio.CapacityLimiter(AGENTS_AT_ONCE)

        async def one(agent_id: AgentId, actions: list[Action]) -> None:
            async with limiter:
                await self._apply_agent(run, agent_id, actions, decide, fence)

        async with anyio.create_task_group() as group:
            free = [action for action in run.planned if not action.held]
            for agent_id, actions in groupby(free, key=lambda action: action.agent_id):
                mine = list(actions)
                trouble = self._trouble.get(agent_id)
                old = run.mappings.get(agent_id)
                as_left = trouble is not None and old is not None and old.problem == trouble.problem
                if trouble and as_left and not asked and time.monotonic() < trouble.next_try_at_s:
                    reason = f"put off after {trouble.failures} failures: {trouble.problem}"
                    next_ms = self._now_ms() + round(
                        (trouble.next_try_at_s - time.monotonic()) * 1000
                    )
                    run.failures.append(Failure(mine[0], reason, trouble.final, next_ms))
                    continue
                group.start_soon(one, agent_id, mine)

    async def _apply_agent(
        self, run: _Run, agent_id: AgentId, actions: list[Action], decide: Decide, fence: int
    ) -> None:
        """Applies an agent's actions in order; the first failure ends them (a refused invitation
        does not: the others still count)."""
        known = run.mappings.get(agent_id)
        agent = run.agents.get(agent_id) or Agent(agent_id, known.agent_name if known else "")
        mapping = known or new_mapping(agent, run.policy.server_name)
        queue = deque(actions)
        while queue:
            action, failure = queue.popleft(), None
            try:
                mapping = await self._apply(action, agent, mapping, run.policy, decide, fence)
            except LeaseLost:
                raise
            except HomeroomError as error:
                failure = Failure(action, str(error), final=isinstance(error, Rejected))
            except Exception:
                incident = secrets.token_hex(4)
                log.exception("action_failed", extra={"agent": agent_id, "incident": incident})
                failure = Failure(action, f"a fault in Homeroom, incident {incident}", final=False)
            run.on_action(action, failure)
            if failure is None:
                run.applied.append(action)
                if action.kind == "create_room":  # a room that was there already may lack people
                    more = plan([agent], {agent_id: mapping}, run.policy)
                    new = [step for step in more if step not in queue]
                    queue.extend(new)
                    run.planned.extend(new)
                continue
            log.warning(
                "action_failed",
                extra={"agent": agent_id, "action": action.kind, "reason": failure.reason},
            )
            if action.kind == "invite_person" and failure.final:
                run.failures.append(failure)
                refused = (*mapping.refused, (action.value, failure.reason))
                mapping = replace(mapping, refused=tuple(dict(refused).items()))
                await self._store.save_mapping(mapping, decide, fence)
                continue
            next_ms = await self._note_trouble(mapping, failure, decide, fence)
            run.failures.append(replace(failure, next_try_ms=next_ms))
            return
        self._trouble.pop(agent_id, None)
        if mapping.problem:
            await self._store.save_mapping(replace(mapping, problem=""), decide, fence)

    async def _note_trouble(
        self, mapping: Mapping, failure: Failure, decide: Decide, fence: int
    ) -> int:
        """Puts the agent off. Returns when (ms) it is tried again."""
        trouble = self._trouble.setdefault(mapping.agent_id, _Trouble())
        trouble.failures += 1
        pause = LONGEST_PAUSE_S if failure.final else pause_s(trouble.failures)
        trouble.next_try_at_s = time.monotonic() + pause
        trouble.problem, trouble.final = failure.reason, failure.final
        if stored := await self._store.find_mapping(mapping.agent_id):
            # A write that failed may have been carried out: what the row has forgotten stays so.
            mapping = replace(mapping, room_name=stored.room_name, topic=stored.topic)
        await self._store.save_mapping(replace(mapping, problem=failure.reason), decide, fence)
        return self._now_ms() + round(pause * 1000)

    async def _apply(
        self, action: Action, agent: Agent, mapping: Mapping, policy: Policy,
        decide: Decide, fence: int,
    ) -> Mapping:  # fmt: skip
        """Carries out one action and records it. Returns the row as it is now."""
        matrix = await self._matrix()
        match action.kind:
            case "register_ghost":
                # The row comes first: whatever happens from here on is known to be ours.
                await self._store.save_mapping(mapping, decide, fence)
                await matrix.ensure_ghost(ghost_localpart(agent.id))
            case "set_display_name":
                await matrix.set_display_name(mapping.ghost, action.value)
            case "create_room":
                return await self._ensure_room(matrix, agent, mapping, policy, decide, fence)
            case "join_hub":
                await _ensure_in_room(matrix, mapping)
            case "invite_person":
                assert mapping.room_id
                await matrix.invite(mapping.ghost, mapping.room_id, action.value)
            case "set_room_name" | "retire_agent" | "restore_agent":
                await self._write_detail(matrix, mapping, action, "name", policy, decide, fence)
            case "set_topic":
                await self._write_detail(matrix, mapping, action, "topic", policy, decide, fence)
        since_ms = mapping.missing_since_ms
        mapping = apply_to_mapping(mapping, action, agent, policy)
        tells = action.kind in ("retire_agent", "restore_agent")
        then = self._presence(replace(mapping, missing_since_ms=since_ms)) if tells else ()
        await self._store.save_mapping(mapping, decide, fence, then)
        return mapping

    async def _write_detail(
        self, matrix: Matrix, mapping: Mapping, action: Action, detail: Literal["name", "topic"],
        policy: Policy, decide: Decide, fence: int,
    ) -> None:  # fmt: skip
        """Gives the room the name or topic of ``action``, unless it has it or keeps a person's.

        What was applied before is forgotten first: if we die before the new value is recorded, the
        next plan looks again, whatever Letta says by then.
        """
        if mapping.room_id is None:
            return  # retired before its room was made
        is_name = detail == "name"
        applied = mapping.room_name if is_name else mapping.topic
        found = await matrix.find_state(mapping.ghost, mapping.room_id, f"m.room.{detail}")
        content, sender = found or ({}, "")
        current = content.get(detail)
        current = current if isinstance(current, str) else ""
        ours = matrix.is_ghost(sender) if sender else None
        keep = policy.keep_edits
        if current == action.value or not may_write(detail, applied, current, ours=ours, keep=keep):
            return
        unsure = replace(mapping, room_name="") if is_name else replace(mapping, topic="")
        await self._store.save_mapping(unsure, decide, fence)
        write = matrix.set_name if is_name else matrix.set_topic
        await write(mapping.ghost, mapping.room_id, action.value)

    async def _ensure_room(
        self, matrix: Matrix, agent: Agent, mapping: Mapping, policy: Policy,
        decide: Decide, fence: int,
    ) -> Mapping:  # fmt: skip
        """Finds the agent's room by its alias or creates it, and records it.

        A room that this store made (it carries our marker) is heard from its beginning, also when
        a crash kept us from recording it. One with another past is heard from when this store
        was made: on a first start nothing that was there before is answered.
        """
        store_id = await self._store.get_meta("store_id")
        localpart = ghost_localpart(agent.id)
        room_id = await matrix.find_room(matrix.alias(localpart))
        if room_id is None:
            people = policy.invite if policy.invites else ()
            spec = RoomSpec(
                alias_localpart=localpart,
                name=room_name(agent),
                topic=room_topic(agent),
                invite=(matrix.hub, *people),
                admins=policy.invite,
                version=self._config.matrix_room_version,
                marker={"agent_id": agent.id, "store_id": store_id},
            )
            room_id = await matrix.create_room(mapping.ghost, spec)
            mapping = with_new_room(mapping, agent, policy, room_id)
        else:
            marker = await matrix.get_state(mapping.ghost, room_id, "org.homeroom.room")
            ours = marker is not None and marker.get("store_id") == store_id
            since_ms = 0 if ours else int(await self._store.get_meta("born_ms"))
            mapping = replace(mapping, room_id=room_id, heard_from_ms=since_ms)
        await self._store.save_mapping(mapping, decide, fence)
        return mapping


async def _ensure_in_room(matrix: Matrix, mapping: Mapping) -> None:
    """Takes the hub into the agent's room, and after trouble the ghost as well.

    By the invitation they have; the ghost, which may invite, lets in a hub without one.

    Raises:
        Rejected: the ghost is out and not invited, or may not invite the hub (a ban stands).
    """
    room_id = mapping.room_id
    assert room_id
    hub_is_in = True
    try:
        await matrix.ensure_joined(matrix.hub, room_id)
    except Rejected:
        hub_is_in = False
    if hub_is_in and not mapping.problem:
        return  # a new room: the ghost has just made it
    try:
        await matrix.ensure_joined(mapping.ghost, room_id)
    except Rejected as refusal:
        who = mapping.ghost if hub_is_in else f"{matrix.hub} and {mapping.ghost}"
        reason = f"{who} left the room or was put out. Somebody in it has to invite {who} again"
        raise Rejected("matrix", reason, refusal.code) from None
    if not hub_is_in:
        await matrix.invite(mapping.ghost, room_id, matrix.hub)
        await matrix.ensure_joined(matrix.hub, room_id)
