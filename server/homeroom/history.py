"""What an agent and people said before it had a room, as posts into that room.

Owns how the past is shown. Invariants: it is the agent's user who posts it, as notices that say
what they are, so no program answers them; a room in which somebody has spoken gets none of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from homeroom.items import NewItem
from homeroom.letta import Letta
from homeroom.matrix import Matrix
from homeroom.model import Exchange, Mapping
from homeroom.posts import text_items
from homeroom.times import utc_text

HISTORY_KEY = "org.homeroom.history"
"""In the content of every post of the past: what it is and when it was said."""


async def past_items(
    letta: Letta, matrix: Matrix, mapping: Mapping, limit: int
) -> Sequence[NewItem]:
    """The posts that show the agent's last ``limit`` exchanges in its room; none if somebody has
    spoken there, or if there is no past.

    Raises:
        Unsupported: this Letta does not tell what was said.
    """
    assert mapping.room_id
    if not await matrix.is_unused(mapping.ghost, mapping.room_id):
        return ()
    return history_items(mapping, await letta.list_history(mapping.agent_id, limit))


def history_items(mapping: Mapping, exchanges: Sequence[Exchange]) -> list[NewItem]:
    """The same from what Letta told. Pure."""
    if not exchanges:
        return []
    count = len(exchanges)
    what = "the last exchange" if count == 1 else f"the last {count} exchanges"
    heading = f"🕰️ What was said before this room: {what}, as Letta has kept them."
    items = _posts(mapping, heading, "heading", "heading", exchanges[0].asked_ms)
    for number, exchange in enumerate(exchanges):
        for side, text, at_ms in (
            ("asked", exchange.asked, exchange.asked_ms),
            ("answered", exchange.answered, exchange.answered_ms),
        ):
            label = "A person asked" if side == "asked" else "The agent answered"
            when = f", {utc_text(at_ms)}" if at_ms else ""
            said = f"🕰️ *{label}{when}:*\n\n{text}"
            items += _posts(mapping, said, f"{number}:{side}", side, at_ms)
    return items


def _posts(mapping: Mapping, text: str, name: str, side: str, at_ms: int) -> list[NewItem]:
    assert mapping.room_id
    key = f"history:{mapping.agent_id}:{mapping.room_id}:{name}"
    mark = {HISTORY_KEY: {"what": side, "at_ms": at_ms, "agent_id": mapping.agent_id}}
    posts = text_items(mapping.ghost, mapping.room_id, text, key, notice=True)
    return [_as_past(post, mark, at_ms) for post in posts]


def _as_past(post: NewItem, mark: dict[str, Any], at_ms: int) -> NewItem:
    content = {**post.payload["content"], **mark}
    payload = {**post.payload, "content": content, "ts_ms": at_ms, "only_if_unused": True}
    return NewItem(post.lane, post.kind, payload, post.dedupe_key)
