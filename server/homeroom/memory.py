"""What agents remember: read, searched, changed, and changed back.

Owns the order of a change: the value that is about to go is kept first, then Letta is written to,
then the new value is kept. Keeps the last versions of what Homeroom changed and nothing else of
anybody's memory. Invariant: nothing is written over that the caller has not been able to read.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import anyio

from homeroom.cursors import read_cursor, refused_cursor, write_cursor
from homeroom.directory import Directory
from homeroom.edits import block_after_edit, block_hits, diff_of, undoing, with_diffs
from homeroom.errors import Misuse, Unavailable
from homeroom.items import NewItem
from homeroom.letta import Letta
from homeroom.model import AgentId, Block, Mapping
from homeroom.posts import plain_label, text_items
from homeroom.reading import (
    Edit,
    MemoryChange,
    MemoryHit,
    MemoryHits,
    MemoryView,
    Recall,
)
from homeroom.store import Store

PASSAGES = 100
"""Most passages that are asked of a back end: whatever comes later fits badly."""
SEEN_BLOCKS = 4096
EDIT_S = 120.0
"""How long a change may take after it has the right to; a process that dies keeps it so long."""
EDIT_WAIT_S = 30.0
"""How long a change waits for those before it: LLM clients give up after 60 s."""
_RETRY_S = 5.0


class Memory:
    """The memory blocks of agents, and their archival memory where the back end has one."""

    def __init__(
        self,
        letta: Callable[[], Awaitable[Letta]],
        store: Store,
        directory: Directory,
        *,
        notices: bool,
    ) -> None:
        self._letta, self._store, self._directory = letta, store, directory
        self._notices = notices
        self._seen: dict[tuple[AgentId, str], str] = {}
        self.on_seen: Callable[[AgentId, str], None] = lambda agent_id, label: None
        """Called when a block turns out to be different from when it was last read here, and no
        version in the store tells so."""

    async def get(self, agent: str, label: str = "", *, history: bool = False) -> MemoryView:
        """All blocks of an agent (id or name), or the one called ``label``, with what is kept of
        their past if ``history`` is asked for."""
        found = await self._directory.resolve(agent)
        blocks = await self._directory.blocks(found.id, label)
        for block in blocks:
            await self._see(found.id, block)
        if not history:
            return MemoryView(found, tuple(blocks))
        versions = await self._store.list_block_versions(found.id, label)
        for block in blocks:
            if block.label in {version.label for version in versions}:
                await self._store.note_block(found.id, block)
        versions = await self._store.list_block_versions(found.id, label)
        return MemoryView(found, tuple(blocks), with_diffs(versions))

    async def look(self, agent_id: AgentId) -> list[Block]:
        """All blocks of an agent. What differs from when they were last read here is noted, so
        that whoever watches them hears of it. Raises NotFound, Unsupported."""
        blocks = await self._directory.blocks(agent_id)
        for block in blocks:
            await self._see(agent_id, block)
        return blocks

    async def update(self, agent: str, label: str, edit: Edit, caller: str) -> MemoryChange:
        """Writes a block. See ``Edit`` for the ways to say what it shall be.

        Raises:
            NotFound, Ambiguous: the agent, the block, or the revision to undo.
            Conflict, LimitExceeded, Misuse: nothing was written, for the reason given.
            Unavailable: nor was it if others kept changing the block meanwhile.
        """
        found = await self._directory.resolve(agent)
        async with self._edit(found.id, label) as renew:
            block = (await self._directory.blocks(found.id, label))[0]
            if edit.undo_of:
                versions = await self._store.list_block_versions(found.id, label)
                edit = undoing(block, versions, edit)
            value = block_after_edit(block, edit)
            if value == block.value:
                return MemoryChange(found, block, block.revision, "")
            await self._see(found.id, block)  # whoever watches hears of it even if writing fails
            await self._store.note_block(found.id, block)
            await renew()  # reading may have taken long, and writing may
            written = await (await self._letta()).write_block(found.id, label, value)
            await self._store.note_block(
                found.id, written, replaced=block.revision, caller=caller,
                then=await self._notice(found.id, block, written, caller),
            )  # fmt: skip
            self._seen[found.id, label] = written.revision
            diff = diff_of(block.value, written.value)
            return MemoryChange(found, written, block.revision, diff)

    @asynccontextmanager
    async def _edit(
        self, agent_id: AgentId, label: str
    ) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """The right to change a block, which one has at a time, of all processes on the store:
        what is read must be what is overwritten. Gives what makes it last longer.

        Raises Unavailable if another has it for ``EDIT_WAIT_S``, or has got it meanwhile.
        """
        owner = secrets.token_hex(8)

        async def take() -> bool:
            return await self._store.take_edit(agent_id, label, owner, int(EDIT_S * 1000))

        async def renew() -> None:
            if not await take():
                raise _busy()

        try:
            with anyio.move_on_after(EDIT_WAIT_S) as waiting:
                while True:
                    changed = self._store.changed
                    if await take():
                        break
                    await changed.wait()
            if waiting.cancelled_caught:
                raise _busy()
            yield renew
        finally:
            with anyio.CancelScope(shield=True):
                await self._store.end_edit(agent_id, label, owner)

    async def search(self, agent: str, query: str, limit: int, cursor: str) -> MemoryHits:
        """Places in the agent's memory that fit ``query``: blocks with its words in them, then
        archival passages, best first. The cursor survives a restart; the memory may change.

        Raises:
            NotFound, Ambiguous: no such agent.
            Misuse: an empty query, or a cursor of another one.
            Unsupported: the back end has no memory.
        """
        if not query.strip():
            raise Misuse("The query is empty. Say what to look for in the agent's memory.")
        found = await self._directory.resolve(agent)
        start = _read_start(cursor, found.id, query) if cursor else 0
        letta = await self._letta()
        hits = block_hits(await letta.list_blocks(found.id), query)
        recall: Recall = await letta.search_passages(found.id, query, PASSAGES)
        hits += [MemoryHit("passage", p.id, p.text) for p in recall.passages]
        end = start + limit
        more = write_cursor(end, _mark(found.id, query)) if end < len(hits) else ""
        return MemoryHits(found, tuple(hits[start:end]), len(hits), recall.method, more)

    async def _see(self, agent_id: AgentId, block: Block) -> None:
        """Notes that a block has this value now; one that Homeroom has changed before keeps the
        value as a version of its own if somebody else wrote it."""
        place = (agent_id, block.label)
        if self._seen.get(place, block.revision) != block.revision:
            versions = await self._store.list_block_versions(agent_id, block.label)
            # The oldest version was only looked at, so that it is there tells nobody of a change.
            if versions and (versions[0].replaced or versions[0].revision != block.revision):
                await self._store.note_block(agent_id, block)
            elif self._seen.get(place) != block.revision:  # or another reader has just told it
                self.on_seen(agent_id, block.label)
        self._seen.pop(place, None)
        self._seen[place] = block.revision
        while len(self._seen) > SEEN_BLOCKS:
            del self._seen[next(iter(self._seen))]

    async def _notice(
        self, agent_id: AgentId, before: Block, after: Block, caller: str
    ) -> Sequence[NewItem]:
        mapping = await self._store.find_mapping(agent_id) if self._notices else None
        return memory_notice(mapping, before, after, caller) if mapping else ()


def _busy() -> Unavailable:
    why = "another process is changing this memory block; nothing was written"
    return Unavailable("store", why, _RETRY_S)


def memory_notice(mapping: Mapping, before: Block, after: Block, caller: str) -> Sequence[NewItem]:
    """What an agent's room is told of a change in its memory: who and which, not what. Pure."""
    if mapping.room_id is None:
        return ()
    text = (
        f"📝 My memory block **{plain_label(after.label)}** was changed over MCP by"
        f" {plain_label(caller)} ({len(before.value)} characters before, {len(after.value)} now)."
    )
    key = f"memory:{mapping.agent_id}:{after.label}:{before.revision}:{after.revision}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:32]
    return text_items(mapping.ghost, mapping.room_id, text, f"memory:{digest}", notice=True)


def _read_start(cursor: str, agent_id: AgentId, query: str) -> int:
    start, mark = read_cursor(cursor, int, str, tool="search_agent_memory")
    if mark != _mark(agent_id, query) or start < 0:
        raise refused_cursor("of another search")
    return int(start)


def _mark(agent_id: AgentId, query: str) -> str:
    return hashlib.sha256(f"{agent_id}\0{query}".encode()).hexdigest()[:12]
