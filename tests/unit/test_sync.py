"""The reconciler's hands over a real store, with agents that come and go."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from homeroom.config import Config
from homeroom.directory import Directory
from homeroom.errors import HomeroomError, Rejected, Unavailable
from homeroom.model import Agent, AgentId, Decision, Mapping, RoomEvent, SyncReport
from homeroom.plan import ghost_of
from homeroom.reports import SyncStatus, dump_error, dump_report, health_of, read_status
from homeroom.store import Store, open_store
from homeroom.sync import Reconciler

HOUR_MS = 3_600_000


class Letta:
    """Lists these agents, or breaks off half way."""

    def __init__(self, count: int) -> None:
        self.agents = [Agent(AgentId(f"agent-{n}"), f"Agent {n}") for n in range(count)]
        self.breaks = False

    async def list_agents(self) -> list[Agent]:
        if self.breaks:
            raise Unavailable("letta", "the second page is missing")
        return self.agents


class World:
    """A reconciler whose clock and agents the test sets. The agents are known and have no rooms
    yet, so that whatever is retired asks nothing of a homeserver."""

    def __init__(self, store: Store, fence: int, letta: Letta) -> None:
        self.store, self.fence, self.letta, self.now_ms = store, fence, letta, 1
        self.refusal: HomeroomError | None = None
        """What whoever asks for the homeserver gets."""

        async def get_letta() -> Any:
            return letta

        async def get_matrix() -> Any:
            if self.refusal:
                raise self.refusal
            return None

        config = Config(letta_url="http://127.0.0.1:1", matrix_server_name="hs.test")
        self.reconciler = Reconciler(
            config, store, get_letta, get_matrix, lambda mapping: (), lambda: self.now_ms
        )

    async def sync(self, **how: Any) -> SyncReport:
        return await self.reconciler.sync(decide=ignore, fence=self.fence, **how)

    async def retired(self) -> set[str]:
        return {m.agent_id for m in (await self.store.list_mappings()).values() if m.retired}


def ignore(event: RoomEvent, mapping: Mapping, people: int) -> Decision:
    return Decision("ignored")


@asynccontextmanager
async def world(path: Path, count: int) -> AsyncIterator[World]:
    async with open_store(path / "s.db") as store:
        fence = (await store.take_lease("me", rank=1, ttl_ms=60_000)).fence
        letta = Letta(count)
        for agent in letta.agents:
            row = Mapping(agent.id, ghost_of(agent.id, "hs.test"), agent_name=agent.name)
            await store.save_mapping(row, ignore, fence)
        yield World(store, fence, letta)


async def test_a_list_that_breaks_off_changes_nothing_and_counts_for_nothing(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, 2) as it:
        before = await it.store.list_mappings()
        it.letta.breaks = True
        for _ in range(3):
            it.now_ms += 3 * HOUR_MS
            with pytest.raises(Unavailable):
                await it.sync()
        assert await it.store.list_mappings() == before
        it.letta.breaks, it.letta.agents = False, []
        assert (await it.sync()).planned == (), "the first complete list starts the clock"
        it.now_ms += 3 * HOUR_MS
        assert len((await it.sync()).applied) == 2


async def test_the_brake_holds_until_a_person_confirms_and_then_even_zero_is_possible(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, 4) as it:
        it.letta.agents = []
        await it.sync()
        it.now_ms += 3 * HOUR_MS
        for _ in range(2):
            report = await it.sync()
            assert len(report.left) == 4 and not report.applied and not report.failures
            assert "4 of 4" in report.left[0].held
        assert await it.retired() == set()
        report = await it.sync(confirm_removals=True)
        assert len(report.applied) == 4 and not report.left
        assert await it.retired() == {f"agent-{n}" for n in range(4)}
        assert (await it.sync()).planned == ()


async def test_a_dry_run_counts_as_no_look(tmp_path: Path) -> None:
    async with world(tmp_path, 1) as it:
        it.letta.agents = []
        await it.sync()
        before = await it.store.list_mappings()
        it.now_ms += 3 * HOUR_MS
        report = await it.sync(dry_run=True)
        assert [a.kind for a in report.left] == ["retire_agent"]
        assert await it.store.list_mappings() == before


async def test_who_is_retired_costs_nothing_until_they_are_back(tmp_path: Path) -> None:
    async with world(tmp_path, 1) as it:
        agents, it.letta.agents = it.letta.agents, []
        await it.sync()
        it.now_ms += 3 * HOUR_MS
        await it.sync()
        before = await it.store.list_mappings()
        it.now_ms += 1
        assert (await it.sync()).planned == ()
        assert await it.store.list_mappings() == before
        it.letta.agents = agents
        assert "restore_agent" in [a.kind for a in (await it.sync(dry_run=True)).planned]


@pytest.mark.parametrize(
    ("refusal", "pause_ms"),
    [(Unavailable("matrix", "away"), 60_000), (Rejected("matrix", "forbidden"), HOUR_MS)],
)
async def test_a_failing_agent_is_reported_with_its_reason_and_its_next_try_until_then(
    refusal: HomeroomError, pause_ms: int, tmp_path: Path
) -> None:
    async with world(tmp_path, 1) as it:
        it.refusal = refusal
        (failure,) = (await it.sync()).failures
        assert failure.reason == str(refusal) and failure.final == isinstance(refusal, Rejected)
        assert it.now_ms < failure.next_try_ms <= it.now_ms + pause_ms
        (again,) = (await it.sync()).failures
        assert str(refusal) in again.reason and again.final == failure.final
        assert abs(again.next_try_ms - failure.next_try_ms) < 5_000


async def test_the_status_is_the_last_runs_and_after_an_error_the_report_of_the_one_before(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, 4) as it:

        async def status() -> SyncStatus:
            return read_status(*await it.store.find_last_syncs())

        assert await status() == SyncStatus() and health_of(await status()) == {}
        await it.store.finish_sync_requests([], dump_error(Unavailable("letta", "x")), it.fence)
        early = await status()
        assert early.error and early.report is None and not early.in_step
        assert set(health_of(early)) == {"at_s", "error"}

        it.letta.agents = []
        await it.sync()
        it.now_ms += 3 * HOUR_MS
        report = await it.sync()
        await it.store.finish_sync_requests([], dump_report(report), it.fence)
        held = await status()
        assert held.report == report and not held.error and not held.in_step
        assert health_of(held)["left"] == 4 and "4 of 4" in health_of(held)["held"]

        await it.store.finish_sync_requests([], dump_error(Rejected("letta", "no")), it.fence)
        failed = await status()
        assert "no" in failed.error and failed.report == report and not failed.in_step


async def test_a_report_of_the_first_version_is_still_read(tmp_path: Path) -> None:
    old = """{"agent_count":1,"planned":[{"kind":"join_hub","agent_id":"a","agent_name":"A",
    "reason":"r","value":""}],"applied":[],"failures":[],"duration_s":0.1,"dry_run":false}"""
    status = read_status((5, old), (5, old))
    assert status.report and [a.kind for a in status.report.left] == ["join_hub"]


async def test_a_list_says_who_is_not_selected_to_have_a_home(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:

        async def get_letta() -> Any:
            return Letta(2)

        config = Config(
            letta_url="http://127.0.0.1:1", matrix_url="http://127.0.0.1:2",
            matrix_server_name="hs.test", select_ids=("agent-1",),
        )  # fmt: skip
        page = await Directory(get_letta, store, config).page("", 10, "")
        states = {view.agent.id: view.state for view in page.agents}
        assert states == {"agent-0": "not_selected", "agent-1": "not_synced"}
