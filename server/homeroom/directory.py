"""Which agents there are, by id or name, and what is in their memory.

Owns finding an agent from what a person or a model calls it, and paging. Keeps the last list for
seconds only: Letta is the truth.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from homeroom.config import Config
from homeroom.cursors import read_cursor, write_cursor
from homeroom.errors import Ambiguous, NotFound, is_handle
from homeroom.letta import Letta
from homeroom.model import Agent, AgentId, Block, Mapping, ghost_localpart
from homeroom.plan import is_selected, policy_of
from homeroom.reading import AgentPage, AgentView
from homeroom.store import Store

FRESH_S = 30.0
"""How long a list is good enough to find a known agent in, or to turn a page of."""
CANDIDATES = 5
ID_PIECE = 8
"""A query as long as this may be a piece of an id."""


class Directory:
    """The agents of Letta joined with their homes in Matrix."""

    def __init__(self, letta: Callable[[], Awaitable[Letta]], store: Store, config: Config) -> None:
        self._letta, self._store, self._config = letta, store, config
        self._known: list[Agent] = []
        self._known_at_s = float("-inf")

    async def page(self, query: str, limit: int, cursor: str) -> AgentPage:
        """Agents with ``query`` in their name, id, description or tags, by name, after ``cursor``.

        Raises Misuse (a cursor that is none of ours), Unavailable, Rejected.
        """
        after = _after(cursor) if cursor else None
        agents = await self._list(fresh=not cursor)
        wanted = query.strip().casefold()
        found = sorted((a for a in agents if _matches(a, wanted)), key=_order)
        rest = [a for a in found if after is None or _order(a) > after]
        mappings = await self._store.list_mappings()
        more = len(rest) > limit
        return AgentPage(
            agents=tuple(
                replace(self._view(a, mappings.get(a.id)), cursor=write_cursor(*_order(a)))
                for a in rest[:limit]
            ),
            total=len(found),
            next_cursor=write_cursor(*_order(rest[limit - 1])) if more else "",
        )

    async def resolve(self, name: str) -> Agent:
        """The agent with that id or name (exactly, else regardless of case).

        Raises NotFound with the nearest names, Ambiguous with the ids.
        """
        name = name.strip()
        for fresh in (False, True):
            agents = await self._list(fresh=fresh)
            for same in (
                [a for a in agents if a.id == name],
                [a for a in agents if a.name == name],
                [a for a in agents if a.name.casefold() == name.casefold()],
            ):
                if len(same) == 1:
                    return same[0]
                if same and fresh:
                    raise Ambiguous("agent", name, sorted(a.id for a in same))
                if same:
                    break
        # A name that could be a sentence is not repeated in an error; the id is no less useful.
        handles = {a.name: a.name if is_handle(a.name) else a.id for a in agents}
        names = sorted(handles)
        near = difflib.get_close_matches(name, names, CANDIDATES, 0.4) or names[:CANDIDATES]
        raise NotFound("agent", name, [handles[n] for n in near], "list_agents shows them all.")

    async def recall(self, name: str) -> Agent | None:
        """The agent with that id or exactly that name, by what the store knows of homes and without
        asking Letta; None if it knows none, or several of that name.

        It may be out of date by one sync: for where Letta does not say.
        """
        if not self._config.has_matrix:
            return None  # nothing keeps the names up to date
        name = name.strip()
        homes = await self._store.find_homes(name)
        same = [home for home in homes if home.agent_id == name] or homes
        return Agent(same[0].agent_id, same[0].agent_name) if len(same) == 1 else None

    async def blocks(self, agent_id: AgentId, label: str = "") -> list[Block]:
        """All blocks, or the one called ``label``. Raises NotFound as ``block_called`` does."""
        blocks = await (await self._letta()).list_blocks(agent_id)
        return [block_called(blocks, label)] if label else blocks

    async def view(self, name: str) -> AgentView:
        """One agent, by id or name, with its home. Raises as ``resolve`` does."""
        agent = await self.resolve(name)
        return self._view(agent, await self._store.find_mapping(agent.id))

    async def _list(self, *, fresh: bool) -> list[Agent]:
        if fresh or time.monotonic() - self._known_at_s > FRESH_S:
            self._known = await (await self._letta()).list_agents()
            self._known_at_s = time.monotonic()
        return self._known

    def _view(self, agent: Agent, mapping: Mapping | None) -> AgentView:
        if not self._config.has_matrix:
            return AgentView(agent, "", "", "no_matrix")
        server = self._config.matrix_server_name
        ghost = f"@{ghost_localpart(agent.id)}:{server}"
        if mapping is None:
            selected = is_selected(agent, policy_of(self._config))
            return AgentView(agent, ghost, "", "not_synced" if selected else "not_selected")
        ghost = mapping.ghost
        room_id = "" if mapping.room_gone else mapping.room_id or ""
        if mapping.problem:
            return AgentView(agent, ghost, room_id, "failing", mapping.problem)
        home = mapping.room_id and mapping.hub_joined
        return AgentView(agent, ghost, room_id, "home" if home else "moving_in")


def block_called(blocks: Sequence[Block], label: str) -> Block:
    """That one of them. Raises NotFound with the labels there are."""
    for block in blocks:
        if block.label == label:
            return block
    labels = [block.label for block in blocks]
    raise NotFound("memory block", label, labels, "get_agent_memory shows them all.")


def _matches(agent: Agent, wanted: str) -> bool:
    if not wanted:
        return True
    # An id is random letters: a short word in it is chance.
    by_id = len(wanted) >= ID_PIECE and wanted in agent.id.casefold()
    texts = (agent.name, agent.description, *agent.tags)
    return by_id or any(wanted in text.casefold() for text in texts)


def _order(agent: Agent) -> tuple[str, str]:
    return agent.name.casefold(), agent.id


def _after(cursor: str) -> tuple[str, str]:
    name, agent_id = read_cursor(cursor, str, str, tool="list_agents")
    return name, agent_id
