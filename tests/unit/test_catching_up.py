"""What came while nobody listened: how late it counts, what is held, and what brings it back."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from homeroom.cursors import write_cursor
from homeroom.decide import decide, held_notices
from homeroom.deliveries import Deliveries
from homeroom.errors import Misuse
from homeroom.intake import late_ms
from homeroom.items import ItemKind, ItemState
from homeroom.model import AgentId, EventId, GhostId, Mapping, RoomEvent, RoomId, SyncBatch
from homeroom.store import Store, open_store

HOUR_MS = 3_600_000
NOW_MS = 1_000 * HOUR_MS
ROOM, OTHER = RoomId("!r:hs.test"), RoomId("!o:hs.test")
HOME = Mapping(agent_id=AgentId("agent-1"), ghost=GhostId("@agent_1:hs.test"), room_id=ROOM)


def is_ghost(user: str) -> bool:
    return user.startswith("@agent_")


judge = partial(decide, is_ghost=is_ghost, catch_up_ms=HOUR_MS)


def said(name: str, *, late: int = 0, at_ms: int = NOW_MS, msgtype: str = "m.text") -> RoomEvent:
    content = {"msgtype": msgtype, "body": name}
    return RoomEvent(
        EventId(f"${name}"), ROOM, "@you:hs.test", "m.room.message", content, at_ms, late_ms=late
    )


# --- how late an event is ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age_h", "silent_h", "late_h"),
    [
        (5, 8, 5),  # an outage of eight hours, said in the middle of it
        (5, 0, 0),  # a live long poll: the homeserver's clock is five hours behind
        (5, 0.01, 0.01),  # a restart within the minute, with the same clock
        (-5, 8, 0),  # the clock of the homeserver is ahead
    ],
)
def test_no_event_is_later_than_the_silence_it_fell_into(
    age_h: float, silent_h: float, late_h: float
) -> None:
    event = said("x", at_ms=int(NOW_MS - age_h * HOUR_MS))
    got = late_ms(event, SyncBatch("s"), NOW_MS, int(silent_h * HOUR_MS))
    assert got == int(late_h * HOUR_MS)


def test_in_a_room_the_hub_has_just_joined_its_joining_is_the_clock() -> None:
    skewed_ms = NOW_MS - 9 * HOUR_MS
    event = said("x", at_ms=skewed_ms - 3 * HOUR_MS)

    def late(room: RoomId) -> int:
        return late_ms(event, SyncBatch("s", joined_ms={room: skewed_ms}), NOW_MS, 0)

    assert late(ROOM) == 3 * HOUR_MS
    assert late(OTHER) == 0


# --- what is held --------------------------------------------------------------------------------


def test_only_what_would_be_answered_is_held_and_only_if_it_is_older() -> None:
    assert judge(said("x", late=HOUR_MS), HOME, 1).outcome == "relayed"
    held = judge(said("x", late=30 * HOUR_MS), HOME, 1)
    assert held.held and held.items == () and "30 h" in held.outcome
    assert judge(said("x", late=2 * HOUR_MS, msgtype="m.image"), HOME, 1).held
    assert not judge(said("x", late=2 * HOUR_MS, msgtype="m.notice"), HOME, 1).held
    command = judge(said(" !CatchUp ", late=2 * HOUR_MS), HOME, 1)
    assert command.releases_held and not command.held


class Bridge:
    """A store that hears batches."""

    def __init__(self, store: Store) -> None:
        self.store, self.fence = store, 0
        self.read: list[str] = []
        """The events that the ghost was said to have read."""

    async def hear(self, *events: RoomEvent, has_more: bool = False) -> None:
        if not self.fence:
            self.fence = (await self.store.take_lease("me", rank=1, ttl_ms=60_000)).fence
            await self.store.save_mapping(HOME, judge, self.fence)
        batch = SyncBatch("s", events, has_more=has_more)
        accepted = await self.store.record_batch(batch, judge, is_ghost, self.fence, held_notices)
        self.read += [newest.event_id for newest in accepted]

    async def work(self, kind: ItemKind) -> list[str]:
        """The texts of all items of that kind, done."""
        found = []
        while (item := (await self.store.claim([kind], self.fence))[0]) is not None:
            found.append(item.payload.get("text") or item.payload["content"]["body"])
            await self.store.finish(item, ItemState.DONE, fence=self.fence, result={})
        return found


async def test_late_messages_are_announced_once_and_answered_in_order_when_asked_for(
    tmp_path: Path,
) -> None:
    async with open_store(tmp_path / "s.db") as store:
        bridge = Bridge(store)
        late = [said(str(n), late=2 * HOUR_MS, at_ms=n) for n in range(1, 6)]
        await bridge.hear(*late[:3], has_more=True)
        assert await bridge.work(ItemKind.POST) == [], "not before the backlog is complete"
        assert await store.get_heard_ms() == 0
        await bridge.hear(*late[3:], said("young", late=HOUR_MS))
        assert await store.get_heard_ms() > 0
        (notice,) = await bridge.work(ItemKind.POST)
        assert "5 messages" in notice and "1970-01-01 00:00:00 UTC" in notice
        assert "!catchup" in notice
        assert await bridge.work(ItemKind.TURN) == ["young"]
        story = await Deliveries(store).explain("$2")
        assert story.state == "held" and "!catchup" in story.now
        assert "too late" in story.steps[-1].text

        await bridge.hear(said("live"))
        assert await bridge.work(ItemKind.POST) == [], "said once"
        assert bridge.read == ["$young", "$live"], "what is held is not read yet"
        await bridge.hear(said("!catchup"), said("after"))
        assert await bridge.work(ItemKind.TURN) == ["live", "1", "2", "3", "4", "5", "after"]
        assert (await Deliveries(store).explain("$2")).state == "answered"
        assert bridge.read[-1] == "$after"
        await bridge.hear(late[1], said("end"))
        assert await bridge.work(ItemKind.TURN) == ["end"], "nothing twice"


async def test_whoever_asks_for_nothing_is_told_so(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        bridge = Bridge(store)
        await bridge.hear(said("!catchup"))
        assert await bridge.work(ItemKind.POST) == ["Nothing is left to catch up on here."]
        assert await bridge.work(ItemKind.TURN) == []


async def test_asking_within_the_backlog_answers_it_without_a_notice(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        bridge = Bridge(store)
        await bridge.hear(said("1", late=2 * HOUR_MS), said("!catchup", late=2 * HOUR_MS))
        assert await bridge.work(ItemKind.TURN) == ["1"]
        assert await bridge.work(ItemKind.POST) == []


def test_in_the_room_of_a_retired_agent_nobody_is_told_to_catch_up() -> None:
    retired = replace(HOME, retired=True)
    for event in (said("1", late=2 * HOUR_MS), said("!catchup")):
        decision = judge(event, retired, 1)
        assert decision.outcome.startswith("retired") and not decision.held
        assert not decision.releases_held  # what is held waits until the agent is back
        assert [item.kind for item in decision.items] == [ItemKind.POST]


async def test_what_is_late_when_its_room_becomes_known_is_held_too(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        bridge = Bridge(store)
        bridge.fence = (await store.take_lease("me", rank=1, ttl_ms=60_000)).fence
        await bridge.hear(said("1", late=2 * HOUR_MS))
        assert await bridge.work(ItemKind.POST) == []
        await store.save_mapping(HOME, judge, bridge.fence)
        await bridge.hear()
        assert len(await bridge.work(ItemKind.POST)) == 1
        await bridge.hear(said("!catchup"))
        assert await bridge.work(ItemKind.TURN) == ["1"]


async def test_another_process_may_ask_for_one_room_or_for_all(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        bridge = Bridge(store)
        await bridge.hear(said("1", late=2 * HOUR_MS), said("2", late=2 * HOUR_MS))
        deliveries = Deliveries(store)
        page = await deliveries.page_parked("", 1, "")
        assert (page.late, page.late_total, page.next_cursor) == ({ROOM: 2}, 1, "")
        beyond = await deliveries.page_parked("", 1, write_cursor("", ROOM))
        assert (beyond.late, beyond.late_total) == ({}, 1)
        of_agents = [
            await deliveries.page_parked(agent, 1, "") for agent in (HOME.agent_id, "other")
        ]
        assert [(page.late, page.late_total) for page in of_agents] == [({ROOM: 2}, 1), ({}, 0)]
        with pytest.raises(Misuse, match="not one that list_parked gave"):
            await deliveries.page_parked("", 1, "0123456789abcdef01234567")
        with pytest.raises(Misuse, match="no id of a room"):
            await deliveries.catch_up("#alias:hs.test")
        with pytest.raises(Misuse, match="Nothing is left to catch up on in !o"):
            await deliveries.catch_up(OTHER)
        assert await deliveries.catch_up(ROOM, wait_s=0.01) is None, "nobody runs the bridge"
        assert await bridge.work(ItemKind.TURN) == []
        for errand, room in (await store.pending_errands("catch_up")).items():
            await store.answer_held(errand, room, judge, bridge.fence)
            answer = await store.find_errand_answer(errand)
        assert answer is not None and json.loads(answer) == {"answered": 2, "left": 0}
        assert await bridge.work(ItemKind.TURN) == ["1", "2"]
        assert await store.count_held() == {}
        with pytest.raises(Misuse, match="anywhere"):
            await deliveries.catch_up("")


async def test_what_is_held_for_a_retired_agent_stays_held(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        bridge = Bridge(store)
        await bridge.hear(said("1", late=2 * HOUR_MS))
        await store.save_mapping(replace(HOME, retired=True), judge, bridge.fence)
        errand = await store.request_errand("catch_up")
        await store.answer_held(errand, "", judge, bridge.fence)
        answer = await store.find_errand_answer(errand)
        assert answer is not None and json.loads(answer) == {"answered": 0, "left": 1}
        assert await bridge.work(ItemKind.TURN) == []


async def test_what_a_room_is_told_once_is_not_told_again_when_the_rest_is_forgotten(
    tmp_path: Path,
) -> None:
    now_ms = NOW_MS
    async with open_store(tmp_path / "s.db", lambda: now_ms) as store:
        bridge = Bridge(store)

        def secret(name: str) -> RoomEvent:
            return replace(said(name), type="m.room.encrypted", content={"algorithm": "x"})

        await bridge.hear(secret("1"), said("!help"))
        assert len(await bridge.work(ItemKind.POST)) == 2
        now_ms += 100 * 24 * HOUR_MS
        bridge.fence = (await store.take_lease("me", rank=1, ttl_ms=60_000)).fence
        while await store.prune(HOUR_MS, bridge.fence):
            pass
        await bridge.hear(secret("2"), said("!help"))
        (told,) = await bridge.work(ItemKind.POST)
        assert "commands" in told, "what is asked for is told again"


async def test_no_message_costs_a_look_at_all_the_messages_there_are(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        fence = (await store.take_lease("me", rank=1, ttl_ms=60_000)).fence
        await store.save_mapping(HOME, judge, fence)
        run: list[str] = []
        store._conn.set_trace_callback(run.append)
        late = SyncBatch("s1", (said("late", late=2 * HOUR_MS),))
        await store.record_batch(late, judge, is_ghost, fence, held_notices)
        await store.record_batch(SyncBatch("s2", (said("now"),)), judge, is_ghost, fence)
        store._conn.set_trace_callback(None)
        looks = [sql for sql in run if " event " in sql and not sql.startswith("INSERT")]
        assert any("held = 1 GROUP BY" in sql for sql in looks) and len(looks) > 4
        for sql in looks:
            plans = [row["detail"] for row in store._rows(f"EXPLAIN QUERY PLAN {sql}")]
            assert all("INDEX" in how or "PRIMARY KEY" in how for how in plans if "event" in how), (
                sql
            )
