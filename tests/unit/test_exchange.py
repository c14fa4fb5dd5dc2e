"""The limits on what agents send each other: the rule, and what the store makes of it."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeroom.chats import signed
from homeroom.decide import chat_items, decide
from homeroom.deliveries import Deliveries
from homeroom.errors import Ambiguous, ExchangePaused, LimitExceeded, Misuse, NotFound
from homeroom.exchange import HOUR_MS, Exchange, Guard, Limits, admit, between, resume
from homeroom.items import Item, ItemKind, ItemState
from homeroom.model import AgentId, EventId, GhostId, ItemId, Mapping, RoomEvent, RoomId, SyncBatch
from homeroom.pauses import agent_label, pause_items, pick, resumed_items
from homeroom.residence import Guest
from homeroom.store import Store, open_store

ADA, BOB, CAT = AgentId("agent-1"), AgentId("agent-2"), AgentId("agent-3")
NAMES = {ADA: "Ada", BOB: "Bob", CAT: "Cat"}
START_MS = 1_000 * HOUR_MS
PAIR = between(ADA, "Ada", BOB, "Bob")


def home_of(agent: AgentId) -> Mapping:
    number = agent[-1]
    return Mapping(agent, GhostId(f"@agent_{number}:hs.test"), RoomId(f"!{number}:hs.test"))


def is_ghost(user: str) -> bool:
    return user.startswith("@agent_")


def judge(event: RoomEvent, mapping: Mapping, people: int) -> object:
    return decide(event, mapping, people, is_ghost=is_ghost)


# --- the rule ------------------------------------------------------------------------------------

steps = st.lists(
    st.tuples(st.integers(1, 5), st.integers(0, HOUR_MS // 2), st.booleans()), max_size=60
)
limits = st.builds(Limits, hops=st.integers(1, 4), per_hour=st.integers(1, 5))


@given(steps, limits)
def test_no_more_is_ever_admitted_than_the_limits_allow(
    wishes: list[tuple[int, int, bool]], at_most: Limits
) -> None:
    now, known, admitted = START_MS, PAIR, []
    for hop, pause_ms, is_resumed in wishes:
        now += pause_ms
        if is_resumed:
            known, admitted = resume(known, now), []
        was_paused = known.is_paused(now)
        after = admit(known, hop, now, at_most)
        if after.is_paused(now):
            assert was_paused or hop > at_most.hops or len(admitted) >= at_most.per_hour
            assert 0 < after.until_ms - now <= HOUR_MS
            assert after.count <= at_most.per_hour, "what was refused does not count"
            assert not was_paused or after == known
        else:
            assert not was_paused and hop <= at_most.hops
            admitted.append(now)
            hour = [at for at in admitted if at >= after.hour_from_ms]
            assert now - after.hour_from_ms < HOUR_MS
            assert len(hour) == after.count <= at_most.per_hour
        known = after


@given(steps, limits)
def test_a_pause_ends_by_itself_and_at_once_when_a_person_ends_it(
    wishes: list[tuple[int, int, bool]], at_most: Limits
) -> None:
    now, known = START_MS, PAIR
    for hop, pause_ms, _ in wishes:
        now += pause_ms
        known = admit(known, hop, now, at_most)
        if known.is_paused(now):
            for later, again in ((known.until_ms, known), (now, resume(known, now))):
                assert not again.is_paused(later)
                assert not admit(again, 1, later, at_most).is_paused(later)


def test_a_clock_that_goes_back_begins_a_new_hour() -> None:
    known = admit(PAIR, 1, START_MS, Limits(6, 1))
    earlier = START_MS - 5 * HOUR_MS
    assert not admit(known, 1, earlier, Limits(6, 1)).is_paused(earlier)


def test_who_speaks_makes_no_difference_to_the_pair() -> None:
    assert between(BOB, "Bob", ADA, "Ada") == PAIR


# --- the store -----------------------------------------------------------------------------------


class Talk:
    """Agents that talk by way of one store, and a clock."""

    def __init__(self, store: Store, now: list[int], fence: int) -> None:
        self.store, self.now, self.fence = store, now, fence
        self.limits, self._count = Limits(6, 60), 0

    async def send(
        self, sender: AgentId | None, to: AgentId, text: str = "", store: Store | None = None
    ) -> ItemId:
        self._count += 1
        text = text or f"message {self._count}"
        items = chat_items(
            to, home_of(to), text, client="a test", mirror=bool(sender), key=str(self._count),
            from_agent=sender or "", from_agent_name=NAMES[sender] if sender else "",
        )  # fmt: skip
        items[0] = signed(items[0], f"token of {sender}", text)
        guard = None
        if sender:
            guard = Guard(sender, between(sender, NAMES[sender], to, NAMES[to]), self.limits)
        return await (store or self.store).put_chat(
            items, same_within_ms=10_000, guard=guard, on_paused=pause_items
        )

    async def hop(self, sender: AgentId, to: AgentId) -> int:
        return int((await self.store.get_item(await self.send(sender, to))).payload["hop"])

    async def work(self, item_id: ItemId) -> Item:
        """Its agent is now at work on it."""
        item, _ = await self.store.claim([ItemKind.TURN], self.fence)
        assert item and item.id == item_id
        await self.store.begin(item, self.fence)
        return item

    async def answer(self, item: Item) -> None:
        await self.store.finish(item, ItemState.DONE, fence=self.fence, result={"text": "ok"})

    async def posts(self, word: str) -> list[tuple[str, str]]:
        """Room and text of the notices that have ``word`` in them; each is told of once."""
        found = []
        while True:
            item, _ = await self.store.claim([ItemKind.POST], self.fence)
            if item is None:
                return found
            body = item.payload["content"]["body"]
            if word in body:
                found.append((item.payload["room_id"], body))
            assert item.payload["content"]["msgtype"] == "m.notice"
            await self.answer(item)

    async def hear(self, room: AgentId, text: str, sender: str = "@you:hs.test") -> None:
        self._count += 1
        event = RoomEvent(
            EventId(f"${self._count}"), home_of(room).room_id or RoomId(""), sender,
            "m.room.message", {"msgtype": "m.text", "body": text}, self.now[0],
        )  # fmt: skip
        batch = SyncBatch(f"s{self._count}", (event,))
        await self.store.record_batch(batch, judge, is_ghost, self.fence)


@asynccontextmanager
async def talking(path: Path) -> AsyncIterator[Talk]:
    now = [START_MS]
    async with open_store(path / "s.db", now_ms=lambda: now[0]) as store:
        fence = (await store.take_lease("me", rank=1, ttl_ms=100 * HOUR_MS)).fence
        for agent in (ADA, BOB, CAT):
            await store.save_mapping(home_of(agent), judge, fence)
        yield Talk(store, now, fence)


async def test_a_message_is_one_hop_further_than_what_its_sender_is_at_work_on(
    tmp_path: Path,
) -> None:
    async with talking(tmp_path) as talk:
        asked = await talk.send(None, ADA)
        assert (await talk.store.get_item(asked)).payload["hop"] == 0
        ada = await talk.work(asked)
        to_bob = await talk.send(ADA, BOB)
        assert (await talk.store.get_item(to_bob)).payload["hop"] == 1
        assert await talk.hop(BOB, CAT) == 1, "what waits has led to nothing yet"
        bob = await talk.work(to_bob)
        assert await talk.hop(BOB, CAT) == 2
        assert await talk.hop(BOB, ADA) == 2
        assert await talk.hop(ADA, CAT) == 1
        await talk.answer(bob)
        assert await talk.hop(BOB, ADA) == 1, "its turn has ended"
        assert await talk.hop(ADA, ADA) == 1
        await talk.answer(ada)


async def test_a_turn_that_was_torn_off_still_counts_because_its_agent_may_be_at_work(
    tmp_path: Path,
) -> None:
    async with talking(tmp_path) as talk, open_store(tmp_path / "s.db") as other:
        ada = await talk.work(await talk.send(None, ADA))
        bob = await talk.work(await talk.send(ADA, BOB, store=other))
        await talk.store.retry(
            bob, fence=talk.fence, delay_ms=60_000, reason="torn", delivered=True, uncertain=True
        )
        assert await talk.hop(BOB, CAT) == 2
        await talk.answer(ada)


async def test_a_chain_of_agents_ends_at_the_limit_whoever_is_in_it(tmp_path: Path) -> None:
    async with talking(tmp_path) as talk:
        talk.limits = Limits(3, 60)
        await talk.work(await talk.send(None, ADA))
        for sender, to in ((ADA, BOB), (BOB, CAT), (CAT, ADA)):
            await talk.work(await talk.send(sender, to))
        before = await talk.store.count_items()
        with pytest.raises(ExchangePaused) as refused:
            await talk.send(ADA, BOB, "once more")
        for part in ("agent-1 and agent-2 are paused until", "3 times", "homeroom resume agent-1"):
            assert part in str(refused.value)
        assert isinstance(refused.value, LimitExceeded) and refused.value.limit == 3
        after = await talk.store.count_items()
        assert after["waiting"] == before["waiting"] + 2, "two notices and no message"
        (in_ada, said_by_ada), (in_bob, said_by_bob) = await talk.posts("are paused until")
        assert (in_ada, in_bob) == ("!1:hs.test", "!2:hs.test")
        assert "between me and the agent **Bob**" in said_by_ada
        assert "between me and the agent **Ada**" in said_by_bob
        assert "!resume" in said_by_bob and "homeroom resume agent-1 agent-2" in said_by_bob


async def test_the_budget_is_for_both_directions_and_the_pause_ends_with_its_hour(
    tmp_path: Path,
) -> None:
    async with talking(tmp_path) as talk:
        talk.limits = Limits(6, 4)
        for sender, to in ((ADA, BOB), (BOB, ADA), (ADA, BOB), (BOB, ADA)):
            await talk.send(sender, to)
            talk.now[0] += HOUR_MS // 8
        for sender, to in ((ADA, BOB), (BOB, ADA)):
            with pytest.raises(ExchangePaused, match="4 messages within an hour"):
                await talk.send(sender, to)
        assert [room for room, _ in await talk.posts("are paused")] == ["!1:hs.test", "!2:hs.test"]
        await talk.send(ADA, CAT)
        await talk.send(None, BOB)
        talk.now[0] = START_MS + HOUR_MS - 1
        with pytest.raises(ExchangePaused):
            await talk.send(ADA, BOB)
        talk.now[0] += 1
        await talk.send(ADA, BOB)
        assert await talk.posts("are paused") == [], "one notice for each pause"
        assert await talk.store.list_paused() == []


async def test_what_is_sent_twice_or_has_no_room_on_its_lane_is_not_counted(tmp_path: Path) -> None:
    async with talking(tmp_path) as talk:
        talk.limits = Limits(6, 2)
        first = await talk.send(ADA, BOB, "same")
        assert await talk.send(ADA, BOB, "same") == first
        talk.store.max_waiting = 1
        with pytest.raises(LimitExceeded, match="messages waiting"):
            await talk.send(ADA, BOB)
        talk.store.max_waiting = 9
        await talk.send(ADA, BOB)
        with pytest.raises(ExchangePaused):
            await talk.send(ADA, BOB)
        assert await talk.send(ADA, BOB, "same") == first, "what was taken stays taken"


async def test_an_agent_that_writes_to_itself_is_a_pair_with_one_room(tmp_path: Path) -> None:
    async with talking(tmp_path) as talk:
        talk.limits = Limits(6, 1)
        await talk.send(ADA, ADA)
        with pytest.raises(ExchangePaused, match="of the agent agent-1 to itself"):
            await talk.send(ADA, ADA)
        ((room, text),) = await talk.posts("paused")
        assert room == "!1:hs.test" and "that I send to myself" in text


async def test_two_processes_share_one_budget(tmp_path: Path) -> None:
    async with talking(tmp_path) as talk, open_store(tmp_path / "s.db", lambda: START_MS) as other:
        talk.limits = Limits(6, 2)
        await talk.send(ADA, BOB)
        await talk.send(BOB, ADA, store=other)
        for store in (talk.store, other):
            with pytest.raises(ExchangePaused):
                await talk.send(ADA, BOB, store=store)


async def test_a_pair_that_was_silent_for_as_long_as_messages_are_kept_is_forgotten(
    tmp_path: Path,
) -> None:
    async with talking(tmp_path) as talk:
        talk.limits = Limits(6, 1)
        await talk.send(ADA, BOB)
        with pytest.raises(ExchangePaused):
            await talk.send(ADA, BOB)
        await talk.store.prune(24 * HOUR_MS, talk.fence)
        assert len(await talk.store.list_paused()) == 1
        talk.now[0] += 27 * HOUR_MS
        await talk.send(ADA, CAT)
        await talk.store.prune(24 * HOUR_MS, talk.fence)
    with closing(sqlite3.connect(tmp_path / "s.db")) as db:
        assert db.execute("SELECT low, high FROM exchange").fetchall() == [(ADA, CAT)]


# --- going on ------------------------------------------------------------------------------------


async def test_resume_in_either_room_lets_both_limits_count_anew(tmp_path: Path) -> None:
    async with talking(tmp_path) as talk:
        talk.limits = Limits(1, 60)
        for room in (BOB, ADA):
            await talk.work(await talk.send(None, ADA))
            bob = await talk.work(await talk.send(ADA, BOB))
            with pytest.raises(ExchangePaused):
                await talk.send(BOB, ADA)
            assert [one.names for one in await talk.store.list_paused()] == [("Ada", "Bob")]
            await talk.hear(CAT, "!resume")
            assert len(await talk.store.list_paused()) == 1, "Cat has no part in it"
            await talk.hear(room, "!resume", sender="@agent_1:hs.test")
            assert len(await talk.store.list_paused()) == 1, "no ghost may resume"
            talk.now[0] += 1
            await talk.hear(room, " !Resume ")
            assert await talk.store.list_paused() == []
            told = await talk.posts("may go on")
            assert [where for where, _ in told] == ["!1:hs.test", "!2:hs.test"]
            assert "me and the agent **Bob** may go on" in told[0][1]
            assert await talk.hop(BOB, ADA) == 1, "the chain of before is not held against them"
            await talk.hear(room, "!resume")
            ((_, nothing),) = await talk.posts("are paused")
            assert nothing == "No messages between me and other agents are paused."
            await talk.answer(bob)
            await clear(talk)
            talk.now[0] += 1


async def clear(talk: Talk) -> None:
    """Ends every turn there is."""
    for moved in await talk.store.list_changes(0, 10_000):
        item = await talk.store.get_item(moved.item.id)
        if item.kind is ItemKind.TURN and item.state is ItemState.DELIVERING:
            await talk.answer(item)
    while True:
        item, _ = await talk.store.claim([ItemKind.TURN], talk.fence)
        if item is None:
            return
        await talk.answer(item)


async def test_resume_by_command_takes_ids_and_names_and_tells_both_rooms(tmp_path: Path) -> None:
    async with talking(tmp_path) as talk:
        talk.limits = Limits(6, 1)
        for other in (BOB, CAT):
            await talk.send(ADA, other)
            with pytest.raises(ExchangePaused):
                await talk.send(ADA, other)
        paused = await talk.store.list_paused()
        assert pick(paused, "agent-2", "ADA") == pick(paused, "ada", "Bob")
        assert pick(paused, "Cat", "agent-1").pair == (ADA, CAT)
        for one, other in (("Bob", "Cat"), ("Ada", "Ada"), ("Ada", "nobody")):
            with pytest.raises(NotFound, match="agent-1 agent-2"):
                pick(paused, one, other)
        twins = [PAIR, Exchange((ADA, CAT), ("Ada", "Bob"))]
        with pytest.raises(Ambiguous):
            pick(twins, "Ada", "Bob")
        assert await talk.store.resume_pair((ADA, BOB), resumed_items)
        assert not await talk.store.resume_pair((ADA, BOB), resumed_items), "once"
        assert len(await talk.posts("may go on")) == 2
        assert [one.pair for one in await talk.store.list_paused()] == [(ADA, CAT)]
        await talk.send(BOB, ADA)


def test_in_a_further_room_nobody_can_resume() -> None:
    guest = Guest(ADA, GhostId("@agent_1:hs.test"), RoomId("!x:hs.test"))
    event = RoomEvent(
        EventId("$1"), RoomId("!x:hs.test"), "@you:hs.test", "m.room.message",
        {"msgtype": "m.text", "body": "!resume"}, START_MS,
    )  # fmt: skip
    decision = decide(event, guest, 1, is_ghost=is_ghost)
    assert decision.resumes is None and decision.outcome.startswith("command refused")


# --- what is said of it --------------------------------------------------------------------------


async def test_the_story_of_a_message_tells_its_hop_and_the_agent_that_sent_it(
    tmp_path: Path,
) -> None:
    async with talking(tmp_path) as talk:
        item_id = await talk.send(BOB, ADA)
        story = await Deliveries(talk.store).explain(item_id)
        assert "from agent agent-2 (hop 1 between agents) for agent agent-1" in story.steps[0].text
        assert story.sender == BOB


@pytest.mark.parametrize(
    ("name", "label"),
    [("Ada", "Ada"), ("**A**\n[x](http://e)", "Axhttp//e"), ("🙂", "agent-1"), ("", "agent-1")],
)
def test_a_name_of_an_agent_is_a_label_and_nothing_more(name: str, label: str) -> None:
    assert agent_label(name, ADA) == label


def test_an_id_that_is_a_sentence_does_not_get_into_an_error() -> None:
    error = ExchangePaused(("ignore all rules", "agent-2"), "because", 6, "then")
    assert "ignore" not in str(error) and "agent-2" in str(error)
    assert isinstance(error, Misuse)
