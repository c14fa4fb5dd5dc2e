"""Stamps: what differs when something has changed, and who is woken."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import anyio
import pytest

from homeroom import watch as watch_module
from homeroom.background import background
from homeroom.config import Config
from homeroom.decide import decide
from homeroom.directory import Directory
from homeroom.errors import HomeroomError, NotFound, Unavailable
from homeroom.items import ItemKind, ItemState, NewItem
from homeroom.memory import Memory
from homeroom.model import (
    Agent,
    AgentId,
    Block,
    EventId,
    GhostId,
    Mapping,
    RoomEvent,
    RoomId,
    SyncBatch,
)
from homeroom.posts import text_items
from homeroom.reading import Edit, Watched
from homeroom.rooms import Rooms
from homeroom.store import Store, open_store
from homeroom.watch import Watch

LIMIT_S = 10.0
ADA = Agent(AgentId("agent-1"), "Ada")
ROOM = RoomId("!1:h")
HOME = Mapping(
    agent_id=ADA.id, agent_name="Ada", ghost=GhostId("@agent_1:h"), room_id=ROOM, hub_joined=True
)
ALL = [Watched("agent", ADA.id), Watched("memory", ADA.id, "human"), Watched("room", ROOM)]
AGENT, MEMORY, MESSAGES = ALL
JUDGE = partial(decide, is_ghost=lambda user: user.startswith("@agent_"))


class OneAgent:
    """As much of a Letta as is asked here."""

    def __init__(self) -> None:
        self.value = "one"
        self.errors: list[HomeroomError] = []
        """What the next looks at its memory come to."""
        self.reads = 0
        self.changed = anyio.Event()
        self.answers = anyio.Event()
        """It hangs until then."""
        self.answers.set()

    async def list_agents(self) -> list[Agent]:
        return [ADA]

    async def list_blocks(self, agent_id: AgentId) -> list[Block]:
        self.reads += 1
        self.changed.set()
        self.changed = anyio.Event()
        await self.answers.wait()
        if self.errors:
            raise self.errors.pop(0)
        return [Block("human", self.value), Block("persona", "a poet")]

    async def write_block(self, agent_id: AgentId, label: str, value: str) -> Block:
        self.value = value
        return Block(label, value)

    async def wait_reads(self, count: int) -> None:
        async with asyncio.timeout(LIMIT_S):
            while self.reads < count:
                await self.changed.wait()


def memory_of(store: Store, agent: OneAgent) -> Memory:
    async def letta() -> OneAgent:
        return agent

    directory = Directory(letta, store, Config(letta_url="http://127.0.0.1:1"))  # type: ignore[arg-type]
    return Memory(letta, store, directory, notices=False)  # type: ignore[arg-type]


def watch_of(store: Store, agent: OneAgent | None = None) -> Watch:
    memory = memory_of(store, agent or OneAgent())
    directory = memory._directory
    rooms = Rooms(store, memory._letta, directory.resolve, "h")  # type: ignore[arg-type]
    return Watch(store, directory, rooms, memory)


async def run_turn(store: Store, fence: int, key: str) -> None:
    """A turn of the agent, from its beginning to its end."""
    payload = {"agent_id": ADA.id, "client": "a test"}
    await store.put([NewItem(f"agent:{ADA.id}:x", ItemKind.TURN, payload, key)])
    item, _ = await store.claim([ItemKind.TURN], fence)
    assert item is not None
    await store.begin(item, fence)
    await store.finish(item, ItemState.DONE, fence=fence, result={})


async def lease(store: Store) -> int:
    fence = (await store.take_lease("me", rank=1, ttl_ms=10**12)).fence
    await store.save_mapping(HOME, JUDGE, fence)
    return fence


async def hear(store: Store, fence: int) -> None:
    content = {"msgtype": "m.text", "body": "hello"}
    event = RoomEvent(EventId("$1"), ROOM, "@you:h", "m.room.message", content, 5)
    await store.record_batch(SyncBatch("s", (event,)), JUDGE, lambda user: False, fence)


async def changed_by(watch: Watch, seen: dict[Watched, str]) -> set[Watched]:
    async with asyncio.timeout(LIMIT_S):
        now = await watch.wait(ALL, seen)
    found = {one for one in ALL if now[one] != seen[one]}
    seen |= now
    return found


async def test_a_message_an_answer_a_change_of_memory_and_of_a_home_are_told_apart(
    tmp_path: Path,
) -> None:
    async with open_store(tmp_path / "s.db") as store:
        fence, watch = await lease(store), watch_of(store)
        for label in ("human", "persona"):
            await store.note_block(ADA.id, Block(label, "one"))
        seen = await watch.stamps(ALL)
        await hear(store, fence)
        assert await changed_by(watch, seen) == {MESSAGES}
        await store.put(text_items("@agent_1:h", ROOM, "hi", "reply:1"))
        item, _ = await store.claim([ItemKind.POST], fence)
        assert item is not None
        await store.finish(item, ItemState.DONE, fence=fence, result={})
        assert await changed_by(watch, seen) == {MESSAGES}
        await store.note_block(ADA.id, Block("human", "two"))
        assert await changed_by(watch, seen) == {AGENT, MEMORY}
        await store.note_block(ADA.id, Block("persona", "x"))
        assert await changed_by(watch, seen) == {AGENT}


async def test_what_another_process_writes_wakes_this_one(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_store(path) as here, open_store(path) as there:
        fence, watch = await lease(here), watch_of(here)
        seen = await watch.stamps(ALL)
        waiting = asyncio.create_task(changed_by(watch, seen))
        await hear(there, fence)
        assert await waiting == {MESSAGES}


async def test_what_is_watched_is_found_by_name_and_must_exist(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        await lease(store)
        watch = watch_of(store)
        assert await watch.resolve(Watched("agent", "Ada")) == AGENT
        assert await watch.resolve(Watched("memory", "ada", "human")) == MEMORY
        assert await watch.resolve(Watched("room", "Ada")) == MESSAGES
        for missing in (
            Watched("agent", "x"), Watched("memory", "Ada", "x"), Watched("room", "!x:h"),
        ):  # fmt: skip
            with pytest.raises(NotFound):
                await watch.resolve(missing)


async def test_memory_that_an_agent_changed_in_a_turn_of_another_process_is_told(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s.db"
    async with open_store(path) as here, open_store(path) as there:
        fence, agent = await lease(there), OneAgent()
        watch = watch_of(here, agent)
        async with background(watch.run):
            assert await watch.resolve(MEMORY) == MEMORY
            seen = await watch.stamps(ALL)
            waiting = asyncio.create_task(changed_by(watch, seen))
            agent.value = "two, by the agent itself"
            await run_turn(there, fence, "chat:1")
            assert MEMORY in await waiting


async def test_a_turn_that_ended_before_anybody_waited_is_not_missed(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        fence, agent = await lease(store), OneAgent()
        watch = watch_of(store, agent)
        async with background(watch.run):
            await watch.resolve(MEMORY)
            seen = await watch.stamps(ALL)
            agent.value = "two, by the agent itself"
            await run_turn(store, fence, "chat:1")
            assert MEMORY in await changed_by(watch, seen)


async def test_a_turn_that_changed_nothing_is_not_told_nor_what_was_told_before(
    tmp_path: Path,
) -> None:
    async with open_store(tmp_path / "s.db") as here, open_store(tmp_path / "s.db") as there:
        fence, agent = await lease(here), OneAgent()
        watch = watch_of(here, agent)
        async with background(watch.run):
            await watch.resolve(MEMORY)
            seen = await watch.stamps(ALL)
            waiting = asyncio.create_task(changed_by(watch, seen))
            await run_turn(here, fence, "chat:1")
            await agent.wait_reads(2)
            await run_turn(here, fence, "chat:2")
            await agent.wait_reads(3)
            assert not waiting.done() and await watch.stamps(ALL) == seen
            edit = Edit("two, by a tool of another process")
            await memory_of(there, agent).update(ADA.id, "human", edit, "token-1")
            assert await waiting == {AGENT, MEMORY}
            seen = await watch.stamps(ALL)
            waiting = asyncio.create_task(changed_by(watch, seen))
            reads = agent.reads
            await run_turn(here, fence, "chat:3")
            await agent.wait_reads(reads + 1)
            await hear(here, fence)
            assert await waiting == {MESSAGES} and await watch.stamps(ALL) == seen


async def test_nothing_is_read_when_nobody_watches_memory_any_more(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        fence, agent = await lease(store), OneAgent()
        watch = watch_of(store, agent)
        async with background(watch.run):
            await watch.resolve(MEMORY)
            gone = asyncio.create_task(watch.wait(ALL, await watch.stamps(ALL)))
            await anyio.wait_all_tasks_blocked()
            gone.cancel()
            await asyncio.wait({gone})
            others = [AGENT, MESSAGES]
            waiting = asyncio.create_task(watch.wait(others, await watch.stamps(others)))
            await run_turn(store, fence, "chat:1")
            await hear(store, fence)
            async with asyncio.timeout(LIMIT_S):
                await waiting
            assert agent.reads == 1


async def test_a_letta_that_is_away_delays_word_of_memory_and_of_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "pause_s", lambda failures: 0.0)
    async with open_store(tmp_path / "s.db") as store:
        fence, agent = await lease(store), OneAgent()
        watch = watch_of(store, agent)
        async with background(watch.run):
            await watch.resolve(MEMORY)
            seen = await watch.stamps(ALL)
            agent.value, agent.errors = "two", [Unavailable("letta"), Unavailable("letta")]
            agent.answers = anyio.Event()
            waiting = asyncio.create_task(changed_by(watch, seen))
            await run_turn(store, fence, "chat:1")
            await agent.wait_reads(2)
            await hear(store, fence)
            assert await waiting == {MESSAGES}
            waiting = asyncio.create_task(changed_by(watch, seen))
            agent.answers.set()
            assert await waiting == {AGENT, MEMORY}
            assert agent.reads == 4 and not agent.errors


async def test_an_agent_that_is_gone_is_not_asked_for_again(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        fence, agent = await lease(store), OneAgent()
        watch = watch_of(store, agent)
        async with background(watch.run):
            await watch.resolve(MEMORY)
            seen = await watch.stamps(ALL)
            waiting = asyncio.create_task(changed_by(watch, seen))
            agent.errors = [NotFound("agent", ADA.id)]
            await run_turn(store, fence, "chat:1")
            await agent.wait_reads(2)
            await hear(store, fence)
            assert await waiting == {MESSAGES} and agent.reads == 2


async def test_each_end_of_a_turn_counts_however_it_came_about(tmp_path: Path) -> None:
    async def count(store: Store) -> int:
        return (await store.count_ended_turns([ADA.id]))[ADA.id]

    async with open_store(tmp_path / "s.db") as store, open_store(tmp_path / "s.db") as other:
        fence = await lease(store)
        assert await count(store) == 0
        await run_turn(store, fence, "chat:1")
        assert await count(store) == 1
        payload = {"agent_id": ADA.id}
        await store.put([NewItem("agent:agent-1:x", ItemKind.TURN, payload, "chat:2")])
        item, _ = await store.claim([ItemKind.TURN], fence)
        assert item and await count(store) == 1
        await store.retry(item, fence=fence, delay_ms=0, reason="away", delivered=False)
        assert await count(store) == 1, "it had not begun"
        item, _ = await store.claim([ItemKind.TURN], fence)
        assert item is not None
        await store.begin(item, fence)
        taken = await other.take_lease("b", rank=1, ttl_ms=60_000, is_gone=lambda _: True)
        assert await count(store) == 2, "its process died"
        item, _ = await other.claim([ItemKind.TURN], taken.fence)
        assert item is not None
        await other.finish(item, ItemState.DONE, fence=taken.fence, result={})
        assert await count(store) == 3, "Letta went on with it until its answer was found"
        await other.put(text_items("@agent_1:h", ROOM, "hi", "reply:1"))
        post, _ = await other.claim([ItemKind.POST], taken.fence, begin=[ItemKind.POST])
        assert post is not None
        await other.finish(post, ItemState.DONE, fence=taken.fence, result={})
        assert await count(store) == 3 and await store.count_ended_turns(["x"]) == {"x": 0}
