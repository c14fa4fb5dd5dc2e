"""Item -> agent turn; answer -> item -> room post.

Owns how an item is carried out, and what people are told when that fails. Knows no wire format of
Letta or nio, and not why an item is there (``decide`` does). Invariants: a turn becomes at most
one answer; whoever is not answered is told why.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from collections.abc import Mapping as Dict
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, TypeVar

import anyio
import anyio.abc

from homeroom.courtesy import Typing
from homeroom.decide import PRIVATE_SCOPE, cancel_notices, stop_notices, turn_notices
from homeroom.errors import (
    ConfigError,
    HomeroomError,
    LeaseLost,
    Misuse,
    NotFound,
    Rejected,
    Service,
    Unavailable,
    Uncertain,
)
from homeroom.items import Item, ItemKind, NewItem, lane_of_turns
from homeroom.letta import Letta
from homeroom.letta.absence import NO_CONNECTION
from homeroom.mailbox import POST_KEY_KEPT_S, Begin, Outcome
from homeroom.matrix import OUR_FAULT, Matrix
from homeroom.model import AgentId, ConversationId, GhostId, ItemId, Json, RoomId, Turn, encodable
from homeroom.pauses import agent_label, asker
from homeroom.posts import notice_item, plain_label, text_items
from homeroom.store import Store

T = TypeVar("T")

WATCH_S = 5.0
"""A question in so many seconds shows soon that Letta is back, and is no load."""
TALK_S = 10.0
"""So long after an answer somebody may still be reading it and go on."""
STOP_AGAIN_S = 1.0
"""A turn that Letta has just taken may not be there yet to be stopped: it is told so again."""
STOPPED_S = 6.0
"""So long after Letta has stopped a turn its end may take to be told."""
CONVERSATION_GONE = (
    "The conversation it was sent in is gone from Letta, so nobody can tell whether the agent got"
    " it. A replay sends it in a new one."
)
TOKEN_REFUSED = {"401", "403"}
"""Codes with which Letta refuses our token, which says nothing about the message."""


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
        on_progress: Callable[[Item, str], None],
    ) -> None:
        self._store, self._fence = store, fence
        self._letta, self._matrix = letta, matrix
        self._typing = Typing(matrix, background)
        self._on_progress = on_progress
        self._under_way, self._ended_s = 0, float("-inf")
        self._whole_agent: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)
        self._has_conversations = False
        """Until Letta has said what it can, an agent gets one message at a time."""
        # Only who holds the lease writes them, so they need not be read twice.
        self._conversations: dict[tuple[AgentId, str], ConversationId] = {}
        self._background, self._watching = background, False
        self._held_up: set[ItemId] = set()
        """Turns that were put off because Letta was away, as far as this process knows."""

    async def deliver(self, item: Item, begin: Begin) -> Outcome:
        """Carries one item out; see ``Courier``."""
        self._under_way += 1
        try:
            if item.kind is ItemKind.TURN:
                return await self._deliver_turn(item, begin)
            return await self._deliver_post(item)
        finally:
            self._under_way -= 1
            self._ended_s = time.monotonic()

    async def stop(self, item: Item) -> bool:
        """Stops the turn at Letta; whether that went well. Returns when its end need not be waited
        for any more, or has it tried again until cancelled."""
        agent_id, scope = AgentId(item.payload["agent_id"]), item.payload["scope"]
        while True:
            with suppress(HomeroomError):
                letta = await self._letta()
                if not letta.capabilities.cancel:
                    return False
                conversation = await self._find_conversation(letta, agent_id, scope)
                if letta.capabilities.conversations and conversation is None:
                    return True  # nothing can have begun
                if await letta.cancel(agent_id, conversation):
                    await anyio.sleep(STOPPED_S)
                    return True
            await anyio.sleep(STOP_AGAIN_S)

    def holds(self, item: Item) -> str:
        """The beginning of the lanes that wait while a turn runs: those of its agent, where that
        has one context for all. Claimed, they would keep other agents from being worked for."""
        if item.kind is not ItemKind.TURN or self._has_conversations:
            return ""
        return lane_of_turns(AgentId(item.payload["agent_id"]), "")

    @property
    def people_talk(self) -> bool:
        """Whether somebody waits for an answer, or has just got one and may go on."""
        return self._under_way > 0 or time.monotonic() - self._ended_s < TALK_S

    async def _deliver_post(self, item: Item) -> Outcome:
        begun_s = (item.begun_ms or item.created_ms) / 1000
        if item.begun and time.time() - begun_s > POST_KEY_KEPT_S:
            raise Misuse(
                "It may have been posted more than a day ago, and the homeserver would not know it"
                " again: it could come out twice. Look in the room whether it is there."
            )
        matrix = await _connected(self._matrix, "matrix")
        ghost, room_id = GhostId(item.payload["ghost"]), RoomId(item.payload["room_id"])
        try:
            if item.payload.get("only_if_unused") and not await matrix.is_unused(
                ghost, room_id, besides=ghost
            ):
                return Outcome({"event_id": "", "left_out": "people write here already"})
            event_id = await matrix.post(
                ghost, room_id, item.payload["content"], item.id,
                item.payload.get("type", "m.room.message"), ts_ms=item.payload.get("ts_ms", 0),
            )  # fmt: skip
        except Rejected as refusal:
            if refusal.code not in OUR_FAULT:
                if item.payload.get("if_possible"):
                    return Outcome({"event_id": "", "left_out": refusal.reason})
                raise
            raise Unavailable("matrix", refusal.reason) from refusal
        finally:
            if item.kind is ItemKind.POST:
                self._typing.settle(ghost, room_id)
        return Outcome({"event_id": event_id})

    async def _deliver_turn(self, item: Item, begin: Begin) -> Outcome:
        payload = item.payload
        with self._noting_absence(item):
            letta = await _connected(self._letta, "letta")
        if letta.capabilities.conversations != self._has_conversations:
            self._has_conversations = letta.capabilities.conversations
            self._store.wake()
        room_id = payload.get("room_id") or payload.get("mirror_room_id")
        with (
            self._typing.shown(payload["ghost"], room_id) if room_id else nullcontext(),
            self._noting_absence(item),
        ):
            if letta.capabilities.conversations:
                turn = await self._turn_or_away(letta, item, begin)
            else:  # one context: two turns at once would lose one of them (measured on V1)
                async with self._whole_agent[payload["agent_id"]]:
                    turn = await self._turn_or_away(letta, item, begin)
        await self._hurry_others()
        # Half of a character, where one was cut in two on its way, is taken by no other service.
        turn = Turn(encodable(turn.text), encodable(turn.stop_reason), turn.run_id)
        return Outcome({"text": turn.text, "stop_reason": turn.stop_reason}, _answers(item, turn))

    async def _turn_or_away(self, letta: Letta, item: Item, begin: Begin) -> Turn:
        """A back end that connects anew in the middle may fail as one that is being opened does,
        and that is no item's fault either; see ``_connected``."""
        try:
            return await self._turn(letta, item, begin)
        except ConfigError as error:
            raise Unavailable("letta", str(error)) from error
        except Rejected as refusal:
            if refusal.service != "letta" or refusal.code not in TOKEN_REFUSED:
                raise
            raise Unavailable("letta", str(refusal)) from refusal

    @contextmanager
    def _noting_absence(self, item: Item) -> Iterator[None]:
        try:
            yield
        except Unavailable as error:
            # No other failure is over because Letta answers somebody else.
            if error.service == "letta" and error.reason == NO_CONNECTION:
                self._held_up.add(item.id)
                if not self._watching:
                    self._watching = True
                    self._background.start_soon(self._watch, AgentId(item.payload["agent_id"]))
            raise

    async def _watch(self, agent_id: AgentId) -> None:
        """Asks Letta for one agent now and then, until it answers, whatever it says."""
        while self._held_up:
            await anyio.sleep(WATCH_S)
            try:
                await (await _connected(self._letta, "letta")).get_agent(agent_id)
            except (Unavailable, Uncertain):
                continue
            except HomeroomError:
                pass
            try:
                await self._hurry_others()
            except LeaseLost:
                break  # whoever has it now watches for itself
        self._watching = False

    async def _hurry_others(self) -> None:
        """Letta has answered: those whose pauses have grown while it was away need not sit them
        out."""
        held_up, self._held_up = self._held_up, set()
        if held_up:
            await self._store.hurry(held_up, self._fence)

    async def _turn(self, letta: Letta, item: Item, begin: Begin) -> Turn:
        payload = item.payload
        agent_id, scope = AgentId(payload["agent_id"]), payload["scope"]
        text = await self._addressed(payload)
        conversation = await self._ensure_conversation(letta, agent_id, scope)
        if item.begun:
            # An earlier attempt ended without a verdict: look before sending again.
            turn = await self._find_turn(letta, item, text, conversation)
            await self._hurry_others()
            if turn is not None:
                return turn
        await begin()

        def on_delta(piece: str) -> None:
            self._on_progress(item, encodable(piece))

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

    async def _find_turn(
        self, letta: Letta, item: Item, text: str, conversation: ConversationId | None
    ) -> Turn | None:
        agent_id = AgentId(item.payload["agent_id"])
        try:
            return await letta.find_turn(
                agent_id, conversation=conversation, key=item.key, text=text, begun_ms=item.begun_ms
            )
        except NotFound as error:
            if error.kind != "conversation":
                raise
            if await self._was_told(item):
                return None
            raise Misuse(CONVERSATION_GONE) from error

    async def _was_told(self, item: Item) -> bool:
        """Whether a person had it replayed after it was parked because its conversation is gone."""
        if not item.replay_count:
            return False
        known = await self._store.find_delivery(item.id)
        return known is not None and CONVERSATION_GONE in [one.reason for one in known.changes]

    async def _addressed(self, payload: Json) -> str:
        """The text as the agent gets it: with its sender where several people are in the room, or
        where it is another agent."""
        text = str(payload["text"])
        if sender := str(payload.get("from_agent") or ""):
            name = agent_label(str(payload.get("from_agent_name", "")), sender)
            return f"{name} (an agent) says:\n{text}"
        if not payload.get("name_sender"):
            return text
        sender = str(payload["sender"])
        name = await self._store.display_name(RoomId(payload["room_id"]), sender)
        who = f"{plain_label(name)} ({sender})" if name else sender
        return f"{who} says:\n{text}"

    async def _ensure_conversation(
        self, letta: Letta, agent_id: AgentId, scope: str
    ) -> ConversationId | None:
        known = await self._find_conversation(letta, agent_id, scope)
        if known is None and letta.capabilities.conversations:
            return await self._new_conversation(letta, agent_id, scope)
        return known

    async def _find_conversation(
        self, letta: Letta, agent_id: AgentId, scope: str
    ) -> ConversationId | None:
        if not letta.capabilities.conversations:
            return None
        known = self._conversations.get((agent_id, scope))
        if known is None and (known := await self._store.find_conversation(agent_id, scope)):
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
        """Says once per message that it has to wait, and why; and once that it may have been
        delivered, also where it was said before that it was not."""
        if item.kind is not ItemKind.TURN or not item.payload.get("event_id"):
            return ()
        if isinstance(error, Unavailable) and not item.begun:
            said = "Your message was not delivered yet: it is kept, and I go on trying for an hour."
            return (self._notice(item, f"⏳ {error.what} {said}", "delay"),)
        said = "Your message may have been delivered; I find out before I send it again."
        return (self._notice(item, f"⏳ {error.what} {said}", "delay", ":uncertain"),)

    def on_parked(self, item: Item, reason: str, *, delivered: bool) -> Sequence[NewItem]:
        """Says that a message was given up, why, and whether the agent may have got it."""
        if item.kind is ItemKind.POST:
            # What people are told of a post is short and plain; if that is refused too, so be it.
            # The past has nobody who waits for it.
            if item.dedupe_key.startswith(("unposted:", "history:")):
                return ()
            certainty = "may or may not have been" if delivered else "could not be"
            text = f"⚠️ I have an answer here that {certainty} posted. {reason}"
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

    def on_expired(self, item: Item) -> Sequence[NewItem]:
        """Says that a message was not delivered in time."""
        return turn_notices(item, "expired", "⌛", "was not delivered before its time was up.")

    def on_stopped(self, item: Item, *, delivered: bool, goes_on: bool) -> Sequence[NewItem]:
        """Says who stopped the agent, and what that means for what it was at."""
        return stop_notices(item, goes_on=goes_on) if delivered else cancel_notices(item)

    def _notice(self, item: Item, text: str, why: str, which: str = "") -> NewItem:
        payload = item.payload
        return notice_item(
            payload["ghost"], payload["room_id"], payload["event_id"], text,
            dedupe_key=f"{why}:{item.cause}{which}", thread=payload.get("thread"),
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
        label = f"Answer to {asker(payload)}:\n\n{answer}"
        return text_items(payload["ghost"], payload["mirror_room_id"], label, key, notice=True)
    return []


_SILENT = "(I read this and ended my turn without an answer: {reason}.)"
