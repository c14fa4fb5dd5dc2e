"""Memory's past, kept by us over real Lettas that know nothing of it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from homeroom.directory import Directory
from homeroom.errors import LimitExceeded, Misuse, NotFound
from homeroom.letta import Letta, open_letta
from homeroom.memory import Memory
from homeroom.model import AgentId
from homeroom.reading import Edit
from homeroom.store import open_store
from support.fixtures_letta import LettaServer

WAIT_S = 120.0


@asynccontextmanager
async def remembering(
    server: LettaServer, directory: Path, **blocks: str
) -> AsyncIterator[tuple[Memory, Letta, AgentId]]:
    """The memory of a new agent, over the server and a store of its own."""
    agent = await server.create_agent(f"rememberer-{uuid.uuid4().hex[:8]}", blocks=blocks)
    config = server.config()
    async with (
        asyncio.timeout(WAIT_S),
        open_letta(config) as letta,
        open_store(directory / "s.db") as store,
    ):

        async def get() -> Letta:
            return letta

        yield Memory(get, store, Directory(get, store, config), notices=False), letta, agent.id


async def test_changes_are_kept_shown_and_taken_back(
    letta_server: LettaServer, tmp_path: Path
) -> None:
    async with remembering(letta_server, tmp_path, human="Likes tea.") as (memory, _, agent):
        added = await memory.update(agent, "human", Edit("And cake.", "append"), "token-1")
        assert added.diff == "@@ -1 +1,2 @@\n Likes tea.\n+And cake."
        assert added.block.value == "Likes tea.\nAnd cake."
        edit = Edit("pie", "replace_text", old_text="cake", expected_revision=added.block.revision)
        await memory.update(agent, "human", edit, "token-2")
        view = await memory.get(agent, "human", history=True)
        assert [v.caller for v in view.versions] == ["token-2", "token-1", ""]
        assert view.blocks[0].value == "Likes tea.\nAnd pie."
        undone = await memory.update(
            agent, "human", Edit(undo_of=view.versions[0].revision), "token-1"
        )
        assert undone.block.value == "Likes tea.\nAnd cake."
        with pytest.raises(NotFound, match="history=true"):
            await memory.update(agent, "human", Edit(undo_of="0" * 12), "x")


async def test_what_others_change_is_seen_once_by_whoever_reads_it(
    letta_server: LettaServer, tmp_path: Path
) -> None:
    seen: list[tuple[AgentId, str]] = []
    async with remembering(letta_server, tmp_path, human="one") as (memory, letta, agent):
        memory.on_seen = lambda agent_id, label: seen.append((agent_id, label))
        assert [block.value for block in await memory.look(agent)] == ["one"]
        await letta.write_block(agent, "human", "two, by the agent itself")
        assert seen == []
        for _ in range(2):
            await memory.look(agent)
        assert seen == [(agent, "human")]


async def test_what_others_change_is_a_version_and_not_lost_in_an_undo(
    letta_server: LettaServer, tmp_path: Path
) -> None:
    seen: list[tuple[AgentId, str]] = []
    async with remembering(letta_server, tmp_path, human="one") as (memory, letta, agent):
        memory.on_seen = lambda agent_id, label: seen.append((agent_id, label))
        ours = await memory.update(agent, "human", Edit("two"), "token-1")
        await memory.get(agent)
        await letta.write_block(agent, "human", "three, by the agent itself")
        view = await memory.get(agent, "human", history=True)
        assert seen == [], "the version tells it, to every process"
        assert [(v.value, v.caller) for v in view.versions] == [
            ("three, by the agent itself", ""), ("two", "token-1"), ("one", ""),
        ]  # fmt: skip
        undo = Edit(undo_of=ours.block.revision)
        known = view.blocks[0].revision
        with pytest.raises(Misuse, match=f"1 later change .* expected_revision={known} "):
            await memory.update(agent, "human", undo, "token-1")
        undo = Edit(undo_of=ours.block.revision, expected_revision=known)
        assert (await memory.update(agent, "human", undo, "token-1")).block.value == "one"


async def test_a_change_that_is_refused_leaves_no_version(
    letta_server: LettaServer, tmp_path: Path
) -> None:
    async with remembering(letta_server, tmp_path, human="one") as (memory, _, agent):
        with pytest.raises(LimitExceeded):
            await memory.update(agent, "human", Edit("x" * 200_000), "token-1")
        view = await memory.get(agent, "human", history=True)
        assert view.versions == () and view.blocks[0].value == "one"


async def test_blocks_are_searched_before_the_archive_page_by_page(
    letta_server: LettaServer, tmp_path: Path
) -> None:
    text = "\n\n".join(f"tea number {number}" for number in range(5))
    async with remembering(letta_server, tmp_path, human=text) as (memory, _, agent):
        first = await memory.search(agent, "TEA", 3, "")
        rest = await memory.search(agent, "TEA", 3, first.next_cursor)
    assert [hit.text for hit in (*first.hits, *rest.hits)] == text.split("\n\n")
    assert (first.total, rest.next_cursor, first.method) == (5, "", "text")
