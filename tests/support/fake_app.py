"""An App without Letta, Matrix or a store: scripted agents, for the tests of the MCP surface.

It answers with the same errors and the same timing rules as the real one: ``chat`` returns once
the message is taken, ``wait_reply`` waits a bounded time, cancelling either loses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from homeroom.cursors import read_cursor
from homeroom.deliveries import parked_page
from homeroom.directory import ID_PIECE
from homeroom.edits import block_after_edit, block_hits, diff_of, undoing, with_diffs
from homeroom.errors import Ambiguous, Misuse, NotFound, Unavailable
from homeroom.items import (
    CaughtUp,
    Item,
    ItemKind,
    ItemState,
    Parked,
    ParkedPage,
    Priority,
    ReplyView,
    Step,
    Story,
)
from homeroom.model import (
    Action,
    Agent,
    AgentId,
    Block,
    EventId,
    Failure,
    GhostId,
    ItemId,
    RoomId,
    SyncProgress,
    SyncReport,
)
from homeroom.reading import (
    AgentPage,
    AgentView,
    BlockVersion,
    Edit,
    MemoryChange,
    MemoryHit,
    MemoryHits,
    MemoryView,
    Passage,
    RoomMessage,
    RoomPage,
    RoomTranscript,
    ServedRoom,
    Watched,
)
from homeroom.reports import SyncStatus
from homeroom.residence import Fault, Refusal, RoomsReport, RoomState, ServedBy

Behaviour = Literal["echo", "slow", "fail", "crash", "down", "hang"]
CRASH_TEXT = "secret detail of a bug"


@dataclass
class Chat:
    """One message that was taken, and what became of it."""

    agent: Agent
    message: str
    client: str
    mirror: bool
    caller: str = "local"
    key: str = ""
    status: Literal["complete", "pending", "failed"] = "pending"
    reply: str = ""
    reason: str = ""
    ahead: int = 0
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    pieces: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    watched: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when somebody waits for the answer."""
    priority: Priority = Priority.NORMAL
    expires_after_s: float = 0.0


