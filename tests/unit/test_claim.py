"""The note that keeps two stores on one homeserver apart, be they copies of one another."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

from homeroom import claim as module
from homeroom.claim import NOTE_TYPE, HomeserverClaim
from homeroom.errors import LeaseLost, Unavailable
from homeroom.matrix import Matrix
from homeroom.store import Store, open_store

HOUR_S = 3600.0


class Notes:
    """A homeserver as far as the hub's account data goes."""

    hub = "@agent_hub:hs.test"

    def __init__(self) -> None:
        self.note: dict[str, Any] = {}
        self.is_away = False
        self.before_put: anyio.Event | None = None
        """A writing waits for this."""
        self.put_waits = anyio.Event()

    async def get_account_data(self, ghost: str, event_type: str) -> dict[str, Any]:
        assert (ghost, event_type) == (self.hub, NOTE_TYPE)
        if self.is_away:
            raise Unavailable("matrix", "nothing accepts connections")
        return dict(self.note)

    async def put_account_data(self, ghost: str, event_type: str, content: Any) -> None:
        if self.before_put:
            self.put_waits.set()
            await self.before_put.wait()
        if self.is_away:
            raise Unavailable("matrix", "nothing accepts connections")
        self.note = dict(content)


class Clock:
    """This machine's two clocks, which the test sets."""

    def __init__(self) -> None:
        self.wall_s, self.running_s = 1_000 * HOUR_S, 5.0

    def time(self) -> float:
        return self.wall_s

    def monotonic(self) -> float:
        return self.running_s

    def pass_by(self, seconds: float) -> None:
        self.wall_s += seconds
        self.running_s += seconds


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Notes:
    monkeypatch.setattr(module, "SETTLE_S", 0.0)
    monkeypatch.setattr(module, "LOOK_S", 0.0)
    return Notes()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@asynccontextmanager
async def bridge(
    path: Path, notes: Notes, owner: str
) -> AsyncIterator[tuple[HomeserverClaim, Store]]:
    async with open_store(path) as store:
        yield await claim_over(store, notes, owner), store


async def claim_over(store: Store, notes: Notes, owner: str) -> HomeserverClaim:
    lease = await store.take_lease(owner, rank=2, ttl_ms=60_000, is_gone=lambda _: True)
    return HomeserverClaim(cast(Matrix, notes), store, owner, lease.fence)


async def copied(path: Path, notes: Notes, to: Path) -> None:
    """A store that has run the bridge, stopped, and was copied."""
    async with bridge(path, notes, "once") as (claim, _):
        assert not await claim.take()
        await claim.release()
    shutil.copy(path, to)


async def test_of_two_copies_the_one_that_runs_goes_on_and_the_other_names_it(
    tmp_path: Path, notes: Notes, clock: Clock
) -> None:
    one, two = tmp_path / "one.db", tmp_path / "two.db"
    await copied(one, notes, two)
    async with bridge(one, notes, "first") as (first, _), bridge(two, notes, "second") as (it, _):
        assert not await first.take()
        for _ in range(5):
            clock.pass_by(module.RENEW_S)
            problem = await it.take()
            assert "first" in problem and "a copy of this data directory" in problem
            assert it.is_copied and it.rival == "first"
            await it.release()
            assert not await first.take() and notes.note["owner"] == "first"
        await first.release()
        assert not await it.take() and not it.is_copied


@asynccontextmanager
async def running_and_its_copy(
    directory: Path, notes: Notes
) -> AsyncIterator[tuple[HomeserverClaim, HomeserverClaim]]:
    """One that runs, and a copy that was made of its store while it did."""
    one, two = directory / "one.db", directory / "two.db"
    async with bridge(one, notes, "first") as (first, store):
        assert not await first.take()
        store._conn.execute(f"VACUUM INTO '{two}'")
        async with bridge(two, notes, "copy") as (copy, _):
            yield first, copy


async def test_a_copy_started_at_once_asks_the_first_which_answers_and_goes_on(
    tmp_path: Path, notes: Notes, clock: Clock
) -> None:
    async with running_and_its_copy(tmp_path, notes) as (first, copy):
        for _ in range(3):
            assert "it is found out whether it still does" in await copy.take()
            assert copy.is_asking and copy.is_copied and copy.rival == "first"
            assert notes.note["owner"] == "first", "nothing is taken"
        clock.pass_by(module.LOOK_S)
        assert not await first.take() and "asked_by" not in notes.note
        for _ in range(5):
            clock.pass_by(module.RENEW_S)
            assert "first" in await copy.take() and copy.is_copied and not copy.is_asking
            await copy.release()
            assert not await first.take() and notes.note["owner"] == "first"
        await first.release()
        assert not await copy.take()


