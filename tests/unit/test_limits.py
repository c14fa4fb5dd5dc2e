"""What a lane takes, what the store keeps, and who is told."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from homeroom.decide import chat_items, decide, held_notices
from homeroom.errors import LimitExceeded
from homeroom.items import ItemKind, ItemState
from homeroom.model import AgentId, EventId, GhostId, ItemId, Mapping, RoomEvent, RoomId, SyncBatch
from homeroom.store import Store, open_store
from support.outcome import outcome_of

DAY_MS = 86_400_000
ROOM = RoomId("!r:hs.test")
HOME = Mapping(agent_id=AgentId("agent-1"), ghost=GhostId("@agent_1:hs.test"), room_id=ROOM)


def is_ghost(user: str) -> bool:
    return user.startswith("@agent_")


judge = partial(decide, is_ghost=is_ghost, catch_up_ms=1000, keep_ms=30 * DAY_MS)


def said(name: str, late_ms: int = 0) -> RoomEvent:
    content = {"msgtype": "m.text", "body": name}
    return RoomEvent(
        EventId(f"${name}"), ROOM, "@you:hs.test", "m.room.message", content, 5, late_ms=late_ms
    )


async def lease(store: Store) -> int:
    fence = (await store.take_lease("me", rank=1, ttl_ms=10**12)).fence
    await store.save_mapping(HOME, judge, fence)
    return fence


async def hear(store: Store, fence: int, *events: RoomEvent) -> list[str]:
    """The events that were accepted last."""
    batch = SyncBatch("s", events)
    accepted = await store.record_batch(batch, judge, is_ghost, fence, held_notices)
    return [newest.event_id for newest in accepted]


async def work(store: Store, fence: int, kind: ItemKind) -> list[str]:
    found = []
    while (item := (await store.claim([kind], fence))[0]) is not None:
        found.append(item.payload.get("text") or item.payload["content"]["body"])
        await store.finish(item, ItemState.DONE, fence=fence, result={})
    return found


async def test_one_message_too_many_is_refused_at_once_and_its_sender_told(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db", max_waiting=2) as store:
        fence = await lease(store)
        assert await hear(store, fence, said("1"), said("2"), said("3")) == ["$2"]
        (notice,) = await work(store, fence, ItemKind.POST)
        assert "not taken" in notice
        outcome = await outcome_of(store, "$3")
        assert outcome and outcome[0].startswith("refused: 2 messages are waiting")
        assert await work(store, fence, ItemKind.TURN) == ["1", "2"]
        assert await hear(store, fence, said("4")) == ["$4"], "there is room again"


async def test_a_tool_is_told_and_nothing_of_its_chat_is_written(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db", max_waiting=1) as store:
        fence = await lease(store)
        chat = partial(chat_items, HOME.agent_id, HOME, client="c", mirror=True)
        await store.put(chat("first", key="1"))
        with pytest.raises(LimitExceeded, match="at most 1 messages waiting"):
            await store.put(chat("second", key="2"))
        await store.put(chat("first", key="1"))  # known already
        await store.put(chat_items(HOME.agent_id, HOME, "x", client="c", mirror=False, key="3"))
        assert len(await work(store, fence, ItemKind.POST)) == 1
        assert await work(store, fence, ItemKind.TURN) == ["first", "x"]


OTHER = Mapping(
    agent_id=AgentId("agent-2"), ghost=GhostId("@agent_2:hs.test"), room_id=RoomId("!o:hs.test")
)


async def test_all_agents_together_have_a_limit_too_and_its_notices_always_find_room(
    tmp_path: Path,
) -> None:
    async with open_store(tmp_path / "s.db", max_waiting=5, max_waiting_total=3) as store:
        fence = await lease(store)
        await store.save_mapping(OTHER, judge, fence)
        await hear(store, fence, said("1"), said("2"))
        elsewhere = [replace(said(name), room_id=OTHER.room_id) for name in ("3", "4", "5")]
        await hear(store, fence, *elsewhere)
        outcome = await outcome_of(store, "$4")
        assert outcome and outcome[0] == "refused: 3 messages are waiting for all agents together"
        with pytest.raises(LimitExceeded, match="All conversations together may have at most 3"):
            await store.put(chat_items(HOME.agent_id, HOME, "x", client="c", mirror=True, key="k"))
        notices = await work(store, fence, ItemKind.POST)
        assert len(notices) == 2 and all("was not taken" in notice for notice in notices)
        assert await work(store, fence, ItemKind.TURN) == ["1", "2", "3"]


async def test_catching_up_takes_what_fits_and_says_what_is_left(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db", max_waiting=2) as store:
        fence = await lease(store)
        await hear(store, fence, *(said(str(n), late_ms=DAY_MS) for n in range(5)))
        answered = []
        for left in ("3 messages were", "1 message was", None):
            await work(store, fence, ItemKind.POST)
            await hear(store, fence, said("!catchup" + " " * len(answered)))
            notices = await work(store, fence, ItemKind.POST)
            assert (left in notices[0]) if left else (notices == [])
            answered += await work(store, fence, ItemKind.TURN)
        assert answered == ["0", "1", "2", "3", "4"]


async def test_of_a_backlog_what_the_lane_cannot_take_is_kept_in_order_and_counted(
    tmp_path: Path,
) -> None:
    async with open_store(tmp_path / "s.db", max_waiting=2) as store:
        fence = await lease(store)

        async def step(*numbers: int, has_more: bool) -> None:
            events = tuple(said(str(n), late_ms=1) for n in numbers)
            batch = SyncBatch("s", events, has_more=has_more)
            await store.record_batch(batch, judge, is_ghost, fence, held_notices)

        await step(0, 1, 2, has_more=True)
        assert await work(store, fence, ItemKind.TURN) == ["0", "1"]
        await step(3, 4, has_more=False)
        assert await work(store, fence, ItemKind.TURN) == [], "there is room, but 2 comes first"
        (notice,) = await work(store, fence, ItemKind.POST)
        assert "3 messages were" in notice and "more than I can take" in notice
        outcome = await outcome_of(store, "$4")
        assert outcome and outcome[0].startswith("too many at once")
        await hear(store, fence, said("new"))
        assert await work(store, fence, ItemKind.TURN) == ["new"], "what is said now is no backlog"
        await hear(store, fence, said("!catchup"))
        assert await work(store, fence, ItemKind.TURN) == ["2", "3"]
        assert "1 message was" in (await work(store, fence, ItemKind.POST))[0]


async def test_catching_up_on_a_full_lane_is_told_to_wait(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db", max_waiting=1) as store:
        fence = await lease(store)
        await hear(store, fence, said("late", late_ms=DAY_MS), said("now"))
        await work(store, fence, ItemKind.POST)
        await hear(store, fence, said("!catchup"))
        notices = await work(store, fence, ItemKind.POST)
        assert any("Write !catchup again" in notice for notice in notices)


async def test_what_has_ended_is_pruned_and_what_has_not_is_kept(tmp_path: Path) -> None:
    now = [100 * DAY_MS]
    async with open_store(tmp_path / "s.db", now_ms=lambda: now[0]) as store:
        fence = await lease(store)
        await hear(store, fence, said("done"), said("parked"), said("waiting"))
        await work_one(store, fence, ItemState.DONE)
        await work_one(store, fence, ItemState.PARKED)
        keep_ms = 30 * DAY_MS
        assert await store.prune(keep_ms, fence) == 0

        now[0] += 30 * DAY_MS + 1
        assert await store.prune(keep_ms, fence) == 1
        assert await store.count_items() == {"parked": 1, "waiting": 1}
        again = await hear(store, fence, said("done"))
        assert again == [], "its id is known longer than its item"

        now[0] += DAY_MS
        assert await store.prune(keep_ms, fence) == 1
        assert await outcome_of(store, "$done") is None
        assert await outcome_of(store, "$parked")
        assert await hear(store, fence, said("done", late_ms=31 * DAY_MS)) == []
        outcome = await outcome_of(store, "$done")
        assert outcome and outcome[0].startswith("too old"), "not answered a second time"

        ((parked,), _) = await store.page_parked("", 5, "")
        await store.drop(ItemId(parked.item.id), "enough", lambda item: ())
        now[0] += 31 * DAY_MS
        while await store.prune(keep_ms, fence):
            pass
        assert await store.count_items() == {"waiting": 1}


async def test_what_expired_or_was_cancelled_is_pruned_like_what_is_done(tmp_path: Path) -> None:
    now = [100 * DAY_MS]
    async with open_store(tmp_path / "s.db", now_ms=lambda: now[0]) as store:
        fence = await lease(store)
        chat = partial(chat_items, HOME.agent_id, HOME, client="c", mirror=False)
        await store.put(chat("late", key="1", expires_after_ms=5))
        (cancelled,) = await store.put(chat("unwanted", key="2"))
        await store.cancel(cancelled, "enough", lambda item: ())
        now[0] += 5
        assert await store.claim([ItemKind.TURN], fence) == (None, None)
        assert await store.count_items() == {"cancelled": 1, "expired": 1}
        assert await store.prune(30 * DAY_MS, fence) == 0
        now[0] += 31 * DAY_MS
        assert await store.prune(30 * DAY_MS, fence) == 2
        assert await store.count_items() == {}


async def work_one(store: Store, fence: int, state: ItemState) -> None:
    item, _ = await store.claim([ItemKind.TURN], fence)
    assert item
    await store.finish(item, state, fence=fence)
