"""What every store of lanes must do, written against ``mailbox.Lanes`` alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import anyio
import pytest

from homeroom.errors import LeaseLost, LimitExceeded, Misuse, NotFound, Stopped
from homeroom.items import Item, ItemKind, ItemState, NewItem, Origin, Priority
from homeroom.mailbox import CLAIM_CRASH_LIMIT, CRASH_LIMIT, Lanes, Mailbox
from homeroom.model import ItemId
from support.lanes import IMPLEMENTATIONS, Recorder, take, turn, wait_all, worker

TURN = ItemKind.TURN
Open = Callable[..., AbstractAsyncContextManager[Lanes]]


@pytest.fixture(params=sorted(IMPLEMENTATIONS))
def open_lanes(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    return partial(IMPLEMENTATIONS[request.param], tmp_path)


# --- order ---------------------------------------------------------------------------------------


async def test_bursts_of_two_lanes_are_worked_in_order_and_side_by_side(open_lanes: Open) -> None:
    async with open_lanes() as lanes:
        keys = [f"{lane}{n}" for n in range(40) for lane in "ab"]
        ids = [(await lanes.put([turn(key[0], key)]))[0] for key in keys]
        assert ids == sorted(ids), "ids sort by time"
        recorder = Recorder("a0", "b0")
        async with worker(lanes, recorder, await take(lanes)):
            with anyio.fail_after(20):
                await recorder.wait_begun("a0", "b0")
            recorder.let("a0")
            recorder.let("b0")
            await wait_all(lanes, ids)
        for lane in "ab":
            worked = [key for key in recorder.begun if key[0] == lane]
            assert worked == [key for key in keys if key[0] == lane]


async def test_an_urgent_item_passes_those_that_wait_and_disturbs_none_that_has_begun(
    open_lanes: Open,
) -> None:
    async with open_lanes() as lanes:
        await lanes.put([turn("a", "first"), turn("a", "low", priority=Priority.LOW)])
        await lanes.put([turn("a", "second"), turn("a", "third")])
        recorder = Recorder("first")
        async with worker(lanes, recorder, await take(lanes)):
            with anyio.fail_after(20):
                await recorder.wait_begun("first")
            ids = await lanes.put([turn("a", "high", priority=Priority.HIGH)])
            ids += await lanes.put([turn("a", "urgent", priority=Priority.URGENT)])
            assert recorder.begun == ["first"] and recorder.ended == []
            assert await lanes.place_in_lane(await lanes.get_item(ids[1])) == 1
            recorder.let("first")
            ids += await lanes.put([turn("a", "low", priority=Priority.LOW)])  # known already
            await wait_all(lanes, ids)
        assert recorder.begun == ["first", "urgent", "high", "second", "third", "low"]


async def test_what_people_write_in_a_room_never_overtakes_and_tool_calls_may(
    open_lanes: Open,
) -> None:
    async with open_lanes() as lanes:
        said = partial(turn, "a", origin=Origin.ROOM_EVENT)
        await lanes.put([said("ann 1", who="@ann:h"), said("bob 1", who="@bob:h")])
        await lanes.put([turn("a", "later", priority=Priority.LOW), said("ann 2", who="@ann:h")])
        await lanes.put([turn("a", "now", priority=Priority.URGENT)])
        fence, order = await take(lanes), []
        while item := (await lanes.claim([TURN], fence))[0]:
            order.append(item.dedupe_key)
            await lanes.finish(item, ItemState.DONE, fence=fence)
        assert order == ["now", "ann 1", "bob 1", "ann 2", "later"]
        for origin in (Origin.ROOM_EVENT, Origin.FOLLOW_UP):
            with pytest.raises(ValueError, match="its order counts"):
                turn("a", "x", origin=origin, priority=Priority.URGENT)


async def test_an_item_that_is_not_due_holds_its_lane_for_all_but_more_urgent_ones(
    open_lanes: Open,
) -> None:
    async with open_lanes() as lanes:
        due_s = time.time() + 2.0
        ids = await lanes.put([turn("a", "alarm", Origin.SCHEDULE, delay_ms=2000)])
        ids += await lanes.put([turn("a", "mail 1"), turn("a", "mail 2")])
        recorder = Recorder()
        async with worker(lanes, recorder, await take(lanes)):
            urgent = await lanes.put([turn("a", "urgent", priority=Priority.URGENT)])
            await wait_all(lanes, urgent)
            await wait_all(lanes, ids[:1])
            late_s = time.time() - due_s
            await wait_all(lanes, ids)
        assert recorder.begun == ["urgent", "alarm", "mail 1", "mail 2"]
        assert 0 <= late_s < 20.0, "woken at its time, not when it looks again in any case"


async def test_an_urgent_item_of_another_lane_is_first_when_a_slot_becomes_free(
    open_lanes: Open,
) -> None:
    async with open_lanes() as lanes:
        ids = await lanes.put([turn(f"lane {n}", str(n)) for n in range(8)])
        recorder = Recorder("0", "1")
        async with worker(lanes, recorder, await take(lanes), at_once=2):
            with anyio.fail_after(20):
                await recorder.wait_begun("0", "1")
            ids += await lanes.put([turn("elsewhere", "urgent", priority=Priority.URGENT)])
            recorder.let("1")
            await wait_all(lanes, ids[1:])
            recorder.let("0")
        assert recorder.begun[2] == "urgent"


async def test_turns_that_take_long_keep_nobody_from_posting(open_lanes: Open) -> None:
    async with open_lanes() as lanes:
        names = [str(n) for n in range(10)]
        turns = await lanes.put([turn(f"lane {name}", name) for name in names])
        recorder = Recorder(*names)
        async with worker(lanes, recorder, await take(lanes)):  # with fewer slots for posts
            with anyio.fail_after(20):
                await recorder.wait_begun(*names)
            posts = [NewItem(f"room {n}", ItemKind.POST, {}, f"notice {n}") for n in range(8)]
            await wait_all(lanes, await lanes.put(posts))
            assert not set(names) & set(recorder.ended)
            for name in names:
                recorder.let(name)
            await wait_all(lanes, turns)


async def test_what_an_item_holds_waits_and_keeps_nobody_else_from_a_slot(
    open_lanes: Open,
) -> None:
    async with open_lanes() as lanes:
        keys = [f"ann{n}:{number}" for number in (1, 2) for n in range(4)]
        ids = await lanes.put([turn(key.partition(":")[0], key) for key in keys])
        bob = await lanes.put([turn("bob", "bob")])
        recorder = Recorder(*keys)
        most = 0

        def holds(item: Item) -> str:
            nonlocal most
            most = max(most, sum(lane.startswith("ann") for lane in recorder.working))
            return item.lane[:3]

        async with worker(lanes, recorder, await take(lanes), 2, holds):
            await wait_all(lanes, bob)
            assert recorder.begun == [keys[0], "bob"]
            for key in keys:
                recorder.let(key)
            await wait_all(lanes, ids)
        assert most == 1
        assert [key for key in recorder.begun if key != "bob"] == keys


# --- ends ----------------------------------------------------------------------------------------


async def test_what_has_expired_is_never_worked_on_and_its_sender_is_told(
    open_lanes: Open,
) -> None:
    async with open_lanes() as lanes:
        recorder = Recorder("long")
        async with worker(lanes, recorder, await take(lanes)):
            await lanes.put([turn("a", "long")])
            with anyio.fail_after(20):
                await recorder.wait_begun("long")
            late, next_ = await lanes.put([turn("a", "late", expires_after_ms=50), turn("a", "n")])
            (item,) = await wait_all(lanes, [late])
            assert item.state is ItemState.EXPIRED and "time was up" in item.reason
            with anyio.fail_after(20):
                await recorder.wait_begun("expired:late")
            recorder.let("long")
            await wait_all(lanes, [next_])
        assert "late" not in recorder.begun and "n" in recorder.begun


async def test_what_may_have_been_delivered_does_not_expire_but_is_looked_for(
    open_lanes: Open,
) -> None:
    async with open_lanes() as lanes:
        fence = await take(lanes)
        (item_id,) = await lanes.put([turn("a", "sent", expires_after_ms=1_000)])
        item, _ = await lanes.claim([TURN], fence)
        assert item and item.id == item_id
        await lanes.retry(item, fence=fence, delay_ms=1_100, reason="lost", delivered=True)
        recorder = Recorder()
        async with worker(lanes, recorder, fence):
            (ended,) = await wait_all(lanes, [item_id])
        assert ended.state is ItemState.DONE and recorder.begun == ["sent"]
        assert time.time() * 1000 >= ended.expires_ms


async def test_what_waits_ends_at_once_when_a_person_cancels_it(open_lanes: Open) -> None:
    async with open_lanes() as lanes:
        running, waiting, after = await lanes.put([turn("a", key) for key in ("1", "2", "3")])
        recorder = Recorder("1")
        async with worker(lanes, recorder, await take(lanes)):
            with anyio.fail_after(20):
                await recorder.wait_begun("1")
            tell = [turn("told", "cancelled")]
            ended = await lanes.cancel(waiting, "enough", lambda item: tell)
            assert (ended.id, ended.state) == (waiting, ItemState.CANCELLED)
            with anyio.fail_after(20):
                await recorder.wait_begun("cancelled")
            assert "3" not in recorder.begun, "the lane is still being worked"
            recorder.let("1")
            items = await wait_all(lanes, [running, waiting, after])
        states = [item.state for item in items]
        assert states == [ItemState.DONE, ItemState.CANCELLED, ItemState.DONE]
        assert recorder.ended == ["cancelled", "1", "3"]
        with pytest.raises(Misuse, match="is done"):
            await lanes.cancel(after, "", lambda item: ())
        with pytest.raises(NotFound):
            await lanes.cancel(ItemId("nope"), "", lambda item: ())


def nobody(item: Item) -> Sequence[NewItem]:
    raise AssertionError("whoever ends it tells of it")


async def told_by(lanes: Lanes, recorder: Recorder, key: str) -> dict[str, Any]:
    """What somebody was told by the item with that key, once it is there."""
    with anyio.fail_after(20):
        await recorder.wait_begun(key)
    (item_id,) = await lanes.put([turn("told", key)])
    return dict((await lanes.get_item(item_id)).payload)


async def test_what_is_worked_on_is_stopped_from_another_process_and_its_lane_goes_on(
    open_lanes: Open,
) -> None:
    async with open_lanes() as lanes, open_lanes() as other:
        running, after, elsewhere = await lanes.put(
            [turn("a", "1"), turn("a", "2"), turn("b", "3")]
        )
        recorder = Recorder("1", "3")
        async with worker(lanes, recorder, await take(lanes)):
            with anyio.fail_after(20):
                await recorder.wait_begun("1", "3")
            asked = await other.cancel(running, "enough", nobody, "@ann:h")
            assert asked.stop and (asked.stop.who, asked.stop.reason) == ("@ann:h", "enough")
            one, _ = await wait_all(other, [running, after])
            told = await told_by(lanes, recorder, "stopped:1")
            recorder.let("3")
            (untouched,) = await wait_all(other, [elsewhere])
        assert (one.state, one.reason, one.result) == (ItemState.CANCELLED, "enough", None)
        assert untouched.state is ItemState.DONE and recorder.stopped == ["1"]
        assert recorder.ended[0] == "1", "it had come to an answer, which does not count"
        assert told == {"by": "@ann:h", "delivered": True, "goes_on": False}
        with pytest.raises(Misuse, match="is cancelled already"):
            await lanes.cancel(running, "", nobody)


async def test_what_cannot_be_stopped_is_broken_off_and_that_is_told(open_lanes: Open) -> None:
    async with open_lanes() as lanes:
        running, after = await lanes.put(
            [turn("a", "1", payload={"unstoppable": True}), turn("a", "2")]
        )
        recorder = Recorder("1")
        async with worker(lanes, recorder, await take(lanes)):
            with anyio.fail_after(20):
                await recorder.wait_begun("1")
            await lanes.cancel(running, "enough", nobody)
            one, two = await wait_all(lanes, [running, after])
            told = await told_by(lanes, recorder, "stopped:1")
        assert (one.state, two.state) == (ItemState.CANCELLED, ItemState.DONE)
        assert "1" not in recorder.ended
        assert told["goes_on"] is True


@pytest.mark.parametrize("begun", [False, True])
async def test_after_a_stop_nothing_begins_and_no_other_end_is_written(
    open_lanes: Open, begun: bool
) -> None:
    async with open_lanes() as lanes:
        fence = await take(lanes)
        (item_id,) = await lanes.put([turn("a", "1")])
        item, _ = await lanes.claim([TURN], fence)
        assert item
        if begun:
            await lanes.begin(item, fence)
        first = await lanes.cancel(item_id, "enough", nobody)
        assert (await lanes.cancel(item_id, "more", nobody)).stop == first.stop, "the first counts"
        assert [one.id for one in await lanes.list_stopping()] == [item_id]
        with pytest.raises(Stopped):
            await lanes.begin(item, fence)
        for state in (ItemState.DONE, ItemState.PARKED):
            with pytest.raises(Stopped):
                await lanes.finish(item, state, fence=fence, then=[turn("told", "answer")])
        assert await lanes.count_items() == {"delivering" if begun else "claimed": 1}
        await lanes.finish(item, ItemState.CANCELLED, fence=fence, reason="enough", delivered=begun)
        assert await lanes.list_stopping() == []
        assert (await lanes.get_item(item_id)).state is ItemState.CANCELLED


@pytest.mark.parametrize("delivered", [False, True])
async def test_a_turn_that_was_put_off_is_stopped_now_if_it_may_have_been_delivered(
    open_lanes: Open, delivered: bool
) -> None:
    async with open_lanes() as lanes:
        fence = await take(lanes)
        (item_id,) = await lanes.put([turn("a", "1")])
        item, _ = await lanes.claim([TURN], fence)
        assert item
        await lanes.begin(item, fence)
        hour_ms = 3_600_000
        await lanes.retry(item, fence=fence, delay_ms=hour_ms, reason="x", delivered=delivered)
        after = await lanes.cancel(item_id, "enough", lambda item: [turn("told", "at once")])
        if not delivered:
            assert after.state is ItemState.CANCELLED
            return
        assert after.state is ItemState.WAITING
        recorder = Recorder()
        async with worker(lanes, recorder, fence):
            (ended,) = await wait_all(lanes, [item_id])
            told = await told_by(lanes, recorder, "stopped:1")
        assert ended.state is ItemState.CANCELLED and told["delivered"] is True
        assert "1" not in recorder.begun, "nothing is sent again"


async def test_a_stop_outlives_whoever_was_to_carry_it_out(open_lanes: Open) -> None:
    async with open_lanes() as lanes:
        fence = await take(lanes, "dead")
        (item_id,) = await lanes.put([turn("a", "1")])
        item, _ = await lanes.claim([TURN], fence)
        assert item
        await lanes.begin(item, fence)
        await lanes.cancel(item_id, "enough", nobody, "@ann:h")
        heir = await lanes.take_lease("heir", rank=1, ttl_ms=600_000, is_gone="dead".__eq__)
        recorder = Recorder()
        async with worker(lanes, recorder, heir.fence):
            (ended,) = await wait_all(lanes, [item_id])
            told = await told_by(lanes, recorder, "stopped:1")
        assert (ended.state, ended.reason) == (ItemState.CANCELLED, "enough")
        assert told["by"] == "@ann:h" and "1" not in recorder.begun


async def test_a_retry_keeps_the_order_a_sick_item_is_parked_and_replayed(
    open_lanes: Open,
) -> None:
    async with open_lanes() as lanes:
        ids = await lanes.put(
            [
                turn("a", "1", payload={"errors": {"0": "away"}}),
                turn("a", "sick", payload={"sick": True}),
                turn("a", "3"),
            ]
        )
        recorder = Recorder()
        fence = await take(lanes)
        async with worker(lanes, recorder, fence):
            items = await wait_all(lanes, ids)
            with anyio.fail_after(20):
                await recorder.wait_begun("parked:sick")
        assert [item.state.value for item in items] == ["done", "parked", "done"]
        worked = [key for key in recorder.begun if key != "parked:sick"]
        assert worked == ["1", "1", "sick", "3"]

        newer = await lanes.put([turn("a", "newer")])
        replayed, place = await lanes.replay(ids[1], lambda item: ())
        assert (replayed.id, place) == (ids[1], 0)
        again = Recorder()
        async with worker(lanes, again, fence):
            await wait_all(lanes, [ids[1], *newer])
        assert [key for key in again.begun if key != "parked:sick"] == ["sick", "newer"]
        told = list[Item]()

        def tell(item: Item) -> list[NewItem]:
            told.append(item)
            return [turn("notices", "dropped")]

        await lanes.drop(ids[1], "enough", tell)
        assert [item.id for item in told] == [ids[1]]
        with pytest.raises(Misuse):
            await lanes.drop(ids[1], "again", tell)
        assert len(told) == 1
        assert (await lanes.get_item(ids[1])).state is ItemState.CANCELLED


# --- what is accepted ----------------------------------------------------------------------------


async def test_what_was_put_off_is_due_in_time_though_the_clock_went_back(
    open_lanes: Open,
) -> None:
    async with open_lanes() as lanes:
        fence = await take(lanes)
        await lanes.put([turn("a", "tried"), turn("b", "alarm", Origin.SCHEDULE, delay_ms=60_000)])
        item, _ = await lanes.claim([ItemKind.TURN], fence)
        assert item
        hour_ms = 3_600_000
        await lanes.retry(item, fence=fence, delay_ms=hour_ms, reason="away", delivered=False)
        assert (await lanes.claim([ItemKind.TURN], fence))[0] is None
        await lanes.follow_clock(-hour_ms, fence)
        again, _ = await lanes.claim([ItemKind.TURN], fence)
        assert again and again.dedupe_key == "tried"
        await lanes.retry(again, fence=fence, delay_ms=1, reason="away", delivered=False)
        await lanes.follow_clock(3 * hour_ms, fence)
        with anyio.fail_after(5):
            while (last := (await lanes.claim([TURN], fence))[0]) is None:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        late_ms = last.failing_since_ms - again.failing_since_ms
        assert late_ms == 3 * hour_ms, "it has not been failing for three hours"
        assert (await lanes.claim([ItemKind.TURN], fence))[0] is None, "an alarm keeps its time"


async def test_a_message_that_waits_for_the_next_one_is_due_in_time_though_the_clock_went_back(
    open_lanes: Open,
) -> None:
    async with open_lanes() as lanes:
        fence, hour_ms = await take(lanes), 3_600_000
        said = turn("a", "said", Origin.ROOM_EVENT, who="@ann:h", quiet_ms=hour_ms)
        await lanes.put([said])
        assert (await lanes.claim([TURN], fence))[0] is None
        await lanes.follow_clock(-hour_ms, fence)
        item, _ = await lanes.claim([TURN], fence)
        assert item and item.dedupe_key == "said"


async def test_a_full_lane_and_a_full_mailbox_refuse_and_write_nothing(open_lanes: Open) -> None:
    async with open_lanes(max_waiting=50, max_waiting_total=60) as lanes:
        await lanes.put([turn("a", str(n)) for n in range(50)])
        with pytest.raises(LimitExceeded):
            await lanes.put([turn("z", f"z{n}") for n in range(51)])
        with pytest.raises(LimitExceeded, match="A conversation with an agent may have at most 50"):
            await lanes.put([turn("a", "51st")])
        await lanes.put([turn("b", f"b{n}") for n in range(10)])
        with pytest.raises(LimitExceeded, match="All conversations together may have at most 60"):
            await lanes.put([turn("c", "61st")])
        assert await lanes.count_items() == {"waiting": 60}
        await lanes.put([turn("a", "7")])  # known already


async def test_the_same_cause_is_worked_on_once(open_lanes: Open) -> None:
    async with open_lanes() as lanes, open_lanes() as other:
        recorder = Recorder()
        async with worker(lanes, recorder, await take(lanes)):
            ids = [(await store.put([turn("a", "one")]))[0] for store in (lanes, other, lanes)]
            await wait_all(lanes, ids)
            assert len(set(ids)) == 1
            assert await other.put([turn("b", "one")]) == ids[:1]
        assert recorder.begun == ["one"]


async def test_an_item_keeps_what_is_known_of_it(open_lanes: Open) -> None:
    async with open_lanes() as lanes:
        put = turn("a", "k", Origin.SCHEDULE, who="clock", priority=Priority.HIGH, payload={"x": 1},
                   expires_after_ms=60_000)  # fmt: skip
        before_ms = time.time() * 1000
        (item_id,) = await lanes.put([put])
        item = await lanes.get_item(item_id)
        assert (item.lane, item.kind, item.payload, item.dedupe_key) == ("a", TURN, {"x": 1}, "k")
        assert (item.origin, item.who, item.priority) == (Origin.SCHEDULE, "clock", Priority.HIGH)
        assert item.attempts == 0 and item.state is ItemState.WAITING
        assert before_ms - 1 <= item.created_ms <= item.expires_ms - 60_000


# --- claims and fences ---------------------------------------------------------------------------


async def test_whoever_lost_the_lease_writes_nothing_and_the_heir_knows_what_was_sent(
    open_lanes: Open,
) -> None:
    async with open_lanes() as first, open_lanes() as second:
        old = await take(first, "first", ttl_ms=0)
        await first.put([turn("a", "sent"), turn("b", "only claimed")])
        sent, claimed = [(await first.claim([TURN], old))[0] for _ in range(2)]
        assert sent and claimed and not sent.begun
        await first.begin(sent, old)
        assert (await first.get_item(sent.id)).state is ItemState.DELIVERING
        assert (await first.get_item(claimed.id)).state is ItemState.CLAIMED
        fence = await take(second, "second")
        assert fence > old
        for attempt in (
            first.begin(claimed, old),
            first.finish(sent, ItemState.DONE, fence=old),
            first.retry(sent, fence=old, delay_ms=0, reason="", delivered=False),
            first.claim([TURN], old),
            first.renew_lease(old, 1000),
        ):
            with pytest.raises(LeaseLost):
                await attempt
        heirs = [(await second.claim([TURN], fence))[0] for _ in range(2)]
        assert [(item.id, item.begun, item.key) for item in heirs if item] == [
            (sent.id, True, sent.key),
            (claimed.id, False, claimed.key),
        ]
        counts = [(item.crash_count, item.claim_crash_count) for item in heirs if item]
        assert counts == [(1, 0), (0, 1)]


async def die_with(lanes: Lanes, times: int, *begun: ItemKind) -> None:
    """So many processes claim all there is, begin what is of the kinds ``begun``, and die."""
    kinds = [TURN, ItemKind.POST]
    for number in range(times):
        fence = await take(lanes, f"dying {number}", ttl_ms=0)
        while item := (await lanes.claim(kinds, fence, begin=[ItemKind.POST]))[0]:
            if item.kind in begun:
                await lanes.begin(item, fence)


async def test_processes_that_die_of_something_else_do_not_count_against_what_they_had_in_hand(
    open_lanes: Open,
) -> None:
    async with open_lanes() as lanes:
        post = NewItem("room", ItemKind.POST, {}, "post")
        ids = await lanes.put([turn("a", "innocent"), post])
        await die_with(lanes, 2 * CRASH_LIMIT)
        async with worker(lanes, Recorder(), await take(lanes)):
            items = await wait_all(lanes, ids)
        assert [item.state for item in items] == [ItemState.DONE] * 2


@pytest.mark.parametrize(
    ("kind", "begun", "limit"),
    [
        (TURN, [TURN], CRASH_LIMIT),
        (TURN, [], CLAIM_CRASH_LIMIT),
        (ItemKind.POST, [], CLAIM_CRASH_LIMIT),
    ],
)
async def test_an_item_that_kills_whoever_has_it_in_hand_is_given_up_in_the_end(
    open_lanes: Open, kind: ItemKind, begun: list[ItemKind], limit: int
) -> None:
    async with open_lanes() as lanes:
        ids = await lanes.put([NewItem("a", kind, {}, "poison"), turn("a", "next")])
        await die_with(lanes, limit, *begun)
        async with worker(lanes, Recorder(), await take(lanes)):
            poison, after = await wait_all(lanes, ids)
        assert poison.reason == f"Homeroom died {limit} times while it worked on this."
        assert (poison.state, after.state) == (ItemState.PARKED, ItemState.DONE)
        assert poison.begun is (kind is ItemKind.POST or bool(begun))


async def test_a_verdict_belongs_to_the_claim_it_is_about(open_lanes: Open) -> None:
    async with open_lanes() as lanes:
        fence = await take(lanes)
        await lanes.put([turn("a", "1")])
        item, _ = await lanes.claim([TURN], fence)
        assert item
        await lanes.finish(item, ItemState.DONE, fence=fence)
        with pytest.raises(LeaseLost):
            await lanes.finish(item, ItemState.PARKED, fence=fence)
        assert (await lanes.get_item(item.id)).state is ItemState.DONE


# --- waking up -----------------------------------------------------------------------------------


async def test_an_idle_worker_starts_what_is_put_without_waiting_for_a_clock(
    open_lanes: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody looks for other processes' items here: that would find these as well."""
    monkeypatch.setattr("homeroom.store.connection._WATCH_S", 3600.0)
    async with open_lanes() as lanes:
        recorder = Recorder()
        async with worker(lanes, recorder, await take(lanes)):
            for number in range(20):
                await anyio.wait_all_tasks_blocked()
                await lanes.put([turn("a", str(number))])
                with anyio.fail_after(20):
                    await recorder.wait_begun(str(number))


async def test_what_another_process_puts_is_started_within_100_ms(open_lanes: Open) -> None:
    """Two openings share nothing but the file, as two processes do. The half of many that was
    quicker tells of the mailbox; the other half tells of what else this machine does."""
    took_s: list[float] = []
    async with open_lanes() as lanes, open_lanes() as other:
        recorder = Recorder()
        async with worker(lanes, recorder, await take(lanes)):
            for number in range(20):
                (item_id,) = await other.put([turn("a", str(number))])
                put_s = time.perf_counter()
                with anyio.fail_after(20):
                    await recorder.wait_begun(str(number))
                took_s.append(time.perf_counter() - put_s)
                ended = await Mailbox(other).wait_ended(item_id, 20)
                assert ended.state is ItemState.DONE
    assert median(took_s) < 0.1, took_s