async def test_whoever_is_asked_and_stops_is_succeeded_at_once(
    tmp_path: Path, notes: Notes, clock: Clock
) -> None:
    async with running_and_its_copy(tmp_path, notes) as (first, copy):
        assert await copy.take()
        await first.release()
        assert not await copy.take() and notes.note["owner"] == "copy"


async def test_whoever_is_asked_in_vain_is_succeeded_and_does_not_take_it_back(
    tmp_path: Path, notes: Notes, clock: Clock
) -> None:
    """It was suspended, say."""
    async with running_and_its_copy(tmp_path, notes) as (first, copy):
        clock.wall_s += HOUR_S  # whatever the clock of another machine says
        assert await copy.take()
        clock.pass_by(module.ANSWER_S - 0.1)
        assert await copy.take() and notes.note["owner"] == "first"
        clock.pass_by(0.1)
        assert not await copy.take() and notes.note["owner"] == "copy"
        with anyio.fail_after(5):
            await first.keep()
        for _ in range(5):
            clock.pass_by(module.RENEW_S)
            assert "copy" in await first.take() and first.is_copied
            await first.release()
            assert not await copy.take() and notes.note["owner"] == "copy"
        await copy.release()
        assert not await first.take()


async def test_nobody_counts_as_gone_who_could_not_reach_the_homeserver_either(
    tmp_path: Path, notes: Notes, clock: Clock
) -> None:
    async with running_and_its_copy(tmp_path, notes) as (first, copy):
        assert await copy.take()
        notes.is_away = True
        clock.pass_by(module.ANSWER_S)
        assert "nothing accepts connections" in await copy.take()
        notes.is_away = False
        assert "it is found out" in await copy.take(), "it is asked anew"
        clock.pass_by(module.LOOK_S)
        assert not await first.take()
        clock.pass_by(module.ANSWER_S)
        assert "first" in await copy.take() and not copy.is_asking


async def test_a_slow_homeserver_leaves_whoever_is_asked_more_time(
    tmp_path: Path, notes: Notes, clock: Clock
) -> None:
    async with running_and_its_copy(tmp_path, notes) as (_, copy):
        notes.before_put = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(copy.take)
            with anyio.fail_after(5):
                await notes.put_waits.wait()
            clock.pass_by(2.0)
            notes.before_put.set()
        notes.before_put = None
        clock.pass_by(module.ANSWER_S + 7.9)
        assert await copy.take(), "a look, its answer and the look at that take as long each"
        clock.pass_by(0.2)
        assert not await copy.take()


async def test_a_question_that_overwrites_a_new_note_is_answered_all_the_same(
    tmp_path: Path, notes: Notes, clock: Clock
) -> None:
    async with running_and_its_copy(tmp_path, notes) as (first, copy):
        notes.before_put = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(copy.take)
            with anyio.fail_after(5):
                await notes.put_waits.wait()
            waiting, notes.before_put = notes.before_put, None
            clock.pass_by(module.RENEW_S)
            assert not await first.take(), "renewed between the question's two requests"
            waiting.set()
        assert notes.note["asked_by"] == "copy"
        assert not await first.take() and "asked_by" not in notes.note
        clock.pass_by(module.ANSWER_S)
        assert "first" in await copy.take() and not copy.is_asking