class FakeApp:
    """Agents by name with a behaviour each: ``echo`` answers at once with the message, ``slow``
    when the test says so, ``fail`` never, ``crash`` is a bug, ``down`` is a Letta that is away and
    ``hang`` one that does not say which agents there are."""

    def __init__(self) -> None:
        self.agents: list[Agent] = []
        self.behaviours: dict[AgentId, Behaviour] = {}
        self.blocks: dict[AgentId, dict[str, Block]] = {}
        self.passages: dict[AgentId, list[Passage]] = {}
        """Archival memory; every query finds all of it."""
        self.chats: dict[str, Chat] = {}
        self.stories = {"$asked": sample_story()}
        self.parked = [sample_parked()]
        self.dropped: list[tuple[str, str]] = []
        """The parked items that were dropped, each with the reason."""
        self.versions: dict[AgentId, list[BlockVersion]] = {}
        self.messages: dict[str, list[RoomMessage]] = {}
        """What was said in each room, newest first."""
        self.room_names: dict[str, str] = {}
        self.changed = asyncio.Event()
        """Set and renewed whenever something that can be watched has changed."""
        self.held: dict[RoomId, int] = {}
        self.has_bridge = True
        self.letta_answers = asyncio.Event()
        """Until then whoever chats with an agent that hangs waits."""
        self.waits_s: list[float] = []
        """How long each wait for a reply was to be."""
        self.taken = asyncio.Event()
        """Set once a message was taken."""
        self.problem = ""
        self.report = SyncReport(0, (), (), (), 0.0)
        self.status = SyncStatus()
        self.sync_progress: list[SyncProgress | None] = []
        """What a sync tells before it ends."""
        self.confirmed = False
        """Whether the last sync was told that removals are meant."""
        self.audited = False
        """Whether it was told to look at the rooms themselves."""
        self.invited = ""
        """Whom the last sync was told to invite again."""
        self.rooms = sample_rooms()
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

    def say(self, agent: Agent, text: str, sender: str = "@you:h", kind: str = "text") -> None:
        """Somebody says something in an agent's room."""
        said = self.messages.setdefault(self._view(agent).room_id, [])
        event_id = EventId(f"$said{len(said)}")
        said.insert(0, RoomMessage(event_id, sender, 1_000 * (len(said) + 1), text, kind))
        self._touch()

    # --- the App ---------------------------------------------------------------------------------

    async def list_agents(self, query: str, limit: int, cursor: str) -> AgentPage:
        def has(agent: Agent) -> bool:
            in_id = agent.id if len(query) >= ID_PIECE else ""
            return query.lower() in f"{agent.name} {agent.description} {in_id}".lower()

        found = [agent for agent in self.agents if has(agent)]
        start = int(cursor or 0)
        page = found[start : start + limit]
        more = str(start + limit) if start + limit < len(found) else ""
        views = tuple(
            replace(self._view(agent), cursor=str(start + number + 1))
            for number, agent in enumerate(page)
        )
        return AgentPage(views, len(found), more)

    async def get_agent(self, agent: str) -> AgentView:
        return self._view(self._find(agent))

    async def sync(
        self,
        *,
        dry_run: bool,
        confirm_removals: bool,
        audit: bool,
        invite: str,
        on_progress: Callable[[SyncProgress | None], Awaitable[None]],
    ) -> SyncReport:
        self.confirmed, self.audited, self.invited = confirm_removals, audit, invite
        for progress in self.sync_progress:
            await on_progress(progress)
        return replace(self.report, dry_run=dry_run)

    async def diagnose_rooms(self, fix: bool) -> RoomsReport:
        if not fix:
            return self.rooms
        fixed = [replace(fault, fixed=fault.fixable) for fault in self.rooms.rooms[0].faults]
        room = replace(self.rooms.rooms[0], faults=tuple(fixed))
        return replace(self.rooms, rooms=(room, *self.rooms.rooms[1:]))

    async def sync_status(self) -> SyncStatus:
        return self.status

    async def chat(
        self, agent: str, message: str, *, client: str, mirror: bool,
        caller: str = "local", from_agent: str = "", idempotency_key: str = "",
        find_s: float = math.inf,
        priority: Priority = Priority.NORMAL, expires_after_s: float = 0.0,
    ) -> str:  # fmt: skip
        found = self._find(agent)
        behaviour = self.behaviours[found.id]
        if behaviour == "crash":
            raise RuntimeError(CRASH_TEXT)
        if behaviour == "hang":
            try:
                async with asyncio.timeout(find_s):
                    await self.letta_answers.wait()
            except TimeoutError:
                raise Unavailable("letta", "nothing was sent") from None
        if behaviour == "down":
            raise Unavailable("letta", "connection refused", retry_after_s=5)
        reply_id = f"reply-{len(self.chats) + 1}"
        chat = self.chats[reply_id] = Chat(
            found, message, client, mirror, caller, idempotency_key, priority=priority,
            expires_after_s=expires_after_s,
        )  # fmt: skip
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
        *,
        caller: str = "local",
    ) -> ReplyView:
        if reply_id not in self.chats or self.chats[reply_id].caller != caller:
            raise NotFound("reply", reply_id)
        chat = self.chats[reply_id]
        chat.watched.set()
        self.waits_s.append(wait_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._settled(chat, on_progress)
        return ReplyView(
            reply_id,
            chat.status,
            chat.agent.id,
            chat.reply,
            chat.reason,
            chat.ahead,
        )

    async def explain(self, name: str) -> Story:
        if name not in self.stories:
            raise NotFound("message", name, advice="Give the id of a message.")
        return self.stories[name]

    async def list_parked(self, agent: str, limit: int, cursor: str) -> ParkedPage:
        found, held = self.parked, self.held
        if agent:
            view = self._view(self._find(agent))
            found = [p for p in found if p.item.payload["agent_id"] == view.agent.id]
            held = {room: count for room, count in held.items() if room == view.room_id}
        before, after = read_cursor(cursor, str, str, tool="list_parked") if cursor else ("", "")
        ids = [parked.item.id for parked in found]
        rest = found[ids.index(ItemId(before)) + 1 :] if before else found
        return parked_page(rest, len(found), held, limit=limit, before=before, after=after)

    async def replay_parked(self, item_id: str) -> int:
        if item_id not in [parked.item.id for parked in self.parked]:
            raise NotFound("parked item", item_id)
        return 2

    async def drop_parked(self, item_id: str, reason: str) -> None:
        await self.replay_parked(item_id)
        self.parked = [parked for parked in self.parked if parked.item.id != item_id]
        self.dropped.append((item_id, reason))

    async def catch_up(self, room_id: str) -> CaughtUp | None:
        if room_id not in self.held:
            raise Misuse(f"Nothing is left to catch up on in {room_id}.")
        return CaughtUp(self.held.pop(RoomId(room_id)), 0) if self.has_bridge else None

    async def get_memory(self, agent: str, label: str = "", *, history: bool = False) -> MemoryView:
        found = self._find(agent)
        blocks = [self._block(found, label)] if label else [*self.blocks[found.id].values()]
        versions = self.versions.get(found.id, []) if history else []
        return MemoryView(found, tuple(blocks), with_diffs(versions))

    async def update_memory(
        self, agent: str, label: str, edit: Edit, *, caller: str
    ) -> MemoryChange:
        found = self._find(agent)
        block = self._block(found, label)
        versions = self.versions.setdefault(found.id, [])
        if edit.undo_of:
            edit = undoing(block, versions, edit)
        after = replace(block, value=block_after_edit(block, edit))
        if after.value != block.value:
            if not versions:
                versions.append(BlockVersion(label, block.revision, "", block.value, 1_000, ""))
            versions.insert(
                0,
                BlockVersion(label, after.revision, block.revision, after.value, 2_000, caller),
            )
        self.blocks[found.id][label] = after
        self._touch()
        return MemoryChange(found, after, block.revision, diff_of(block.value, after.value))

    async def search_memory(self, agent: str, query: str, limit: int, cursor: str) -> MemoryHits:
        found = self._find(agent)
        hits = block_hits([*self.blocks[found.id].values()], query)
        hits += [MemoryHit("passage", p.id, p.text) for p in self.passages.get(found.id, [])]
        start = int(cursor or 0)
        more = str(start + limit) if start + limit < len(hits) else ""
        return MemoryHits(found, tuple(hits[start : start + limit]), len(hits), "text", more)

    async def list_rooms(self, agent: str, limit: int, cursor: str) -> RoomPage:
        agents = [self._find(agent)] if agent else self.agents
        start = int(cursor or 0)
        rooms = [replace(self._room(a), cursor=str(n + 1)) for n, a in enumerate(agents)]
        more = str(start + limit) if start + limit < len(rooms) else ""
        return RoomPage(tuple(rooms[start : start + limit]), len(rooms), more)

    async def read_room(self, room: str, limit: int, cursor: str) -> RoomTranscript:
        served = [self._room(agent) for agent in self.agents]
        found = [r for r in served if room in (r.id, r.alias, r.agent_id, r.agent_name)]
        if not found:
            raise NotFound("room", room, [r.id for r in served])
        said = self.messages.get(found[0].id, [])
        # Counted from the oldest, so that a page is the same when there are newer ones.
        left = int(cursor or len(said))
        page = tuple(said[len(said) - left :][:limit])
        more = str(left - limit) if left > limit else ""
        ghosts = frozenset(m.sender for m in page if m.sender.startswith("@agent_"))
        return RoomTranscript(found[0], page, ghosts, more, str(left))

    async def watch(self, wanted: Watched) -> Watched:
        if wanted.kind == "room":
            return Watched("room", (await self.read_room(wanted.id, 1, "")).room.id)
        found = self._find(wanted.id)
        if wanted.kind == "memory":
            self._block(found, wanted.label)
        return Watched(wanted.kind, found.id, wanted.label)

    async def stamps(self, watched: Sequence[Watched]) -> dict[Watched, str]:
        def stamp(one: Watched) -> str:
            if one.kind == "room":
                return repr(self.messages.get(one.id))
            blocks = self.blocks[AgentId(one.id)]
            return repr(blocks.get(one.label) if one.kind == "memory" else blocks)

        return {one: stamp(one) for one in watched}

    async def wait_stamps(
        self, watched: Sequence[Watched], seen: Mapping[Watched, str]
    ) -> dict[Watched, str]:
        while True:
            changed, now = self.changed, await self.stamps(watched)
            if any(now[one] != seen.get(one) for one in watched):
                return now
            await changed.wait()

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
            state="failing" if self.problem else "home",
            problem=self.problem,
        )

    def _room(self, agent: Agent) -> ServedRoom:
        view = self._view(agent)
        room_id = RoomId(view.room_id)
        name = self.room_names.get(room_id, agent.name)
        return ServedRoom(
            room_id, agent.id, agent.name, name, "failing" if self.problem else "home", 2, 1_000,
            self.problem, alias=view.ghost.replace("@", "#", 1),
        )  # fmt: skip

    def _touch(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

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


def sample_rooms(name: str = "Ada", text: str = "the hub is not in the room") -> RoomsReport:
    """A home without the hub, a sound direct chat, and an invitation that was declined."""
    ada, ghost = AgentId("agent-0001"), GhostId("@agent_0001:example.org")
    server = (ServedBy(ada, name, ghost, 1_000),)
    faults = (
        Fault("hub_missing", text, "invite it", fixable=True),
        Fault("no_people", text, "wait"),
    )
    home = RoomState(RoomId("!0001:example.org"), "home", server, 1, faults=faults)
    chat = RoomState(RoomId("!dm:example.org"), "further", server, 1, hub_is_in=True)
    refusal = Refusal("invitation", RoomId("!x:example.org"), ghost, "@you:h", text, 2, 1_000)
    return RoomsReport((home, chat), (refusal,), 2, 1)


def sample_report(agent_name: str = "Ada", reason: str = "has no room yet") -> SyncReport:
    """A report in which one action was applied, one failed for good and one was not reached."""
    ada = AgentId("agent-0001")
    made = Action("register_ghost", ada, agent_name, reason)
    refused = Action("create_room", ada, agent_name, reason, value=agent_name)
    waiting = Action("join_hub", ada, agent_name, reason)
    failure = Failure(refused, reason, final=True)
    return SyncReport(1, (made, refused, waiting), (made,), (failure,), 0.25)
