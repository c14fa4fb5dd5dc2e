"""What health says of a Letta that hangs, and of a bridge that another process runs."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from homeroom import health
from homeroom.bridge import SILENT_MS, Bridge
from homeroom.config import Config
from homeroom.errors import Unavailable
from homeroom.health import Health
from homeroom.items import Decision
from homeroom.letta import Letta
from homeroom.matrix import Matrix
from homeroom.model import Mapping, RoomEvent, SyncBatch
from homeroom.reports import SyncStatus
from homeroom.service import Service
from homeroom.speaking import Speaking
from homeroom.store import Store, open_store

TTL_MS = 600_000


def ignore(event: RoomEvent, mapping: Mapping, people: int) -> Decision:
    return Decision("ignored")


class Agents:
    """A Letta without agents, whose list may take as long as the test wants."""

    def __init__(self) -> None:
        self.hangs = False
        self.asked = anyio.Event()
        self.count = 0

    async def list_agents(self) -> list[Any]:
        self.count += 1
        self.asked.set()
        if self.hangs:
            await anyio.sleep_forever()
        return []


class World:
    """Health over services that the test connects."""

    def __init__(self, store: Store) -> None:
        self.store, self.agents = store, Agents()
        self.letta_is_up, self.matrix_is_up = anyio.Event(), anyio.Event()

        @asynccontextmanager
        async def open_letta() -> AsyncIterator[Letta]:
            await self.letta_is_up.wait()
            yield cast(Letta, self.agents)

        @asynccontextmanager
        async def open_matrix() -> AsyncIterator[Matrix]:
            await self.matrix_is_up.wait()
            yield cast(Matrix, object())

        self.letta, self.matrix = Service(open_letta, "letta"), Service(open_matrix, "matrix")
        config = Config(letta_url="http://127.0.0.1:1", matrix_server_name="hs.test")
        self.bridge = Bridge(config, store, self.letta, self.matrix, Speaking(store))
        self.health = Health(store, self.letta, self.matrix, self.bridge)

    async def connect(self) -> None:
        self.letta_is_up.set()
        self.matrix_is_up.set()
        await self.letta.wait()
        await self.matrix.wait()

    async def report(self) -> dict[str, Any]:
        return await self.health.report(SyncStatus())


@asynccontextmanager
async def world(path: Path) -> AsyncIterator[World]:
    async with open_store(path / "s.db") as store, anyio.create_task_group() as group:
        it = World(store)
        group.start_soon(it.letta.run)
        group.start_soon(it.matrix.run)
        yield it
        group.cancel_scope.cancel()


@asynccontextmanager
async def elsewhere(path: Path, age_ms: int) -> AsyncIterator[tuple[Store, int]]:
    """The store as a process sees it that took the lease so long ago, and its fence."""
    async with open_store(path / "s.db", lambda: time.time_ns() // 1_000_000 - age_ms) as store:
        yield store, (await store.take_lease("other/1", rank=2, ttl_ms=TTL_MS)).fence


async def test_what_was_never_reached_is_not_ok(tmp_path: Path) -> None:
    async with world(tmp_path) as it, elsewhere(tmp_path, 0):
        said = await it.report()
        assert said["status"] == "degraded"
        assert said["letta"] == "letta is not connected yet"
        assert said["matrix"] == "matrix is not connected yet"
        await it.connect()
        said = await it.report()
        assert (said["status"], said["letta"], said["matrix"]) == ("ok", "ok", "ok")


async def test_nobody_is_told_ok_while_letta_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "HEALTH_LIMIT_S", 1.0)
    async with world(tmp_path) as it, elsewhere(tmp_path, 0):
        await it.connect()
        it.agents.hangs = True
        said: list[str] = []

        async def look() -> None:
            said.append((await it.report())["letta"])

        async with anyio.create_task_group() as group:
            group.start_soon(look)
            await it.agents.asked.wait()
            for _ in range(3):
                group.start_soon(look)
        assert len(said) == 4 and all("did not answer" in one for one in said)
        assert it.agents.count == 1, "one question for all who ask at once"


async def test_a_standby_shows_why_the_bridge_reads_no_rooms(tmp_path: Path) -> None:
    async with world(tmp_path) as it, elsewhere(tmp_path, 0) as (holder, fence):
        await it.connect()
        assert (await it.report())["status"] == "ok"
        await holder.renew_lease(fence, TTL_MS, str(Unavailable("matrix", "no route")))
        said = await it.report()
        assert said["status"] == "degraded" and "no route" in said["matrix"]
        await holder.renew_lease(fence, TTL_MS)
        assert (await it.report())["status"] == "ok"


@pytest.mark.parametrize("has_heard", [False, True])
async def test_a_bridge_that_has_heard_nothing_for_minutes_is_not_ok(
    has_heard: bool, tmp_path: Path
) -> None:
    async with world(tmp_path) as it:
        await it.connect()
        async with elsewhere(tmp_path, SILENT_MS + 60_000) as (holder, fence):
            if has_heard:
                await holder.record_batch(SyncBatch("s"), ignore, lambda user: False, fence)
            said = await it.report()
            assert said["status"] == "degraded" and "for 3 min" in said["matrix"]
            assert "other/1" in said["matrix"]
            await it.store.record_batch(SyncBatch("s"), ignore, lambda user: False, fence)
            assert (await it.report())["status"] == "ok"


async def test_a_bridge_that_has_just_begun_is_not_blamed_for_the_silence_before(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as it:
        await it.connect()
        async with elsewhere(tmp_path, 10 * SILENT_MS) as (before, fence):
            await before.record_batch(SyncBatch("s"), ignore, lambda user: False, fence)
            await before.release_lease(fence)
        await it.store.take_lease("heir/2", rank=2, ttl_ms=TTL_MS)
        assert (await it.report())["status"] == "ok"
