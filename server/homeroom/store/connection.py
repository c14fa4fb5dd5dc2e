"""One SQLite connection: its transactions, its waiters, the fence and the key-value table.

Statements run one at a time on a worker thread, so that a slow disk never stops the loop. Every
write is one transaction; one that belongs to the bridge carries the fencing number of the lease
and is refused once another process has taken it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from sqlite_utils import Database

from homeroom.errors import LeaseLost, Unavailable

T = TypeVar("T")

_WATCH_S = 0.05
"""How often another process's commits are looked for: their items start within 100 ms."""


class Connection:
    """Transactions and notifications over one database."""

    def __init__(self, db: Database, now_ms: Callable[[], int]) -> None:
        self._db = db
        self._conn: sqlite3.Connection = db.conn
        self._now_ms = now_ms
        self._one_at_a_time = anyio.CapacityLimiter(1)
        self._changed = anyio.Event()
        self._seen_version = -1

    # --- plumbing ---------------------------------------------------------------------------------

    async def _run(self, work: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(work, limiter=self._one_at_a_time)

    async def _write(self, work: Callable[[], T], fence: int | None = None) -> T:
        result = await self._run(partial(self._in_transaction, work, fence))
        self._notify()
        return result

    def _in_transaction(self, work: Callable[[], T], fence: int | None) -> T:
        with self._transaction():
            if fence is not None:
                self._check_fence(fence)
            return work()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # IMMEDIATE: a read that turns into a write would fail at once if another process wrote.
        try:
            self._conn.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            raise Unavailable("store", str(error)) from error
        try:
            yield
            self._conn.execute("COMMIT")
        except BaseException:
            # Also after a COMMIT that failed: an open transaction would lock everybody out.
            if self._conn.in_transaction:
                self._conn.execute("ROLLBACK")
            raise

    def _rows(self, sql: str, args: Sequence[Any] = ()) -> list[sqlite3.Row]:
        return self._conn.execute(sql, args).fetchall()

    def _row(self, sql: str, args: Sequence[Any] = ()) -> sqlite3.Row | None:
        row: sqlite3.Row | None = self._conn.execute(sql, args).fetchone()
        return row

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def watch(self) -> None:
        """Runs until cancelled: wakes the waiters when *another* process has committed."""
        while True:
            await anyio.sleep(_WATCH_S)
            row = await self._run(partial(self._row, "PRAGMA data_version"))
            assert row is not None
            if row[0] != self._seen_version:
                self._seen_version = row[0]
                self._notify()

    async def wait_changed(self, timeout_s: float) -> None:
        """Returns at the next commit of any process, at the latest after ``timeout_s``."""
        with anyio.move_on_after(timeout_s):
            await self._changed.wait()

    @property
    def changed(self) -> anyio.Event:
        """Set at the next commit. Take it *before* reading what you wait for."""
        return self._changed

    # --- meta -------------------------------------------------------------------------------------

    async def get_meta(self, key: str) -> str:
        """The value, or an empty string."""

        def read() -> str:
            row = self._row("SELECT value FROM meta WHERE key = ?", (key,))
            return str(row["value"]) if row else ""

        return await self._run(read)

    def _check_fence(self, fence: int) -> None:
        row = self._row("SELECT owner, fence, until_ms FROM lease")
        if row is None or row["fence"] != fence:
            owner, until_ms = (row["owner"], row["until_ms"]) if row else ("nobody", 0)
            raise LeaseLost(owner, datetime.fromtimestamp(until_ms / 1000, UTC).isoformat())
