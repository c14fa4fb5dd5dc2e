"""An App without Letta, Matrix or a store: scripted agents, for the tests of the MCP surface.

It answers with the same errors and the same timing rules as the real one: ``chat`` returns once
the message is taken, ``wait_reply`` waits a bounded time, cancelling either loses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from homeroom.errors import Ambiguous, Conflict, LimitExceeded, Misuse, NotFound, Unavailable
from homeroom.model import (
    Action,
    Agent,
    AgentId,
    AgentPage,
    AgentView,
    Block,
    Failure,
    Item,
    ItemId,
    ItemKind,
    ItemState,
    Parked,
    ReplyView,
    Step,
    Story,
    SyncReport,
)
from homeroom.reports import SyncStatus

Behaviour = Literal["echo", "slow", "fail", "crash", "down"]
CRASH_TEXT = "secret detail of a bug"


@dataclass
class Chat:
    """One message that was taken, and what became of it."""

    agent: Agent
    message: str
    client: str
    mirror: bool
    status: Literal["complete", "pending", "failed"] = "pending"
    reply: str = ""
    reason: str = ""
    ahead: int = 0
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    pieces: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    watched: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when somebody waits for the answer."""


class FakeApp:
    """Agents by name with a behaviour each: ``echo`` answers at once with the message, ``slow``
    when the test says so, ``fail`` never, ``crash`` is a bug, ``down`` is a Letta that is away."""

    def __init__(self) -> None:
        self.agents: list[Agent] = []
        self.behaviours: dict[AgentId, Behaviour] = {}
        self.blocks: dict[AgentId, dict[str, Block]] = {}
        self.chats: dict[str, Chat] = {}
        self.stories = {"$asked": sample_story()}
        self.parked = [sample_parked()]
        self.taken = asyncio.Event()
        """Set once a message was taken."""
        self.problem = ""
        self.report = SyncReport(0, (), (), (), 0.0)
        self.status = SyncStatus()
        self.confirmed = False
        """Whether the last sync was told that removals are meant."""
        self.add("Ada", "echo", "Answers at once", Block("persona", "I am Ada.", limit=100))
        self.add("Slow Sam", "slow", "Takes its time")

    def add(
        self, name: str, behaviour: Behaviour = "echo", description: str = "", *blocks: Block
    ) -> Agent:
        agent = Agent(AgentId(f"agent-{len(self.agents) + 1:04}"), name, description)
        self.agents.append(agent)
        self.behaviours[agent.id] = behaviour
        self.blocks[agent.id] = {block.label: block for block in blocks}
        return agent

    def answer(self, reply_id: str, reply: str) -> None:
        """Lets a slow agent finish."""
        chat = self.chats[reply_id]
        chat.status, chat.reply = "complete", reply
        chat.settled.set()

    # --- the App ---------------------------------------------------------------------------------

    async def list_agents(self, query: str, limit: int, cursor: str) -> AgentPage:
        found = [a for a in self.agents if query.lower() in f"{a.name} {a.description}".lower()]
        start = int(cursor or 0)
        page = found[start : start + limit]
        more = str(start + limit) if start + limit < len(found) else ""
        return AgentPage(tuple(self._view(agent) for agent in page), len(found), more)

    async def sync(self, *, dry_run: bool, confirm_removals: bool) -> SyncReport:
        self.confirmed = confirm_removals
        return replace(self.report, dry_run=dry_run)

    async def sync_status(self) -> SyncStatus:
        return self.status

    async def chat(self, agent: str, message: str, *, client: str, mirror: bool) -> str:
        found = self._find(agent)
        behaviour = self.behaviours[found.id]
        if behaviour == "crash":
            raise RuntimeError(CRASH_TEXT)
        if behaviour == "down":
            raise Unavailable("letta", "connection refused", retry_after_s=5)
        reply_id = f"reply-{len(self.chats) + 1}"
        chat = self.chats[reply_id] = Chat(found, message, client, mirror)
        self.taken.set()
        if behaviour == "echo":
            self.answer(reply_id, message)
        elif behaviour == "fail":
            chat.status, chat.reason = "failed", "the model refused"
            chat.settled.set()
        return reply_id

    async def wait_reply(
        self,
        reply_id: str,
        wait_s: float,
        on_progress: Callable[[str], Awaitable[None]] | None = None,
    ) -> ReplyView:
        if reply_id not in self.chats:
            raise NotFound("reply", reply_id)
        chat = self.chats[reply_id]
        chat.watched.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._settled(chat, on_progress)
        return ReplyView(
            reply_id,
            chat.status,
            chat.agent.id,
            chat.agent.name,
            chat.reply,
            chat.reason,
            chat.ahead,
        )

    async def explain(self, name: str) -> Story:
        if name not in self.stories:
            raise NotFound("message", name, advice="Give the id of a message.")
        return self.stories[name]

    async def list_parked(self, limit: int) -> tuple[list[Parked], int]:
        return self.parked[-limit:], len(self.parked)

    async def replay_parked(self, item_id: str) -> int:
        if item_id not in [parked.item.id for parked in self.parked]:
            raise NotFound("parked item", item_id)
        return 2

    async def get_memory(self, agent: str, label: str) -> tuple[Agent, list[Block]]:
        found = self._find(agent)
        blocks = self.blocks[found.id]
        return found, [self._block(found, label)] if label else list(blocks.values())

    async def update_memory(
        self,
        agent: str,
        label: str,
        value: str,
        *,
        replace_text: str,
        expected_revision: str,
        force: bool,
    ) -> tuple[Agent, Block]:
        found = self._find(agent)
        block = self._block(found, label)
        if block.read_only and not force:
            raise Misuse(f"The block {label!r} is read-only. Pass force=true to write it anyway.")
        if expected_revision and expected_revision != block.revision:
            raise Conflict(f"The block {label!r}", expected_revision, block.revision)
        if replace_text:
            if block.value.count(replace_text) != 1:
                raise Misuse("replace_text must occur exactly once. Nothing was written.")
            value = block.value.replace(replace_text, value)
        if block.limit and len(value) > block.limit:
            raise LimitExceeded(f"The block {label!r}", block.limit, len(value), "characters")
        self.blocks[found.id][label] = replace(block, value=value)
        return found, self.blocks[found.id][label]

    async def health(self) -> dict[str, Any]:
        return {"status": "ok", "agents": len(self.agents)}

    # --- inside ----------------------------------------------------------------------------------

    def _find(self, agent: str) -> Agent:
        found = [a for a in self.agents if agent in (a.id, a.name)]
        if not found:
            raise NotFound("agent", agent, [a.name for a in self.agents])
        if len(found) > 1:
            raise Ambiguous("agent", agent, [a.id for a in found])
        return found[0]

    def _block(self, agent: Agent, label: str) -> Block:
        if label not in self.blocks[agent.id]:
            raise NotFound("block", label, list(self.blocks[agent.id]))
        return self.blocks[agent.id][label]

    def _view(self, agent: Agent) -> AgentView:
        bare = agent.id.removeprefix("agent-")
        return AgentView(
            agent,
            ghost=f"@agent_{bare}:example.org",
            room_id=f"!{bare}:example.org",
            alias=f"#agent_{bare}:example.org",
            state="failing" if self.problem else "home",
            problem=self.problem,
        )

    async def _settled(
        self, chat: Chat, on_progress: Callable[[str], Awaitable[None]] | None
    ) -> None:
        async def tell() -> None:
            while on_progress is not None:
                await on_progress(await chat.pieces.get())

        teller = asyncio.create_task(tell())
        try:
            await chat.settled.wait()
        finally:
            teller.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await teller


