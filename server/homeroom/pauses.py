"""What is said of a pause between two agents, and which one a person means. Pure.

Invariant: a name of an agent is a label in it and nothing more.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from homeroom.errors import Ambiguous, NotFound
from homeroom.exchange import Exchange, Home
from homeroom.items import NewItem
from homeroom.model import AgentId, Json
from homeroom.posts import plain_label, text_items
from homeroom.room_commands import RESUME


def agent_label(name: str, agent_id: str) -> str:
    """An agent's name, harmless in Markdown; its id if nothing of the name is left."""
    return plain_label(name if re.search(r"\w", name) else agent_id)


def asker(payload: Json, mark: str = "**") -> str:
    """Who sent the chat of a tool: an agent, or a client by its own word; the name in ``mark``."""
    if sender := payload.get("from_agent"):
        name = agent_label(str(payload.get("from_agent_name", "")), str(sender))
        return f"{mark}{name}{mark} (an agent)"
    return f"{mark}{plain_label(str(payload.get('client', '')))}{mark}"


def pause_items(paused: Exchange, homes: Sequence[Home]) -> list[NewItem]:
    """What the rooms of both agents are told when their exchange is paused, once for each pause."""
    low, high = paused.pair
    return _tell(
        paused, homes, "paused",
        f"⏸️ {{who}} are paused until {paused.until}: {paused.reason}. More of them are refused"
        f" until then. To let them go on, write `{RESUME}` here, or run `homeroom resume {low}"
        f" {high}`.",
    )  # fmt: skip


def resumed_items(paused: Exchange, homes: Sequence[Home]) -> list[NewItem]:
    """What they are told when a person has let it go on."""
    return _tell(paused, homes, "resumed", "▶️ {who} may go on. Both limits count anew.")


def _tell(of: Exchange, homes: Sequence[Home], what: str, text: str) -> list[NewItem]:
    items: list[NewItem] = []
    for home in homes:
        who = "Messages that I send to myself"
        others = [n for n in range(2) if of.pair[n] != home.agent_id]
        for n in others:
            name = agent_label(of.names[n], of.pair[n])
            who = f"Messages between me and the agent **{name}**"
        key = f"{what}:{':'.join(of.pair)}:{of.paused_ms}:{home.agent_id}"
        # Not format(): a name may have braces.
        items += text_items(
            home.ghost, home.room_id, text.replace("{who}", who), key, notice=True
        )  # fmt: skip
    return items


def pick(paused: Sequence[Exchange], one: str, other: str) -> Exchange:
    """The paused exchange of the two agents, each given by id or (regardless of case) by name.

    Raises:
        NotFound: it is none of ``paused``.
        Ambiguous: the names fit several.
    """
    wanted = sorted((one.strip().casefold(), other.strip().casefold()))

    def fits(exchange: Exchange) -> bool:
        ids, names = exchange.pair, exchange.names
        called = [{ids[n].casefold(), names[n].casefold()} for n in range(2)]
        return any(
            wanted[n] in called[0] and wanted[1 - n] in called[1] for n in range(2)
        )  # fmt: skip

    found = [exchange for exchange in paused if fits(exchange)]
    if len(found) > 1:
        ids: set[AgentId] = {agent for exchange in found for agent in exchange.pair}
        raise Ambiguous("pair", f"{one} {other}", sorted(ids))
    if not found:
        pairs = [" ".join(exchange.pair) for exchange in paused]
        advice = "`homeroom resume` lists those that are paused."
        raise NotFound("paused pair of agents", f"{one} {other}"[:200], pairs[:5], advice)
    return found[0]
