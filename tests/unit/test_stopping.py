"""What a person ends before it is done: which items that are, and what is told of it."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from homeroom.background import background
from homeroom.chats import why_no_answer
from homeroom.decide import chat_items, decide
from homeroom.deliveries import Deliveries
from homeroom.errors import Rejected, Unavailable
from homeroom.items import Decision, Item, ItemKind, ItemState, NewItem
from homeroom.letta import Letta
from homeroom.mailbox import Mailbox
from homeroom.model import (
    AgentId,
    Capabilities,
    ConversationId,
    EventId,
    GhostId,
    Mapping,
    RoomEvent,
    RoomId,
    SyncBatch,
    Turn,
)
from homeroom.posts import text_items
from homeroom.relay import Relay
from homeroom.residence import Claim
from homeroom.room_commands import parse_command
from homeroom.statuses import StatusCourier, with_statuses
from homeroom.store import Store, open_store

ROOM, CHAT = RoomId("!r:hs.test"), RoomId("!chat:hs.test")
YOU = "@you:hs.test"
HOMES = [
    Mapping(
        agent_id=AgentId(f"agent-{n}"), ghost=GhostId(f"@agent_{n}:hs.test"),
        room_id=ROOM if n == 1 else RoomId("!other:hs.test"), agent_name=f"Agent{n}",
    )
    for n in (1, 2)
]  # fmt: skip
CAN_STOP = Capabilities(backend="app-server", version="", cancel=True, conversations=True)


def is_ghost(user: str) -> bool:
    return user.startswith("@agent_")


judge = partial(decide, is_ghost=is_ghost, catch_up_ms=1000)


def said(event_id: str, text: str = "x", *, late_ms: int = 0, room: RoomId = ROOM) -> RoomEvent:
    content = {"msgtype": "m.text", "body": text}
    return RoomEvent(
        EventId(event_id), room, YOU, "m.room.message", content, 5, late_ms=late_ms
    )  # fmt: skip


class Bridge:
    """A store whose events are heard, worked on step by step."""

    def __init__(self, store: Store, fence: int, judge: Any) -> None:
        self.store, self.fence, self._judge = store, fence, judge

    async def hear(self, *events: RoomEvent) -> None:
        await self.store.record_batch(SyncBatch("s", events), self._judge, is_ghost, self.fence)

    async def claim(self, kind: ItemKind = ItemKind.TURN) -> Item:
        item, _ = await self.store.claim([kind], self.fence)
        assert item
        return item

    async def begin(self) -> Item:
        """The next turn, whose delivery has begun."""
        item = await self.claim()
        await self.store.begin(item, self.fence)
        return item

    async def told(self, kind: ItemKind = ItemKind.POST) -> list[dict[str, Any]]:
        """The contents of all that is to be posted, done."""
        found = []
        while (item := (await self.store.claim([kind], self.fence))[0]) is not None:
            found.append(item.payload["content"])
            done = {"event_id": f"$told{item.id}"}
            await self.store.finish(item, ItemState.DONE, fence=self.fence, result=done)
        return found

    async def item_of(self, event_id: str) -> Item:
        found = await self.store.find_delivery(event_id)
        assert found and found.item
        return found.item


async def open_bridge(store: Store, judge: Any = judge) -> Bridge:
    fence = (await store.take_lease("me", rank=1, ttl_ms=60_000)).fence
    for home in HOMES:
        await store.save_mapping(home, judge, fence)
    return Bridge(store, fence, judge)


def replied(content: dict[str, Any]) -> str:
    return str(content["m.relates_to"]["m.in_reply_to"]["event_id"])


class StubLetta:
    """An agent that answers when it is stopped, and not before, if it can be at all."""

    def __init__(self, capabilities: Capabilities = CAN_STOP) -> None:
        self.capabilities = capabilities
        self.cancelled: list[tuple[str, str | None]] = []
        self.running, self._stopped = anyio.Event(), anyio.Event()
        self.refusals = 1
        """So often it does not know of the turn yet."""

    async def open_conversation(self, *_: object) -> ConversationId:
        return ConversationId("conv-1")

    async def turn(self, *_: object, **__: object) -> Turn:
        self.running.set()
        await self._stopped.wait()
        return Turn("half an answer", "cancelled")

    async def cancel(self, agent_id: AgentId, conversation: ConversationId | None) -> bool:
        self.cancelled.append((agent_id, conversation))
        if len(self.cancelled) <= self.refusals:
            raise Unavailable("letta", "busy")
        self._stopped.set()
        return True


async def stop_at_work(bridge: Bridge, letta: StubLetta, *, statuses: bool = False) -> None:
    """Has the bridge work until a turn runs, has "!stop" written, and waits for the turn's end."""

    async def get_letta() -> Letta:
        return letta  # type: ignore[return-value]

    async with anyio.create_task_group() as group:
        relay = Relay(
            bridge.store, get_letta, nobody, group, fence=bridge.fence,
            on_progress=lambda *_: None,
        )  # fmt: skip
        courier = StatusCourier(relay) if statuses else relay
        run = partial(
            Mailbox(bridge.store).run_worker, courier, fence=bridge.fence,
            in_flight={ItemKind.TURN: 4},
        )  # fmt: skip
        async with background(run):
            with anyio.fail_after(20):
                await letta.running.wait()
                await bridge.hear(said("$stop", "!stop"))
                await Mailbox(bridge.store).wait_ended((await bridge.item_of("$1")).id, 20)
        group.cancel_scope.cancel()


