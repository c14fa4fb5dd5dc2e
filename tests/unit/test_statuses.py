"""What status events say, and that they are in nobody's way."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from homeroom.background import background
from homeroom.decide import decide
from homeroom.deliveries import Deliveries
from homeroom.errors import Rejected, Unavailable, Uncertain
from homeroom.items import Item, ItemKind, ItemState, NewItem
from homeroom.mailbox import Begin, Mailbox, Outcome
from homeroom.model import AgentId, EventId, GhostId, ItemId, Mapping, RoomEvent, RoomId, SyncBatch
from homeroom.statuses import STATUS_TYPE, StatusCourier, with_statuses
from homeroom.store import Store, open_store
from support.outcome import outcome_of

ROOM = RoomId("!r:hs.test")
HOME = Mapping(agent_id=AgentId("agent-1"), ghost=GhostId("@agent_1:hs.test"), room_id=ROOM)


def is_ghost(user: str) -> bool:
    return user.startswith("@agent_")


plain = partial(decide, is_ghost=is_ghost, catch_up_ms=1000)
judge = with_statuses(plain)


def said(name: str, late_ms: int = 0, type_: str = "m.room.message", **content: Any) -> RoomEvent:
    content = {"msgtype": "m.text", "body": "x", **content}
    return RoomEvent(EventId(name), ROOM, "@you:hs.test", type_, content, 5, late_ms=late_ms)


def words(items: Any) -> list[tuple[str, str, str]]:
    """(event, status, reason) of the statuses among ``items``, in order."""
    contents = [item.payload["content"] for item in items if item.kind is ItemKind.STATUS]
    return [(c["m.relates_to"]["event_id"], c["status"], c.get("reason", "")) for c in contents]


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (said("$1"), [("$1", "PENDING", "")]),
        (
            said("$1", msgtype="m.image"),
            [("$1", "FAIL_PERMANENT", "com.beeper.unsupported_event")],
        ),
        (
            said("$1", type_="m.room.encrypted"),
            [("$1", "FAIL_PERMANENT", "com.beeper.undecryptable_event")],
        ),
        (said("$1", late_ms=5_000), [("$1", "PENDING", "m.event_too_old")]),
        (said("$1", msgtype="m.notice"), []),
        (said("$1", body=" "), []),
    ],
)
def test_what_is_decided_about_a_message_is_said_in_the_words_of_bridges(
    event: RoomEvent, expected: list[tuple[str, str, str]]
) -> None:
    decision = judge(event, HOME, 1)
    assert words(decision.items) == expected
    rest = [item for item in decision.items if item.kind is not ItemKind.STATUS]
    assert rest == list(plain(event, HOME, 1).items), "nothing else is changed"


class Silent:
    """A relay that is asked what to say."""

    async def deliver(self, item: Item, begin: Begin) -> Outcome:
        return Outcome({"text": "hi"}, [NewItem("room", ItemKind.POST, {}, "reply:1")])

    def on_delay(self, item: Item, error: Unavailable | Uncertain) -> list[NewItem]:
        return []

    def on_parked(self, item: Item, reason: str, *, delivered: bool) -> list[NewItem]:
        return []

    def on_expired(self, item: Item) -> list[NewItem]:
        return []

    async def stop(self, item: Item) -> bool:
        return True

    def on_stopped(self, item: Item, *, delivered: bool, goes_on: bool) -> list[NewItem]:
        return []


async def begin() -> None:
    pass


def the_turn(*events: str, kind: ItemKind = ItemKind.TURN) -> Item:
    payload = {"ghost": "@agent_1:hs.test", "room_id": ROOM, "event_id": events[-1]}
    if len(events) > 1:
        payload["event_ids"] = list(events)
    return Item(ItemId("i"), "lane", kind, payload, "k", ItemState.DELIVERING, 1, 0)


async def test_a_turn_for_several_messages_says_for_each_how_it_ended() -> None:
    courier = StatusCourier(Silent())
    turn = the_turn("$1", "$2")
    outcome = await courier.deliver(turn, begin)
    assert outcome.then[0].kind is ItemKind.POST, "the answer comes first"
    assert words(outcome.then) == [("$1", "SUCCESS", ""), ("$2", "SUCCESS", "")]
    away = Unavailable("letta", "away")
    failed = "m.foreign_network_error"
    assert words(courier.on_delay(turn, away)) == [(e, "PENDING", failed) for e in ("$1", "$2")]
    for delivered, word in ((False, "FAIL_RETRIABLE"), (True, "FAIL_PERMANENT")):
        told = courier.on_parked(turn, str(Rejected("letta", "no")), delivered=delivered)
        assert words(told) == [(e, word, failed) for e in ("$1", "$2")]
    assert words(courier.on_expired(turn)) == [
        (e, "FAIL_RETRIABLE", "m.event_too_old") for e in ("$1", "$2")
    ]
    post = the_turn("$1", kind=ItemKind.POST)
    assert words((await courier.deliver(post, begin)).then) == []
    assert words(courier.on_parked(post, "no", delivered=True)) == []


async def hear(store: Store, *events: RoomEvent) -> int:
    fence = (await store.take_lease("me", rank=1, ttl_ms=60_000)).fence
    await store.save_mapping(HOME, judge, fence)
    await store.record_batch(SyncBatch("s", events), judge, is_ghost, fence)
    return fence


async def test_a_status_has_a_lane_of_its_own_and_is_not_what_the_message_became(
    tmp_path: Path,
) -> None:
    async with open_store(tmp_path / "s.db", max_waiting=1) as store:
        fence = await hear(store, said("$1"), said("$2"), said("$3", late_ms=5_000))
        turn, _ = await store.claim([ItemKind.TURN], fence)
        assert turn
        assert (await outcome_of(store, "$1")) == ("relayed", turn.id)
        held = await outcome_of(store, "$3")
        assert held and held[1] is None
        found = []
        while status := (await store.claim([ItemKind.STATUS], fence))[0]:
            assert status.lane == f"status:{ROOM}" and status.payload["type"] == STATUS_TYPE
            assert status.expires_ms > status.created_ms
            found.append(status)
            await store.finish(status, ItemState.DONE, fence=fence, result={"event_id": "$s"})
        assert words(found) == [
            ("$1", "PENDING", ""),
            ("$2", "FAIL_RETRIABLE", "m.event_not_handled"),
            ("$3", "PENDING", "m.event_too_old"),
        ]
        assert (await Deliveries(store).explain(found[0].id)).state == "posted"


class Stuck(Silent):
    """A homeserver that never answers a status."""

    def __init__(self) -> None:
        self.posted: list[str] = []
        self.stuck = anyio.Event()

    async def deliver(self, item: Item, begin: Begin) -> Outcome:
        if item.kind is ItemKind.STATUS:
            self.stuck.set()
            await anyio.sleep_forever()
        if item.kind is ItemKind.POST:
            self.posted.append(item.dedupe_key)
            return Outcome({})
        await self.stuck.wait()
        return Outcome(
            {}, [NewItem("room", ItemKind.POST, {}, f"reply:{item.payload['event_id']}")]
        )


async def test_no_answer_waits_for_a_status_that_cannot_be_posted(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        events = [said(f"${n}") for n in range(12)]
        fence, courier = await hear(store, *events), Stuck()
        in_flight = {ItemKind.TURN: 10, ItemKind.POST: 1, ItemKind.STATUS: 1}
        run = partial(
            Mailbox(store).run_worker, StatusCourier(courier), fence=fence, in_flight=in_flight
        )
        with anyio.fail_after(30):
            async with background(run):
                while len(courier.posted) < len(events):
                    await store.wait_changed(5)
        assert courier.posted == [f"reply:{event.id}" for event in events]


async def test_a_message_that_is_cancelled_says_so_where_statuses_are_wanted(
    tmp_path: Path,
) -> None:
    for wanted in (True, False):
        async with open_store(tmp_path / f"{wanted}.db") as store:
            fence = await hear(store, said("$1"))
            await store.claim([ItemKind.STATUS], fence)
            await Deliveries(store, status_events=wanted).cancel("$1", "enough")
            story = await Deliveries(store).explain("$1")
            assert story.state == "cancelled" and story.steps[-1].text == "Dropped: enough"
            notice, _ = await store.claim([ItemKind.POST], fence)
            assert notice and "was cancelled" in notice.payload["content"]["body"]
            assert notice.payload["content"]["m.relates_to"]["m.in_reply_to"]["event_id"] == "$1"
            waiting = (await store.count_items()).get("waiting", 0)
            assert waiting == (1 if wanted else 0)
