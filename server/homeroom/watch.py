"""What has changed since somebody last looked: agents, memory blocks and rooms, by stamps.

Owns the stamps and the waiting for another one. A stamp says nothing but that it differs. What is
written through Homeroom by any process on the store, and what its hub hears, changes one; so does
what this process sees to be different when it reads. Nothing is polled for anybody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import anyio

from homeroom.directory import Directory
from homeroom.model import AgentId
from homeroom.reading import Watched
from homeroom.rooms import Rooms
from homeroom.store import Store

BURST_S = 0.2
"""One look for a burst of commits."""


class Watch:
    """Stamps of what tools and resources show."""

    def __init__(self, store: Store, directory: Directory, rooms: Rooms) -> None:
        self._store, self._directory, self._rooms = store, directory, rooms
        self._seen: Counter[tuple[str, str]] = Counter()

    def note_seen(self, agent_id: AgentId, label: str) -> None:
        """A block was found to be different from what it was."""
        self._seen[agent_id, label] += 1
        self._store.wake()

    async def resolve(self, wanted: Watched) -> Watched:
        """The same by its id. Raises NotFound, Ambiguous."""
        if wanted.kind == "room":
            return Watched("room", (await self._rooms.resolve(wanted.id)).id)
        agent_id = (await self._directory.resolve(wanted.id)).id
        if wanted.kind == "memory":
            await self._directory.blocks(agent_id, wanted.label)
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
        while True:
            changed = self._store.changed
            now = await self.stamps(watched)
            if any(now[one] != seen.get(one) for one in watched):
                return now
            await changed.wait()
            await anyio.sleep(BURST_S)
