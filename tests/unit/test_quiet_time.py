"""What one person writes in one go becomes one turn, and each message is answered for."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from homeroom.decide import decide
from homeroom.deliveries import Deliveries
from homeroom.items import JOINED_CHARS, QUIET_LIMIT, Item, ItemKind, ItemState, NewItem
from homeroom.model import AgentId, EventId, GhostId, Mapping, RoomEvent, RoomId, SyncBatch
from homeroom.store import Store, open_store

ROOM = RoomId("!r:hs.test")
HOME = Mapping(agent_id=AgentId("agent-1"), ghost=GhostId("@agent_1:hs.test"), room_id=ROOM)
QUIET_MS = 2_000


def is_ghost(user: str) -> bool:
    return user.startswith("@agent_")


judge = partial(decide, is_ghost=is_ghost, quiet_ms=QUIET_MS)


class Clocked:
    """A store with a clock of its own that hears messages."""

    def __init__(self, store: Store, now: list[int]) -> None:
        self.store, self.now, self.fence = store, now, 0

    async def hear(self, text: str, who: str = "@ann:hs.test", **content: object) -> list[str]:
        """The events that their ghost is shown to have read."""
        if not self.fence:
            self.fence = (await self.store.take_lease("me", rank=1, ttl_ms=10**9)).fence
            await self.store.save_mapping(HOME, judge, self.fence)
        said = {"msgtype": "m.text", "body": text, **content}
        event = RoomEvent(EventId(f"${text[:9]}"), ROOM, who, "m.room.message", said, self.now[0])
        batch = SyncBatch("s", (event,))
        accepted = await self.store.record_batch(batch, judge, is_ghost, self.fence)
        return [newest.event_id for newest in accepted]

    async def claim(self) -> tuple[Item | None, int | None]:
        return await self.store.claim([ItemKind.TURN], self.fence)

    async def texts(self) -> list[str]:
        """The turns there are, worked one after the other at their times."""
        found = []
        while True:
            item, due_ms = await self.claim()
            if item:
                found.append(item.payload["text"])
                await self.store.finish(item, ItemState.DONE, fence=self.fence, result={})
            elif due_ms:
                self.now[0] = due_ms
            else:
                return found


@pytest.fixture
def now() -> list[int]:
    return [1_000_000]


def opened(tmp_path: Path, now: list[int], **limits: int):  # type: ignore[no-untyped-def]
    return open_store(tmp_path / "s.db", now_ms=lambda: now[0], **limits)


async def test_messages_with_short_pauses_become_one_turn_and_each_is_answered_for(
    tmp_path: Path, now: list[int]
) -> None:
    async with opened(tmp_path, now) as store:
        room = Clocked(store, now)
        for text in ("one", "two", "three"):
            assert await room.hear(text) == [f"${text}"], "each is shown as read"
            assert (await room.claim())[0] is None, "not before it is quiet"
            now[0] += QUIET_MS - 1
        now[0] += 1
        turn, _ = await room.claim()
        assert turn and turn.payload["text"] == "one\n\ntwo\n\nthree"
        assert turn.payload["event_id"] == "$three", "the answer refers to the last"
        stories = [await Deliveries(store).explain(f"${name}") for name in ("one", "two", "three")]
        assert {story.item_id for story in stories} == {turn.id}
        assert [story.event_id for story in stories] == ["$one", "$two", "$three"]
        for story in stories:
            assert "joined by the same person's next message $two" in str(story.steps)
            assert f"see item {turn.id}" in story.now
        assert await store.count_items() == {"claimed": 1}


async def test_a_person_who_never_stops_is_answered_at_the_latest_after_five_quiet_times(
    tmp_path: Path, now: list[int]
) -> None:
    async with opened(tmp_path, now) as store:
        room, began_ms, count = Clocked(store, now), now[0], 0
        while (await room.claim())[0] is None if count else True:
            count += 1
            assert count < 100
            await room.hear(f"{count}")
            now[0] += QUIET_MS // 2
        assert now[0] - began_ms <= QUIET_LIMIT * QUIET_MS + QUIET_MS // 2


async def test_what_waits_for_a_busy_agent_is_joined_and_nobody_is_overtaken(
    tmp_path: Path, now: list[int]
) -> None:
    async with opened(tmp_path, now) as store:
        room = Clocked(store, now)
        await room.hear("first")
        now[0] += QUIET_MS
        busy, _ = await room.claim()
        assert busy
        for text in ("a1", "a2"):
            await room.hear(text)
            now[0] += 10 * QUIET_MS
        await room.hear("b1", "@bob:hs.test")
        await room.hear("a3")
        await room.hear("a4")
        await store.finish(busy, ItemState.DONE, fence=room.fence, result={})
        assert await room.texts() == ["a1\n\na2", "b1", "a3\n\na4"]


async def test_what_does_not_belong_together_is_not_joined(tmp_path: Path, now: list[int]) -> None:
    thread = {"m.relates_to": {"rel_type": "m.thread", "event_id": "$root"}}
    async with opened(tmp_path, now) as store:
        room = Clocked(store, now)
        await room.hear("plain")
        await room.hear("threaded", **thread)
        await room.hear("long" + "x" * (JOINED_CHARS - 4), **thread)
        assert [text[:8] for text in await room.texts()] == ["plain", "threaded", "longxxxx"]


async def test_what_was_tried_is_left_as_it_was_sent(tmp_path: Path, now: list[int]) -> None:
    async with opened(tmp_path, now) as store:
        room = Clocked(store, now)
        await room.hear("tried")
        now[0] += QUIET_MS
        tried, _ = await room.claim()
        assert tried
        await store.retry(tried, fence=room.fence, delay_ms=0, reason="away", delivered=False)
        await room.hear("later")
        assert await room.texts() == ["tried", "later"]


async def test_a_full_lane_still_takes_what_joins(tmp_path: Path, now: list[int]) -> None:
    async with opened(tmp_path, now, max_waiting=1) as store:
        room = Clocked(store, now)
        await room.hear("one")
        await room.hear("two")
        assert await room.hear("bob", "@bob:hs.test") == []
        assert await room.texts() == ["one\n\ntwo"]


async def test_a_message_that_is_heard_twice_joins_once(tmp_path: Path, now: list[int]) -> None:
    async with opened(tmp_path, now) as store:
        room = Clocked(store, now)
        for text in ("one", "two", "two", "one"):
            await room.hear(text)
        assert await room.texts() == ["one\n\ntwo"]


def test_without_a_quiet_time_every_message_is_a_turn_of_its_own() -> None:
    content = {"msgtype": "m.text", "body": "x"}
    event = RoomEvent(EventId("$e"), ROOM, "@ann:hs.test", "m.room.message", content, 5)
    (turn,) = decide(event, HOME, 1, is_ghost=is_ghost).items
    assert isinstance(turn, NewItem) and turn.quiet_ms == 0
