"""Letta behind one narrow protocol, with two real back ends and one proxy.

Owns Letta's wire: nothing outside this package knows a path, a frame or a header of Letta. The
back ends do not retry, do not queue and keep no state that a restart would miss; whoever calls
them serialises turns per conversation (Letta does not).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from homeroom.config import Config
from homeroom.letta.absence import Absence
from homeroom.model import (
    Agent,
    AgentId,
    Block,
    Capabilities,
    ConversationId,
    Exchange,
    Turn,
)
from homeroom.reading import Recall

OnDelta = Callable[[str], None]
"""Called with each piece of the agent's answer as it arrives; must not block."""


class Letta(Protocol):
    """What Homeroom asks of Letta. Every method may raise ``Unavailable`` (not delivered) and
    ``Rejected`` (a person must act, e.g. a wrong token)."""

    @property
    def capabilities(self) -> Capabilities: ...

    async def list_agents(self) -> list[Agent]:
        """All agents, every page, without duplicates. A list that breaks off half way raises."""

    async def get_agent(self, agent_id: AgentId) -> Agent:
        """Raises NotFound."""

    async def open_conversation(
        self, agent_id: AgentId, title: str, like: ConversationId | None = None
    ) -> ConversationId | None:
        """A new isolated context of the agent; None where the back end has none.

        With ``like`` it begins with what was said in that one, where that can still be had.
        """

    async def turn(
        self,
        agent_id: AgentId,
        text: str,
        *,
        conversation: ConversationId | None,
        key: str,
        on_delta: OnDelta | None = None,
    ) -> Turn:
        """Runs the agent on ``text`` until it stops, however long that takes.

        ``key`` identifies the message (at most 64 characters), for ``find_turn``. Cancelling the
        call cancels the wait; whether it stops the agent is the back end's affair.

        Raises:
            NotFound: the agent or the conversation is gone, or the conversation can take no
                more turns (``kind`` says which); open another one, ``like`` it.
            Unavailable: nothing was delivered (could not connect, or the model is down).
            Rejected: Letta or its model refused, a person must act.
            Uncertain: the answer was lost after the message had been sent, or the agent was
                silent for longer than the configured limit.
        """

    async def find_turn(
        self,
        agent_id: AgentId,
        *,
        conversation: ConversationId | None,
        key: str,
        text: str,
        begun_ms: int = 0,
    ) -> Turn | None:
        """The finished turn of a message sent earlier with ``key``, waiting for one that is still
        running; None if Letta never took it, or it failed or was cut off half way, so that it
        shall be sent (again). ``begun_ms`` is when (ms since the epoch) it was last sent, so that
        one which may still be on its way is waited for.

        Raises:
            Uncertain: it cannot be known.
        """

    async def cancel(self, agent_id: AgentId, conversation: ConversationId | None) -> bool:
        """Stops the running turn. Returns whether there was one."""

    async def run_changes(self, on_change: Callable[[], None]) -> None:
        """Calls ``on_change`` whenever agents may have come, gone or changed, until cancelled.

        It waits for what the back end tells by itself and never polls. Returns at once where the
        back end tells nothing; raises nothing because Letta is away.
        """

    async def list_blocks(self, agent_id: AgentId) -> list[Block]:
        """Raises NotFound (agent), Unsupported (no memory on this back end)."""

    async def write_block(self, agent_id: AgentId, label: str, value: str) -> Block:
        """The block as it is afterwards. Raises NotFound (agent or label), Unsupported."""

    async def list_history(self, agent_id: AgentId, limit: int) -> list[Exchange]:
        """The newest ``limit`` exchanges of people with the agent, in whichever conversation,
        oldest first. Raises NotFound (agent), Unsupported (``capabilities.history`` is False)."""

    async def search_passages(self, agent_id: AgentId, query: str, limit: int) -> Recall:
        """The agent's archival passages that fit best, best first; none where the back end keeps
        no such memory. Raises NotFound (agent), Unsupported (no memory on this back end)."""


@asynccontextmanager
async def open_letta(config: Config, absence: Absence | None = None) -> AsyncIterator[Letta]:
    """The back end that the configuration names, or the one that ``auto`` finds. ``absence`` is
    what is known of the server from earlier connections.

    Raises:
        Unavailable: nothing answers at the URL.
        ConfigError: something answers that is no Letta.
    """
    from homeroom.letta.probe import connect

    async with connect(config, absence) as letta:
        yield letta
