"""What has changed since somebody last looked: agents, memory blocks and rooms, by stamps.

Owns the stamps and the waiting for another one. A stamp says nothing but that it differs. What is
written through Homeroom by any process on the store, and what its hub hears, changes one; so does
what this process sees to be different when it reads. Memory that somebody watches is read again
when a turn of its agent has ended, whichever process ran it. Nothing is polled for anybody.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import anyio

from homeroom.directory import Directory, block_called
from homeroom.errors import HomeroomError, Misuse
from homeroom.memory import Memory
from homeroom.model import AgentId
from homeroom.reading import Watched
from homeroom.retry import pause_s
from homeroom.rooms import Rooms
from homeroom.store import Store

log = logging.getLogger(__name__)

BURST_S = 0.2
"""One look for a burst of commits."""


class Watch:
    """Stamps of what tools and resources show."""

    def __init__(self, store: Store, directory: Directory, rooms: Rooms, memory: Memory) -> None:
        self._store, self._directory, self._rooms = store, directory, rooms
        self._memory, memory.on_seen = memory, self._note_seen
        self._seen: Counter[tuple[str, str]] = Counter()
        self._watchers: Counter[AgentId] = Counter()
        """How many wait for word of the memory of which agent."""
        self._ended: dict[AgentId, int] = {}
        """How many of the agent's turns have ended, as far as is known here ..."""
        self._read: dict[AgentId, int] = {}
        """... and after how many its memory was last read."""
        self._reading: set[AgentId] = set()

    def _note_seen(self, agent_id: AgentId, label: str) -> None:
        self._seen[agent_id, label] += 1
        self._store.wake()

    async def run(self) -> None:
        """Reads watched memory again whenever a turn of its agent has ended, until cancelled."""
        async with anyio.create_task_group() as readers:
            while True:
                changed = self._store.changed
                if self._watchers:
                    ended = await self._store.count_ended_turns([*self._watchers])
                    for name, count in ended.items():
                        agent_id = AgentId(name)
                        self._ended[agent_id] = count
                        if self._is_behind(agent_id) and agent_id not in self._reading:
                            self._reading.add(agent_id)
                            readers.start_soon(self._read_again, agent_id)
                await changed.wait()
                await anyio.sleep(BURST_S)

    def _is_behind(self, agent_id: AgentId) -> bool:
        return agent_id in self._watchers and self._read.get(agent_id) != self._ended[agent_id]

    async def _read_again(self, agent_id: AgentId) -> None:
        """Reads an agent's memory until no turn has ended since; later, if Letta is away."""
        failures = 0
        try:
            while self._is_behind(agent_id):
                count = self._ended[agent_id]
                try:
                    await self._memory.look(agent_id)
                except Misuse:
                    pass  # the agent is gone, and cannot be read another time either
                except HomeroomError as error:
                    failures += 1
                    log.warning("watched_memory_unread", extra={"reason": str(error)})
                    await anyio.sleep(pause_s(failures))
                    continue
                self._read[agent_id] = count
        finally:
            self._reading.discard(agent_id)

    async def resolve(self, wanted: Watched) -> Watched:
        """The same by its id. Raises NotFound, Ambiguous."""
        if wanted.kind == "room":
            return Watched("room", (await self._rooms.resolve(wanted.id)).id)
        agent_id = (await self._directory.resolve(wanted.id)).id
        if wanted.kind == "memory":
            # Counted first: of a turn that ends meanwhile the memory is read again.
            ended = await self._store.count_ended_turns([agent_id])
            block_called(await self._memory.look(agent_id), wanted.label)
            self._read[agent_id] = ended[agent_id]
        return Watched(wanted.kind, agent_id, wanted.label)

    async def stamps(self, watched: Sequence[Watched]) -> dict[Watched, str]:
        """What they are at now."""
        rooms = await self._store.room_stamps([w.id for w in watched if w.kind == "room"])
        agents = [w.id for w in watched if w.kind != "room"]
        blocks = await self._store.memory_stamps(agents) if agents else {}
        homes = await self._store.list_mappings() if agents else {}
        found: dict[Watched, str] = {}
        for one in watched:
            if one.kind == "room":
                found[one] = rooms.get(one.id, "")
                continue
            labels = sorted({label for agent, label in [*blocks, *self._seen] if agent == one.id})
            of_blocks = [
                f"{label} {blocks.get((one.id, label))} {self._seen[one.id, label]}"
                for label in labels
                if one.kind == "agent" or label == one.label
            ]
            home = homes.get(AgentId(one.id)) if one.kind == "agent" else None
            found[one] = repr((home, of_blocks))
        return found

    async def wait(
        self, watched: Sequence[Watched], seen: Mapping[Watched, str]
    ) -> dict[Watched, str]:
        """The stamps, as soon as one of them is not as in ``seen``."""
        remembering = Counter(AgentId(one.id) for one in watched if one.kind == "memory")
        self._watchers += remembering
        if remembering:
            self._store.wake()  # a turn may have ended since somebody last waited
        try:
            while True:
                changed = self._store.changed
                now = await self.stamps(watched)
                if any(now[one] != seen.get(one) for one in watched):
                    return now
                await changed.wait()
                await anyio.sleep(BURST_S)
        finally:
            self._watchers -= remembering  # which leaves out those for whom nobody waits
