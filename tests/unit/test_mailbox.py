"""The laws of lanes, claims and fences, against a real SQLite."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from homeroom.background import background
from homeroom.errors import (
    HomeroomError,
    LeaseLost,
    LimitExceeded,
    Misuse,
    NotFound,
    Rejected,
    Stopped,
    Unavailable,
    Uncertain,
)
from homeroom.items import Item, ItemKind, ItemState, NewItem, Origin, Priority
from homeroom.mailbox import Begin, Mailbox, Outcome
from homeroom.model import ItemId
from homeroom.store import Store, open_store
from homeroom.store.item_rows import (
    CLAIMABLE,
    EXPIRED,
    EXPIRING,
    NOT_ON,
    OPEN,
    OPEN_TURNS,
    OPEN_TURNS_OF_LANE,
    PUT_OFF,
    STOPPING,
)
from support.old_store import age_store

TURN = ItemKind.TURN


def new(lane: str, key: str, **payload: Any) -> NewItem:
    return NewItem(lane=lane, kind=TURN, payload=payload, dedupe_key=key)


async def claim(store: Store, fence: int) -> Item | None:
    return (await store.claim([TURN], fence))[0]


async def lease(store: Store, owner: str = "me", ttl_ms: int = 60_000) -> int:
    taken = await store.take_lease(owner, rank=1, ttl_ms=ttl_ms)
    assert taken.fence
    return taken.fence


async def test_a_lane_is_worked_in_order_and_another_lane_does_not_wait(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        fence = await lease(store)
        await store.put([new("a", "1"), new("a", "2"), new("b", "3")])
        first = await claim(store, fence)
        second = await claim(store, fence)
        assert first and second
        assert (first.dedupe_key, second.dedupe_key) == ("1", "3")
        assert await claim(store, fence) is None
        await store.finish(first, ItemState.DONE, fence=fence)
        third = await claim(store, fence)
        assert third and third.dedupe_key == "2"


async def test_the_same_cause_is_the_same_item_also_after_it_is_done(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        fence = await lease(store)
        (one,) = await store.put([new("a", "event:1")])
        item = await claim(store, fence)
        assert item
        await store.finish(item, ItemState.DONE, fence=fence)
        assert await store.put([new("a", "event:1")]) == [one]
        assert await claim(store, fence) is None


async def test_whoever_lost_the_lease_can_write_nothing_any_more(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_store(path) as first, open_store(path) as second:
        old = await lease(first, "first", ttl_ms=0)
        await first.put([new("a", "1")])
        item = await claim(first, old)
        assert item and not item.begun
        await first.begin(item, old)
        fence = await lease(second, "second")
        for attempt in (
            first.begin(item, old),
            first.finish(item, ItemState.DONE, fence=old),
            first.retry(item, fence=old, delay_ms=0, reason="", delivered=False),
            first.claim([TURN], old),
            first.renew_lease(old, 1000),
        ):
            with pytest.raises(LeaseLost, match="second"):
                await attempt
        again = await claim(second, fence)
        assert again and again.id == item.id
        assert again.begun, "its effect may have happened: the new owner must look first"
        assert again.key == item.key


async def test_a_process_with_matrix_may_replace_one_without(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        await lease(store, "tools only")
        held = await store.take_lease("another", rank=1, ttl_ms=1000)
        assert (held.owner, held.fence) == ("tools only", 0)
        assert (await store.take_lease("bridge", rank=2, ttl_ms=1000)).fence


async def test_the_lease_of_a_process_known_to_be_dead_is_free_at_once(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        await lease(store, "dead")

        async def take(name: str) -> str:
            taken = await store.take_lease(
                name, rank=1, ttl_ms=60_000, is_gone=lambda owner: owner == "dead"
            )
            return taken.owner

        assert await take("heir") == "heir"
        assert await take("another") == "heir"


async def test_a_clean_failure_gets_a_fresh_key_and_an_unclear_one_keeps_it(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        fence = await lease(store)
        await store.put([new("a", "1")])
        item = await claim(store, fence)
        assert item
        await store.retry(item, fence=fence, delay_ms=0, reason="lost", delivered=True)
        unclear = await claim(store, fence)
        assert unclear and unclear.begun and unclear.key == item.key
        await store.retry(unclear, fence=fence, delay_ms=0, reason="away", delivered=False)
        clean = await claim(store, fence)
        assert clean and not clean.begun and clean.key != item.key


async def test_an_item_that_is_put_off_holds_its_lane_and_is_due_later(tmp_path: Path) -> None:
    now = [1_000_000]
    async with open_store(tmp_path / "s.db", now_ms=lambda: now[0]) as store:
        fence = await lease(store)
        await store.put([new("a", "1"), new("a", "2")])
        item = await claim(store, fence)
        assert item
        await store.retry(item, fence=fence, delay_ms=500, reason="later", delivered=False)
        assert await store.claim([TURN], fence) == (None, 1_000_500)
        now[0] += 500
        again = await claim(store, fence)
        assert again and again.dedupe_key == "1"


async def test_ids_keep_the_order_of_a_lane_when_the_clock_goes_back(tmp_path: Path) -> None:
    now = [2_000_000]
    async with open_store(tmp_path / "s.db", now_ms=lambda: now[0]) as store:
        (one,) = await store.put([new("a", "1")])
        now[0] = 1_000_000
        (two,) = await store.put([new("a", "2")])
        assert one < two


async def test_an_unknown_reply_id_is_not_found(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        with pytest.raises(NotFound):
            await Mailbox(store).get(ItemId("nope"))


async def test_a_file_that_is_no_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    path.write_text("this is not a database, not at all")
    with pytest.raises(Rejected, match="cannot be opened"):
        async with open_store(path):
            pass
    assert path.read_text().startswith("this is not")


async def test_the_store_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    async with open_store(tmp_path / "deep" / "s.db"):
        assert (tmp_path / "deep" / "s.db").stat().st_mode & 0o077 == 0


# --- parked items --------------------------------------------------------------------------------


async def park(store: Store, fence: int, *, delivered: bool) -> Item:
    item = await claim(store, fence)
    assert item
    await store.finish(item, ItemState.PARKED, fence=fence, reason="no", delivered=delivered)
    return item


def tell(item: Item) -> list[NewItem]:
    return [new("told", f"replay:{item.cause}")]


@pytest.mark.parametrize("delivered", [False, True])
async def test_a_replayed_item_is_sent_afresh_or_looked_for_first(
    tmp_path: Path, delivered: bool
) -> None:
    async with open_store(tmp_path / "s.db") as store:
        fence = await lease(store)
        await store.put([new("a", "1")])
        before = await park(store, fence, delivered=delivered)
        replayed, place = await store.replay(before.id, tell)
        assert (replayed.id, place, replayed.attempts) == (before.id, 0, 0)
        again = await claim(store, fence)
        assert again and again.begun is delivered
        assert (again.key == before.key) is delivered


async def test_a_replayed_item_goes_before_newer_ones_and_never_beside_one(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        fence = await lease(store)
        await store.put([new("a", "1"), new("a", "2"), new("a", "3")])
        first = await park(store, fence, delivered=False)
        second = await claim(store, fence)
        await store.replay(first.id, lambda item: [])
        assert await claim(store, fence) is None, "the lane is being worked"
        assert second
        await store.finish(second, ItemState.DONE, fence=fence)
        again = await claim(store, fence)
        assert again and again.id == first.id


async def test_each_replay_is_told_of_and_each_new_end_as_well(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        fence = await lease(store)
        await store.put([new("a", "1")])
        causes = []
        for _ in range(3):
            item = await park(store, fence, delivered=True)
            causes.append(item.cause)
            await store.replay(item.id, tell)
            told = await claim(store, fence)
            if told and told.lane == "told":
                await store.finish(told, ItemState.DONE, fence=fence)
            else:  # the replayed one is older and came first
                assert told
                await store.retry(told, fence=fence, delay_ms=0, reason="", delivered=True)
        assert len(set(causes)) == 3


async def test_an_hour_for_a_replayed_item_begins_anew(tmp_path: Path) -> None:
    long_ago = [1_000_000]

    def now_ms() -> int:
        return long_ago[0] or time.time_ns() // 1_000_000

    async with open_store(tmp_path / "s.db", now_ms=now_ms) as store:
        fence = await lease(store)
        (item_id,) = await store.put([new("a", "1", fails={"0": "away"})])
        await park(store, fence, delivered=False)
        long_ago[0] = 0
        await store.replay(item_id, lambda item: [])
        (item,) = await work(store, Script(), [item_id])
        assert item.state is ItemState.DONE, "not given up at the first failure"


async def test_only_what_is_parked_can_be_replayed_or_dropped(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        fence = await lease(store)
        (item_id,) = await store.put([new("a", "1")])
        for attempt in (store.replay(item_id, tell), store.drop(item_id, "no", tell)):
            with pytest.raises(Misuse, match="is waiting, not parked"):
                await attempt
        await park(store, fence, delivered=False)
        ((parked,), total) = await store.page_parked("", 10, "")
        assert (parked.item.id, parked.item.reason, total) == (item_id, "no", 1)
        await store.drop(item_id, "enough", tell)
        assert await store.page_parked("", 10, "") == ([], 0)
        assert (await Mailbox(store).wait_ended(item_id, 0)).reason == "enough"
        with pytest.raises(Misuse, match="is cancelled"):
            await store.replay(item_id, tell)
        with pytest.raises(NotFound, match="list_parked"):
            await store.replay(ItemId("nope"), tell)


async def test_a_refusal_does_not_prove_that_an_earlier_try_did_nothing(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        ids = await store.put([new("a", "1", fails={"0": "lost", "1": "no"})])
        (item,) = await work(store, Script(), ids)
        assert item.state is ItemState.PARKED and item.begun


# --- the worker ----------------------------------------------------------------------------------


class Script:
    """A courier that does what each item's payload says, and writes down what it saw."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.at_once = self.most = 0
        self.hold_until = 0
        self.full = anyio.Event()

    async def deliver(self, item: Item, begin: Begin) -> Outcome:
        self.begun.append(item.dedupe_key)
        if not item.payload.get("before"):
            await begin()
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            if self.hold_until and self.at_once == self.hold_until:
                self.full.set()
            if self.hold_until:
                await self.full.wait()
            fails = item.payload.get("fails", {})
            if kind := fails.get(str(item.attempts)):
                raise _ERRORS[kind]
            return Outcome({"text": item.dedupe_key})
        finally:
            self.at_once -= 1

    def on_delay(self, item: Item, error: HomeroomError) -> list[NewItem]:
        return [new("told", f"delay:{item.id}")]

    def on_parked(self, item: Item, reason: str, *, delivered: bool) -> list[NewItem]:
        return [new("told", f"parked:{item.id}", delivered=delivered)]

    def on_expired(self, item: Item) -> list[NewItem]:
        return [new("told", f"expired:{item.id}")]

    async def stop(self, item: Item) -> bool:
        raise AssertionError("nobody stops anything here")

    def on_stopped(self, item: Item, *, delivered: bool, goes_on: bool) -> list[NewItem]:
        raise AssertionError("nobody stops anything here")