@pytest.mark.parametrize("who_is_last", ["first", "second"])
async def test_of_two_copies_that_find_it_free_together_whoever_wrote_last_goes_on(
    who_is_last: str, tmp_path: Path, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLE_S", 0.3)
    one, two = tmp_path / "one.db", tmp_path / "two.db"
    await copied(one, notes, two)
    said: dict[str, str] = {}

    async def take(claim: HomeserverClaim, name: str) -> None:
        said[name] = await claim.take()

    async with bridge(one, notes, "first") as (first, _), bridge(two, notes, "second") as (it, _):
        order = [("first", first), ("second", it)]
        if who_is_last == "first":
            order.reverse()
        notes.before_put = anyio.Event()
        async with anyio.create_task_group() as group:
            for name, claim in order:
                group.start_soon(take, claim, name)
            await anyio.wait_all_tasks_blocked()
            notes.before_put.set()
        winner = notes.note["owner"]
        (loser,) = {"first", "second"} - {winner}
        assert not said[winner] and winner in said[loser]


async def test_whoever_writes_late_over_one_that_has_begun_waits_until_that_one_stands_back(
    tmp_path: Path, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLE_S", 0.05)
    monkeypatch.setattr(module, "LOOK_S", 0.5)
    order: list[str] = []
    one, two = tmp_path / "one.db", tmp_path / "two.db"
    async with bridge(one, notes, "first") as (first, _), bridge(two, notes, "late") as (late, _):
        notes.before_put = anyio.Event()
        async with anyio.create_task_group() as group:

            async def come_late() -> None:
                assert not await late.take()
                order.append("begins")

            group.start_soon(come_late)
            await notes.put_waits.wait()
            stuck, notes.before_put = notes.before_put, None
            assert not await first.take()
            order.append("begins")
            await anyio.sleep(2 * module.SETTLE_S)
            stuck.set()
            await first.keep()
            order.append("stands back")
        assert order == ["begins", "stands back", "begins"] and notes.note["owner"] == "late"


async def test_a_successor_on_the_same_store_need_not_wait_for_the_note_of_the_dead(
    tmp_path: Path, notes: Notes
) -> None:
    async with bridge(tmp_path / "s.db", notes, "dead") as (dead, store):
        store.place = "this machine, this file"
        assert not await dead.take()
        heir = await claim_over(store, notes, "heir")
        assert not await heir.take() and notes.note["owner"] == "heir"
        await dead.release()
        assert notes.note["until_ms"] > 0, "it is the successor's"
        with pytest.raises(LeaseLost, match="heir"):
            await dead.take()
        assert notes.note["owner"] == "heir"
        assert not await heir.take()


async def test_one_that_cannot_tell_its_file_from_a_copy_asks_before_it_succeeds(
    tmp_path: Path, notes: Notes, clock: Clock
) -> None:
    async with bridge(tmp_path / "s.db", notes, "dead") as (dead, store):
        store.place = ""
        assert not await dead.take() and not await dead.take()
        heir = await claim_over(store, notes, "heir")
        assert await heir.take() and heir.is_asking
        clock.pass_by(module.ANSWER_S)
        assert not await heir.take() and notes.note["owner"] == "heir"


async def test_a_file_is_told_from_its_copies_and_known_again(tmp_path: Path) -> None:
    one, two = tmp_path / "one.db", tmp_path / "two.db"
    places = set()
    for _ in range(2):
        async with open_store(one) as store:
            places.add(store.place)
    assert len(places) == 1
    shutil.copy(one, two)
    async with open_store(two) as store:
        assert store.place not in places or store.place == ""


async def test_a_writing_of_which_nobody_knows_whether_it_came_is_no_rivals(
    tmp_path: Path, notes: Notes, clock: Clock
) -> None:
    async with bridge(tmp_path / "s.db", notes, "us") as (us, _):
        assert not await us.take()
        for came in (False, True):
            before = dict(notes.note)
            clock.pass_by(module.RENEW_S)
            notes.before_put = anyio.Event()
            async with anyio.create_task_group() as group:
                group.start_soon(us.take)
                await anyio.wait_all_tasks_blocked()
                with anyio.fail_after(5):  # its mark is on disk before the note is written
                    while len((await us._store.get_meta(module.MARKS)).split()) < 2:
                        await us._store.changed.wait()
                notes.is_away = not came
                notes.before_put.set()
            notes.is_away, notes.before_put = False, None
            assert (notes.note != before) == came
            assert not await us.take()


async def test_a_note_of_before_the_clock_was_set_back_lapses_in_its_time(
    tmp_path: Path, notes: Notes, clock: Clock
) -> None:
    one, two = tmp_path / "one.db", tmp_path / "two.db"
    async with bridge(one, notes, "dead") as (dead, _), bridge(two, notes, "heir") as (heir, _):
        assert not await dead.take()
        clock.wall_s -= HOUR_S
        assert "dead" in await heir.take(), "it may live, on a machine with another clock"
        for _ in range(9):
            clock.pass_by(10.0)
            problem = await heir.take()
        assert not problem, "an hour would be too long"


async def test_two_machines_with_clocks_hours_apart_do_not_take_it_from_each_other(
    tmp_path: Path, notes: Notes, clock: Clock
) -> None:
    one, two = tmp_path / "one.db", tmp_path / "two.db"
    async with bridge(one, notes, "first") as (first, _), bridge(two, notes, "ahead") as (it, _):
        assert not await first.take()
        clock.wall_s += HOUR_S
        assert not await it.take(), "at first sight the note has lapsed"
        clock.wall_s -= HOUR_S
        for _ in range(6):
            assert "ahead" in await first.take()
            clock.pass_by(20.0)
            clock.wall_s += HOUR_S
            assert not await it.take()
            clock.wall_s -= HOUR_S
