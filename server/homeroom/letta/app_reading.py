"""The lists of an App Server, read whole: its agents, and what was said to one of them.

Owns the order of pages. Invariant: a list is complete or an error, never a part.
"""

from __future__ import annotations

from typing import Any

from homeroom.errors import Unavailable
from homeroom.letta.link import Link
from homeroom.letta.past import exchanges_of
from homeroom.letta.wire import agent_of
from homeroom.model import Agent, AgentId, Exchange

_AGENTS = 500
_CONVERSATIONS = 500
_PAGE = 50
_PAGES = 20
"""How far back one conversation is read: 1,000 messages."""


async def list_agents(link: Link) -> list[Agent]:
    """All agents, newest first.

    A page may be shorter than asked for, so only an empty one is the end. A cursor whose agent was
    deleted is not known any more, and the list starts over (0.34.12).

    Raises:
        Unavailable: it started over, so that nobody knows whether it is whole.
    """
    found: dict[AgentId, Agent] = {}
    earlier: list[AgentId] = []
    query: dict[str, str | int] = {"limit": _AGENTS}
    while True:
        page = [agent_of(raw) for raw in (await link.request("agent_list", query=query))["agents"]]
        ids = [agent.id for agent in page]
        # A server that knows no cursors gives the same page again: that is all there is.
        if not page or (ids == earlier and len(ids) < _AGENTS):
            return list(found.values())
        if all(agent_id in found for agent_id in ids):
            raise Unavailable("letta", "the list of agents changed while it was read", 1.0)
        found |= {agent.id: agent for agent in page if agent.id not in found}
        earlier, query["after"] = ids, ids[-1]


async def list_history(link: Link, agent_id: AgentId, limit: int) -> list[Exchange]:
    """See ``homeroom.letta.Letta``."""
    await link.request("agent_retrieve", agent_id=agent_id)  # any id has an empty list
    query = {"agent_id": agent_id, "limit": _CONVERSATIONS}
    listed = await link.request("conversation_list", query=query)
    newest_first = sorted(
        listed["conversations"], key=lambda c: str(c.get("last_message_at") or ""), reverse=True
    )
    found: list[Exchange] = []
    for conversation in newest_first[:limit]:  # each of these has something newer than the rest
        found += await _of_conversation(link, agent_id, str(conversation["id"]), limit)
    return sorted(found, key=lambda exchange: exchange.asked_ms)[-limit:]


async def _of_conversation(
    link: Link, agent_id: AgentId, conversation: str, limit: int
) -> list[Exchange]:
    messages: list[Any] = []
    query: dict[str, str | int] = {"agent_id": agent_id, "limit": _PAGE, "order": "desc"}
    for _ in range(_PAGES):
        page = await link.request(
            "conversation_messages_list", conversation_id=conversation, query=query
        )
        messages = [*reversed(page["messages"]), *messages]
        exchanges = exchanges_of(messages, limit + 1)
        if len(exchanges) > limit or not page.get("has_more") or not page.get("next_before"):
            break
        query["before"] = page["next_before"]
    return exchanges[-limit:]
