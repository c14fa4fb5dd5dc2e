"""What happens to a chat before it is on its lane."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from homeroom import asking
from homeroom.asking import Asking, Question
from homeroom.config import Config
from homeroom.directory import Directory
from homeroom.errors import NotFound, Unavailable
from homeroom.items import ItemState
from homeroom.letta import Letta
from homeroom.model import Agent, AgentId, GhostId, Mapping
from homeroom.store import Store, open_store

LIMIT_S = 10.0
CONFIG = Config(letta_url="http://127.0.0.1:9")
WITH_MATRIX = Config(
    letta_url="http://127.0.0.1:9", matrix_url="http://127.0.0.1:9", matrix_server_name="h"
)


async def never_told() -> Letta:
    await anyio.sleep_forever()
    raise AssertionError


async def away() -> Letta:
    raise Unavailable("letta", "connection refused")


def home(number: int, name: str, *, retired: bool = False) -> Mapping:
    """The home of an agent as the last sync left it."""
    agent_id = AgentId(f"agent-{number}")
    return Mapping(agent_id, GhostId(f"@agent_{number}:h"), agent_name=name, retired=retired)


@asynccontextmanager
async def asking_with(
    path: Path, get: Callable[[], Awaitable[Letta]], config: Config = WITH_MATRIX
) -> AsyncIterator[tuple[Asking, Store]]:
    """What asks with such a Letta, in a store that knows some homes."""
    async with open_store(path / "s.db") as store:
        fence = (await store.take_lease("me", rank=1, ttl_ms=60_000)).fence
        homes = [home(1, "Ada"), home(2, "Brook"), home(3, "Twin"), home(4, "Twin"),
                 home(5, "Gone", retired=True)]  # fmt: skip
        for one in homes:
            await store.save_mapping(one, lambda event, room: [], fence)
        yield Asking(config, store, Directory(get, store, config)), store


@pytest.mark.parametrize("get", [never_told, away])
@pytest.mark.parametrize("name", ["agent-1", "Ada", " Ada "])
async def test_a_message_to_an_agent_with_a_home_is_taken_though_letta_says_nothing(
    name: str, get: Callable[[], Awaitable[Letta]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "RECALL_S", 0.05)
    async with asking_with(tmp_path, get) as (asks, store):
        with anyio.fail_after(LIMIT_S):  # and not as long as Letta may take otherwise
            reply_id = await asks.ask(Question(name, "Hello", "c", "local"))
        item = await store.get_item(reply_id)
    assert (item.state, item.payload["agent_id"]) == (ItemState.WAITING, "agent-1")


@pytest.mark.parametrize("get", [never_told, away])
@pytest.mark.parametrize("name", ["ada", "Twin", "Gone", "agent-9"])
async def test_whom_only_letta_can_know_nothing_is_sent_to_without_it(
    name: str, get: Callable[[], Awaitable[Letta]], tmp_path: Path
) -> None:
    async with asking_with(tmp_path, get) as (asks, store):
        with anyio.fail_after(LIMIT_S), pytest.raises(Unavailable):
            await asks.ask(Question(name, "Hello", "c", "local", find_s=0.05))
        assert await store.count_items() == {}


async def test_what_is_not_kept_up_to_date_is_not_recalled(tmp_path: Path) -> None:
    async with asking_with(tmp_path, away, CONFIG) as (asks, store):
        with pytest.raises(Unavailable):
            await asks.ask(Question("Ada", "Hello", "c", "local"))
        assert await store.count_items() == {}


async def test_an_agent_that_sends_is_recalled_as_well(tmp_path: Path) -> None:
    async with asking_with(tmp_path, away) as (asks, store):
        reply_id = await asks.ask(Question("Ada", "Hello", "c", "local", from_agent="Brook"))
        assert (await store.get_item(reply_id)).payload["from_agent"] == "agent-2"
        with pytest.raises(Unavailable):
            await asks.ask(Question("Ada", "Hello!", "c", "local", from_agent="Stranger"))


async def test_letta_has_the_last_word_while_it_answers(tmp_path: Path) -> None:
    class Letta:
        async def list_agents(self) -> list[Agent]:
            return [Agent(AgentId("agent-7"), "Ada")]

    async def get() -> Letta:
        return Letta()

    async with asking_with(tmp_path, get) as (asks, store):  # type: ignore[arg-type]
        reply_id = await asks.ask(Question("Ada", "Hello", "c", "local"))
        assert (await store.get_item(reply_id)).payload["agent_id"] == "agent-7"
        with pytest.raises(NotFound):
            await asks.ask(Question("agent-1", "Hello", "c", "local"))


async def test_a_letta_that_hangs_ends_a_chat_before_anything_is_sent(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        asks = Asking(CONFIG, store, Directory(never_told, store, CONFIG))
        with anyio.fail_after(10), pytest.raises(Unavailable, match="nothing was sent"):
            await asks.ask(Question("Ada", "Hello", "c", "local", find_s=0.05))
        assert await store.list_changes(0, 10) == []
