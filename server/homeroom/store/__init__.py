"""Every SQL statement, the migrations and the lease. The only user of SQLite.

Owns one file (WAL, every commit on disk) that several processes may share. Knows nothing of
Matrix or Letta. Invariants: whatever happened is either wholly in a commit or not at all; every
write that belongs to the bridge carries the fencing number of the lease.
"""

from __future__ import annotations

import math
import os
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.to_thread
from sqlite_utils import Database
from tenacity import retry, retry_if_exception, stop_after_delay, wait_random

from homeroom.background import background
from homeroom.errors import Rejected
from homeroom.items import LeaseState
from homeroom.store.imports import Imports
from homeroom.store.leases import Leases
from homeroom.store.rooms import AUDITED_MS, GHOST_IS_OUT, HUB_IS_OUT
from homeroom.store.routing import Announce, Decide, TellUnread
from homeroom.store.schema import migrations
from homeroom.store.speech import Speech
from homeroom.store.surface import Surface
from homeroom.store.troubles import Troubles

__all__ = [
    "AUDITED_MS",
    "GHOST_IS_OUT",
    "HUB_IS_OUT",
    "Announce",
    "Decide",
    "LeaseState",
    "Store",
    "SyncWish",
    "TellUnread",
    "open_store",
]

_BUSY_TIMEOUT_MS = 60_000
"""How long a write waits for another process's write before it fails: longer than a backup holds
the file."""


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class SyncWish(NamedTuple):
    """What a request for a reconciliation asks for beyond it."""

    confirm_removals: bool
    audit: bool


class Store(Leases, Troubles, Imports, Speech, Surface):
    """The one durable state of Homeroom. Every method is one transaction."""

    place: str = ""
    """Which file this is, on which running machine: what no copy of it shares. Empty if that cannot
    be told here."""

    # --- requests for a sync, from processes that do not run the bridge ---------------------------

    async def request_sync(self, *, confirm_removals: bool = False, audit: bool = False) -> int:
        """Asks the process that runs the bridge for a reconciliation. Returns the request's id."""

        def ask() -> int:
            cursor = self._conn.execute(
                "INSERT INTO sync_run (requested_ms, confirm_removals, audit) VALUES (?, ?, ?)",
                (self._now_ms(), int(confirm_removals), int(audit)),
            )
            return int(cursor.lastrowid or 0)

        return await self._write(ask)

    async def pending_sync_requests(self) -> dict[int, SyncWish]:
        """Ids of the requests that wait, each with what it asks for."""
        sql = "SELECT * FROM sync_run WHERE finished_ms IS NULL ORDER BY id"
        rows = await self._run(partial(self._rows, sql))
        return {
            row["id"]: SyncWish(bool(row["confirm_removals"]), bool(row["audit"])) for row in rows
        }

    async def finish_sync_requests(self, ids: Sequence[int], report: str, fence: int) -> None:
        """Records a finished reconciliation as the answer to these requests (none: as its own)."""

        def write() -> None:
            now = self._now_ms()
            for request in ids:
                self._conn.execute(
                    "UPDATE sync_run SET finished_ms=?, report=? WHERE id=?", (now, report, request)
                )
            if not ids:
                self._conn.execute(
                    "INSERT INTO sync_run (requested_ms, finished_ms, report) VALUES (?, ?, ?)",
                    (now, now, report),
                )
            self._conn.execute(
                "DELETE FROM sync_run WHERE id <= (SELECT max(id) FROM sync_run) - 50"
            )

        await self._write(write, fence)

    async def save_sync_progress(self, progress: str, fence: int) -> None:
        """Tells everybody who waits for a reconciliation how far the one that runs has got."""
        sql = "UPDATE sync_run SET progress = ? WHERE finished_ms IS NULL"
        await self._write(lambda: self._conn.execute(sql, (progress,)), fence)

    async def find_sync_progress(self, request: int) -> str | None:
        """What was last told to that request; None if nothing was."""
        sql = "SELECT progress FROM sync_run WHERE id = ?"
        row = await self._run(partial(self._row, sql, (request,)))
        return row["progress"] if row else None

    async def find_sync_report(self, request: int | None = None) -> str | None:
        """The report of one request, or of the newest finished run; None if there is none yet."""
        where, args = ("id = ?", (request,)) if request else ("finished_ms IS NOT NULL", ())
        row = await self._run(
            partial(self._row, f"SELECT report FROM sync_run WHERE {where} ORDER BY id DESC", args)
        )
        return row["report"] if row else None

    async def find_last_syncs(self) -> tuple[tuple[int, str] | None, tuple[int, str] | None]:
        """When (ms) the newest run ended and its report, and the same of the newest one that
        could begin; None where there is none (any more)."""

        def read() -> tuple[tuple[int, str] | None, tuple[int, str] | None]:
            sql = "SELECT finished_ms, report FROM sync_run WHERE finished_ms IS NOT NULL {} {}"
            newest = "ORDER BY finished_ms DESC, id DESC LIMIT 1"
            begun = "AND json_extract(report, '$.agent_count') IS NOT NULL"
            rows = [self._row(sql.format(which, newest)) for which in ("", begun)]
            last, good = [(row["finished_ms"], row["report"]) if row else None for row in rows]
            return last, good

        return await self._run(read)


