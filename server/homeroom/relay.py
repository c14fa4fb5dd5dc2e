"""Room event -> item; item -> agent turn; answer -> item -> room post.

Owns what is relayed, what is not and why, and every sentence that the bridge itself says in a
room. Knows no wire format of Letta or nio. Invariants: an event becomes at most one turn and a
turn at most one answer; what we caused ourselves is never relayed; whoever is not answered is
told why.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from collections.abc import Mapping as Dict
from contextlib import nullcontext
from typing import Any, TypeVar

import anyio
import anyio.abc

from homeroom.courtesy import Typing
from homeroom.errors import ConfigError, NotFound, Rejected, Service, Unavailable, Uncertain
from homeroom.letta import Letta
from homeroom.mailbox import Outcome
from homeroom.matrix import Matrix
from homeroom.model import (
    AgentId,
    ConversationId,
    Decision,
    EventId,
    GhostId,
    Item,
    ItemId,
    ItemKind,
    Json,
    Mapping,
    NewItem,
    RoomEvent,
    RoomId,
    Turn,
    utc_text,
)
from homeroom.posts import notice_item, plain_label, text_items
from homeroom.store import Store

T = TypeVar("T")

PRIVATE_SCOPE = "private"
"""The conversation of chats that no room sees."""
OUR_FAULT = {"M_UNKNOWN_TOKEN", "M_MISSING_TOKEN", "M_EXCLUSIVE", "M_USER_DEACTIVATED"}
"""Refusals that say nothing about the event: a person will mend them, and then it is posted."""
CATCH_UP = "!catchup"
"""What a member of a room writes to have old messages answered."""
NOT_TEXT = frozenset({"m.image", "m.file", "m.audio", "m.video", "m.location"})


# --- decisions: pure ----------------------------------------------------------------------------


def lane_of_turns(agent_id: AgentId, scope: str) -> str:
    return f"agent:{agent_id}:{scope}"


def decide(
    event: RoomEvent, mapping: Mapping, people_count: int, *, is_ghost: Callable[[str], bool],
    catch_up_ms: float = math.inf, keep_ms: float = math.inf,
) -> Decision:  # fmt: skip
    """What becomes of an event in an agent's room. Pure.

    What would be answered and is more than ``catch_up_ms`` late is held until somebody asks. What
    is more than ``keep_ms`` late may have been answered and forgotten, so it is left alone.

    The homeserver accepts an event only from a member of the room, so whoever is heard is one.
    Source: https://spec.matrix.org/v1.16/rooms/v11/#authorization-rules (rule 5).
    """
    if is_ghost(event.sender):
        return Decision("echo: one of our own ghosts sent it")
    if event.late_ms > keep_ms:
        return Decision("too old: what was answered then is not known any more")
    decision = _decide_on_time(event, mapping, people_count)
    at_once = decision.releases_held or mapping.retired  # nobody is there to catch up
    if decision.items and event.late_ms > catch_up_ms and not at_once:
        late = f"it had been there for {_duration(event.late_ms)} when it was first seen"
        return Decision(f"too late: {late}", held=True)
    return decision


def held_notices(mapping: Mapping, oldest: EventId, count: int, since_ms: int) -> Sequence[NewItem]:
    """What a room is told of messages that came too late to be answered by themselves. Pure."""
    what = "1 message was" if count == 1 else f"{count} messages were"
    text = (
        f"⏸️ {what} written here while I was away, the first at {utc_text(since_ms)}. That is"
        f" long ago, so I do not answer by myself: write {CATCH_UP} and I do, in order."
    )
    assert mapping.room_id
    return (notice_item(mapping.ghost, mapping.room_id, None, text, dedupe_key=f"held:{oldest}"),)


def _duration(ms: int) -> str:
    minutes = ms // 60_000
    if minutes < 120:
        return f"{minutes} min" if minutes else f"{ms // 1000} s"
    return f"{minutes // 60} h" if minutes < 2880 else f"{minutes // 1440} days"


def _decide_on_time(event: RoomEvent, mapping: Mapping, people_count: int) -> Decision:
    if event.origin_server_ts_ms < mapping.heard_from_ms:
        return Decision("too old: it was there before Homeroom took the room over")
    if event.type == "m.room.encrypted":
        notice = notice_item(
            mapping.ghost, event.room_id, event.id,
            "This message was not delivered: it is encrypted, and agents cannot read encrypted"
            " messages. Please write to me in a room without encryption.",
            dedupe_key=f"encrypted:{event.room_id}:{event.sender}",
        )  # fmt: skip
        return Decision("encrypted: agents cannot read it", (notice,))
    kind = event.content.get("msgtype")
    kind = kind if isinstance(kind, str) else ""
    relation = event.content.get("m.relates_to")
    relation = relation if isinstance(relation, dict) else {}
    if kind == "m.notice":
        return Decision("notice: programs speak so, and programs are not answered")
    if relation.get("rel_type") == "m.replace":
        return Decision("edit: only the first version of a message is delivered")
    if kind in NOT_TEXT:
        notice = notice_item(
            mapping.ghost, event.room_id, event.id,
            "This was not delivered: I can only read text so far.",
            dedupe_key=f"not-text:{event.id}",
        )  # fmt: skip
        return Decision(f"not text: {kind} is not relayed yet", (notice,))
    text = _text_of(event.content)
    if kind not in ("m.text", "m.emote") or not text.strip():
        return Decision("empty: it has no text")
    thread = relation.get("event_id") if relation.get("rel_type") == "m.thread" else None
    thread = thread if isinstance(thread, str) else None
    if mapping.retired:  # also what asks for old messages: they wait until the agent is back
        return _refuse_retired(event, mapping, thread)
    if text.strip().lower() == CATCH_UP:
        notice = notice_item(
            mapping.ghost, event.room_id, event.id, "Nothing is left to catch up on here.",
            dedupe_key=f"catch-up:{event.id}",
        )  # fmt: skip
        outcome = "command: what came too late is answered"
        full = _full_notice(mapping, event, f"Write {CATCH_UP} again when they are answered.")
        return Decision(outcome, (notice,), releases_held=True, if_full=(full,))
    turn = NewItem(
        lane=lane_of_turns(mapping.agent_id, event.room_id),
        kind=ItemKind.TURN,
        payload={
            "agent_id": mapping.agent_id,
            "ghost": mapping.ghost,
            "scope": event.room_id,
            "text": f"* {text}" if kind == "m.emote" else text,
            "sender": event.sender,
            "name_sender": people_count > 1,
            "room_id": event.room_id,
            "event_id": event.id,
            "thread": thread,
        },
        dedupe_key=f"event:{event.id}",
    )
    full = _full_notice(mapping, event, "This one was not taken; write it again later.")
    return Decision("relayed", (turn,), if_full=(full,))


def _full_notice(mapping: Mapping, event: RoomEvent, advice: str) -> NewItem:
    return notice_item(
        mapping.ghost, event.room_id, event.id,
        f"⚠️ Too many messages are waiting for me here already. {advice}",
        dedupe_key=f"full:{event.id}",
    )  # fmt: skip


def chat_items(
    agent_id: AgentId,
    mapping: Mapping | None,
    message: str,
    *,
    client: str,
    mirror: bool,
    key: str,
    agent_name: str = "",
) -> list[NewItem]:
    """The items of a message that a tool sends: the turn, and what the agent's room sees of it.

    A mirrored chat belongs to the room's conversation: the room shows all that the agent was told
    there. One that is not mirrored has a conversation of its own, so that nothing of it can
    surface in the room.
    """
    room_id = mapping.room_id if mapping and mirror else None
    scope = room_id or PRIVATE_SCOPE
    turn = NewItem(
        lane=lane_of_turns(agent_id, scope),
        kind=ItemKind.TURN,
        payload={
            "agent_id": agent_id,
            "ghost": mapping.ghost if mapping else "",
            "scope": scope,
            "text": message,
            "agent_name": agent_name,
            "client": client,
            "mirror_room_id": room_id,
        },
        dedupe_key=f"chat:{key}",
    )
    if not (room_id and mapping):
        return [turn]
    label = f"**{plain_label(client)}** over MCP:\n\n{message}"
    return [turn, *text_items(mapping.ghost, room_id, label, f"mirror:{key}", notice=True)]


def replay_notices(item: Item) -> list[NewItem]:
    """What a room is told when a person has a message of it replayed. Pure.

    A post is replayed without a word: it is seen when it comes.
    """
    payload = item.payload
    room_id = payload.get("room_id") or payload.get("mirror_room_id")
    if item.kind is not ItemKind.TURN or not room_id:
        return []
    whose = "Your message" if payload.get("event_id") else f"The message of {payload['client']}"
    how = "I find out first whether it was delivered." if item.begun else "It is delivered now."
    return text_items(
        payload["ghost"], room_id, f"🔁 {whose} is taken up again. {how}",
        f"replay:{item.cause}", notice=True, reply_to=payload.get("event_id"),
        thread=payload.get("thread"),
    )  # fmt: skip


def _refuse_retired(event: RoomEvent, mapping: Mapping, thread: str | None) -> Decision:
    notice = notice_item(
        mapping.ghost, event.room_id, event.id, f"⚠️ Your message was not delivered. {_RETIRED}",
        dedupe_key=f"retired:{event.id}", thread=thread,
    )  # fmt: skip
    return Decision("retired: the agent is gone from Letta", (notice,))


def presence_items(mapping: Mapping) -> list[NewItem]:
    """What the room is told when its agent has been retired, or has come back. Said once each."""
    if mapping.room_id is None:
        return []
    text = f"⚠️ {_RETIRED} Nothing was deleted." if mapping.retired else _RETURNED
    key = f"presence:{mapping.agent_id}:{mapping.missing_since_ms}:{mapping.retired}"
    return text_items(mapping.ghost, mapping.room_id, text, key, notice=True)


def _text_of(content: Json) -> str:
    body = content.get("body")
    if not isinstance(body, str):
        return ""
    relation = content.get("m.relates_to")
    if isinstance(relation, dict) and "m.in_reply_to" in relation:
        # Older clients quote what they answer above it; the agent has read that already.
        # Source: https://spec.matrix.org/v1.12/client-server-api/#fallbacks-for-rich-replies
        body = re.sub(r"\A> (?:\* )?<@[^>\n]+>.*\n(?:>.*\n)*\n?", "", body)
    return body


# --- effects ------------------------------------------------------------------------------------


class Relay:
    """Carries items out: the courier of the mailbox."""

    def __init__(
        self,
        store: Store,
        letta: Callable[[], Awaitable[Letta]],
        matrix: Callable[[], Awaitable[Matrix]],
        background: anyio.abc.TaskGroup,
        *,
        fence: int,
        on_progress: Callable[[ItemId, str], None],
    ) -> None:
        self._store, self._fence = store, fence
        self._letta, self._matrix = letta, matrix
        self._typing = Typing(matrix, background)
        self._on_progress = on_progress
        self._whole_agent: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)
        # Only who holds the lease writes them, so they need not be read twice.
        self._conversations: dict[tuple[AgentId, str], ConversationId] = {}

    async def deliver(self, item: Item) -> Outcome:
        """Carries one item out; see ``Courier``."""
        if item.kind is ItemKind.POST:
            return await self._deliver_post(item)
        return await self._deliver_turn(item)

    async def _deliver_post(self, item: Item) -> Outcome:
        matrix = await _connected(self._matrix, "matrix")
        ghost, room_id = GhostId(item.payload["ghost"]), RoomId(item.payload["room_id"])
        try:
            event_id = await matrix.post(ghost, room_id, item.payload["content"], item.id)
        except Rejected as refusal:
            if refusal.code not in OUR_FAULT:
                raise
            raise Unavailable("matrix", refusal.reason) from refusal
        finally:
            self._typing.settle(ghost, room_id)
        return Outcome({"event_id": event_id})

    async def _deliver_turn(self, item: Item) -> Outcome:
        payload = item.payload
        letta = await _connected(self._letta, "letta")
        room_id = payload.get("room_id") or payload.get("mirror_room_id")
        with self._typing.shown(payload["ghost"], room_id) if room_id else nullcontext():
            if letta.capabilities.conversations:
                turn = await self._turn(letta, item)
            else:  # one context: two turns at once would lose one of them (measured on V1)
                async with self._whole_agent[payload["agent_id"]]:
                    turn = await self._turn(letta, item)
        return Outcome({"text": turn.text, "stop_reason": turn.stop_reason}, _answers(item, turn))

    async def _turn(self, letta: Letta, item: Item) -> Turn:
        payload = item.payload
        agent_id, scope = AgentId(payload["agent_id"]), payload["scope"]
        text = await self._addressed(payload)
        conversation = await self._ensure_conversation(letta, agent_id, scope)
        if item.begun:
            # An earlier attempt ended without a verdict: look before sending again.
            turn = await letta.find_turn(
                agent_id, conversation=conversation, key=item.key, text=text
            )
            if turn is not None:
                return turn

        def on_delta(piece: str) -> None:
            self._on_progress(item.id, piece)

        try:
            return await letta.turn(
                agent_id, text, conversation=conversation, key=item.key, on_delta=on_delta
            )
        except NotFound as error:
            if error.kind != "conversation":
                raise
            # Deleted by somebody, or cut off with us at our last crash: go on in another one.
            conversation = await self._new_conversation(letta, agent_id, scope, conversation)
            return await letta.turn(
                agent_id, text, conversation=conversation, key=item.key, on_delta=on_delta
            )

    async def _addressed(self, payload: Json) -> str:
        """The text as the agent gets it: with its sender where several people are in the room."""
        text = str(payload["text"])
        if not payload.get("name_sender"):
            return text
        sender = str(payload["sender"])
        name = await self._store.display_name(RoomId(payload["room_id"]), sender)
        who = f"{plain_label(name)} ({sender})" if name else sender
        return f"{who} says:\n{text}"

    async def _ensure_conversation(
        self, letta: Letta, agent_id: AgentId, scope: str
    ) -> ConversationId | None:
        if not letta.capabilities.conversations:
            return None
        known = self._conversations.get((agent_id, scope))
        if known is None:
            known = await self._store.find_conversation(agent_id, scope)
        if known is None:
            return await self._new_conversation(letta, agent_id, scope)
        self._conversations[agent_id, scope] = known
        return known

    async def _new_conversation(
        self, letta: Letta, agent_id: AgentId, scope: str, like: ConversationId | None = None
    ) -> ConversationId | None:
        title = "Homeroom: private" if scope == PRIVATE_SCOPE else f"Matrix room {scope}"
        conversation = await letta.open_conversation(agent_id, title, like)
        if conversation:
            await self._store.save_conversation(agent_id, scope, conversation, self._fence)
            self._conversations[agent_id, scope] = conversation
        return conversation

    # --- what people are told when it does not work: pure ----------------------------------------

    def on_delay(self, item: Item, error: Unavailable | Uncertain) -> Sequence[NewItem]:
        """Says once per message that it has to wait, and why."""
        if item.kind is not ItemKind.TURN or not item.payload.get("event_id"):
            return ()
        certainty = (
            "Your message may have been delivered; I find out before I send it again."
            if not isinstance(error, Unavailable)
            else "Your message was not delivered yet: it is kept, and I go on trying for an hour."
        )
        return (self._notice(item, f"⏳ {error.what} {certainty}", "delay"),)

    def on_parked(self, item: Item, reason: str, *, delivered: bool) -> Sequence[NewItem]:
        """Says that a message was given up, why, and whether the agent may have got it."""
        if item.kind is ItemKind.POST:
            # What people are told of a post is short and plain; if that is refused too, so be it.
            if item.dedupe_key.startswith("unposted:"):
                return ()
            text = f"⚠️ I have an answer here that could not be posted. {reason}"
            payload, key = item.payload, f"unposted:{item.cause}"
            return text_items(payload["ghost"], payload["room_id"], text, key, notice=True)
        certainty = "may have been" if delivered else "was not"
        text = f"⚠️ Your message {certainty} delivered. {reason}"
        if item.payload.get("event_id"):
            return (self._notice(item, text, "parked"),)
        if room_id := item.payload.get("mirror_room_id"):
            return tuple(
                text_items(item.payload["ghost"], room_id, f"⚠️ No answer. {reason}",
                            f"parked:{item.cause}", notice=True)
            )  # fmt: skip
        return ()

    def _notice(self, item: Item, text: str, why: str) -> NewItem:
        payload = item.payload
        return notice_item(
            payload["ghost"], payload["room_id"], payload["event_id"], text,
            dedupe_key=f"{why}:{item.cause}", thread=payload.get("thread"),
        )  # fmt: skip


async def _connected(get: Callable[[], Awaitable[T]], service: Service) -> T:
    """The service; that it cannot be connected to, for whatever reason, is no item's fault."""
    try:
        return await get()
    except (Rejected, ConfigError) as error:
        raise Unavailable(service, str(error)) from error


def _answers(item: Item, turn: Turn) -> list[NewItem]:
    """The posts that an answer becomes, in the room it was asked in or the one that mirrors it."""
    payload: Dict[str, Any] = item.payload
    key = f"reply:{item.id}"
    if payload.get("room_id"):
        said = turn.text.strip()
        return text_items(
            payload["ghost"], payload["room_id"], said or _SILENT.format(reason=turn.stop_reason),
            key, notice=not said, reply_to=payload["event_id"], thread=payload.get("thread"),
        )  # fmt: skip
    if payload.get("mirror_room_id"):
        answer = turn.text.strip() or _SILENT.format(reason=turn.stop_reason)
        label = f"Answer to **{plain_label(payload['client'])}**:\n\n{answer}"
        return text_items(payload["ghost"], payload["mirror_room_id"], label, key, notice=True)
    return []


_RETIRED = (
    "I am retired: this agent is gone from Letta, so nobody reads what is written here. When the"
    " agent is there again, so am I."
)
_RETURNED = "I am back: this agent is in Letta again."
_SILENT = "(I read this and ended my turn without an answer: {reason}.)"
