"""What there is to do: by Letta's list, the store's rows, and a look at the rooms if one is due.

Owns the order of looking, and Letta's breaker. What it finds is what a sync then does, and all that
a dry run and ``doctor`` show. Invariant: without a fence nothing is recorded, so that any number of
looks may be taken beside a sync.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from collections.abc import Mapping as Dict
from dataclasses import dataclass, replace

from homeroom.audit import Seen
from homeroom.audits import Audits
from homeroom.breaker import Breaker
from homeroom.config import Config
from homeroom.errors import HomeroomError
from homeroom.homes import Homes
from homeroom.letta import Letta
from homeroom.matrix import Matrix
from homeroom.model import Action, Agent, AgentId, Mapping, Outage, RoomId, RoomView, Space
from homeroom.plan import Policy, observe_missing, plan, policy_of
from homeroom.plan_space import absent_from
from homeroom.store import Store


@dataclass(frozen=True, slots=True)
class Observed:
    """What a look has shown, and what is to be done about it."""

    agents: dict[AgentId, Agent]
    mappings: dict[AgentId, Mapping]
    rooms: dict[RoomId, RoomView]
    space: Space
    policy: Policy
    planned: list[Action]
    missing: dict[AgentId, Mapping]
    """The rows that change because this list of agents lacks them, or does no more."""
    seen: Seen | None
    """What an audit saw, if there was one."""


class Observer:
    """Looks at both sides and plans."""

    def __init__(
        self,
        config: Config,
        store: Store,
        letta: Callable[[], Awaitable[Letta]],
        matrix: Callable[[], Awaitable[Matrix]],
        now_ms: Callable[[], int],
    ) -> None:
        self._config, self._store, self._letta, self._now_ms = config, store, letta, now_ms
        # Letta is asked one thing by one asker, so one failure tells all.
        self._breaker = Breaker("letta", now_ms, threshold=1)
        self._audits = Audits(store, matrix, config.audit_interval_s)
        self._homes = Homes(config, store)
        self._absent_before: frozenset[str] | None = None

    @property
    def outage(self) -> Outage | None:
        """Why Letta is left alone for now."""
        return self._breaker.outage

    async def observe(
        self, *, asked: bool, confirm_removals: bool = False, audit: bool = False,
        invite: Collection[str] = (), fence: int | None = None,
    ) -> Observed:  # fmt: skip
        """One look. What it says of rows is recorded (but for ``missing``, which counts once the
        sync goes on) unless there is no ``fence``. The arguments are those of ``Reconciler.sync``.

        Raises:
            Unavailable, Rejected: Letta could not list its agents; nothing was changed.
            LeaseLost: another process runs the bridge.
        """
        agents = {agent.id: agent for agent in await self._list_agents(asked)}
        mappings, rooms = await self._store.list_mappings(), await self._store.list_rooms()
        space, now_ms = await self._store.get_space(), self._now_ms()
        seen, space = await self._audits.look(
            mappings, rooms, space, asked=audit, now_ms=now_ms, fence=fence
        )
        if seen:
            mappings, rooms = mappings | seen.mappings, seen.rooms
        missing = observe_missing(agents.keys(), mappings, now_ms)
        mappings |= missing
        policy = replace(
            policy_of(self._config), ask_again=asked, confirm_removals=confirm_removals,
            removals_confirmed_ms=await self._store.removals_confirmed_ms(),
        )  # fmt: skip
        absent = self._absent(space, rooms, policy, is_kept=fence is not None)
        changed, space = await self._homes.observe_people(
            mappings, space, absent, policy, invite, fence
        )
        mappings |= changed
        planned = plan(agents.values(), mappings, rooms, policy, now_ms, space)
        return Observed(agents, mappings, rooms, space, policy, planned, missing, seen)

    def _absent(
        self, space: Space, rooms: Dict[RoomId, RoomView], policy: Policy, *, is_kept: bool
    ) -> frozenset[str]:
        """Whom the space has lost, once a second look has shown it: one that is being deleted
        loses everybody a moment before it loses the hub."""
        seen, before = absent_from(space, rooms, policy.surroundings.hub), self._absent_before
        if is_kept:
            self._absent_before = seen
        return seen if before is None else seen & (before | space.absent)

    async def _list_agents(self, asked: bool) -> list[Agent]:
        """All agents. A Letta that is away is asked again after a pause, or when a person asks."""
        self._breaker.check(at_once=asked)
        try:
            agents = await (await self._letta()).list_agents()
        except HomeroomError as error:
            self._breaker.failed(error, "list")
            raise
        except BaseException:
            self._breaker.gave_up()
            raise
        self._breaker.succeeded()
        return agents
