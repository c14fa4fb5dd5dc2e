"""The lease: which process runs the bridge, and until when.

Whoever takes it takes over the claims of the holder before.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import replace

from homeroom.items import LeaseState
from homeroom.store.item_rows import OPEN, WORKED
from homeroom.store.items import Items


class Leases(Items):
    """Statements about the lease."""

    async def take_lease(
        self, owner: str, *, rank: int, ttl_ms: int,
        is_gone: Callable[[str], bool] = lambda owner: False,
    ) -> LeaseState:  # fmt: skip
        """The lease if it was free, had lapsed or its holder has a lower ``rank``; else who has it.

        ``is_gone`` may know that a holder is dead before its time has run out. Taking the lease
        hands every claim of the holder before back to its lane: what was being delivered is marked
        as begun, and each counts a crash. For as long as nobody held it, nothing has been failing.
        """

        def held() -> LeaseState | None:
            row = self._held_lease()
            if row is None or row["rank"] < rank or is_gone(row["owner"]):
                return None
            return replace(_lease_of(row), fence=0)

        def take() -> LeaseState:
            if theirs := held():
                return theirs
            now, row = self._now_ms(), self._row("SELECT fence, until_ms FROM lease")
            if row and 0 < row["until_ms"] < now:
                self._forgive(now - row["until_ms"])
            fence = (row["fence"] if row else 0) + 1
            self._conn.execute(
                "INSERT OR REPLACE INTO lease (name, owner, fence, rank, until_ms, ttl_ms,"
                " taken_ms, problem) VALUES ('bridge', ?, ?, ?, ?, ?, ?, '')",
                (owner, fence, rank, now + ttl_ms, ttl_ms, now),
            )
            for worked in self._rows(f"SELECT * FROM item WHERE state IN {WORKED}"):
                self._hand_back(worked, "the process that had it is gone", died=True)
            return LeaseState(owner, now + ttl_ms, fence, now)

        # Those who wait for it look at every commit: none of them may hold up the writers.
        theirs = await self._run(held)
        return theirs if theirs is not None else await self._write(take)

    async def renew_lease(self, fence: int, ttl_ms: int, problem: str = "") -> None:
        """Keeps it. ``problem`` tells the other processes why no room can be read now.

        Raises:
            LeaseLost: another process has it.
        """

        def renew() -> None:
            self._conn.execute(
                "UPDATE lease SET until_ms = ?, ttl_ms = ?, problem = ?",
                (self._now_ms() + ttl_ms, ttl_ms, problem),
            )

        await self._write(renew, fence)

    def _held_lease(self) -> sqlite3.Row | None:
        # One that lies farther ahead than anybody takes it for was taken before the clock was set
        # back; should its holder live all the same, the fence keeps it from writing.
        now = self._now_ms()
        return self._row(
            "SELECT * FROM lease WHERE until_ms > ? AND (ttl_ms = 0 OR until_ms <= ? + 2 * ttl_ms)",
            (now, now),
        )

    async def release_lease(self, fence: int) -> None:
        """Gives it up, if it is still ours, and every claim with it."""

        def release() -> None:
            done = self._conn.execute(
                "UPDATE lease SET until_ms = min(until_ms, ?) WHERE fence = ?",
                (self._now_ms(), fence),
            )
            if done.rowcount:
                for row in self._rows(
                    f"SELECT * FROM item WHERE state IN {WORKED} AND fence = ?", (fence,)
                ):
                    self._hand_back(row, "the process that had it stopped")

        await self._write(release)

    def _forgive(self, dead_ms: int) -> None:
        """So long nobody tried: it is not held against what had failed before. A post that may have
        been made is the exception, because its key expires meanwhile."""
        self._conn.execute(
            f"UPDATE item SET failing_since_ms = failing_since_ms + ? WHERE state IN {OPEN}"
            " AND failing_since_ms > 0 AND (kind = 'turn' OR NOT begun)",
            (dead_ms,),
        )

    async def get_lease(self) -> LeaseState | None:
        """Who holds it, or None when nobody does."""

        def read() -> LeaseState | None:
            row = self._held_lease()
            return _lease_of(row) if row else None

        return await self._run(read)


def _lease_of(row: sqlite3.Row) -> LeaseState:
    return LeaseState(
        row["owner"], row["until_ms"], row["fence"], row["taken_ms"], row["problem"]
    )  # fmt: skip
