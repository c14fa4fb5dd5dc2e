"""How far a reconciliation has got: told to whoever runs it, and to other processes by the store.

Invariant: the store is written at once, then once a second at most, and never waited for by the
reconciliation.
"""

from __future__ import annotations

import json
from dataclasses import asdict

import anyio

from homeroom.model import SyncProgress
from homeroom.store import Store
from homeroom.sync_run import OnProgress

WRITE_EVERY_S = 1.0


class ProgressNote:
    """The newest progress of a run, written into the rows of those who wait for one."""

    def __init__(self, store: Store, fence: int, then: OnProgress | None = None) -> None:
        self._store, self._fence, self._then = store, fence, then
        self._newest, self._changed = SyncProgress(), anyio.Event()

    def note(self, progress: SyncProgress) -> None:
        """Takes it; ``then`` hears of every one."""
        self._newest = progress
        self._changed.set()
        if self._then:
            self._then(progress)

    async def run(self) -> None:
        """Writes what is new, until cancelled. Raises LeaseLost."""
        while True:
            await self._changed.wait()
            self._changed = anyio.Event()
            await self._store.save_sync_progress(dump_progress(self._newest), self._fence)
            await anyio.sleep(WRITE_EVERY_S)


def dump_progress(progress: SyncProgress) -> str:
    return json.dumps(asdict(progress))


def read_progress(text: str | None) -> SyncProgress | None:
    return SyncProgress(**json.loads(text)) if text else None
