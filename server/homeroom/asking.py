"""A message of a tool on its way to an agent: whose it is, whom it is for, and whether it may go.

Owns what is checked before a chat is on its lane. Invariant: what an agent sends says so, and is
measured by the limits on agents; what a person's client sends is not.
"""

from __future__ import annotations

import logging
import math
import secrets
from dataclasses import dataclass

import anyio

from homeroom.chats import SAME_WITHIN_MS, chat_key, signed
from homeroom.config import Config
from homeroom.decide import chat_items
from homeroom.directory import Directory
from homeroom.errors import Ambiguous, LimitExceeded, Misuse, NotFound, Unavailable
from homeroom.exchange import Guard, Limits, between
from homeroom.items import Priority
from homeroom.model import Agent, ItemId
from homeroom.pauses import pause_items
from homeroom.store import Store

log = logging.getLogger(__name__)

MESSAGE_LIMIT = 100_000
"""Characters of one message to an agent."""
RECALL_S = 2.0
"""How long Letta may take to say which agents there are, in seconds, where the store knows those
that are meant: a message shall be safe before whoever sends it gives up."""
LONGEST_WAIT_S = 30 * 86_400
"""Latest expiry of a message, in seconds: a month, as long as finished ones are kept by default."""
NO_SENDER = (
    "Nothing was sent: this client speaks for an agent, and Letta has no agent of that id or name,"
    " or several of that name. Whoever runs Homeroom has to name it anew: with `homeroom token new`"
    " and --agent for HTTP, with HOMEROOM_STDIO_AGENT for stdio."
)


@dataclass(frozen=True, slots=True)
class Question:
    """A message as a tool hands it over, and what goes with it."""

    agent: str
    """Whom it is for: id or name."""
    message: str
    client: str
    """The client's name for itself (untrusted)."""
    caller: str
    from_agent: str = ""
    """The agent whose client it is: id or name; empty for a person's."""
    mirror: bool = True
    idempotency_key: str = ""
    priority: Priority = Priority.NORMAL
    expires_after_s: float = 0.0
    find_s: float = math.inf
    """How long Letta may take to say which agents there are, if only Letta can."""


class Asking:
    """Puts the chats of tools on their lanes."""

    def __init__(self, config: Config, store: Store, directory: Directory) -> None:
        self._config, self._store, self._directory = config, store, directory
        self._limits = Limits(config.hop_limit, config.pair_budget)

    async def ask(self, of: Question) -> ItemId:
        """Puts it on the lane of its agent. Returns the reply id.

        Where Letta does not say which agents there are, the homes in the store do: then it waits
        for Letta like a message of a room.

        Raises:
            Misuse: it is empty or too long, its expiry is none, or the agent that sends it is not
                known.
            NotFound, Ambiguous: there is no such agent, or several.
            Unavailable: Letta did not say so within ``find_s``, and no home tells. Nothing was
                sent.
            ExchangePaused: the two agents have reached a limit.
        """
        if not of.message.strip():
            raise Misuse("The message is empty. Say what the agent shall read.")
        if len(of.message) > MESSAGE_LIMIT:
            raise LimitExceeded("A message", MESSAGE_LIMIT, len(of.message), "characters")
        if not 0 <= of.expires_after_s <= LONGEST_WAIT_S:
            raise Misuse(
                f"expires_after_s is in seconds, from 0 (it never expires) to {LONGEST_WAIT_S}."
            )
        found, sender = await self._find(of)
        mapping = None
        if self._config.has_matrix:
            mapping = await self._store.find_mapping(found.id)
        items = chat_items(
            found.id, mapping, of.message, client=of.client, mirror=of.mirror,
            key=chat_key(of.caller, of.idempotency_key, secrets.token_hex(12)),
            agent_name=found.name,
            from_agent=sender.id if sender else "", from_agent_name=sender.name if sender else "",
            priority=of.priority, expires_after_ms=int(of.expires_after_s * 1000),
        )  # fmt: skip
        items[0] = signed(items[0], of.caller, of.message)
        guard = None
        if sender:
            pair = between(sender.id, sender.name, found.id, found.name)
            guard = Guard(sender.id, pair, self._limits)
        return await self._store.put_chat(
            items,
            same_within_ms=0 if of.idempotency_key else SAME_WITHIN_MS,
            guard=guard,
            on_paused=pause_items,
        )

    async def _find(self, of: Question) -> tuple[Agent, Agent | None]:
        """Whom it is for, and the agent that sends it, if one does."""
        known = await self._directory.recall(of.agent)
        known_sender = await self._directory.recall(of.from_agent) if of.from_agent else None
        all_known = known is not None and bool(known_sender) is bool(of.from_agent)
        try:
            # Only what comes before the commit may be given up: nothing was sent until then.
            with anyio.fail_after(min(of.find_s, RECALL_S) if all_known else of.find_s):
                found = await self._directory.resolve(of.agent)
                return found, await self._sender(of.from_agent) if of.from_agent else None
        except (TimeoutError, Unavailable) as error:
            if known is not None and all_known:
                log.info("agent_recalled", extra={"agent": known.id})
                return known, known_sender
            if isinstance(error, Unavailable):
                raise
        why = f"it told no agents within {of.find_s:.0f} s; nothing was sent"
        raise Unavailable("letta", why)

    async def _sender(self, name: str) -> Agent:
        try:
            return await self._directory.resolve(name)
        except (NotFound, Ambiguous) as error:
            raise Misuse(NO_SENDER) from error