def sample_story(reason: str = "the model refused", count: int = 1) -> Story:
    """A message that was given up for ``reason`` after ``count`` tries."""
    steps = tuple(Step(1_000 * number, f"Given up: {reason}") for number in range(count))
    return Story(
        "parked", "It was given up.", steps, "item-1", "$asked", "!0001:example.org", "@you:h"
    )


def sample_parked(reason: str = "the model refused", sender: str = "@you:h") -> Parked:
    payload = {"agent_id": "agent-0001", "room_id": "!0001:example.org", "sender": sender}
    item = Item(
        ItemId("item-1"), "lane", ItemKind.TURN, payload, "event:$asked", ItemState.PARKED,
        attempts=1, created_ms=0, begun=True, reason=reason,
    )  # fmt: skip
    return Parked(item, 1_000)


def sample_report(agent_name: str = "Ada", reason: str = "has no room yet") -> SyncReport:
    """A report in which one action was applied, one failed for good and one was not reached."""
    ada = AgentId("agent-0001")
    made = Action("register_ghost", ada, agent_name, reason)
    refused = Action("create_room", ada, agent_name, reason, value=agent_name)
    waiting = Action("join_hub", ada, agent_name, reason)
    failure = Failure(refused, reason, final=True)
    return SyncReport(1, (made, refused, waiting), (made,), (failure,), 0.25)
