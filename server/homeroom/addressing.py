"""Whom a message in a room with several agents is for. Pure.

Only what the sender wrote on purpose counts: a mention, a Matrix id, or a name at the beginning. A
message that names nobody is for nobody, so that agents never talk all at once.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from urllib.parse import unquote

from homeroom.model import GhostId, Json

_LINK = re.compile(r"(?:https://matrix\.to/#/|matrix:u/)([^\"'\s<>?&/]{1,300})", re.IGNORECASE)
"""A link to a user, which clients show as a pill.
Source: https://spec.matrix.org/v1.16/appendices/#uris"""


def addressed(
    content: Json, text: str, agents: Sequence[tuple[GhostId, str]]
) -> frozenset[GhostId]:
    """Which of ``agents``, ghosts with their names, the message is for.

    Args:
        content: The event's content, untrusted.
        text: What it says, without the quote that older clients put above a reply.

    Source: https://spec.matrix.org/v1.16/client-server-api/#user-and-room-mentions
    """
    named = _mentioned(content) | _linked(content) | set(re.findall(r"@[^\s,;!?<>()]+", text))
    found = {ghost for ghost, _ in agents if ghost in named or any(_is(ghost, n) for n in named)}
    start = text.lstrip().lstrip("@").casefold()
    for ghost, name in agents:
        called = name.strip().casefold()
        if called and start.startswith(called) and start[len(called) :].lstrip()[:1] in (":", ","):
            found.add(ghost)
    return frozenset(found)


def _is(ghost: str, name: str) -> bool:
    """Whether ``name`` is that id, with the punctuation of a sentence behind it perhaps."""
    return name.rstrip(".:'\"") == ghost


def _mentioned(content: Json) -> set[str]:
    mentions = content.get("m.mentions")
    users = mentions.get("user_ids") if isinstance(mentions, dict) else None
    return {user for user in users if isinstance(user, str)} if isinstance(users, list) else set()


def _linked(content: Json) -> set[str]:
    html = content.get("formatted_body")
    if not isinstance(html, str):
        return set()
    # What stands above a reply is quoted, and links to whoever is quoted.
    html = re.sub(r"<mx-reply>.*?</mx-reply>", "", html, flags=re.DOTALL)
    links = {unquote(link) for link in _LINK.findall(html)}
    return links | {f"@{link}" for link in links if not link.startswith("@")}


def how_to_address(names: Collection[str]) -> str:
    """What a room with several agents is told when a message names none of them."""
    listed = ", ".join(names)
    return (
        f"Several agents are in this room ({listed}), and a message is answered only by those it"
        f" is for: mention them, or begin with a name and a colon, as in “{next(iter(names))}:"
        " good morning”. This one was for nobody."
    )
