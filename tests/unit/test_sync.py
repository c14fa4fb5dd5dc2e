"""The reconciler's hands over a real store, with agents that come and go."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from homeroom.config import Config, SwitchOff
from homeroom.directory import Directory
from homeroom.errors import HomeroomError, Rejected, Unavailable
from homeroom.items import Decision
from homeroom.matrix import OUR_FAULT
from homeroom.model import (
    Agent,
    AgentId,
    Failure,
    GhostId,
    Mapping,
    Member,
    RoomEvent,
    RoomId,
    RoomTold,
    Space,
    StateEvent,
    SyncReport,
)
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


class Homeserver:
    """Lets ghosts be registered, but for those that fail in the way the test says."""

    hub, server_name = GhostId("@agent_hub:hs.test"), "hs.test"

    def is_ghost(self, user_id: str) -> bool:
        return user_id.startswith("@agent_")

    def __init__(self) -> None:
        self.failing: dict[str, HomeroomError] = {}
        self.away: HomeroomError | None = None
        self.asked: list[str] = []
        self.takes_pictures, self.pictures_after_s = False, 0.0
        self.at_once = self.most_at_once = 0
        self.crowd = 0
        """Each request waits (a little) for so many to be there."""
        self.came = anyio.Event()

    async def make_ghost(self, localpart: str) -> bool:
        self.asked.append(localpart)
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        self.came.set()
        self.came = anyio.Event()
        with anyio.move_on_after(0.3):
            while self.most_at_once < self.crowd:
                await self.came.wait()
        self.at_once -= 1
        if error := self.away or self.failing.get(localpart):
            raise error
        return True

    async def probe(self) -> None:
        self.asked.append("probe")
        if self.away:
            raise self.away

    async def set_display_name(self, ghost: str, name: str) -> None:
        """Works."""

    def alias(self, localpart: str) -> str:
        return localpart

    async def find_room(self, alias: str) -> None:
        """There are none."""

    async def joined_rooms(self, ghost: str) -> frozenset[RoomId]:
        return frozenset()

    async def reserve_media(self, ghost: str) -> str:
        self.asked.append(f"media {ghost}")
        if self.takes_pictures:
            return f"mxc://hs.test/{ghost}"
        raise Unavailable("matrix", "its disk is full", self.pictures_after_s)

    async def put_media(self, ghost: str, mxc: str, data: bytes, mime_type: str) -> bool:
        return True

    async def get_avatar(self, ghost: str) -> str:
        return ""

    async def set_avatar(self, ghost: str, mxc: str) -> None:
        """Works."""

    async def create_room(self, ghost: str, spec: object) -> None:
        raise Rejected("matrix", "this homeserver has no rooms")

    async def invite(self, ghost: str, room_id: str, user_id: str) -> None:
        self.asked.append(f"invite {user_id}")
        if error := self.away or self.failing.get(user_id):
            raise error

    async def find_state(self, ghost: str, room_id: str, event_type: str) -> None:
        """Nothing is set."""

    async def set_name(self, ghost: str, room_id: str, name: str) -> None:
        if error := self.failing.get(f"name {room_id}"):
            raise error

    async def set_topic(self, ghost: str, room_id: str, topic: str) -> None:
        self.asked.append(f"topic {room_id}")

    async def put_state(
        self, ghost: str, room_id: str, event_type: str, content: object, state_key: str = ""
    ) -> None:
        self.asked.append(f"{event_type} {state_key}")


class World:
    """A reconciler whose clock and agents the test sets. The agents are known and have no rooms
    yet, so that whatever is retired asks nothing of a homeserver."""

    def __init__(self, store: Store, fence: int, letta: Letta) -> None:
        self.store, self.fence, self.letta, self.now_ms = store, fence, letta, 1
        self.refusal: HomeroomError | None = None
        """What whoever asks for the homeserver gets."""
        self.homeserver: Homeserver | None = None
        self.people_talk = False
        self.switch_off: tuple[SwitchOff, ...] = ("spaces", "avatars")
        """What the next ``restart`` leaves to people."""
        self.invite: tuple[str, ...] = ()
        """Whom the next ``restart`` wants in every room."""

        async def get_letta() -> Any:
            return letta

        async def get_matrix() -> Any:
            if self.refusal:
                raise self.refusal
            return self.homeserver

        def restart() -> Reconciler:
            config = Config(
                letta_url="http://127.0.0.1:1", matrix_server_name="hs.test", skip_after=3,
                switch_off=self.switch_off, invite=self.invite,
            )  # fmt: skip
            return Reconciler(
                config, store, get_letta, get_matrix, lambda mapping: (), lambda: self.now_ms,
                lambda: self.people_talk,
            )  # fmt: skip

        self.restart = restart
        self.reconciler = restart()

    async def sync(self, **how: Any) -> SyncReport:
        return await self.reconciler.sync(decide=ignore, fence=self.fence, **how)

    async def preview(self) -> SyncReport:
        return await self.reconciler.preview(asked=False)

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
        it.now_ms += 60_000  # by then the breaker lets a probe through
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
        report = await it.preview()
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
        assert "restore_agent" in [a.kind for a in (await it.preview()).planned]


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
        assert set(health_of(early)) == {"at_s", "away", "error"}

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


async def test_who_fails_too_often_is_skipped_with_a_growing_pause_that_survives_a_restart(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, 1) as it:
        it.refusal = Unavailable("matrix", "odd")
        pauses_ms = []
        for number in range(1, 9):
            (failure,) = (await it.sync()).failures
            assert failure.failures == number and failure.reason == str(it.refusal)
            pauses_ms.append(failure.next_try_ms - it.now_ms)
            it.reconciler = it.restart()
            (skipped,) = (await it.sync()).failures
            assert skipped.next_try_ms == failure.next_try_ms and skipped.failures == number
            verb = "skipped" if number >= 3 else "put off"
            assert skipped.reason.startswith(f"{verb} after {number} failure")
            assert str(it.refusal) in skipped.reason
            it.now_ms = failure.next_try_ms
        assert all(pause_ms <= 4000 for pause_ms in pauses_ms[:2])
        assert pauses_ms[2] >= 60_000 and pauses_ms[2:] == sorted(pauses_ms[2:])
        assert pauses_ms[-1] <= HOUR_MS


async def test_what_a_service_asks_is_waited_for(tmp_path: Path) -> None:
    async with world(tmp_path, 1) as it:
        it.refusal = Unavailable("matrix", "slow down", 120.0)
        (failure,) = (await it.sync()).failures
        assert failure.next_try_ms - it.now_ms >= 120_000
        assert it.reconciler.next_try_s and it.reconciler.next_try_s >= 120


async def test_a_person_who_asks_is_not_put_off_and_success_forgives(tmp_path: Path) -> None:
    async with world(tmp_path, 1) as it:
        it.homeserver = home = Homeserver()
        home.failing["agent_0"] = Rejected("matrix", "forbidden")
        assert (await it.sync()).failures[0].final
        home.failing.clear()
        assert (await it.sync()).applied == ()
        assert "register_ghost" in [a.kind for a in (await it.sync(asked=True)).applied]


async def test_one_sick_agent_costs_nothing_to_the_others(tmp_path: Path) -> None:
    async with world(tmp_path, 20) as it:
        it.homeserver = home = Homeserver()
        home.failing["agent_7"] = Unavailable("matrix", "it answered 500")
        for _ in range(10):
            report = await it.sync(asked=True)
            assert not report.outages
            it.now_ms += 60_000
        assert {a.agent_id for a in report.applied} <= {f"agent-{n}" for n in range(20)} - {
            "agent-7"
        }
        ready = {m.agent_id for m in (await it.store.list_mappings()).values() if m.ghost_ready}
        assert len(ready) == 19 and "agent-7" not in ready
        (sick,) = [f for f in report.failures if f.action.agent_id == "agent-7"]
        assert sick.failures == 10


async def test_an_outage_in_mid_plan_is_held_against_few_and_ends_with_one_probe(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, 100) as it:
        it.homeserver = home = Homeserver()
        home.away = Unavailable("matrix", "nothing accepts connections")
        report = await it.sync()
        assert len(report.failures) == 100, "everybody is told of"
        charged = [f for f in report.failures if f.failures]
        assert len(charged) == len(home.asked) <= 8
        (outage,) = report.outages
        assert outage.service == "matrix" and outage.next_try_ms > it.now_ms
        waiting = next(f for f in report.failures if not f.failures)
        assert "nothing accepts connections" in waiting.reason
        assert waiting.next_try_ms == outage.next_try_ms

        for _ in range(20):
            home.asked.clear()
            await it.sync()
            assert home.asked == [], "nobody is asked before the pause is over"
            it.now_ms = it.reconciler.outages[0].next_try_ms
            await it.sync()
            assert home.asked == ["probe"]
        assert len(await it.store.list_troubles()) == len(charged), "a long outage costs no more"

        home.away = None
        it.now_ms = it.reconciler.outages[0].next_try_ms
        report = await it.sync()
        assert not report.outages
        ready = [m for m in (await it.store.list_mappings()).values() if m.ghost_ready]
        assert len(ready) >= 100 - len(charged)


async def test_a_letta_that_is_away_is_left_alone_until_a_probe_or_a_person(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, 1) as it:
        it.letta.breaks = True
        with pytest.raises(Unavailable):
            await it.sync()
        (outage,) = it.reconciler.outages
        assert outage.service == "letta"
        text = dump_error(Unavailable("letta", "x"), it.reconciler.outages)
        await it.store.finish_sync_requests([], text, it.fence)
        status = read_status(*await it.store.find_last_syncs())
        assert status.outages == (outage,)
        assert health_of(status)["away"]["letta"]["reason"] == "the second page is missing"
        it.letta.breaks = False
        if outage.next_try_ms > it.now_ms:
            with pytest.raises(Unavailable, match="the second page is missing"):
                await it.sync()
        assert not (await it.sync(asked=True)).outages


async def test_a_trouble_ends_when_nothing_is_left_to_do(tmp_path: Path) -> None:
    async with world(tmp_path, 1) as it:
        it.refusal = Unavailable("matrix", "odd")
        await it.sync()
        assert await it.store.list_troubles()
        it.letta.agents = []
        await it.sync()
        assert not await it.store.list_troubles()
        assert [m.problem for m in (await it.store.list_mappings()).values()] == [""]


async def test_the_brake_counts_who_was_retired_before_until_a_person_confirms(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, 8) as it:
        it.homeserver = Homeserver()
        for left in (6, 5):
            it.letta.agents = it.letta.agents[:left]
            await it.sync()
            it.now_ms += 3 * HOUR_MS
            report = await it.sync()
        (held,) = {action.held for action in report.left if action.held}
        assert "3 of 8" in held and len(await it.retired()) == 2
        await it.sync(confirm_removals=True)
        assert len(await it.retired()) == 3
        it.now_ms += 60_000
        it.letta.agents = it.letta.agents[:4]
        await it.sync()
        it.now_ms += 3 * HOUR_MS
        await it.sync()
        assert len(await it.retired()) == 4, "a person's word clears what was before"


@pytest.mark.parametrize(("people_talk", "most"), [(False, 4), (True, 1)])
async def test_four_homes_are_made_at_once_and_one_while_people_talk(
    people_talk: bool, most: int, tmp_path: Path
) -> None:
    async with world(tmp_path, 8) as it:
        it.homeserver, it.people_talk = Homeserver(), people_talk
        it.homeserver.crowd = 5
        await it.sync()
        assert it.homeserver.most_at_once == most and len(it.homeserver.asked) == 8


async def test_a_trouble_whose_agent_waits_for_a_person_calls_for_no_sync(tmp_path: Path) -> None:
    async with world(tmp_path, 4) as it:
        it.letta.agents = []
        await it.sync()
        it.now_ms += 3 * HOUR_MS
        it.refusal = Unavailable("matrix", "odd")
        await it.sync(confirm_removals=True)
        assert await it.store.list_troubles()
        report = await it.sync()
        assert len(report.left) == 4 and all(action.held for action in report.left)
        assert not await it.store.list_troubles()


async def test_who_is_gone_from_letta_gets_no_room_even_if_theirs_is_gone_as_well(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, 1) as it:
        it.homeserver = Homeserver()
        (row,) = (await it.store.list_mappings()).values()
        lost = replace(row, room_id=RoomId("!lost:hs.test"), room_gone=True, ghost_ready=True)
        await it.store.save_mapping(lost, ignore, it.fence)
        it.letta.agents = []
        await it.sync()
        it.now_ms += 3 * HOUR_MS
        report = await it.sync(confirm_removals=True)
        assert [a.kind for a in report.applied] == ["retire_agent"] and not report.left
        assert await it.retired() == {"agent-0"} and it.homeserver.asked == []
        assert (await it.sync()).planned == ()


async def test_a_picture_that_fails_is_put_off_by_itself_ever_longer_and_across_a_restart(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, 1) as it:
        it.homeserver, it.switch_off = Homeserver(), ("spaces",)
        it.homeserver.failing["agent_0"] = Rejected("matrix", "forbidden")
        it.homeserver.pictures_after_s = 7.0
        it.reconciler = it.restart()

        async def upload(agent: str) -> Failure:
            failures = (await it.sync()).failures
            (found,) = [
                f for f in failures
                if (f.action.kind, f.action.agent_id) == ("upload_avatar", agent)
            ]  # fmt: skip
            return found

        pauses_ms = []
        for number in range(1, 7):
            failure = await upload("")
            assert failure.failures == number and not failure.final
            pauses_ms.append(failure.next_try_ms - it.now_ms)
            it.reconciler = it.restart()
            it.homeserver.asked.clear()
            waits = await upload("")
            assert waits.next_try_ms == failure.next_try_ms and "its disk is full" in waits.reason
            assert waits.reason.startswith("skipped" if number >= 3 else "put off")
            assert it.homeserver.asked == [], "neither is asked before its time"
            assert it.reconciler.next_try_s == (failure.next_try_ms - it.now_ms) / 1000
            it.now_ms = failure.next_try_ms
        assert all(pause_ms >= 7_000 for pause_ms in pauses_ms), "the service has said when"
        assert pauses_ms[2] >= 60_000 and pauses_ms[2:] == sorted(pauses_ms[2:])
        it.homeserver.takes_pictures = True
        assert "upload_avatar" in [a.kind for a in (await it.sync()).applied]
        left = await it.store.list_troubles()
        assert [key for key in left if key[1]] == [], "and success forgives"


async def test_a_task_that_is_overdue_and_waits_for_something_else_calls_for_no_sync(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, 1) as it:
        it.homeserver, it.switch_off = Homeserver(), ("spaces",)
        it.reconciler = it.restart()
        report = await it.sync()
        times = {f.action.kind: f.next_try_ms for f in report.failures}
        assert set(times) == {"upload_avatar", "create_room"}
        it.now_ms = max(f.next_try_ms for f in report.failures if not f.final) + 1
        next_try_s = it.reconciler.next_try_s
        assert next_try_s == (times["create_room"] - it.now_ms) / 1000 and next_try_s > 60


@pytest.mark.parametrize("code", sorted(OUR_FAULT))
async def test_a_homeserver_that_does_not_know_us_for_now_has_refused_nobody(
    code: str, tmp_path: Path
) -> None:
    async with world(tmp_path, 1) as it:
        it.homeserver = Homeserver()
        it.homeserver.failing["agent_0"] = Rejected("matrix", "who are you?", code)
        (failure,) = (await it.sync()).failures
        assert not failure.final and failure.next_try_ms <= it.now_ms + 60_000


@pytest.mark.parametrize("held", [False, True])
async def test_an_outage_is_probed_although_nothing_is_left_to_do(
    held: bool, tmp_path: Path
) -> None:
    """Else it would stay for ever, and its overdue probe would call for a sync every second."""
    async with world(tmp_path, 4) as it:
        home = it.homeserver = Homeserver()
        home.away = Unavailable("matrix", "nothing accepts connections")
        await it.sync()
        assert it.reconciler.outages
        it.letta.agents = []
        await it.sync()
        it.now_ms += 3 * HOUR_MS if held else HOUR_MS
        for _ in range(3):
            home.asked.clear()
            report = await it.sync()
            assert len(report.left) == (4 if held else 0) and report.outages
            assert home.asked == ["probe"]
            next_s = it.reconciler.next_try_s
            assert next_s is not None and next_s >= 0
            it.now_ms += round(next_s * 1000) + 10_000
        home.away = None
        assert not (await it.sync()).outages and it.reconciler.next_try_s is None


async def test_while_letta_is_away_an_outage_of_the_homeserver_calls_for_no_sync(
    tmp_path: Path,
) -> None:
    """Nobody can ask the homeserver anything before Letta has listed its agents."""
    async with world(tmp_path, 4) as it:
        home = it.homeserver = Homeserver()
        home.away = Unavailable("matrix", "nothing accepts connections")
        await it.sync()
        it.now_ms += HOUR_MS
        it.letta.breaks = True
        with pytest.raises(Unavailable):
            await it.sync()
        assert [outage.service for outage in it.reconciler.outages] == ["letta", "matrix"]
        next_s = it.reconciler.next_try_s
        assert next_s is not None and next_s >= 0


FAR, NEAR = "@far:nowhere.invalid", "@near:hs.test"
UNREACHABLE = Unavailable("matrix", "it answered 502", code="M_UNKNOWN")


async def settle_in(it: World, *, room_name: str = "") -> None:
    """Gives every agent a room that lacks nothing but people and a topic; and its name, if it has
    ``room_name``."""
    for row in (await it.store.list_mappings()).values():
        room_id, name = RoomId(f"!{row.agent_id}:hs.test"), f"{row.agent_name} - Letta Agent Chat"
        settled = replace(
            row, room_id=room_id, ghost_ready=True, hub_joined=True, display_name=row.agent_name,
            room_name=room_name or name,
        )  # fmt: skip
        content = {"m.room.create": {}, "m.room.name": {"name": settled.room_name}}
        state = tuple(StateEvent(room_id, t, "", said, row.ghost) for t, said in content.items())
        ghosts = frozenset({row.ghost, Homeserver.hub})
        members = tuple(Member(room_id, ghost, "join") for ghost in ghosts)
        made = RoomTold(state, members, ghosts)
        await it.store.save_mapping(settled, ignore, it.fence, joined=True, made=made)
    await it.store.save_audit({}, {}, {}, {}, it.fence, audited_ms=it.now_ms)


@pytest.mark.parametrize(
    ("who", "error"),
    [(FAR, UNREACHABLE), (FAR, Unavailable("matrix", "no answer in time")), (NEAR, UNREACHABLE)],
)
async def test_whoever_cannot_be_invited_is_skipped_alone_and_the_homeserver_is_not_away(
    who: str, error: Unavailable, tmp_path: Path
) -> None:
    async with world(tmp_path, 5) as it:
        it.homeserver, it.invite = Homeserver(), (who, "@alice:hs.test")
        it.homeserver.failing[who] = error
        await settle_in(it)
        it.reconciler = it.restart()
        pauses_ms = []
        for number in range(1, 6):
            report = await it.sync()
            assert not report.outages
            failures = [f for f in report.failures if f.action.kind == "invite_person"]
            assert len(failures) == len(report.failures) == 5
            assert {(f.action.value, f.failures, f.final) for f in failures} == {
                (who, number, False)
            }
            assert all(str(error) == f.reason for f in failures)
            if number == 1:
                done = [(a.kind, a.value) for a in report.applied]
                assert done.count(("invite_person", "@alice:hs.test")) == 5
                assert [kind for kind, _ in done].count("set_topic") == 5, "the home is finished"
            pauses_ms.append(min(f.next_try_ms for f in failures) - it.now_ms)
            it.homeserver.asked.clear()
            waits = await it.sync()
            verb = "skipped" if number >= 3 else "put off"
            assert all(f.reason.startswith(verb) for f in waits.failures)
            assert it.homeserver.asked == [], "nobody is asked before its time"
            it.now_ms = max(f.next_try_ms for f in failures)
        assert pauses_ms[2] >= 60_000 and pauses_ms[2:] == sorted(pauses_ms[2:])
        it.homeserver.failing.clear()
        assert len((await it.sync()).applied) == 5
        assert not await it.store.list_troubles()


async def test_a_homeserver_that_is_away_is_away_for_invitations_too(tmp_path: Path) -> None:
    async with world(tmp_path, 20) as it:
        it.homeserver, it.invite = Homeserver(), (NEAR,)
        it.homeserver.away = Unavailable("matrix", "nothing accepts connections")
        await settle_in(it)
        it.reconciler = it.restart()
        report = await it.sync()
        assert [outage.service for outage in report.outages] == ["matrix"]
        assert len([f for f in report.failures if f.failures]) <= 8


async def with_space(it: World) -> RoomId:
    """A space that lacks nothing but the rooms."""
    space, hub = RoomId("!space:hs.test"), Homeserver.hub
    row = Space(space, "Letta Agents", alias_room=space)
    await it.store.save_space(row, it.fence)
    made = (StateEvent(space, "m.room.create", "", {"type": "m.space"}, hub),)
    members = (Member(space, hub, "join"),)
    await it.store.save_told(RoomTold(made, members, frozenset({hub})), it.fence)
    return space


async def test_a_room_whose_name_may_not_be_set_hangs_in_the_space_all_the_same(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, 1) as it:
        home = it.homeserver = Homeserver()
        room = "!agent-0:hs.test"
        home.failing[f"name {room}"] = Rejected("matrix", "you lack the power", "M_FORBIDDEN")
        await settle_in(it, room_name="As it was")
        await with_space(it)
        it.switch_off = ("avatars",)
        it.reconciler = it.restart()
        report = await it.sync()
        assert [f.action.kind for f in report.failures] == ["set_room_name"]
        assert [a.kind for a in report.applied] == ["add_to_space", "set_parent"]
        assert f"topic {room}" not in home.asked, "what gives it its home waits"
        (row,) = (await it.store.list_mappings()).values()
        assert "lack the power" in row.problem

        # Also while it is put off: a space that takes the place of this one needs the room.
        await it.store.save_space(Space(), it.fence)
        await with_space(it)
        lost = StateEvent(RoomId("!space:hs.test"), "m.space.child", room, {}, home.hub)
        await it.store.save_state([lost], it.fence)
        home.asked.clear()
        report = await it.sync()
        assert [a.kind for a in report.applied] == ["add_to_space"]
        assert [f.reason[:16] for f in report.failures] == ["skipped after 1 "]
        assert home.asked == [f"m.space.child {room}"]
        home.failing.clear()
        report = await it.sync(asked=True)
        assert not report.failures and not report.left and not await it.store.list_troubles()


async def test_where_the_homeserver_gives_no_answer_nothing_beside_the_home_is_tried(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, 1) as it:
        home = it.homeserver = Homeserver()
        home.failing["name !agent-0:hs.test"] = Unavailable("matrix", "no answer in time")
        await settle_in(it, room_name="As it was")
        await with_space(it)
        it.switch_off = ("avatars",)
        it.reconciler = it.restart()
        report = await it.sync()
        assert [f.action.kind for f in report.failures] == ["set_room_name"]
        assert home.asked == [] and report.applied == ()


async def test_a_preview_waits_for_no_sync_under_way(tmp_path: Path) -> None:
    async with world(tmp_path, 2) as it, it.reconciler.paused():
        with anyio.fail_after(10):
            report = await it.preview()
        assert report.dry_run and {a.agent_id for a in report.planned} == {"agent-0", "agent-1"}


async def test_agents_of_another_letta_are_no_reason_to_retire_those_that_were_there(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, 5) as it:
        it.homeserver, it.now_ms = Homeserver(), HOUR_MS
        it.letta.agents = [Agent(AgentId(f"other-{n}"), f"Other {n}") for n in range(60)]
        for _ in range(3):
            report = await it.sync()
            it.now_ms += 3 * HOUR_MS
        rows = await it.store.list_mappings()
        assert len(rows) == 65 and all(rows[agent.id].made_ms for agent in it.letta.agents)
        held = [action.held for action in report.left if action.kind == "retire_agent"]
        assert len(held) == 5 and "5 of 5" in held[0]
        assert await it.retired() == set()
