"""Who is put off after failures, and until when: durable, agent by agent.

Owns the counting and the pauses. Does not know what an action does. Invariants: what has failed is
remembered across a restart; a failure delays nobody but the agent it happened to, and one of an
action that stands alone (a picture, a place in the space, one person's invitation, the past)
nothing but that action.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from homeroom.model import Action, AgentId, Failure, Mapping, Trouble
from homeroom.plan_space import AVATAR_KINDS, LONE_KINDS
from homeroom.retry import SKIP_CAP_S, pause_s, skip_pause_s
from homeroom.store import Store

_LONGEST_MS = 86_400_000
"""A next try that lies farther ahead was written by a clock that has been set back since."""


class Patience:
    """The troubles of all agents. ``load`` it before each run."""

    def __init__(self, store: Store, skip_after: int, now_ms: Callable[[], int]) -> None:
        self._store, self._skip_after, self._now_ms = store, skip_after, now_ms
        self._troubles: dict[tuple[AgentId, str], Trouble] = {}

    async def load(self) -> None:
        self._troubles = await self._store.list_troubles()

    @property
    def next_try_ms(self) -> int | None:
        """When the next agent, or a task of one, is to be tried again; None if nobody waits."""
        # A task that is overdue waits for something else, whose own time counts.
        now_ms, troubles = self._now_ms(), self._troubles.values()
        times = [one.next_try_ms for one in troubles if not one.task or one.next_try_ms > now_ms]
        return min(times, default=None)

    async def forget_but(self, planned: Iterable[Action], fence: int) -> list[AgentId]:
        """Forgets the troubles of which nothing is planned any more. Returns whose homes those
        were about."""
        still = {(action.agent_id, task_of(action)) for action in planned}
        healed = [key for key in self._troubles if key not in still]
        for agent_id, task in healed:
            await self.forget(agent_id, fence, task)
        return [agent_id for agent_id, task in healed if not task]

    def put_off(self, action: Action, mapping: Mapping | None) -> Failure | None:
        """Why the agent is left out of this run, if it is. ``action`` is the first it needs.

        Whatever has changed its row since the failure (the hub is out, somebody invited it again)
        is news, and news is tried at once.
        """
        trouble = self._troubles.get((action.agent_id, ""))
        if trouble is None or mapping is None or mapping.problem != trouble.problem:
            return None
        return self._still_waits(action, trouble)

    def put_off_alone(self, action: Action) -> Failure | None:
        """Why ``action`` itself, if it is one that waits alone, is left out of this run."""
        task = task_of(action)
        trouble = self._troubles.get((action.agent_id, task)) if task else None
        return self._still_waits(action, trouble) if trouble else None

    def _still_waits(self, action: Action, trouble: Trouble) -> Failure | None:
        if not 0 < trouble.next_try_ms - self._now_ms() <= _LONGEST_MS:
            return None
        verb = "skipped" if self._skips(trouble) else "put off"
        times = "1 failure" if trouble.failures == 1 else f"{trouble.failures} failures"
        reason = f"{verb} after {times}: {trouble.problem}"
        return Failure(action, reason, trouble.final, trouble.next_try_ms, trouble.failures)

    async def note(self, failure: Failure, retry_after_s: float | None, fence: int) -> Failure:
        """Counts ``failure`` against its agent, or against its action if that waits alone. Returns
        it with the count and the next try."""
        agent_id, task = failure.action.agent_id, task_of(failure.action)
        known = self._troubles.get((agent_id, task))
        count = known.failures + 1 if known else 1
        over = count - self._skip_after + 1
        if failure.final:
            wait_s = SKIP_CAP_S
        elif over > 0:
            wait_s = skip_pause_s(over, retry_after_s)
        else:
            wait_s = pause_s(count, retry_after_s)
        next_ms = self._now_ms() + round(wait_s * 1000)
        trouble = Trouble(agent_id, count, failure.final, next_ms, failure.reason, task)
        self._troubles[agent_id, task] = trouble
        await self._store.save_trouble(trouble, fence)
        return Failure(failure.action, failure.reason, failure.final, next_ms, count)

    async def forget(self, agent_id: AgentId, fence: int, task: str = "") -> None:
        """Something worked, or nothing is left to do: the count begins anew."""
        if self._troubles.pop((agent_id, task), None):
            await self._store.forget_trouble(agent_id, task, fence)

    def _skips(self, trouble: Trouble) -> bool:
        return trouble.final or trouble.failures >= self._skip_after


def task_of(action: Action) -> str:
    """What stands for an action that is put off by itself; empty for one of an agent's home."""
    return f"{action.kind} {action.value}" if action.kind in LONE_KINDS else ""


def tasks_ended_by(action: Action) -> set[str]:
    """The tasks that there is no sense in for the rest of a run in which ``action`` has failed."""
    kinds = AVATAR_KINDS if action.kind == "upload_avatar" else {action.kind}
    return {f"{kind} {action.value}" for kind in kinds}
