"""The lease of a store: what it costs those who wait for it, and a clock that is set back."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from homeroom.errors import LeaseLost
from homeroom.store import open_store

HOUR_MS = 3_600_000
TTL_MS = 6_000


async def test_whoever_waits_for_the_lease_never_takes_the_write_lock(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_store(path) as holder, open_store(path) as standby:
        fence = (await holder.take_lease("holder", rank=1, ttl_ms=60_000)).fence
        run: list[str] = []
        standby._conn.set_trace_callback(run.append)
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")  # a write would wait behind this one
        for _ in range(20):
            theirs = await standby.take_lease("standby", rank=1, ttl_ms=60_000)
            assert (theirs.owner, theirs.fence) == ("holder", 0)
        blocker.execute("ROLLBACK")
        blocker.close()
        assert not [sql for sql in run if not sql.startswith(("SELECT", "PRAGMA data_version"))]
        await holder.release_lease(fence)
        assert (await standby.take_lease("standby", rank=1, ttl_ms=60_000)).fence == fence + 1


@pytest.mark.parametrize("renewed", [False, True])
async def test_a_lease_of_before_the_clock_was_set_back_is_free(
    renewed: bool, tmp_path: Path
) -> None:
    now_ms = 1_000 * HOUR_MS
    path = tmp_path / "s.db"
    async with open_store(path, lambda: now_ms) as dead, open_store(path, lambda: now_ms) as heir:
        old = (await dead.take_lease("dead", rank=1, ttl_ms=TTL_MS)).fence
        if renewed:
            await dead.renew_lease(old, TTL_MS)
        now_ms -= TTL_MS - 1
        assert not (await heir.take_lease("heir", rank=1, ttl_ms=TTL_MS)).fence, "a little is skew"
        now_ms -= HOUR_MS
        assert await heir.get_lease() is None
        lease = await heir.take_lease("heir", rank=1, ttl_ms=TTL_MS)
        assert lease.owner == "heir" and lease.fence == old + 1
        with pytest.raises(LeaseLost, match="heir"):
            await dead.renew_lease(old, TTL_MS)


async def test_the_holder_of_the_lease_tells_the_others_how_it_is(tmp_path: Path) -> None:
    now_ms = HOUR_MS
    path = tmp_path / "s.db"
    async with open_store(path, lambda: now_ms) as holder, open_store(path, lambda: now_ms) as it:
        fence = (await holder.take_lease("holder", rank=1, ttl_ms=TTL_MS)).fence
        await holder.renew_lease(fence, TTL_MS, "matrix: away")
        lease = await it.get_lease()
        assert lease and (lease.problem, lease.taken_ms) == ("matrix: away", HOUR_MS)
        now_ms += 1_000
        await holder.renew_lease(fence, TTL_MS)
        lease = await it.get_lease()
        assert lease and (lease.problem, lease.taken_ms) == ("", HOUR_MS)
