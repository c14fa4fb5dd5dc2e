"""One SQLite connection: its transactions, its waiters, the fence and the key-value table.

Statements run one at a time on a worker thread, so that a slow disk never stops the loop. Every
write happens wholly or not at all; those that wait for the disk together share its commit. One that
belongs to the bridge carries the fencing number of the lease and is refused once another process
has taken it.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, Generic, TypeVar, cast

import anyio
import anyio.to_thread
from sqlite_utils import Database

from homeroom.errors import LeaseLost, Unavailable

T = TypeVar("T")

_WATCH_S = 0.05
"""How often another process's commits are looked for: their items start within 100 ms."""


class _Write(Generic[T]):
    """A write on its way to the disk, and what came of it."""

    def __init__(self, work: Callable[[], T], fence: int | None) -> None:
        self.work, self.fence = work, fence
        self.has_ended = False
        self._result: T | None = None
        self._error: BaseException | None = None

    def end(self, result: T | None, error: BaseException | None = None) -> None:
        self._result, self._error, self.has_ended = result, error, True

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return cast("T", self._result)


class Connection:
    """Transactions and notifications over one database."""

    def __init__(self, db: Database, now_ms: Callable[[], int]) -> None:
        self._db = db
        self._conn: sqlite3.Connection = db.conn
        self._now_ms = now_ms
        self._one_at_a_time = anyio.Lock()
        self._thread = anyio.CapacityLimiter(1)
        self._writes: list[_Write[Any]] = []
        """Those that wait for their turn; the first to get it takes all along."""
        self._changed = anyio.Event()
        self._seen_version = -1

    # --- plumbing ---------------------------------------------------------------------------------

    async def _run(self, work: Callable[[], T]) -> T:
        async with self._one_at_a_time:
            return await anyio.to_thread.run_sync(work, limiter=self._thread)

    async def _write(self, work: Callable[[], T], fence: int | None = None) -> T:
        write = _Write(work, fence)
        self._writes.append(write)
        try:
            async with self._one_at_a_time:
                if not write.has_ended:
                    batch, self._writes = self._writes, []
                    try:
                        commit = partial(self._commit, batch)
                        await anyio.to_thread.run_sync(commit, limiter=self._thread)
                    finally:
                        # None has ended if the leader was cancelled before the thread began.
                        self._writes[:0] = [other for other in batch if not other.has_ended]
                        self._notify()
        finally:
            if write in self._writes:  # cancelled before its turn came: it does not happen
                self._writes.remove(write)
        return write.result()

    def _commit(self, writes: Sequence[_Write[Any]]) -> None:
        """Carries them out in one transaction; one that fails leaves the others alone."""
        try:
            with self._transaction():
                results = [self._carry_out(write) for write in writes]
        except BaseException as failure:  # nothing of it is on disk
            results = [(None, _named(failure)) for _ in writes]
        for write, (result, error) in zip(writes, results, strict=True):
            write.end(result, error)

    def _carry_out(self, write: _Write[T]) -> tuple[T | None, BaseException | None]:
        result: T | None
        failure: BaseException | None
        self._conn.execute("SAVEPOINT one")
        try:
            if write.fence is not None:
                self._check_fence(write.fence)
            result, failure = write.work(), None
        except BaseException as error:  # it is raised where the write was asked for
            if not self._conn.in_transaction:  # SQLite has undone all of them: a full or sick disk
                raise
            self._conn.execute("ROLLBACK TO one")
            result, failure = None, _named(error)
        self._conn.execute("RELEASE one")
        return result, failure

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # IMMEDIATE: a read that turns into a write would fail at once if another process wrote.
        try:
            self._conn.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            raise _named(error) from error
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

    def wake(self) -> None:
        """Wakes the waiters: something they look at besides the store has changed."""
        self._notify()

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

    async def wait_for(
        self, find: Callable[[], Awaitable[T | None]], wait_s: float, look_s: float = math.inf
    ) -> T | None:
        """What ``find`` gives, as soon as it gives anything; None if not within ``wait_s``.

        It is called at every commit of any process, and after ``look_s`` without one.
        """
        with anyio.move_on_after(wait_s):
            while True:
                changed = self._changed
                if (found := await find()) is not None:
                    return found
                with anyio.move_on_after(look_s):
                    await changed.wait()
        return None

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

    async def put_meta(self, key: str, value: str, fence: int) -> None:
        """Raises LeaseLost."""
        sql = "INSERT OR REPLACE INTO meta VALUES (?, ?)"
        await self._write(lambda: self._conn.execute(sql, (key, value)), fence)

    def _check_fence(self, fence: int) -> None:
        row = self._row("SELECT owner, fence, until_ms FROM lease")
        if row is None or row["fence"] != fence:
            owner, until_ms = (row["owner"], row["until_ms"]) if row else ("nobody", 0)
            raise LeaseLost(owner, datetime.fromtimestamp(until_ms / 1000, UTC).isoformat())


_NOT_OUR_FAULT = {
    sqlite3.SQLITE_FULL: ": free space on the disk of HOMEROOM_DATA_DIR",
    sqlite3.SQLITE_IOERR: ": look at the disk of HOMEROOM_DATA_DIR",
    sqlite3.SQLITE_READONLY: ": HOMEROOM_DATA_DIR must be writable",
    sqlite3.SQLITE_CANTOPEN: ": look at HOMEROOM_DATA_DIR",
    sqlite3.SQLITE_BUSY: ": another process holds it",
    sqlite3.SQLITE_LOCKED: ": another process holds it",
}
"""What the disk or another process can do to a statement, and what helps.
Source: https://sqlite.org/rescode.html"""


def _named(error: BaseException) -> BaseException:
    """The error as callers know it, if it is none of ours."""
    code = getattr(error, "sqlite_errorcode", None)
    advice = _NOT_OUR_FAULT.get(code & 0xFF) if isinstance(code, int) else None
    return error if advice is None else Unavailable("store", f"{error}{advice}")
