"""The story of a message, told from a real store."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import pytest

from homeroom.deliveries import Deliveries
from homeroom.errors import Misuse, NotFound
from homeroom.model import (
    AgentId,
    Decision,
    EventId,
    GhostId,
    Item,
    ItemKind,
    ItemState,
    Mapping,
    RoomEvent,
    RoomId,
    SyncBatch,
)
from homeroom.relay import chat_items, decide
from homeroom.store import Store, open_store

ROOM = RoomId("!r:hs.test")
HOME = Mapping(agent_id=AgentId("agent-1"), ghost=GhostId("@agent_1:hs.test"), room_id=ROOM)
SECRET = "the text that no story tells"


def is_ghost(user: str) -> bool:
    return user.startswith("@agent_")


def judge(event: RoomEvent, mapping: Mapping, people: int) -> Decision:
    return decide(event, mapping, people, is_ghost=is_ghost)


def said(event_id: str, msgtype: str = "m.text", room: RoomId = ROOM) -> RoomEvent:
    content = {"msgtype": msgtype, "body": SECRET}
    return RoomEvent(EventId(event_id), room, "@you:hs.test", "m.room.message", content, 1_000_000)


async def hear(store: Store, *events: RoomEvent) -> int:
    """The fence of the lease under which the events were recorded."""
    fence = (await store.take_lease("me", rank=1, ttl_ms=60_000)).fence
    await store.save_mapping(HOME, judge, fence)
    await store.record_batch(SyncBatch("s2", events), judge, is_ghost, fence)
    return fence


async def claim(store: Store, fence: int, kind: ItemKind = ItemKind.TURN) -> Item:
    item, _ = await store.claim([kind], fence)
    assert item
    return item


async def test_the_story_goes_from_the_event_over_every_try_to_the_post(tmp_path: Path) -> None:
    now = [2_000_000]
    async with open_store(tmp_path / "s.db", now_ms=lambda: now[0]) as store:
        fence = await hear(store, said("$1"))
        turn = await claim(store, fence)
        why = "Letta is not available."
        await store.retry(turn, fence=fence, delay_ms=5_000, reason=why, delivered=False)
        now[0] += 5_000
        turn = await claim(store, fence)
        post = chat_items(HOME.agent_id, HOME, "x", client="c", mirror=True, key="k")[1]
        reply = replace(post, dedupe_key=f"reply:{turn.id}")
        await store.finish(turn, ItemState.DONE, fence=fence, result={"text": SECRET}, then=[reply])
        assert (await Deliveries(store).explain("$1")).state == "working"
        now[0] += 1_000
        posting = await claim(store, fence, ItemKind.POST)
        await store.finish(posting, ItemState.DONE, fence=fence, result={"event_id": "$answer"})

        story = await Deliveries(store).explain(" $1 ")
        assert story == await Deliveries(store).explain(turn.id)
    assert (story.state, story.sender, story.room_id) == ("answered", "@you:hs.test", ROOM)
    expected = (
        "Received from @you:hs.test in !r:hs.test, sent 1970-01-01 00:16:40 UTC",
        f"Accepted for agent agent-1 as item {turn.id}",
        "attempt 1",
        "Put off: Letta is not available. Next try 1970-01-01 00:33:25 UTC.",
        "attempt 2",
        "ended its turn with an answer",
        "The answer was posted in !r:hs.test as $answer",
    )
    assert len(story.steps) == len(expected)
    for step, part in zip(story.steps, expected, strict=True):
        assert part in step.text
    assert SECRET not in str(story)


async def test_a_message_that_was_not_relayed_is_told_with_its_rule(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        await hear(store, said("$n", "m.notice"), said("$p", "m.image"))
        ignored = await Deliveries(store).explain("$n")
        picture = await Deliveries(store).explain("$p")
    assert ignored.state == "ignored"
    assert "by this rule: notice: programs speak so" in ignored.steps[-1].text
    assert "not text: m.image" in " ".join(step.text for step in picture.steps)


async def test_a_message_in_a_room_without_an_agent_waits_for_a_decision(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        await hear(store, said("$1", room=RoomId("!elsewhere:hs.test")))
        assert (await Deliveries(store).explain("$1")).state == "undecided"


async def test_a_waiting_message_knows_its_place_and_a_parked_one_its_reason(
    tmp_path: Path,
) -> None:
    async with open_store(tmp_path / "s.db") as store:
        fence = await hear(store, said("$1"), said("$2"), said("$3"))
        explain = Deliveries(store).explain
        assert (await explain("$3")).now == "It waits; 2 earlier ones of its lane come first."
        turn = await claim(store, fence)
        assert (await explain("$1")).state == "working"
        await store.release_lease(fence)
        fence = (await store.take_lease("me", rank=1, ttl_ms=60_000)).fence
        assert "the process that had it stopped" in (await explain("$1")).steps[-1].text
        turn = await claim(store, fence)
        await store.finish(turn, ItemState.PARKED, fence=fence, reason="Letta refused: no.")
        story = await explain("$1")
    assert story.state == "parked" and story.steps[-1].text == "Given up: Letta refused: no."


async def test_a_chat_of_a_tool_is_told_by_its_reply_id(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        chat = chat_items(HOME.agent_id, HOME, SECRET, client="Desk", mirror=False, key="k")
        (reply_id,) = await store.put(chat)
        story = await Deliveries(store).explain(reply_id)
    assert story.state == "waiting" and "Accepted from Desk for agent" in story.steps[0].text


async def test_an_unknown_id_is_told_what_ids_look_like(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        for name in ("$nothing", "", "x" * 5000):
            with pytest.raises(NotFound, match=r"it begins with \$.*older than Homeroom's store"):
                await Deliveries(store).explain(name)


@pytest.mark.parametrize(
    "newest", ["m001_first", "m002_patience_is_counted_from_the_first_failure"]
)
async def test_an_older_store_is_taken_over_with_its_history(tmp_path: Path, newest: str) -> None:
    path = tmp_path / "s.db"
    async with open_store(path) as store:
        fence = await hear(store, said("$1"))
        await claim(store, fence)
    db = sqlite3.connect(path)  # as it was then
    db.execute("ALTER TABLE item_history DROP COLUMN next_try_ms")
    db.execute("DROP INDEX item_parked")
    db.execute("ALTER TABLE item DROP COLUMN replay_count")
    db.execute("DROP INDEX event_held")
    db.execute("ALTER TABLE event DROP COLUMN late_ms")
    db.execute("ALTER TABLE event DROP COLUMN held")
    for column in ("missing_since_ms", "missing_seen", "retired"):
        db.execute(f"ALTER TABLE mapping DROP COLUMN {column}")
    db.execute("ALTER TABLE sync_run DROP COLUMN confirm_removals")
    if newest == "m001_first":
        db.execute("DROP INDEX item_waiting")
        db.execute("DROP INDEX item_claimed")
        db.execute("ALTER TABLE item DROP COLUMN failing_since_ms")
        db.execute("ALTER TABLE item DROP COLUMN uncertain_count")
    db.execute("DELETE FROM _sqlite_migrations WHERE name NOT IN ('m001_first', ?)", (newest,))
    db.commit()
    db.close()
    async with open_store(path) as store:
        assert len((await Deliveries(store).explain("$1")).steps) == 3


# --- replaying -----------------------------------------------------------------------------------


async def test_a_replay_tells_the_room_and_belongs_to_the_story(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        fence = await hear(store, said("$1"))
        turn = await claim(store, fence)
        await store.finish(turn, ItemState.PARKED, fence=fence, reason="no", delivered=False)
        deliveries = Deliveries(store)
        assert f"homeroom parked replay {turn.id}" in (await deliveries.explain("$1")).now
        assert await deliveries.replay(f" {turn.id}\n") == 0
        notice = await claim(store, fence, ItemKind.POST)
        content = notice.payload["content"]
        assert "taken up again. It is delivered now" in content["body"]
        assert content["m.relates_to"]["m.in_reply_to"] == {"event_id": "$1"}
        assert content["msgtype"] == "m.notice"
        await store.finish(notice, ItemState.DONE, fence=fence, result={"event_id": "$notice"})
        story = await deliveries.explain("$1")
    texts = [step.text for step in story.steps]
    assert story.state == "waiting" and "Back on its lane: a person had it replayed." in texts
    assert "The notice that it is taken up again was posted in !r:hs.test as $notice." in texts


async def test_a_post_that_could_come_out_twice_is_not_replayed(tmp_path: Path) -> None:
    (picture,) = judge(said("$p", "m.image"), HOME, 1).items
    for number, (age_ms, delivered, allowed) in enumerate(
        ((90_000_000, True, False), (90_000_000, False, True), (1_000, True, True))
    ):
        born_ms = time.time_ns() // 1_000_000 - age_ms
        path = tmp_path / f"{number}.db"
        async with open_store(path, now_ms=lambda born_ms=born_ms: born_ms) as store:
            fence = (await store.take_lease("me", rank=1, ttl_ms=60_000)).fence
            (post_id,) = await store.put([picture])
            post = await claim(store, fence, ItemKind.POST)
            await store.finish(post, ItemState.PARKED, fence=fence, delivered=delivered)
            if allowed:
                assert await Deliveries(store).replay(post_id) == 0
                continue
            with pytest.raises(Misuse, match="could come out twice"):
                await Deliveries(store).replay(post_id)


@pytest.mark.parametrize("delivered", [True, False])
async def test_only_a_post_that_may_have_been_made_gets_no_new_time_by_a_replay(
    tmp_path: Path, delivered: bool
) -> None:
    (picture,) = judge(said("$p", "m.image"), HOME, 1).items
    async with open_store(tmp_path / "s.db") as store:
        fence = await hear(store, said("$1"))
        (post_id,) = await store.put([picture])
        for item in (await claim(store, fence, ItemKind.POST), await claim(store, fence)):
            await store.retry(
                item, fence=fence, delay_ms=0, reason="away", delivered=True, uncertain=True
            )
            again = await claim(store, fence, item.kind)
            assert again.failing_since_ms and again.uncertain_count == 1
            await store.finish(again, ItemState.PARKED, fence=fence, delivered=delivered)
            await Deliveries(store).replay(item.id)
            replayed = await store.get_item(item.id)
            keeps = delivered and item.id == post_id
            assert replayed.failing_since_ms == (item.created_ms if keeps else 0)
            assert (replayed.uncertain_count, replayed.attempts) == (0, 0)
            if item.id != post_id:
                continue
            await store.finish(await claim(store, fence, item.kind), ItemState.DONE, fence=fence)


async def test_a_dropped_message_says_so(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        fence = await hear(store, said("$1"))
        turn = await claim(store, fence)
        await store.finish(turn, ItemState.PARKED, fence=fence, reason="no")
        await Deliveries(store).drop(turn.id, "asked again meanwhile")
        story = await Deliveries(store).explain("$1")
    assert story.state == "cancelled"
    assert story.steps[-1].text == "Dropped: asked again meanwhile"
