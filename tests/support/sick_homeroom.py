"""``homeroom``, made ill: sick_homeroom.py ILLNESS ARGUMENT...

Runs the command line as it is, around a store or a clock that does what the test says. ILLNESS is
JSON: ``kill_at`` kills the process (SIGKILL) at that commit since its start, ``moment`` says
whether ``before`` it reaches the disk or ``after``, and ``died`` names the file to which what was
being committed is appended. ``kill_at`` 0 is the commit by which a store is made. ``commits``
names a file that gets a line for each commit. ``pages`` is the size of a full disk, as SQLite
counts: https://sqlite.org/pragma.html#pragma_max_page_count. ``busy_ms`` is how long a write waits
for another process's. ``clock`` names a file that says by how many seconds this machine's clock is
off; it may change at any time. ``wait_s`` is how long it waits for an answer of a server, instead
of a minute, so that a test of silence takes seconds.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from homeroom import intake, store
from homeroom.letta import link, runs, wire
from homeroom.matrix import _client, _sync
from homeroom.store import migrations
from homeroom.store.connection import Connection


class Commits:
    """Counts them, and kills the process at one of them."""

    def __init__(self, kill_at: int | None, moment: str, died: Path, log: Path | None) -> None:
        self._kill_at, self._moment, self._died, self._log = kill_at, moment, died, log
        self._count, self._names = 0, ""

    def watch(self) -> None:
        commit, transaction, made = Connection._commit, Connection._transaction, migrations.apply

        def named_commit(store: Connection, writes: Sequence[Any]) -> None:
            self._names = "+".join(sorted({_name(write.work) for write in writes}))
            commit(store, writes)

        @contextmanager
        def counted(store: Connection) -> Iterator[None]:
            self._count += 1
            with transaction(store):
                yield
                self._perhaps_die("before")
            if self._log:
                _append(self._log, self._names)
            self._perhaps_die("after")

        def make(db: Any) -> None:
            made(db)
            self._names = "open_store"
            self._perhaps_die("before")

        Connection._commit, Connection._transaction = named_commit, counted  # type: ignore[assignment, method-assign]
        migrations.apply = make

    def _perhaps_die(self, moment: str) -> None:
        if self._count == self._kill_at and moment == self._moment:
            _append(self._died, f"{moment} {self._names}")
            os.kill(os.getpid(), signal.SIGKILL)


def _name(work: Any) -> str:
    """The store's method behind a write."""
    name = str(getattr(getattr(work, "func", work), "__qualname__", "?"))
    return name.split(".<locals>")[0].rpartition(".")[2]


def _append(path: Path, line: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{line}\n".encode())
    os.close(fd)


def fill_disk(pages: int) -> None:
    """Lets a store grow to that many pages and not further."""
    begin = Connection._transaction

    @contextmanager
    def full(store: Connection) -> Iterator[None]:
        store._conn.execute(f"PRAGMA max_page_count = {pages}")
        with begin(store):
            yield

    Connection._transaction = full  # type: ignore[assignment, method-assign]


def shift_clock(path: Path) -> None:
    """Whoever asks for the time of day gets it shifted; the monotonic clock goes on."""
    seconds, nanoseconds = time.time, time.time_ns
    known = (0, 0.0)

    def shift() -> float:
        nonlocal known
        version = os.stat(path).st_mtime_ns
        if version != known[0]:
            known = (version, float(path.read_text() or 0))
        return known[1]

    time.time = lambda: seconds() + shift()
    time.time_ns = lambda: nanoseconds() + int(shift() * 1e9)


def hurry(wait_s: float) -> None:
    """Takes a server for silent after that long, where a whole minute is usual."""
    request = _client.Wire.request
    _sync._ANSWER_MARGIN_S, wire.ANSWER_S = wait_s, wait_s
    intake.LONG_POLL_MS = int(wait_s * 1000)

    async def hurried(
        self: Any, method: str, path: str, data: Any, headers: Any, timeout_s: float | None
    ) -> Any:
        longest_s = 2 * wait_s if path.partition("?")[0].endswith("/sync") else wait_s
        return await request(self, method, path, data, headers, longest_s)

    _client.Wire.request = hurried  # type: ignore[method-assign]
    link.Link.request.__kwdefaults__["timeout_s"] = wait_s
    opened = link.Link.__init__

    def open_hurried(self: link.Link, url: str, token: str, silence_s: float = 0.0) -> None:
        opened(self, url, token, wait_s)

    link.Link.__init__ = open_hurried  # type: ignore[method-assign]
    runs.ARRIVAL_S = 2 * wait_s


def main() -> None:
    illness = json.loads(sys.argv.pop(1))
    if "died" in illness:
        log = Path(illness["commits"]) if "commits" in illness else None
        moment = illness.get("moment", "")
        Commits(illness.get("kill_at"), moment, Path(illness["died"]), log).watch()
    if "pages" in illness:
        fill_disk(illness["pages"])
    if "busy_ms" in illness:
        store._BUSY_TIMEOUT_MS = illness["busy_ms"]
    if "clock" in illness:
        shift_clock(Path(illness["clock"]))
    if "wait_s" in illness:
        hurry(illness["wait_s"])
    from homeroom.main import main as homeroom

    homeroom()


if __name__ == "__main__":
    main()
