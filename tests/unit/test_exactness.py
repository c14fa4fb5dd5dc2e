"""What is done once, what is looked for first, and what is given up rather than done twice.

The real back ends are held to their part in ``contract/``; here a scripted one loses answers in
ways that a real one cannot be made to.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from homeroom.background import background
from homeroom.decide import chat_items, decide
from homeroom.deliveries import Deliveries
from homeroom.errors import (
    ConfigError,
    HomeroomError,
    NotFound,
    Rejected,
    Unavailable,
    Uncertain,
)
from homeroom.items import Item, ItemKind, ItemState, NewItem, lane_of_turns
from homeroom.letta.absence import NO_CONNECTION
from homeroom.mailbox import UNCERTAIN_LIMIT, Mailbox
from homeroom.model import (
    AgentId,
    Capabilities,
    ConversationId,
    EventId,
    GhostId,
    Mapping,
    RoomEvent,
    RoomId,
    Turn,
)
from homeroom.posts import text_items
from homeroom.relay import Relay
from homeroom.store import Store, open_store

TURN, POST = ItemKind.TURN, ItemKind.POST
ROOM = RoomId("!r:hs.test")
HOME = Mapping(agent_id=AgentId("agent-1"), ghost=GhostId("@agent_1:hs.test"), room_id=ROOM)
(ASKED,) = decide(
    RoomEvent(EventId("$asked"), ROOM, "@you:hs.test", "m.room.message",
              {"msgtype": "m.text", "body": "hello"}, 1_000),
    HOME, 1, is_ghost=lambda user: False,
).items  # fmt: skip
LOST = Uncertain("letta", "key", "the line was cut")


class ScriptedLetta:
    """Answers what it is told to; notes the state of the item at every call."""

    capabilities = Capabilities("app-server", conversations=True, finds_turns=True)

    def __init__(self, state: Callable[[], str]) -> None:
        self._state = state
        self.turns: list[tuple[str, str]] = []
        """(state of the item, key) of every message that was sent."""
        self.looks: list[str] = []
        self.begun_ms: list[int] = []
        self.asked = anyio.Event()
        self.answers: list[Turn | HomeroomError] = []
        self.found: list[Turn | HomeroomError | None] = []

        self.gone: set[str] = set()
        """Conversations that somebody deleted."""
        self.opened: list[str] = []

    async def get_agent(self, agent_id: AgentId) -> None:
        self.asked.set()
        raise NotFound("agent", agent_id)

    async def open_conversation(self, *_: Any) -> ConversationId:
        self.opened.append(f"conversation-{len(self.opened) + 1}")
        return ConversationId(self.opened[-1])

    def _check(self, conversation: str) -> None:
        if conversation in self.gone:
            raise NotFound("conversation", conversation)

    async def turn(
        self, agent_id: AgentId, text: str, *, conversation: ConversationId, key: str, **_: Any
    ) -> Turn:
        self._check(conversation)
        self.turns.append((self._state(), key))
        return _tell(self.answers.pop(0))

    async def find_turn(
        self, agent_id: AgentId, *, conversation: ConversationId, key: str, begun_ms: int, **_: Any
    ) -> Turn | None:
        self._check(conversation)
        self.looks.append(self._state())
        self.begun_ms.append(begun_ms)
        found = self.found.pop(0)
        return found if found is None else _tell(found)


def _tell(answer: Turn | HomeroomError) -> Turn:
    if isinstance(answer, HomeroomError):
        raise answer
    return answer


class Case:
    """One chat, its store, and a Letta that can be away."""

    def __init__(self, store: Store, path: Path) -> None:
        self.store, self.path = store, path
        self.letta = ScriptedLetta(self.state)
        self.away: HomeroomError | None = None

    def state(self) -> str:
        """As another process would find it if this one died now."""

        with closing(sqlite3.connect(self.path)) as db:
            return str(db.execute("SELECT state FROM item WHERE kind = 'turn'").fetchone()[0])

    async def put(self) -> None:
        (self.id,) = await self.store.put(
            chat_items(AgentId("agent-1"), None, "hello", client="c", mirror=False, key="k")
        )

    async def fail_before(self, times: int) -> None:
        """As if so many attempts had ended with their answer lost."""
        fence = await self.lease()
        for _ in range(times):
            item, _due = await self.store.claim([TURN], fence)
            assert item
            await self.store.begin(item, fence)
            await self.store.retry(
                item, fence=fence, delay_ms=0, reason="", delivered=True, uncertain=True
            )
        await self.store.release_lease(fence)

    async def lease(self) -> int:
        return (await self.store.take_lease("me", rank=1, ttl_ms=600_000)).fence

    async def get_letta(self) -> ScriptedLetta:
        if self.away:
            raise self.away
        return self.letta

    async def get_matrix(self) -> ScriptedMatrix:
        raise Unavailable("matrix", "away")

    async def attempt(self) -> Item:
        """The item after one more attempt."""
        fence, before = await self.lease(), await self.store.get_item(self.id)
        async with anyio.create_task_group() as tasks:
            relay = Relay(
                self.store, self.get_letta, self.get_matrix, tasks,  # type: ignore[arg-type]
                fence=fence, on_progress=lambda *_: None,
            )  # fmt: skip
            work = partial(Mailbox(self.store).run_worker, relay, fence=fence, in_flight={TURN: 1})
            async with background(work):
                with anyio.fail_after(20):
                    while True:
                        changed, item = self.store.changed, await self.store.get_item(self.id)
                        idle = item.state.has_ended or item.state is ItemState.WAITING
                        if item.attempts > before.attempts and idle:
                            break
                        await changed.wait()
        await self.store.release_lease(fence)
        return item


@asynccontextmanager
async def case(tmp_path: Path) -> AsyncIterator[Case]:
    path = tmp_path / "s.db"
    async with open_store(path) as store:
        one = Case(store, path)
        await one.put()
        yield one


async def test_that_a_message_may_have_been_sent_is_on_disk_before_it_is_sent(
    tmp_path: Path,
) -> None:
    async with case(tmp_path) as one:
        one.letta.answers = [Turn("hi")]
        item = await one.attempt()
        assert item.state is ItemState.DONE
        assert one.letta.turns == [("delivering", item.id)] and one.letta.looks == []


async def test_what_was_lost_is_looked_for_and_its_answer_taken(tmp_path: Path) -> None:
    async with case(tmp_path) as one:
        await one.fail_before(1)
        one.letta.found = [Turn("said before")]
        item = await one.attempt()
        assert item.state is ItemState.DONE and item.result
        assert item.result["text"] == "said before"
        assert one.letta.turns == [] and one.letta.looks == ["claimed"]


async def test_who_looks_for_a_message_is_told_when_it_was_last_sent(tmp_path: Path) -> None:
    path, now_ms = tmp_path / "s.db", 1_000
    async with open_store(path, now_ms=lambda: now_ms) as store:
        one = Case(store, path)
        await one.put()
        now_ms = 2_000
        await one.fail_before(1)
        now_ms = 3_000
        await one.fail_before(1)
        now_ms = 9_000
        one.letta.found = [Turn("said before")]
        assert (await one.attempt()).state is ItemState.DONE
    assert one.letta.begun_ms == [3_000]


async def test_what_certainly_is_not_there_is_sent_again_with_the_same_key(
    tmp_path: Path,
) -> None:
    async with case(tmp_path) as one:
        await one.fail_before(1)
        one.letta.found, one.letta.answers = [None], [Turn("hi")]
        assert (await one.attempt()).state is ItemState.DONE
        assert one.letta.turns == [("delivering", one.id)]


async def test_what_cannot_be_known_is_never_sent_again_and_in_the_end_given_up(
    tmp_path: Path,
) -> None:
    async with case(tmp_path) as one:
        await one.fail_before(UNCERTAIN_LIMIT - 1)
        one.letta.found = [LOST, LOST]
        waiting = await one.attempt()
        assert waiting.state is ItemState.WAITING and waiting.begun
    async with open_store(one.path, now_ms=lambda: waiting.not_before_ms + 1) as store:
        one.store = store
        given_up = await one.attempt()
        assert given_up.state is ItemState.PARKED and given_up.begun
        assert one.letta.turns == [], "nothing was sent blindly"


@pytest.mark.parametrize("away", [Unavailable("letta", "down"), Rejected("letta", "bad token")])
async def test_while_letta_is_away_a_message_is_not_taken_for_sent(
    tmp_path: Path, away: HomeroomError
) -> None:
    async with case(tmp_path) as one:
        one.away = away
        item = await one.attempt()
        assert item.state is ItemState.WAITING and not item.begun
        assert "delivering" not in [change.state for change in await changes(one)]


async def test_being_away_later_does_not_undo_that_it_may_have_been_sent(tmp_path: Path) -> None:
    async with case(tmp_path) as one:
        await one.fail_before(1)
        one.away = Unavailable("letta", "down")
        item = await one.attempt()
        assert item.state is ItemState.WAITING and item.begun


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        Rejected("letta", "it does not accept the token", "401"),
        Rejected("letta", "it does not accept the token", "403"),
        ConfigError("HOMEROOM_LETTA_URL", "names no Letta", "ws://localhost"),
    ],
)
async def test_a_back_end_that_cannot_be_connected_to_anew_parks_nothing(
    tmp_path: Path, error: HomeroomError, begun: bool
) -> None:
    async with case(tmp_path) as one:
        if begun:
            await one.fail_before(1)
        one.letta.found, one.letta.answers = [error], [error]
        item = await one.attempt()
        assert item.state is ItemState.WAITING and item.begun is begun
        assert "not available" in item.reason and str(error) in item.reason


@pytest.mark.parametrize("error", [Rejected("letta", "no", "402"), Rejected("model", "no", "401")])
async def test_what_letta_or_a_model_refuses_is_parked_at_once(
    tmp_path: Path, error: HomeroomError
) -> None:
    async with case(tmp_path) as one:
        one.letta.answers = [error]
        assert (await one.attempt()).state is ItemState.PARKED


async def test_a_message_whose_conversation_was_deleted_goes_on_in_a_new_one_by_a_persons_word(
    tmp_path: Path,
) -> None:
    async with case(tmp_path) as one:
        one.letta.answers = [LOST]
        assert (await one.attempt()).begun
        one.letta.gone = {"conversation-1"}
        later = (await one.store.get_item(one.id)).not_before_ms + 1
    async with open_store(one.path, now_ms=lambda: later) as store:
        one.store = store
        parked = await one.attempt()
        assert parked.state is ItemState.PARKED and parked.begun
        assert "conversation" in parked.reason and "A replay sends it in a new one" in parked.reason
        assert len(one.letta.turns) == 1, "nothing was sent blindly"
        await Deliveries(store).replay(one.id)
        one.letta.answers = [Turn("hi")]
        item = await one.attempt()
        assert item.state is ItemState.DONE and item.result and item.result["text"] == "hi"
        assert one.letta.opened == ["conversation-1", "conversation-2"]


async def test_who_replays_without_having_been_told_that_the_conversation_is_gone_is_told_first(
    tmp_path: Path,
) -> None:
    async with case(tmp_path) as one:
        await one.fail_before(UNCERTAIN_LIMIT)
        one.letta.found = [LOST]
        assert (await one.attempt()).state is ItemState.PARKED
        await Deliveries(one.store).replay(one.id)
        one.letta.gone = {"conversation-1"}
        parked = await one.attempt()
        assert parked.state is ItemState.PARKED and "A replay sends it" in parked.reason
        assert one.letta.turns == []


async def test_half_a_character_in_an_answer_costs_nobody_the_answer(tmp_path: Path) -> None:
    async with case(tmp_path) as one:
        (one.id,) = await one.store.put([ASKED])
        one.letta.answers = [Turn("fine \ud83d", "end_turn"), Turn("fine \ud83d", "end_turn")]
        item = await one.attempt()
        assert item.state is ItemState.DONE, item.reason
        found = await one.store.find_delivery(item.id)
        assert found
        ((post, _),) = found.posts
        body = post.payload["content"]["body"]
        assert body.startswith("fine ") and body.encode()


async def test_whom_nobody_answered_goes_on_as_soon_as_letta_answers_somebody_else(
    tmp_path: Path,
) -> None:
    async with case(tmp_path) as one:
        fence = await one.lease()
        async with anyio.create_task_group() as tasks:
            relay = Relay(
                one.store, one.get_letta, one.get_letta, tasks,  # type: ignore[arg-type]
                fence=fence, on_progress=lambda *_: None,
            )  # fmt: skip

            async def attempt(answer: Turn | HomeroomError) -> None:
                item, _due = await one.store.claim([TURN], fence)
                assert item
                one.letta.answers = [answer]
                await one.store.begin(item, fence)
                try:
                    await relay.deliver(item, _nothing)
                except HomeroomError:
                    await one.store.retry(
                        item, fence=fence, delay_ms=600_000, reason="", delivered=False
                    )
                else:
                    await one.store.finish(item, ItemState.DONE, fence=fence)

            ids = [one.id]
            for number in range(3):
                agent, key = AgentId(f"other-{number}"), f"k{number}"
                ids += await one.store.put(
                    chat_items(agent, None, "x", client="c", mirror=False, key=key)
                )
            await attempt(Unavailable("letta", NO_CONNECTION))
            await attempt(Unavailable("letta", "it answered 500"))
            await attempt(Unavailable("model", NO_CONNECTION))
            pauses = [(await one.store.get_item(i)).not_before_ms for i in ids[:3]]
            assert min(pauses) > time.time() * 1000
            await attempt(Turn("hi"))
            due = [(await one.store.get_item(i)).not_before_ms <= time.time() * 1000 for i in ids]
            assert due == [True, False, False, True]
            again, _due = await one.store.claim([TURN], fence)
            assert again and again.id == ids[0]


async def test_somebody_looks_whether_letta_is_back_although_all_pauses_are_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("homeroom.relay.WATCH_S", 0.05)
    async with case(tmp_path) as one, anyio.create_task_group() as tasks:
        fence = await one.lease()
        relay = Relay(
            one.store, one.get_letta, one.get_letta, tasks,  # type: ignore[arg-type]
            fence=fence, on_progress=lambda *_: None,
        )  # fmt: skip
        item, _due = await one.store.claim([TURN], fence)
        assert item
        one.away = Unavailable("letta", NO_CONNECTION)
        with pytest.raises(Unavailable):
            await relay.deliver(item, _nothing)
        await one.store.retry(item, fence=fence, delay_ms=600_000, reason="", delivered=False)
        one.away = None
        with anyio.fail_after(20):
            await one.letta.asked.wait()
            while True:
                changed = one.store.changed
                if (await one.store.get_item(item.id)).not_before_ms <= time.time() * 1000:
                    break
                await changed.wait()


async def _nothing() -> None:
    pass


# --- a back end with one context for all of an agent's rooms -------------------------------------


class BusyLetta(ScriptedLetta):
    """Notes who is at work, and ends no turn of one agent before the test lets it."""

    def __init__(self, *, conversations: bool) -> None:
        super().__init__(lambda: "")
        self.capabilities = Capabilities("rest", conversations=conversations, finds_turns=True)
        self.let, self.changed = anyio.Event(), anyio.Event()
        self.working: list[str] = []
        self.most = 0
        self.heard: list[str] = []

    async def turn(self, agent_id: AgentId, text: str, **_: Any) -> Turn:
        self.working.append(agent_id)
        self.heard.append(text)
        self.most = max(self.most, self.working.count("busy"))
        self.changed.set()
        self.changed = anyio.Event()
        if agent_id == "busy":
            await self.let.wait()
        self.working.remove(agent_id)
        return Turn(text)


def asked(agent: str, room: int, text: str) -> NewItem:
    scope = f"!{room}:h"
    payload = {"agent_id": agent, "ghost": "@g:h", "scope": scope, "text": f"{room}{text}"}
    return NewItem(lane_of_turns(AgentId(agent), scope), TURN, payload, f"{agent}{room}{text}")


@pytest.mark.parametrize("conversations", [False, True])
async def test_ten_rooms_of_one_agent_keep_no_other_agent_waiting(
    tmp_path: Path, conversations: bool
) -> None:
    letta = BusyLetta(conversations=conversations)

    async def get_letta() -> BusyLetta:
        return letta

    async with open_store(tmp_path / "s.db") as store, anyio.create_task_group() as tasks:
        ids = await store.put([asked("busy", room, text) for text in "ab" for room in range(10)])
        other = await store.put([asked("other", 1, "x")])
        fence = (await store.take_lease("me", rank=1, ttl_ms=600_000)).fence
        relay = Relay(
            store, get_letta, get_letta, tasks,  # type: ignore[arg-type]
            fence=fence, on_progress=lambda *_: None,
        )  # fmt: skip
        mailbox = Mailbox(store)
        work = partial(mailbox.run_worker, relay, fence=fence, in_flight={TURN: 10})
        async with background(partial(work, holds=relay.holds)):
            if conversations:  # side by side, as far as there are slots
                with anyio.fail_after(20):
                    while letta.working.count("busy") < 10:
                        await letta.changed.wait()
            else:
                assert (await mailbox.wait_ended(other[0], 20)).state is ItemState.DONE
                assert letta.working == ["busy"]
            letta.let.set()
            ended = [await mailbox.wait_ended(item_id, 20) for item_id in (*ids, *other)]
        assert {item.state for item in ended} == {ItemState.DONE}
        assert letta.most == (10 if conversations else 1)
        for room in range(10):
            said = [text for text in letta.heard if text[0] == str(room) and text[1] != "x"]
            assert said == [f"{room}a", f"{room}b"], "each room in its order"


# --- posts ---------------------------------------------------------------------------------------


class ScriptedMatrix:
    """Takes every post."""

    def __init__(self) -> None:
        self.posted: list[str] = []

    async def post(
        self, ghost: str, room_id: str, content: Any, key: str, *_: Any, **__: Any
    ) -> str:
        self.posted.append(key)
        return "$posted"


@pytest.mark.parametrize(
    ("off_h", "state"), [(1, ItemState.DONE), (23, ItemState.DONE), (25, ItemState.PARKED)]
)
async def test_a_post_that_the_homeserver_would_not_know_again_is_not_made_twice(
    tmp_path: Path, off_h: int, state: ItemState
) -> None:
    then_ms = time.time_ns() // 1_000_000 - off_h * 3_600_000
    path, matrix = tmp_path / "s.db", ScriptedMatrix()
    (item,) = text_items("@ada:h", "!r:h", "hello", "reply:1")
    # It has waited for days before that, which does not matter.
    async with open_store(path, now_ms=lambda: then_ms - 90_000_000) as store:
        (item_id,) = await store.put([item])
    async with open_store(path, now_ms=lambda: then_ms) as store:
        fence = (await store.take_lease("off", rank=1, ttl_ms=1)).fence
        await store.claim([POST], fence, begin=[POST])

    async def get_matrix() -> ScriptedMatrix:
        return matrix

    async with open_store(path) as store, anyio.create_task_group() as tasks:
        fence = (await store.take_lease("me", rank=1, ttl_ms=600_000)).fence
        relay = Relay(
            store, get_matrix, get_matrix, tasks,  # type: ignore[arg-type]
            fence=fence, on_progress=lambda *_: None,
        )  # fmt: skip
        mailbox = Mailbox(store)
        work = partial(mailbox.run_worker, relay, fence=fence, in_flight={POST: 1})
        async with background(work):
            ended = await mailbox.wait_ended(item_id, 20)
            assert ended.state is state
            if state is ItemState.DONE:
                assert matrix.posted == [item_id]
                return
            with anyio.fail_after(20):
                while not matrix.posted:
                    changed = store.changed
                    await changed.wait()
        assert item_id not in matrix.posted and "twice" in ended.reason and ended.begun
        told = (await store.find_delivery(matrix.posted[0])).item  # type: ignore[union-attr]
        assert told and "may or may not have been posted" in told.payload["content"]["body"]


# --- what people are told of a delay -------------------------------------------------------------


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("error", [Unavailable("letta", "away"), LOST])
async def test_a_notice_says_that_nothing_was_delivered_only_if_that_is_certain(
    tmp_path: Path, error: Unavailable | Uncertain, begun: bool
) -> None:
    async with case(tmp_path) as one:
        (item_id,) = await one.store.put([ASKED])
        item = replace(await one.store.get_item(item_id), begun=begun)
        relay = Relay(one.store, None, None, None, fence=0, on_progress=lambda *_: None)  # type: ignore[arg-type]
        (notice,) = relay.on_delay(item, error)
        body = notice.payload["content"]["body"]
        certain = not begun and isinstance(error, Unavailable)
        assert ("was not delivered yet" in body) is certain
        assert ("may have been delivered" in body) is not certain
        (first,) = relay.on_delay(replace(item, begun=False), Unavailable("letta", "away"))
        assert (first.dedupe_key == notice.dedupe_key) is certain, "the room can be corrected"
        (again,) = relay.on_delay(item, error)
        assert again.dedupe_key == notice.dedupe_key, "and is not told twice"


async def changes(one: Case) -> list[Any]:
    found = await one.store.find_delivery(one.id)
    assert found
    return list(found.changes)
