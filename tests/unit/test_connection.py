"""Writes that wait together share one commit, and nothing else."""

from __future__ import annotations

from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from homeroom.errors import LeaseLost, LimitExceeded, Unavailable
from homeroom.items import ItemKind, ItemState, NewItem
from homeroom.store import Store, open_store


def new(key: str) -> NewItem:
    return NewItem("a", ItemKind.POST, {}, key)


class Commits:
    """Counts the commits of a store."""

    def __init__(self, store: Store) -> None:
        self.count = 0
        store._conn.set_trace_callback(self._note)

    def _note(self, statement: str) -> None:
        self.count += statement == "COMMIT"


async def test_writes_that_wait_for_the_disk_share_one_commit(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        commits, ids = Commits(store), list[str]()

        async def put(key: str) -> None:
            ids.extend(await store.put([new(key)]))

        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(put, str(number))
        assert len(set(ids)) == 50 and ids == sorted(ids)
        assert commits.count <= 5
        assert await store.count_items() == {"waiting": 50}


async def test_a_write_that_fails_takes_nobody_with_it_and_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    async with open_store(tmp_path / "s.db", max_waiting=1) as store:
        fence = (await store.take_lease("me", rank=1, ttl_ms=60_000)).fence
        done: list[str] = []

        async def put(key: str) -> None:
            await store.put([new(key)])
            done.append(key)

        async def put_too_many() -> None:
            turns = [NewItem("t", ItemKind.TURN, {}, f"t{n}") for n in range(2)]
            with pytest.raises(LimitExceeded):
                await store.put(turns)
            done.append("refused")

        async def write_without_lease() -> None:
            with pytest.raises(LeaseLost):
                await store.renew_lease(fence + 1, 1)
            done.append("lost")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(put, "1")
            tasks.start_soon(put_too_many)
            tasks.start_soon(write_without_lease)
            tasks.start_soon(put, "2")
        assert sorted(done) == ["1", "2", "lost", "refused"]
        assert await store.count_items() == {"waiting": 2}
        lease = await store.get_lease()
        assert lease and lease.fence == fence


async def test_a_write_whose_caller_goes_before_its_turn_does_not_happen(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        async with anyio.create_task_group() as tasks, store._one_at_a_time:
            tasks.start_soon(store.put, [new("gone")])  # somebody else is at the disk
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        await store.put([new("stays")])
        assert await store.count_items() == {"waiting": 1}


async def test_a_caller_that_goes_while_it_commits_for_others_lets_them_have_theirs(
    tmp_path: Path,
) -> None:
    async with open_store(tmp_path / "s.db") as store:
        ids: list[str] = []

        async def put(key: str) -> None:
            ids.extend(await store.put([new(key)]))

        leaving = anyio.CancelScope()

        async def leave() -> None:
            with leaving:
                await put("leader")

        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(leave)
                tasks.start_soon(put, "follower")
                await anyio.lowlevel.checkpoint()
                leaving.cancel()
        assert len(ids) >= 1
        fence = (await store.take_lease("me", rank=1, ttl_ms=60_000)).fence
        found = []
        while item := (await store.claim([ItemKind.POST], fence))[0]:
            found.append(item.dedupe_key)
            await store.finish(item, ItemState.DONE, fence=fence)
        assert "follower" in found


async def test_a_full_disk_is_named_takes_back_the_whole_commit_and_can_be_mended(
    tmp_path: Path,
) -> None:
    """https://sqlite.org/lang_transaction.html#response_to_errors_within_a_transaction: SQLite may
    undo the transaction itself."""
    async with open_store(tmp_path / "s.db") as store:
        await store.put([new("first")])
        pages = store._conn.execute("PRAGMA page_count").fetchone()[0]
        store._conn.execute(f"PRAGMA max_page_count = {pages}")
        ended: list[str] = []

        async def put(key: str) -> None:
            with pytest.raises(Unavailable, match="is full: free space"):
                await store.put([NewItem("a", ItemKind.POST, {"x": "y" * 100_000}, key)])
            ended.append(key)

        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(put, str(number))
        assert len(ended) == 5 and await store.count_items() == {"waiting": 1}
        store._conn.execute("PRAGMA max_page_count = 1000000")
        await store.put([NewItem("a", ItemKind.POST, {"x": "y" * 100_000}, "0")])
        assert await store.count_items() == {"waiting": 2}


async def test_a_store_that_another_process_holds_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("homeroom.store._BUSY_TIMEOUT_MS", 50)
    async with open_store(tmp_path / "s.db") as store, open_store(tmp_path / "s.db") as other:
        other._conn.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="another process holds it"):
            await store.put([new("one")])
        other._conn.execute("ROLLBACK")
        await store.put([new("one")])
