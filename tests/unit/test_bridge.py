"""What the loops of the bridge cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from homeroom import bridge as module
from homeroom.bridge import Bridge
from homeroom.config import Config
from homeroom.items import Decision
from homeroom.model import Mapping, RoomEvent
from homeroom.service import Service
from homeroom.speaking import Speaking
from homeroom.store import open_store

COMMITS = 10


def ignore(event: RoomEvent, mapping: Mapping, people: int) -> Decision:
    return Decision("ignored")


@pytest.mark.parametrize("loop", ["_run_catch_ups", "_run_imports"])
async def test_a_burst_of_commits_costs_the_errands_one_look(
    loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BURST_S", 2.0)  # much longer than so many commits take
    looked, table = anyio.Event(), "errand" if loop == "_run_catch_ups" else "import"
    async with open_store(tmp_path / "s.db") as store:
        fence = (await store.take_lease("me", rank=1, ttl_ms=60_000)).fence
        letta = Service[Any](lambda: None, "letta")  # type: ignore[arg-type,return-value]
        config = Config(letta_url="http://127.0.0.1:1", matrix_server_name="hs.test")
        bridge = Bridge(config, store, letta, None, Speaking(store))
        looks: list[str] = []

        def note(sql: str) -> None:
            if sql.startswith("SELECT") and table in sql:
                looks.append(sql)
                anyio.from_thread.run_sync(looked.set)

        store._conn.set_trace_callback(note)
        async with anyio.create_task_group() as group:
            group.start_soon(getattr(bridge, loop), ignore, fence)
            await looked.wait()
            for _ in range(COMMITS):
                await store.renew_lease(fence, 60_000)
            looked = anyio.Event()
            await looked.wait()
            assert len(looks) == 2, "one before, and one for all of them"
            group.cancel_scope.cancel()