_ERRORS: dict[str, BaseException] = {
    "away": Unavailable("letta", "away"),
    "lost": Uncertain("letta", "k"),
    "no": Rejected("letta", "no"),
    "bug": ZeroDivisionError("bug"),
}


async def work(store: Store, courier: Script, ids: list[ItemId], at_once: int = 10) -> list[Item]:
    """Runs a worker until all ``ids`` have ended; gives them back."""
    mailbox, fence = Mailbox(store), await lease(store)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:

            async def run() -> None:
                in_flight = {TURN: at_once, ItemKind.POST: 2}
                await mailbox.run_worker(courier, fence=fence, in_flight=in_flight)

            group.start_soon(run)
            items = [await mailbox.wait_ended(item_id, 20) for item_id in ids]
            group.cancel_scope.cancel()
    return items


async def test_work_is_retried_after_an_outage_and_who_waits_is_told_once(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        script = Script()
        ids = await store.put([new("a", "1", fails={"0": "away", "1": "away"}), new("a", "2")])
        one, two = await work(store, script, ids)
        assert (one.state, two.state) == (ItemState.DONE, ItemState.DONE)
        assert script.begun.count("1") == 3
        assert [key for key in script.begun if key in "12"] == ["1", "1", "1", "2"]
        assert len([key for key in script.begun if key.startswith("delay:")]) == 1


@pytest.mark.parametrize(("error", "delivered"), [("no", False), ("bug", True)])
async def test_a_hopeless_item_is_parked_with_its_reason_and_the_lane_goes_on(
    tmp_path: Path, error: str, delivered: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_store(tmp_path / "s.db") as store:
        ids = await store.put([new("a", "1", fails={"0": error}), new("a", "2")])
        one, two = await work(store, Script(), ids)
        assert (one.state, two.state) == (ItemState.PARKED, ItemState.DONE)
        assert one.reason
        if error == "bug":
            assert "incident" in one.reason and "ZeroDivision" not in one.reason
            assert "ZeroDivisionError" in caplog.text
        (told,) = await store.put([new("told", f"parked:{one.id}")])
        assert (await store.get_item(told)).payload["delivered"] is delivered


async def test_a_fault_before_anything_was_sent_is_no_delivery(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        ids = await store.put([new("a", "1", fails={"0": "bug"}, before=True)])
        (item,) = await work(store, Script(), ids)
        assert item.state is ItemState.PARKED and not item.begun


async def test_a_claim_of_a_process_that_died_before_it_sent_anything_is_sent_as_new(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s.db"
    async with open_store(path) as store:
        fence = await lease(store, "dead", ttl_ms=0)
        await store.put([new("a", "claimed"), new("b", "sent")])
        for _ in range(2):
            item = await claim(store, fence)
            if item and item.lane == "b":
                await store.begin(item, fence)
        fence = await lease(store, "heir")
        claimed, sent = await claim(store, fence), await claim(store, fence)
        assert claimed and sent
        assert (claimed.begun, sent.begun) == (False, True)
        assert (claimed.claim_crash_count, sent.crash_count) == (1, 1)
        await store.release_lease(fence)  # in good order
        again = await claim(store, await lease(store, "third"))
        assert again and (again.crash_count, again.claim_crash_count) == (0, 1)


async def test_a_post_is_being_delivered_from_its_claim_on_and_a_turn_when_it_is_said(
    tmp_path: Path,
) -> None:
    async with open_store(tmp_path / "s.db") as store:
        fence = await lease(store)
        turn, post = await store.put([new("a", "1"), NewItem("room:r", POST, {}, "p")])
        for _ in range(2):
            await store.claim([TURN, POST], fence, begin=[POST])
        assert (await store.get_item(turn)).state is ItemState.CLAIMED
        assert (await store.get_item(post)).state is ItemState.DELIVERING


async def test_no_more_turns_run_at_once_than_allowed(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        script = Script()
        ids = await store.put([new(f"lane {n}", str(n)) for n in range(20)])
        script.hold_until = 3  # nobody ends before three are at it
        await work(store, script, ids, at_once=3)
        assert script.most == 3


async def test_an_item_of_another_process_is_started_at_once(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_store(path) as store, open_store(path) as other:
        mailbox, fence = Mailbox(store), await lease(store)
        async with anyio.create_task_group() as group:

            async def run() -> None:
                await mailbox.run_worker(Script(), fence=fence, in_flight={TURN: 1})

            group.start_soon(run)
            (item_id,) = await other.put([new("a", "1")])
            with anyio.fail_after(5):
                ended = await Mailbox(other).wait_ended(item_id, 5)
            assert ended.state is ItemState.DONE
            group.cancel_scope.cancel()


HOUR_MS = 3_600_000
POST = ItemKind.POST


async def test_patience_begins_with_the_first_failure_and_not_with_the_message(
    tmp_path: Path,
) -> None:
    """A message that lay there overnight is not given up because Letta needs a minute to boot."""
    path = tmp_path / "s.db"
    long_ago = int(time.time() * 1000) - 9 * HOUR_MS
    async with open_store(path, now_ms=lambda: long_ago) as store:
        ids = await store.put([new("a", "1", fails={"0": "away"})])
    async with open_store(path) as store:
        (item,) = await work(store, Script(), ids)
        assert item.state is ItemState.DONE


async def put_off(store: Store, item: NewItem, count: int, *, uncertain: bool) -> ItemId:
    """An item that has failed so often already."""
    fence = await lease(store)
    (item_id,) = await store.put([item])
    for _ in range(count):
        claimed, _due = await store.claim([item.kind], fence)
        assert claimed
        await store.retry(
            claimed, fence=fence, delay_ms=0, reason="", delivered=uncertain, uncertain=uncertain
        )
    await store.release_lease(fence)
    return item_id


async def after_one_more(store: Store, item_id: ItemId, courier: Script) -> Item:
    """The item after the next attempt at it."""
    before, fence = await store.get_item(item_id), await lease(store)
    in_flight = {TURN: 1, POST: 1}
    worker = partial(Mailbox(store).run_worker, courier, fence=fence, in_flight=in_flight)
    with anyio.fail_after(10):
        async with background(worker):
            while True:
                changed, item = store.changed, await store.get_item(item_id)
                worked = item.state in (ItemState.CLAIMED, ItemState.DELIVERING)
                if item.attempts > before.attempts and not worked:
                    return item
                await changed.wait()


@pytest.mark.parametrize("stopped", [True, False], ids=["stopped", "killed"])
@pytest.mark.parametrize(
    ("kind", "delivered", "forgiven"),
    [(TURN, False, True), (TURN, True, True), (POST, False, True), (POST, True, False)],
)
async def test_a_night_in_which_nobody_ran_is_not_held_against_what_had_failed(
    tmp_path: Path, kind: ItemKind, delivered: bool, forgiven: bool, stopped: bool
) -> None:
    now = [1_000_000]
    async with open_store(tmp_path / "s.db", now_ms=lambda: now[0]) as store:
        fence = await lease(store, "evening", ttl_ms=6_000)
        (item_id,) = await store.put([NewItem("a", kind, {}, "1")])
        item, _ = await store.claim([kind], fence)
        assert item
        await store.retry(item, fence=fence, delay_ms=0, reason="away", delivered=delivered)
        if stopped:
            await store.release_lease(fence)
        now[0] += 9 * HOUR_MS
        await lease(store, "morning")
        failing_ms = now[0] - (await store.get_item(item_id)).failing_since_ms
        lasted_ms = 0 if stopped else 6_000
        assert failing_ms == (lasted_ms if forgiven else 9 * HOUR_MS)


async def test_what_fails_on_after_a_night_off_gets_the_rest_of_its_hour(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    evening = int(time.time() * 1000) - 9 * HOUR_MS
    async with open_store(path, now_ms=lambda: evening) as store:
        item_id = await put_off(store, new("a", "1", fails={"1": "away"}), 1, uncertain=False)
    async with open_store(path) as store:
        item = await after_one_more(store, item_id, Script())
        assert item.state is ItemState.WAITING


async def test_outages_do_not_count_as_lost_answers(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        new_item = new("a", "1", fails={"6": "lost"})
        item_id = await put_off(store, new_item, 6, uncertain=False)
        item = await after_one_more(store, item_id, Script())
        assert (item.state, item.uncertain_count) == (ItemState.WAITING, 1)


async def test_a_turn_whose_answers_keep_getting_lost_is_given_up(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        new_item = new("a", "1", fails={"5": "lost"})
        item_id = await put_off(store, new_item, 5, uncertain=True)
        assert (await after_one_more(store, item_id, Script())).state is ItemState.PARKED


async def test_a_post_may_be_repeated_however_often_its_answer_was_lost(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        new_item = NewItem("room:r", POST, {"fails": {"9": "lost"}}, "p")
        item_id = await put_off(store, new_item, 9, uncertain=True)
        assert (await after_one_more(store, item_id, Script())).state is ItemState.WAITING


async def test_no_service_can_put_an_item_off_for_longer_than_it_is_kept(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        (item_id,) = await store.put([new("a", "1")])

        class Slow(Script):
            async def deliver(self, item: Item, begin: Begin) -> Outcome:
                raise Unavailable("model", "later", retry_after_s=86_400.0)

        mailbox, fence = Mailbox(store), await lease(store)
        async with background(
            partial(mailbox.run_worker, Slow(), fence=fence, in_flight={TURN: 1})
        ):
            with anyio.fail_after(10):
                while not (item := await store.get_item(item_id)).not_before_ms:
                    await store.wait_changed(1)
        assert item.not_before_ms <= time.time() * 1000 + HOUR_MS


async def test_a_look_for_work_does_not_read_what_is_done(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        for sql, args, indexes in (
            (STOPPING, (), {"item_stopping"}),
            (CLAIMABLE.format(held=""), ("turn", 1, 1), {"lane_head_next", "PRIMARY KEY"}),
            (CLAIMABLE.format(held=NOT_ON), ("turn", "a", "a", 1, 1), {"lane_head_next"}),
            (PUT_OFF, ("turn", 1), {"item_put_off"}),
            (EXPIRED, (1,), {"item_expiring"}),
            (EXPIRING, (), {"item_expiring"}),
            (OPEN_TURNS, (), {"PRIMARY KEY"}),
            (OPEN_TURNS_OF_LANE, ("a",), {"item_open"}),
        ):
            rows = store._conn.execute(f"EXPLAIN QUERY PLAN {sql}", args)
            plan = [row["detail"] for row in rows]
            for index in indexes:
                assert any(index in step for step in plan), (sql, plan)
            assert not any("SCAN" in step or "TEMP B-TREE" in step for step in plan), (sql, plan)


async def test_how_many_turns_are_open_is_known_without_counting_them(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_store(path, max_waiting_total=2) as store:
        fence = await lease(store)
        ids = await store.put([new("a", "1"), new("b", "2"), NewItem("c", POST, {}, "3")])
        with pytest.raises(LimitExceeded):
            await store.put([new("c", "4")])
        await park(store, fence, delivered=False)
        await store.put([new("c", "4")])
        await store.replay(ids[0], lambda item: [])
        with pytest.raises(LimitExceeded):
            await store.put([new("d", "5")])
        await store.cancel(ids[0], "enough", lambda item: [])
        await store.cancel(ids[1], "enough", lambda item: [])
        await store.put([new("d", "5")])
    age_store(path)
    async with open_store(path, max_waiting_total=2) as store:
        with pytest.raises(LimitExceeded):
            await store.put([new("e", "6")])


async def test_with_all_turns_running_a_look_for_a_post_costs_the_same_however_many_wait(
    tmp_path: Path,
) -> None:
    async with open_store(tmp_path / "s.db") as store:
        fence = await lease(store)
        steps = []
        for count in (10, 1_000):
            await store.put([new(f"lane {n}", f"{count}:{n}") for n in range(count)])
            steps.append(await steps_of(store, partial(store.claim, [POST], fence)))
        assert steps[0] and steps[1] < 1.5 * steps[0], steps


@pytest.mark.parametrize("why", ["in hand", "put off", "held"])
async def test_a_look_for_a_turn_costs_the_same_however_many_wait_on_lanes_that_cannot_start(
    why: str, tmp_path: Path
) -> None:
    async with open_store(tmp_path / "s.db") as store:
        fence = await lease(store)
        lanes = [f"agent:{n}:x" for n in range(20)]
        await store.put([new(lane, lane) for lane in lanes])
        for _ in lanes if why != "held" else ():
            item, _ = await store.claim([TURN], fence)
            assert item
            if why == "put off":
                await store.retry(item, fence=fence, delay_ms=HOUR_MS, reason="", delivered=False)
        look = partial(store.claim, [TURN], fence, held=["agent:"] if why == "held" else ())
        steps = []
        for count in (1, 500):
            keys = [(lane, f"{lane}:{count}:{n}") for lane in lanes for n in range(count)]
            await store.put([new(*of) for of in keys])
            steps.append(await steps_of(store, look))
            assert (await look())[0] is None
        assert steps[0] and steps[1] < 1.5 * steps[0], steps


async def steps_of(store: Store, work: Callable[[], Awaitable[object]]) -> int:
    """How many steps SQLite takes for it: what it costs, whatever else the machine does."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1

    store._conn.set_progress_handler(step, 1)
    await work()
    store._conn.set_progress_handler(None, 0)
    return count


# --- against a model -----------------------------------------------------------------------------


HEADS_BY_THE_RULE = f"""
SELECT lane, id, kind, priority FROM item AS i WHERE state = 'waiting' AND NOT EXISTS (
    SELECT 1 FROM item AS j WHERE j.lane = i.lane AND j.state IN {OPEN}
    AND (j.rank, j.id) < (i.rank, i.id)) ORDER BY lane"""


class MailboxMachine(RuleBasedStateMachine):
    """Any sequence of puts, claims, ends, retries and take-overs, against plain lists."""

    @initialize()
    def open(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.portal_context = anyio.from_thread.start_blocking_portal()
        self.portal = self.portal_context.__enter__()
        self.now = 1_000_000
        opening = open_store(Path(self.directory.name) / "s.db", now_ms=lambda: self.now)
        self.store_context = self.portal.wrap_async_context_manager(opening)
        self.store = self.store_context.__enter__()
        self.lanes: dict[str, list[str]] = {}
        self.claimed: dict[str, Item] = {}
        self.put_off: dict[str, int] = {}
        self.ended: set[str] = set()
        self.priority: dict[str, Priority] = {}
        self.tried: set[str] = set()
        self.ids: dict[str, ItemId] = {}
        self.parked: dict[str, Item] = {}
        self.begun: set[str] = set()
        self.stopping: set[str] = set()
        self.count = 0
        self.fence = self.portal.call(lease, self.store)

    def teardown(self) -> None:
        if hasattr(self, "store_context"):
            self.store_context.__exit__(None, None, None)
            self.portal_context.__exit__(None, None, None)
            self.directory.cleanup()

    @rule(
        lane=st.sampled_from("abc"),
        of=st.sampled_from(
            [(Origin.ROOM_EVENT, Priority.NORMAL)] * 3
            + [(Origin.TOOL_CALL, priority) for priority in Priority]
        ),
    )
    def put(self, lane: str, of: tuple[Origin, Priority]) -> None:
        self.count += 1
        key, (origin, priority) = str(self.count), of
        item = NewItem(lane, TURN, {}, key, origin=origin, priority=priority)
        (self.ids[key],) = self.portal.call(self.store.put, [item])
        self.priority[key] = priority
        self.lanes.setdefault(lane, []).append(key)

    def order(self, key: str) -> tuple[bool, int, int]:
        return key not in self.tried, -self.priority[key], int(key)

    @rule(key=st.integers(1, 5))
    def put_again(self, key: int) -> None:
        if key <= self.count:
            self.portal.call(self.store.put, [new("z", str(key))])

    @rule()
    def claim(self) -> None:
        item = self.portal.call(claim, self.store, self.fence)
        firsts = [
            min(keys, key=self.order)
            for keys in self.lanes.values()
            if keys and not any(key in self.claimed for key in keys)
        ]
        heads = [key for key in firsts if self.put_off.get(key, 0) <= self.now]
        if item is None:
            assert not heads
        else:
            assert item.dedupe_key == min(heads, key=lambda k: (-self.priority[k], int(k)))
            self.claimed[item.dedupe_key] = item
            self.tried.add(item.dedupe_key)

    @precondition(lambda self: self.claimed)
    @rule()
    def begin(self) -> None:
        key, item = next(iter(self.claimed.items()))
        with pytest.raises(Stopped) if key in self.stopping else nullcontext():
            self.portal.call(self.store.begin, item, self.fence)
            self.begun.add(key)

    @rule(lane=st.sampled_from("abc"))
    def cancel(self, lane: str) -> None:
        if keys := self.lanes.get(lane, []):
            key = keys[-1]
            item = self.portal.call(
                self.store.cancel, self.ids[key], "enough", lambda item: []
            )  # fmt: skip
            if item.state is ItemState.CANCELLED:
                assert key not in self.claimed and key not in self.begun
                keys.remove(key)
                self.ended.add(key)
            else:
                assert key in self.claimed or key in self.begun
                self.stopping.add(key)
                self.put_off.pop(key, None)

    @precondition(lambda self: self.claimed)
    @rule(state=st.sampled_from([ItemState.DONE, ItemState.PARKED]))
    def end(self, state: ItemState) -> None:
        key, item = self.claimed.popitem()

        async def finish() -> None:
            if key in self.stopping:
                with pytest.raises(Stopped):
                    await self.store.finish(item, state, fence=self.fence)
                await self.store.finish(item, ItemState.CANCELLED, fence=self.fence)
            else:
                await self.store.finish(item, state, fence=self.fence)

        self.portal.call(finish)
        self.lanes[item.lane].remove(key)
        self.ended.add(key)
        if state is ItemState.PARKED and key not in self.stopping:
            self.parked[key] = item
            self.begun.add(key)  # whether it was delivered was not said

    @precondition(lambda self: self.parked)
    @rule(again=st.booleans())
    def decide_on_a_parked_one(self, again: bool) -> None:
        key, item = self.parked.popitem()
        if again:
            self.portal.call(self.store.replay, item.id, lambda item: [])
            self.lanes[item.lane] = sorted([*self.lanes[item.lane], key], key=int)
            self.put_off.pop(key, None)
            self.ended.remove(key)
        else:
            self.portal.call(self.store.drop, item.id, "enough", lambda item: [])

    @precondition(lambda self: self.claimed)
    @rule(delay_ms=st.integers(0, 50), delivered=st.booleans())
    def retry(self, delay_ms: int, delivered: bool) -> None:
        key, item = self.claimed.popitem()

        async def hand_back() -> None:
            await self.store.retry(
                item, fence=self.fence, delay_ms=delay_ms, reason="r", delivered=delivered
            )

        if key in self.stopping and not delivered:
            with pytest.raises(Stopped):
                self.portal.call(hand_back)
            self.claimed[key] = item
            return
        self.portal.call(hand_back)
        self.put_off[key] = self.now + delay_ms
        (self.begun.add if delivered else self.begun.discard)(key)

    @rule(passed_ms=st.integers(1, 40))
    def time_passes(self, passed_ms: int) -> None:
        self.now += passed_ms

    @rule()
    def another_process_takes_over(self) -> None:
        self.portal.call(self.store.release_lease, self.fence)
        self.fence = self.portal.call(lease, self.store)
        self.claimed.clear()

    @invariant()
    def nothing_is_lost_and_nothing_is_added(self) -> None:
        if not hasattr(self, "store"):
            return
        counts = self.portal.call(self.store.count_items)
        open_count = sum(len(keys) for keys in self.lanes.values())
        worked = counts.get("claimed", 0) + counts.get("delivering", 0)
        assert counts.get("waiting", 0) + worked == open_count
        assert worked == len(self.claimed)
        assert self.store._count(OPEN_TURNS) == open_count
        heads = [tuple(row) for row in self.store._rows("SELECT * FROM lane_head ORDER BY lane")]
        assert heads == [tuple(row) for row in self.store._rows(HEADS_BY_THE_RULE)]
        gone = [counts.get(state, 0) for state in ("done", "parked", "cancelled")]
        assert sum(gone) == len(self.ended)


TestMailboxMachine = MailboxMachine.TestCase
TestMailboxMachine.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