async def nobody() -> Any:
    raise Unavailable("matrix", "there is none here")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("!stop", False), ("  !STOP \n", False), ("!stop  All", True), ("!stop now", None)],
)
def test_only_a_message_that_is_the_command_to_the_letter_stops(
    text: str, expected: bool | None
) -> None:
    command = parse_command(text, YOU)
    assert (command and command.waiting_too) is expected


async def test_the_agent_leaves_off_and_the_room_is_told_who_stopped_it(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        bridge, letta = await open_bridge(store, with_statuses(judge)), StubLetta()
        await bridge.hear(said("$1"))
        await stop_at_work(bridge, letta, statuses=True)
        assert letta.cancelled == [("agent-1", "conv-1")] * 2, "until Letta knows of the turn"
        item = await bridge.item_of("$1")
        assert (item.state, item.reason) == (ItemState.CANCELLED, f"{YOU} wrote !stop")
        (notice,) = await bridge.told()
        assert replied(notice) == "$1" and notice["msgtype"] == "m.notice"
        assert f"{YOU} stopped me" in notice["body"] and "may have happened." in notice["body"]
        assert "Letta could not" not in notice["body"] and "half" not in notice["body"]
        statuses = [content["status"] for content in await bridge.told(ItemKind.STATUS)]
        assert statuses == ["PENDING", "FAIL_PERMANENT"]
        story = await Deliveries(store).explain("$1")
        steps = [step.text for step in story.steps]
        assert story.state == "cancelled" and "may have happened" in story.now
        assert f"Stopped: {YOU} wrote !stop" in steps
        assert f"It was to be stopped from here on: {YOU} wrote !stop." in steps
        assert any(step.startswith("The notice that it was stopped was posted") for step in steps)
        asked = await Deliveries(store).explain("$stop")
        assert "what the agent does here is stopped" in asked.steps[-1].text


async def test_what_letta_cannot_stop_is_broken_off_and_the_room_is_told_so(
    tmp_path: Path,
) -> None:
    async with open_store(tmp_path / "s.db") as store:
        bridge, letta = await open_bridge(store), StubLetta(replace(CAN_STOP, cancel=False))
        await bridge.hear(said("$1"))
        await stop_at_work(bridge, letta)
        assert letta.cancelled == []
        (notice,) = await bridge.told()
        assert "Letta could not stop it" in notice["body"]


async def test_a_letta_that_stays_away_does_not_hold_up_what_shall_end(tmp_path: Path) -> None:
    async def away() -> Letta:
        raise Unavailable("letta", "away")

    # By the store's clock the wish is two minutes old when the worker has it in hand.
    def ago() -> int:
        return int(time.time() * 1000) - 120_000

    async with open_store(tmp_path / "s.db", now_ms=ago) as store:
        bridge = await open_bridge(store)
        await bridge.hear(said("$1"))
        item = await bridge.begin()
        await store.retry(
            item, fence=bridge.fence, delay_ms=3_600_000, reason="lost", delivered=True
        )  # fmt: skip
        await bridge.hear(said("$stop", "!stop"))
        async with anyio.create_task_group() as group:
            relay = Relay(
                store, away, nobody, group, fence=bridge.fence, on_progress=lambda *_: None
            )  # fmt: skip
            run = partial(
                Mailbox(store).run_worker, relay, fence=bridge.fence, in_flight={ItemKind.TURN: 1}
            )  # fmt: skip
            async with background(run):
                ended = await Mailbox(store).wait_ended(item.id, 20)
            group.cancel_scope.cancel()
        assert ended.state is ItemState.CANCELLED and ended.begun
        (notice,) = await bridge.told()
        assert replied(notice) == "$1" and "Letta could not stop it" in notice["body"]


async def test_what_waits_is_left_alone_unless_all_shall_end(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        bridge = await open_bridge(store, with_statuses(judge))
        await bridge.hear(said("$1"), said("$2"))
        await bridge.begin()
        await bridge.hear(said("$stop", "!stop"))
        assert (await bridge.item_of("$1")).stop and not (await bridge.item_of("$2")).stop
        now = (await Deliveries(store).explain("$1")).now
        assert now == "It is being stopped, as a person wants; there will be no answer."
        await bridge.hear(said("$all", "!stop all"))
        assert (await bridge.item_of("$2")).state is ItemState.CANCELLED
        (notice,) = await bridge.told()
        assert replied(notice) == "$2" and f"was cancelled by {YOU}" in notice["body"]
        words = [(c["m.relates_to"]["event_id"], c["status"]) for c in await bridge.told(
            ItemKind.STATUS
        )]  # fmt: skip
        assert words[-1] == ("$2", "FAIL_RETRIABLE") and len(words) == 3


@pytest.mark.parametrize(("text", "waits"), [("!stop", True), ("!stop all", False)])
async def test_where_nothing_is_under_way_the_room_is_told_that(
    tmp_path: Path, text: str, waits: bool
) -> None:
    async with open_store(tmp_path / "s.db") as store:
        bridge = await open_bridge(store)
        if waits:
            await bridge.hear(said("$1"))
        # Nor is such a word kept for later, however late it came.
        await bridge.hear(said("$stop", text, late_ms=5_000))
        (notice,) = await bridge.told()
        assert replied(notice) == "$stop" and "not working on anything" in notice["body"]
        assert ("!stop all ends that" in notice["body"]) is waits
        assert await store.count_held() == {}
        if waits:
            assert (await bridge.item_of("$1")).state is ItemState.WAITING


async def test_a_turn_that_was_put_off_counts_as_under_way(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        bridge = await open_bridge(store)
        await bridge.hear(said("$1"), said("$2"))
        item = await bridge.begin()
        await store.retry(
            item, fence=bridge.fence, delay_ms=9_000, reason="away", delivered=False
        )  # fmt: skip
        await bridge.hear(said("$stop", "!stop"))
        assert (await bridge.item_of("$1")).state is ItemState.CANCELLED
        assert (await bridge.claim()).payload["event_id"] == "$2"
        (notice,) = await bridge.told()
        assert replied(notice) == "$1" and notice["body"].endswith("It was not delivered.")


async def test_in_a_room_of_several_agents_all_of_them_leave_off_and_no_others(
    tmp_path: Path,
) -> None:
    async with open_store(tmp_path / "s.db") as store:
        bridge = await open_bridge(store)
        for home in HOMES:
            claim = Claim(CHAT, home.agent_id, invited_by=YOU)
            await store.open_claim(claim, bridge.fence)
            await store.settle_claim_open(claim, 1, judge, bridge.fence)
        await bridge.hear(
            said("$1", "Agent1: x", room=CHAT), said("$2", "Agent2: x", room=CHAT), said("$home")
        )
        for _ in range(3):
            await bridge.begin()
        await bridge.hear(said("$stop", "!stop", room=CHAT))
        stopped = [bool((await bridge.item_of(name)).stop) for name in ("$1", "$2", "$home")]
        assert stopped == [True, True, False]
        assert await bridge.told() == []


async def test_whoever_waits_for_the_answer_to_a_chat_learns_what_to_do(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        bridge = await open_bridge(store)
        chat = chat_items(HOMES[0].agent_id, HOMES[0], "x", client="Desk", mirror=True, key="k")
        (reply_id, _) = await store.put(chat)
        item = await bridge.begin()
        await bridge.hear(said("$stop", "!stop"))
        with pytest.raises(Exception, match="stopped"):
            await store.finish(item, ItemState.DONE, fence=bridge.fence, result={"text": "late"})
        await store.finish(
            item, ItemState.CANCELLED, fence=bridge.fence, reason=f"{YOU} wrote !stop"
        )  # fmt: skip
        why = why_no_answer(await store.get_item(reply_id))
        assert "no answer comes" in why and "may have happened" in why and "Do not resend" in why
        assert why.endswith(f"{YOU} wrote !stop")


# --- an answer that could not be posted -----------------------------------------------------------


def answer(turn: Item, **place: Any) -> NewItem:
    return text_items(HOMES[0].ghost, ROOM, "hi", f"reply:{turn.id}", **place)[0]


async def dropped_answer(bridge: Bridge) -> Item:
    """An answer, in a thread, that was given up and is then dropped."""
    await bridge.hear(said("$1"))
    turn = await bridge.begin()
    reply = answer(turn, reply_to="$1", thread="$thread")
    await bridge.store.finish(turn, ItemState.DONE, fence=bridge.fence, then=[reply])
    post = await bridge.claim(ItemKind.POST)
    await bridge.store.finish(
        post, ItemState.PARKED, fence=bridge.fence, reason="no", delivered=False
    )  # fmt: skip
    await Deliveries(bridge.store).drop(post.id, "too late")
    return post


async def test_whoever_waits_for_an_answer_that_is_dropped_is_told(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        bridge = await open_bridge(store)
        await dropped_answer(bridge)
        (notice,) = await bridge.told()
        assert replied(notice) == "$1" and notice["m.relates_to"]["event_id"] == "$thread"
        assert "was dropped" in notice["body"] and notice["body"].endswith("It was not posted.")
        story = await Deliveries(store).explain("$1")
        steps = [step.text for step in story.steps]
        assert "The answer was dropped: too late" in steps
        assert any("The notice that it was dropped was posted" in step for step in steps)
        assert story.state == "cancelled" and "its answer was dropped" in story.now


async def test_where_no_notice_can_be_posted_either_nobody_need_decide_about_it(
    tmp_path: Path,
) -> None:
    class Closed:
        async def post(self, *_: object, **__: object) -> str:
            raise Rejected("matrix", "you are banned", "M_FORBIDDEN")

    async def get_matrix() -> Any:
        return Closed()

    async with open_store(tmp_path / "s.db") as store:
        bridge = await open_bridge(store)
        await dropped_answer(bridge)
        async with anyio.create_task_group() as group:
            relay = Relay(
                store, nobody, get_matrix, group, fence=bridge.fence, on_progress=lambda *_: None
            )  # fmt: skip
            run = partial(
                Mailbox(store).run_worker, relay, fence=bridge.fence, in_flight={ItemKind.POST: 1}
            )  # fmt: skip
            async with background(run):
                with anyio.fail_after(20):
                    while (counts := await store.count_items()).get("done") != 2:
                        await store.wait_changed(5)
        assert counts.get("parked", 0) == 0 and counts["cancelled"] == 1
        steps = [step.text for step in (await Deliveries(store).explain("$1")).steps]
        assert "The notice that it was dropped was left out: you are banned." in steps


async def test_that_a_notice_was_dropped_is_told_to_nobody(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        bridge = await open_bridge(store)
        await bridge.hear(said("$stop", "!stop"))
        notice = await bridge.claim(ItemKind.POST)
        await store.finish(notice, ItemState.PARKED, fence=bridge.fence, reason="no")
        await Deliveries(store).drop(notice.id, "enough")
        assert await bridge.told() == []


# --- what is held for want of room ----------------------------------------------------------------


async def test_a_late_message_that_finds_its_lane_full_has_a_status_like_others_that_wait(
    tmp_path: Path,
) -> None:
    async with open_store(tmp_path / "s.db", max_waiting=1) as store:
        bridge = await open_bridge(store, with_statuses(judge))
        await bridge.hear(said("$1", late_ms=5), said("$2", late_ms=5), said("$3", late_ms=5))
        assert await store.count_held() == {ROOM: 2}
        found = {
            c["m.relates_to"]["event_id"]: (c["status"], c.get("reason"))
            for c in await bridge.told(ItemKind.STATUS)
        }
        held = ("PENDING", "m.event_too_old")
        assert found == {"$1": ("PENDING", None), "$2": held, "$3": held}
        decision: Decision = with_statuses(judge)(said("$4"), HOMES[0], 1)
        assert [item.kind for item in decision.if_held] == [ItemKind.STATUS]
