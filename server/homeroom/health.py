"""What works right now and what does not, in one look.

Owns asking Letta, and how often. Invariant: ``ok`` is said only if a message could pass, whichever
process runs the bridge.
"""

from __future__ import annotations

import time
from typing import Any

import anyio

from homeroom.bridge import SILENT_MS, Bridge
from homeroom.errors import HomeroomError
from homeroom.items import LeaseState
from homeroom.letta import Letta
from homeroom.matrix import Matrix
from homeroom.reports import SyncStatus, health_of
from homeroom.service import Service
from homeroom.store import Store

HEALTH_FRESH_S = 10.0
"""How long health relies on what Letta last said: it is asked by monitors, often."""
HEALTH_LIMIT_S = 5.0


class Health:
    """What monitors are told."""

    def __init__(
        self, store: Store, letta: Service[Letta], matrix: Service[Matrix] | None, bridge: Bridge
    ) -> None:
        self._store, self._letta, self._matrix, self._bridge = store, letta, matrix, bridge
        self._started_s = time.time()
        self._asked_at_s, self._said = float("-inf"), ""
        self._one_asks = anyio.Lock()

    async def report(self, last_sync: SyncStatus) -> dict[str, Any]:
        """The truth in one look: ``status`` is ``ok`` only if a message could pass right now."""
        letta_problem = self._letta.problem or await self._letta_problem()
        holder = await self._store.get_lease()
        matrix_problem = ""
        if self._matrix:
            matrix_problem = self._matrix.problem or await self._reading_problem(holder)
        problem = letta_problem or matrix_problem or ("" if holder else "nobody runs the bridge")
        return {
            "status": "degraded" if problem else "ok",
            "letta": letta_problem or "ok",
            "matrix": (matrix_problem or "ok") if self._matrix else "not configured",
            "bridge": {
                "runs_here": bool(holder and holder.owner == self._bridge.owner),
                "owner": holder.owner if holder else "",
            },
            "items": await self._store.count_items(),
            "last_sync": health_of(last_sync),
            "uptime_s": round(time.time() - self._started_s),
        }

    async def _letta_problem(self) -> str:
        """Why Letta cannot be used right now, asked now: a connection that once worked proves
        nothing. The answer is kept for a few seconds."""
        async with self._one_asks:  # who comes meanwhile gets the same answer, not an early ok
            if time.monotonic() - self._asked_at_s > HEALTH_FRESH_S:
                said = ""
                try:
                    with anyio.fail_after(HEALTH_LIMIT_S):
                        await (await self._letta.get()).list_agents()
                except TimeoutError:
                    said = f"Letta did not answer within {HEALTH_LIMIT_S:.0f} s."
                except HomeroomError as error:
                    said = str(error)
                self._asked_at_s, self._said = time.monotonic(), said
            return self._said

    async def _reading_problem(self, holder: LeaseState | None) -> str:
        """Why the process that runs the bridge reads no rooms; empty if it does, or if nobody runs
        it. The holder's own word, and what the store says of when it last heard anything."""
        if holder is None:
            return ""
        # Our own is told at once, what another process wrote may be a renewal old.
        ours = holder.owner == self._bridge.owner
        if problem := self._bridge.intake.problem if ours else holder.problem:
            return problem
        # Whoever has just begun cannot have heard anything yet.
        since_ms = max(await self._store.get_heard_ms(), holder.taken_ms)
        silent_ms = time.time_ns() // 1_000_000 - since_ms
        if silent_ms <= SILENT_MS:
            return ""
        return (
            f"The process that runs the bridge ({holder.owner}) has not heard all there is from"
            f" the homeserver for {silent_ms // 60_000} min."
        )
