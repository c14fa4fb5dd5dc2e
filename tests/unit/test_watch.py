"""Stamps: what differs when something has changed, and who is woken."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from homeroom.config import Config
from homeroom.decide import decide
from homeroom.directory import Directory
from homeroom.errors import NotFound
from homeroom.items import ItemKind, ItemState
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
from homeroom.reading import Watched
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

    async def list_agents(self) -> list[Agent]:
        return [ADA]

    async def list_blocks(self, agent_id: AgentId) -> list[Block]:
        return [Block("human", "one")]


def watch_of(store: Store) -> Watch:
    async def letta() -> OneAgent:
        return OneAgent()

    directory = Directory(letta, store, Config(letta_url="http://127.0.0.1:1"))  # type: ignore[arg-type]
    return Watch(store, directory, Rooms(store, letta, directory.resolve, "h"))  # type: ignore[arg-type]


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
        watch.note_seen(ADA.id, "human")
        assert await changed_by(watch, seen) == {AGENT, MEMORY}


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