_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Drawn anew at each start of the machine, which containers on it share and clones of it do not.
Source: https://man7.org/linux/man-pages/man5/proc_sys_kernel.5.html"""


def _place_of(path: Path) -> str:
    try:
        boot, file = _BOOT_ID.read_text().strip(), path.stat()
    except OSError:
        return ""
    return f"{boot}/{file.st_dev}/{file.st_ino}"


def _is_locked(error: BaseException) -> bool:
    return isinstance(error, sqlite3.OperationalError) and (
        error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    )


@retry(
    retry=retry_if_exception(_is_locked), wait=wait_random(0.005, 0.05),
    stop=stop_after_delay(_BUSY_TIMEOUT_MS / 1000), reraise=True,
)  # fmt: skip
def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """SQLite does not wait ``busy_timeout`` when two processes change a new file's mode at once:
    one is told at once that it is locked (https://sqlite.org/c3ref/busy_handler.html)."""
    connection.execute("PRAGMA journal_mode = WAL")


@asynccontextmanager
async def open_store(
    path: Path, now_ms: Callable[[], int] = _now_ms, max_waiting: float = math.inf,
    max_waiting_total: float = math.inf,
) -> AsyncIterator[Store]:  # fmt: skip
    """The store in ``path`` (made if it is not there, readable by its owner alone).

    ``max_waiting`` is how many turns may be open on one lane, ``max_waiting_total`` on all.

    Raises:
        Rejected: the file cannot be opened or is no store of Homeroom's.
    """

    def connect() -> Database:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        connection.row_factory = sqlite3.Row
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
        _use_write_ahead_log(connection)
        # FULL: what was accepted survives a power cut, not just the death of the process.
        connection.execute("PRAGMA synchronous = FULL")
        db = Database(connection, execute_plugins=False)
        connection.execute("BEGIN IMMEDIATE")  # two processes may start at once
        try:
            migrations.apply(db)
            for key, value in (("store_id", secrets.token_hex(8)), ("born_ms", str(now_ms()))):
                connection.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (key, value))
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        return db

    try:
        db = await anyio.to_thread.run_sync(connect)
    except (OSError, sqlite3.Error) as error:
        raise Rejected("store", f"{path} cannot be opened: {error}") from error
    store = Store(db, now_ms)
    store.max_waiting, store.max_waiting_total = max_waiting, max_waiting_total
    store.place = _place_of(path)
    try:
        async with background(store.watch):
            yield store
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(db.conn.close)
