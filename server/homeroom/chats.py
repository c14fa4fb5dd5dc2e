"""Whose a chat is, and when two chats are one. Pure.

Owns the rule that a reply belongs to the caller that asked, and the keys by which a message that a
client sends again is known. Knows no store and no clock.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

from homeroom.items import Item, ItemKind, ItemState, NewItem

LOCAL_CALLER = "local"
"""Whoever needs no token: the processes of the one user who can read the store."""
_ALSO_LOCAL = frozenset({"", "stdio", LOCAL_CALLER})
SAME_WITHIN_MS = 10_000
"""The same words to the same agent within this time are one message: clients repeat a call whose
answer they did not get, people do not repeat themselves that fast."""


def owner_of(caller: str) -> str:
    """The principal behind a caller: all that is local is one."""
    return LOCAL_CALLER if caller in _ALSO_LOCAL else caller


def is_chat(item: Item) -> bool:
    """Whether ``item`` is a message that was sent through a tool, so that somebody may wait."""
    return item.kind is ItemKind.TURN and "client" in item.payload


def is_chat_of(item: Item, caller: str) -> bool:
    """Whether ``item`` is a message that ``caller`` sent through a tool."""
    return is_chat(item) and owner_of(str(item.payload.get("caller") or "")) == owner_of(caller)


def why_no_answer(item: Item) -> str:
    """Why a chat has no answer, or none yet, and what to do where that is not to wait; empty for
    one that has."""
    if item.state is ItemState.DONE:
        return ""
    if item.state is not ItemState.CANCELLED:
        return item.reason
    did = "What the agent had done for it may have happened" if item.begun else "It was not sent"
    return (
        f"A person ended this message, so no answer comes. {did}. Do not resend it by yourself; ask"
        f" whether it is still wanted. They said: {item.reason}"
    )


def chat_key(caller: str, idempotency_key: str, fallback: str) -> str:
    """What the dedupe key of a chat is made of: the caller's key, if it gave one."""
    return _digest(owner_of(caller), idempotency_key) if idempotency_key else fallback


def fingerprint_of(caller: str, agent_id: str, message: str) -> str:
    """Equal for the same words of one caller to one agent."""
    return _digest(owner_of(caller), agent_id, message)


def signed(turn: NewItem, caller: str, message: str) -> NewItem:
    """``turn`` with its caller and its fingerprint written into it."""
    mark = fingerprint_of(caller, str(turn.payload["agent_id"]), message)
    payload = {**turn.payload, "caller": owner_of(caller), "fingerprint": mark}
    return replace(turn, payload=payload)


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
