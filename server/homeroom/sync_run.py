"""One run of the reconciler: what it knows, what it planned, and how far it has got.

Pure but for telling those who follow it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from homeroom.model import (
    Action,
    Agent,
    AgentId,
    Failure,
    Mapping,
    RoomId,
    RoomView,
    SyncProgress,
)
from homeroom.observing import Observed
from homeroom.patience import task_of
from homeroom.plan import Policy, plan
from homeroom.sides import Around

OnAction = Callable[[Action, Failure | None], None]
OnProgress = Callable[[SyncProgress], None]


@dataclass(slots=True)
class Run:
    planned: list[Action]
    agents: dict[AgentId, Agent]
    mappings: dict[AgentId, Mapping]
    rooms: dict[RoomId, RoomView]
    policy: Policy
    around: Around
    on_action: OnAction
    on_progress: OnProgress
    asked: bool
    applied: list[Action] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    tried: int = 0
    total: int = 0
    """Planned actions that are not held back."""

    @classmethod
    def of(
        cls, observed: Observed, fence: int, on_action: OnAction, on_progress: OnProgress,
        asked: bool,
    ) -> Run:  # fmt: skip
        """The run that does what a look has shown to be needed."""
        rooms, policy = observed.rooms, observed.policy
        around = Around(observed.space, rooms, policy, fence)
        run = cls(
            [], observed.agents, observed.mappings, rooms, policy, around, on_action, on_progress,
            asked,
        )  # fmt: skip
        run.extend(observed.planned)
        return run

    def tell(self, agent_name: str) -> None:
        """Tells how far it has got."""
        self.on_progress(SyncProgress(self.tried, self.total, agent_name))

    def extend(self, actions: Iterable[Action]) -> None:
        """Adds what turned out to be needed as well."""
        for action in actions:
            self.planned.append(action)
            self.total += not action.held

    def plan_again(
        self, agent: Agent, mapping: Mapping, queue: deque[Action], dropped: Collection[str]
    ) -> deque[Action]:
        """What is to be done for the agent now, instead of what is left in ``queue``, and without
        the tasks ``dropped``."""
        around = self.around
        left = plan([agent], {agent.id: mapping}, around.rooms, self.policy, 0, around.space)
        steps = [s for s in left if s.agent_id == agent.id and task_of(s) not in dropped]
        for step in queue:
            if step not in steps:
                self.planned.remove(step)
                self.total -= 1
        self.extend(step for step in steps if step not in queue)
        return deque(step for step in steps if not step.held)


@dataclass(frozen=True, slots=True)
class Failed:
    failure: Failure
    after_s: float | None
    """Seconds after which the service wants to be asked again; None if it did not say."""
    is_away: bool
    """The service gave no answer of its own, so there is no use in asking it more."""
