"""Processes over one mailbox, killed: nothing is lost, nothing is done twice, order is kept.

The worker's processes share nothing but the mailbox and an outside world that is a file; see
``support/lane_process.py``. Written against ``mailbox.Lanes`` alone but for the two tests that
need the implementation's own files.
"""

from __future__ import annotations

import random
import secrets
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import pytest

from homeroom.items import ItemKind, ItemState, NewItem
from homeroom.mailbox import CRASH_LIMIT, Lanes
from homeroom.model import ItemId
from homeroom.store.items import Items
from support import lane_process
from support.fake_process import environment
from support.lanes import IMPLEMENTATIONS, Recorder, take, turn, wait_all, worker
from support.old_store import age_store

LIMIT_S = 90.0
SHORT_LEASE_MS = 1_500
"""Long enough for a busy machine to renew it in time, short enough to wait for its end."""


class Processes:
    """Processes over one mailbox, and the mailbox itself."""

    def __init__(self, implementation: str, directory: Path, lanes: Lanes) -> None:
        self.implementation, self.directory, self.lanes = implementation, directory, lanes
        self._alive: list[subprocess.Popen[str]] = []

    def start(self, role: str, *numbers: int) -> subprocess.Popen[str]:
        arguments = [role, self.implementation, self.directory, *map(str, numbers)]
        process = subprocess.Popen(
            [sys.executable, lane_process.__file__, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        self._alive.append(process)
        return process

    async def wait_said(self, process: subprocess.Popen[str], word: str) -> list[str]:
        """The words of the line that begins with ``word``."""
        assert process.stdout
        with anyio.fail_after(LIMIT_S):
            while True:
                line = await anyio.to_thread.run_sync(process.stdout.readline)
                assert line, f"it ended with {process.wait()} before it said {word!r}"
                if line.startswith(word):
                    return line.split()

    async def wait_end(self, process: subprocess.Popen[str]) -> int:
        with anyio.fail_after(LIMIT_S):
            code: int = await anyio.to_thread.run_sync(process.wait)
        return code

    async def wait_count(self, state: ItemState, count: int) -> None:
        """Returns when at least so many items are in that state."""
        with anyio.fail_after(LIMIT_S):
            while True:
                changed = self.lanes.changed
                if (await self.lanes.count_items()).get(state, 0) >= count:
                    return
                await changed.wait()

    def sink(self) -> list[dict[str, str]]:
        return lane_process.Sink(self.directory).lines()

    def effects(self) -> Counter[str]:
        """How often each cause had its effect, as the outside world sees it: equal keys are one."""
        seen = {(line["cause"], line["key"]) for line in self.sink() if line["what"] == "effect"}
        return Counter(cause for cause, _ in seen)

    def stop(self) -> None:
        for process in self._alive:
            process.kill()
            process.wait()
            assert process.stdout
            process.stdout.close()


@pytest.fixture(params=sorted(IMPLEMENTATIONS))
def implementation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def _processes(implementation: str, directory: Path) -> AsyncIterator[Processes]:
    async with IMPLEMENTATIONS[implementation](directory) as lanes:
        processes = Processes(implementation, directory, lanes)
        try:
            yield processes
        finally:
            processes.stop()


def check_order(lines: list[dict[str, str]]) -> None:
    """Nothing was begun on a lane out of order, or beside another item of the lane."""
    working: dict[str, tuple[str, int]] = {}
    newest: dict[str, int] = {}
    for line in lines:
        lane, number, pid = line["lane"], int(line["cause"].split(":")[1]), int(line["pid"])
        match line["what"]:
            case "start":
                before = working.get(lane)
                # A process that died has ended nothing; its heir begins with the same item.
                assert before is None or (before[1] != pid and before[0] == line["cause"]), line
                assert number >= newest.get(lane, -1), f"{line} after {newest[lane]}"
                working[lane], newest[lane] = (line["cause"], pid), number
            case "end":
                assert working.pop(lane) == (line["cause"], pid)


async def test_under_load_and_many_kills_each_item_has_its_effect_once_and_in_order(
    implementation: str, tmp_path: Path
) -> None:
    lane_count, count, kills = 10, 30, 8
    chance = random.Random(7)
    async with _processes(implementation, tmp_path) as processes:
        producer = processes.start("produce", lane_count, count)
        await processes.wait_said(producer, "producing")
        await processes.wait_count(ItemState.WAITING, 40)
        producer.kill()
        producer = processes.start("produce", lane_count, count)
        for number in range(kills):
            working = processes.start("work", SHORT_LEASE_MS)
            await processes.wait_said(working, "working")
            done = chance.randrange(number * 30, number * 30 + 30)
            await processes.wait_count(ItemState.DONE, done)
            working.kill()
        last = processes.start("work", SHORT_LEASE_MS)
        await processes.wait_said(producer, "done")
        await processes.wait_count(ItemState.DONE, lane_count * count)
        assert last.poll() is None
        assert await processes.lanes.count_items() == {"done": lane_count * count}
        assert processes.effects() == {
            f"{lane}:{n}": 1 for lane in range(lane_count) for n in range(count)
        }
        check_order(processes.sink())


@pytest.mark.parametrize(
    ("step", "point"),
    [("turn", "claimed"), ("turn", "begun"), ("turn", "sent"), ("post", "begun"), ("post", "sent")],
)
async def test_killed_inside_any_step_the_model_is_asked_once_and_the_answer_posted_once(
    implementation: str, tmp_path: Path, step: str, point: str
) -> None:
    async with _processes(implementation, tmp_path) as processes:
        post = {"die": point} if step == "post" else {}
        payload = {"two_steps": True, "post": post} | ({"die": point} if step == "turn" else {})
        await processes.lanes.put([turn("a", "asked", payload=payload)])
        dying = processes.start("work", SHORT_LEASE_MS)
        assert await processes.wait_end(dying) == -signal.SIGKILL
        processes.start("work", SHORT_LEASE_MS)
        await processes.wait_count(ItemState.DONE, 2)
        assert processes.effects() == {"asked": 1, "reply:asked": 1}
        raw = Counter(line["cause"] for line in processes.sink() if line["what"] == "effect")
        assert raw["asked"] == 1, "a turn has no key by which it would be known again"


async def test_a_worker_that_was_frozen_for_three_leases_finds_its_verdicts_refused(
    implementation: str, tmp_path: Path
) -> None:
    async with _processes(implementation, tmp_path) as processes:
        post = NewItem("room", ItemKind.POST, {"stop": True}, "posted")
        (item_id,) = await processes.lanes.put([post])
        frozen = processes.start("work", SHORT_LEASE_MS)
        await processes.wait_said(frozen, "stopped")
        frozen.send_signal(signal.SIGSTOP)
        (tmp_path / "go").touch()
        heir = processes.start("work", SHORT_LEASE_MS)
        await processes.wait_said(heir, "working")  # not before the lease had lapsed
        (item,) = await wait_all(processes.lanes, [item_id])
        assert item.state is ItemState.DONE
        for _ in range(4):  # of a second each; with the wait before it, more than three leases
            await processes.wait_said(heir, "cpu")
        frozen.send_signal(signal.SIGCONT)
        assert await processes.wait_end(frozen) == lane_process.LOST
        assert processes.effects() == {"posted": 1}
        assert heir.poll() is None
        assert (await processes.lanes.get_item(item_id)).result == item.result


async def test_whoever_dies_while_writing_leaves_whole_batches_and_locks_nobody_out(
    implementation: str, tmp_path: Path
) -> None:
    chance = random.Random(3)
    async with _processes(implementation, tmp_path) as processes:
        for number in range(5):
            writer = processes.start("batches")
            await processes.wait_said(writer, "producing")
            before = (await processes.lanes.count_items()).get(ItemState.WAITING, 0)
            await processes.wait_count(ItemState.WAITING, before + chance.randrange(1, 200))
            writer.kill()
            await processes.wait_end(writer)
            with anyio.fail_after(5):
                await processes.lanes.put([turn("b", f"alive {number}")])
            count = (await processes.lanes.count_items())[ItemState.WAITING]
            assert (count - number - 1) % 10 == 0


async def test_an_item_that_kills_its_process_each_time_is_given_up_and_its_lane_goes_on(
    implementation: str, tmp_path: Path
) -> None:
    async with _processes(implementation, tmp_path) as processes:
        poison = turn("a", "poison", payload={"die_always": "begun"})
        ids = await processes.lanes.put([poison, turn("a", "next"), turn("b", "beside")])
        for _ in range(CRASH_LIMIT):
            dying = processes.start("work", SHORT_LEASE_MS)
            assert await processes.wait_end(dying) == -signal.SIGKILL
        processes.start("work", SHORT_LEASE_MS)
        items = await wait_all(processes.lanes, ids, LIMIT_S)
        assert [item.state.value for item in items] == ["parked", "done", "done"]
        assert items[0].reason == f"Homeroom died {CRASH_LIMIT} times while it worked on this."
        assert processes.effects() == {"next": 1, "beside": 1}


async def test_what_an_older_release_left_half_done_is_taken_up_by_this_one(
    tmp_path: Path,
) -> None:
    """SQLite alone: the file of the release before, left by a process that was killed."""
    async with _processes("sqlite", tmp_path) as processes:
        ids = await processes.lanes.put(
            [turn("a", "half", payload={"die": "sent"}), turn("a", "next"), turn("b", "more")]
        )
        assert await processes.wait_end(processes.start("work", SHORT_LEASE_MS)) < 0
    age_store(tmp_path / "mailbox.db")
    async with _processes("sqlite", tmp_path) as processes:
        processes.start("work", SHORT_LEASE_MS)
        items = await wait_all(processes.lanes, ids, LIMIT_S)
        assert {item.state for item in items} == {ItemState.DONE}
        assert processes.effects() == {"half": 1, "next": 1, "more": 1}
        raw = [line["cause"] for line in processes.sink() if line["what"] == "effect"]
        assert sorted(raw) == ["half", "more", "next"]


@contextmanager
def _random_ids(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setattr(Items, "_new_item_id", lambda self: ItemId(secrets.token_hex(16)))
        yield


@pytest.mark.parametrize("sortable", [True, False])
async def test_the_order_of_a_burst_rests_on_ids_that_sort_by_time(
    tmp_path: Path, sortable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite alone. With random ids the same check finds the disorder: it can fail."""
    async with IMPLEMENTATIONS["sqlite"](tmp_path) as lanes:
        keys = [str(n) for n in range(40)]
        if sortable:
            ids = [(await lanes.put([turn("a", key)]))[0] for key in keys]
        else:
            with _random_ids(monkeypatch):
                ids = [(await lanes.put([turn("a", key)]))[0] for key in keys]
        recorder = Recorder()
        async with worker(lanes, recorder, await take(lanes)):
            await wait_all(lanes, ids)
        assert (recorder.begun == keys) is sortable


@pytest.mark.parametrize("die", ["", "stopping"])
async def test_what_another_process_works_on_is_stopped_and_else_by_its_heir(
    implementation: str, tmp_path: Path, die: str
) -> None:
    """With ``die`` the process is killed between the request and its carrying out."""
    async with _processes(implementation, tmp_path) as processes:
        payload = {"stop": True, "die": die}
        first, second = await processes.lanes.put(
            [turn("a", "x:1", payload=payload), turn("a", "x:2")]
        )
        working = processes.start("work", 60_000)
        await processes.wait_said(working, "stopped")
        await processes.lanes.cancel(first, "enough", lambda item: ())
        if die:
            assert await processes.wait_end(working) == -signal.SIGKILL
            processes.start("work", 60_000)
        one, two = await wait_all(processes.lanes, [first, second], LIMIT_S)
        assert (one.state, one.reason) == (ItemState.CANCELLED, "enough")
        assert two.state is ItemState.DONE
        assert processes.effects() == {"x:2": 1}, "nothing of what was stopped comes out later"


async def _share(implementation: str, directory: Path, lane_count: int) -> float:
    """How much of a core it takes to work one round of items while so many lanes wait."""
    directory.mkdir()
    async with _processes(implementation, directory) as processes:
        payload = {"work_s": 5}
        await processes.lanes.put(
            [turn(f"lane {n}", f"{n}", payload=payload) for n in range(lane_count)]
        )
        working = processes.start("work", 60_000)
        await processes.wait_count(ItemState.DELIVERING, lane_process.CAP)
        _, began_s, cpu_s = await processes.wait_said(working, "cpu")
        for _ in range(6):  # a whole round of items ends meanwhile
            _, at_s, used_s = await processes.wait_said(working, "cpu")
        assert (await processes.lanes.count_items()).get(ItemState.DONE, 0) >= lane_process.CAP
        return (float(used_s) - float(cpu_s)) / (float(at_s) - float(began_s))


async def test_ten_thousand_lanes_that_wait_cost_less_than_a_quarter_of_a_core(
    implementation: str, tmp_path: Path
) -> None:
    """On a machine on which the work itself takes long, at most a few times what that does."""
    many = await _share(implementation, tmp_path / "many", 10_000)
    few = await _share(implementation, tmp_path / "few", 3 * lane_process.CAP)
    assert many < max(0.25, 4 * few), f"{many:.0%} of a core, {few:.0%} with few lanes"


def test_the_lines_of_the_sink_can_show_disorder_and_overlap() -> None:
    """The chaos test rests on this check."""

    def line(what: str, cause: str, pid: int = 1) -> dict[str, str]:
        return {"what": what, "lane": "a", "cause": cause, "key": cause, "pid": str(pid)}

    check_order([line("start", "0:0"), line("start", "0:0", 2), line("end", "0:0", 2)])
    for wrong in (
        [line("start", "0:0"), line("start", "0:1")],
        [line("start", "0:0"), line("start", "0:1", 2)],
        [line("start", "0:1"), line("end", "0:1"), line("start", "0:0")],
    ):
        with pytest.raises(AssertionError):
            check_order(wrong)
