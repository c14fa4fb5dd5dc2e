"""The story of a message, told from a real store."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from homeroom.decide import chat_items, decide
from homeroom.deliveries import Deliveries
from homeroom.errors import Misuse, NotFound
from homeroom.items import Decision, Item, ItemKind, ItemState, Origin
from homeroom.model import AgentId, EventId, GhostId, ItemId, Mapping, RoomEvent, RoomId, SyncBatch
from homeroom.relay import Relay
from homeroom.store import Store, open_store
from support.old_store import RELEASED, age_store

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
        own = await Deliveries(store).explain("$answer")
    assert own.now == f"It is one of our own: the answer to item {turn.id}. {story.now}"
    assert replace(own, now=story.now) == story
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
    "before", ["m002_patience_is_counted_from_the_first_failure", "m002_next_try", RELEASED]
)
async def test_an_older_store_is_taken_over_with_its_history(tmp_path: Path, before: str) -> None:
    path = tmp_path / "s.db"
    async with open_store(path) as store:
        fence = await hear(store, said("$1"))
        await claim(store, fence)
    age_store(path, before)
    async with open_store(path) as store:
        story = await Deliveries(store).explain("$1")
        assert len(story.steps) == 3
        item = await store.get_item(ItemId(story.item_id))
        assert (item.state, item.origin, item.who) == (
            ItemState.DELIVERING,
            Origin.ROOM_EVENT,
            "@you:hs.test",
        ), "a claim of then may have touched the outside world"
        fence = (await store.take_lease("heir", rank=2, ttl_ms=60_000)).fence
        again = await claim(store, fence)
        assert again.id == item.id and again.begun


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


async def test_a_message_whose_time_was_up_says_so_and_its_room_was_told(tmp_path: Path) -> None:
    now = [2_000_000]
    async with open_store(tmp_path / "s.db", now_ms=lambda: now[0]) as store:
        fence = await hear(store)
        chat = chat_items(
            HOME.agent_id, HOME, SECRET, client="Desk", mirror=True, key="k", expires_after_ms=500
        )
        reply_id, mirrored = await store.put(chat)
        relay = Relay(
            store,
            nobody,
            nobody,
            None,
            fence=fence,
            on_progress=lambda *_: None,  # type: ignore[arg-type]
        )
        now[0] += 500
        assert (await store.claim([ItemKind.TURN], fence, on_expired=relay.on_expired))[0] is None
        mirror = await claim(store, fence, ItemKind.POST)
        assert mirror.id == mirrored
        await store.finish(mirror, ItemState.DONE, fence=fence, result={"event_id": "$m"})
        notice = await claim(store, fence, ItemKind.POST)
        body = notice.payload["content"]["body"]
        assert body == "⌛ The message of Desk was not delivered before its time was up."
        await store.finish(notice, ItemState.DONE, fence=fence, result={"event_id": "$n"})
        story = await Deliveries(store).explain(reply_id)
    assert story.state == "expired" and "no answer" in story.now
    texts = [step.text for step in story.steps]
    assert texts[1:] == [
        "Expired: its time was up before it could be delivered.",
        "The notice that its time was up was posted in !r:hs.test as $n.",
    ]


async def nobody() -> None:
    raise AssertionError("what people are told is known without asking anybody")


async def test_every_state_of_a_message_has_a_story(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        fence = await hear(store, said("$1"), said("$2"))
        explain, seen = Deliveries(store).explain, []
        seen.append((await explain("$1")).state)
        turn = await claim(store, fence)
        seen.append((await explain("$1")).now)
        await store.begin(turn, fence)
        story = await explain("$1")
        seen.append(story.now)
        assert story.steps[-1].text == "Handed to the agent."
        await store.finish(turn, ItemState.DONE, fence=fence, result={"text": "x"})
        seen.append((await explain("$1")).state)
        await Deliveries(store).cancel("$2", "enough")
        seen.append((await explain("$2")).state)
        with pytest.raises(Misuse, match="is done"):
            await Deliveries(store).cancel("$1", "enough")
        with pytest.raises(NotFound, match="homeroom tail"):
            await Deliveries(store).cancel("$9", "enough")
    assert seen == [
        "waiting",
        "It is being worked on; nothing of it was sent yet.",
        "It is being delivered.",
        "answered",
        "cancelled",
    ]


@pytest.mark.parametrize("begun", [False, True])
async def test_a_dropped_message_says_so_and_whoever_wrote_it_is_told_once(
    tmp_path: Path, begun: bool
) -> None:
    async with open_store(tmp_path / "s.db") as store:
        fence = await hear(store, said("$1"))
        turn = await claim(store, fence)
        await store.finish(turn, ItemState.PARKED, fence=fence, reason="no", delivered=begun)
        deliveries = Deliveries(store, status_events=True)
        await deliveries.drop(turn.id, "asked again meanwhile")
        story = await deliveries.explain("$1")
        assert "Dropped: asked again meanwhile" in [step.text for step in story.steps]
        with pytest.raises(Misuse, match="is cancelled, not parked"):
            await deliveries.drop(turn.id, "once more")
        posts = []
        while (item := (await store.claim([ItemKind.POST, ItemKind.STATUS], fence))[0]) is not None:
            posts.append(item.payload["content"])
            done = {"event_id": "$told"}
            await store.finish(item, ItemState.DONE, fence=fence, result=done)
        steps = (await deliveries.explain("$1")).steps
    assert story.state == "cancelled"
    (notice,) = [content for content in posts if content.get("msgtype") == "m.notice"]
    how = "It may have been delivered." if begun else "It was not delivered."
    assert "Your message was dropped by whoever runs this Homeroom" in notice["body"]
    assert notice["body"].endswith(how)
    assert notice["m.relates_to"]["m.in_reply_to"] == {"event_id": "$1"}
    (status,) = [content for content in posts if content.get("status")]
    assert status["status"] == ("FAIL_PERMANENT" if begun else "FAIL_RETRIABLE")
    assert "notice that it was dropped was posted" in steps[-1].text


async def test_all_that_is_parked_is_listed_however_much_it_is(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        fence = await hear(store)
        keys = [f"{number:03}" for number in range(201)]
        for key in keys:
            (turn,) = chat_items(AgentId("agent-9"), None, "x", client="c", mirror=False, key=key)
            await store.put([turn])
            item = await claim(store, fence)
            await store.finish(item, ItemState.PARKED, fence=fence, reason=key)
        found = await Deliveries(store).list_parked()
    assert [parked.item.reason for parked in found] == keys


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("mirror:k", "message, shown in the room of the agent, of item {turn}. "),
        ("mirror:k:1", "message, shown in the room of the agent, of item {turn}. "),
        ("delay:{turn}.1", "notice that it has to wait, of item {turn}. "),
        ("reply:{turn}:2", "answer to item {turn}. "),
        ("reply:0000000000000000000000", "answer. "),
        ("presence:agent-1:0:True", "message of the agent. "),
    ],
)
async def test_of_what_we_posted_it_is_told_what_it_followed_from(
    tmp_path: Path, key: str, what: str
) -> None:
    async with open_store(tmp_path / "s.db") as store:
        fence = await hear(store)
        items = chat_items(HOME.agent_id, HOME, SECRET, client="c", mirror=True, key="k")
        await store.put(items[:1])
        turn = await claim(store, fence)
        await store.put([replace(items[1], dedupe_key=key.format(turn=turn.id))])
        post = await claim(store, fence, ItemKind.POST)
        await store.finish(post, ItemState.DONE, fence=fence, result={"event_id": "$own"})
        story = await Deliveries(store).explain("$own")
        with pytest.raises(NotFound, match="begins with"):
            await Deliveries(store).explain("$other")
    assert story.now.startswith("It is one of our own: the " + what.format(turn=turn.id))
    assert story.item_id == (turn.id if "item" in what else post.id)
    assert "$own" in " ".join(step.text for step in story.steps) or "mirror" in key
    assert SECRET not in str(story)
