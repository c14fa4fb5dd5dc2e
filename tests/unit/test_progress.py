"""How far a sync has got reaches those who wait for it in other processes."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from homeroom import progress as progress_module
from homeroom.background import background
from homeroom.model import SyncProgress
from homeroom.progress import ProgressNote, read_progress
from homeroom.store import Store, open_store


async def told(store: Store, request: int) -> SyncProgress | None:
    return read_progress(await store.find_sync_progress(request))


async def test_whoever_waits_reads_the_newest_and_the_store_is_not_written_for_every_action(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "WRITE_EVERY_S", 0.05)
    async with open_store(tmp_path / "s.db") as ours, open_store(tmp_path / "s.db") as theirs:
        fence = (await ours.take_lease("me", rank=1, ttl_ms=60_000)).fence
        request = await theirs.request_sync()
        assert await told(theirs, request) is None
        heard: list[int] = []
        note = ProgressNote(ours, fence, lambda progress: heard.append(progress.done))
        writes: list[str] = []
        save = ours.save_sync_progress

        async def counted(text: str, fence: int) -> None:
            writes.append(text)
            await save(text, fence)

        monkeypatch.setattr(ours, "save_sync_progress", counted)
        async with background(note.run):
            for done in range(500):
                note.note(SyncProgress(done, 500, "Ada"))
            with anyio.fail_after(10):
                while await told(theirs, request) != SyncProgress(499, 500, "Ada"):
                    await theirs.wait_changed(1)
        assert heard == list(range(500)) and len(writes) == 1
        await ours.finish_sync_requests([request], "{}", fence)
        await ours.save_sync_progress("{}", fence)
        assert await told(theirs, request) == SyncProgress(499, 500, "Ada"), "it has ended"
