"""What a store says became of an event."""

from __future__ import annotations

from homeroom.model import ItemId
from homeroom.store import Store


async def outcome_of(store: Store, event_id: str) -> tuple[str, ItemId | None] | None:
    """The rule that decided an event and its item; None if it never arrived."""
    found = await store.find_delivery(event_id)
    if found is None or found.event is None:
        return None
    return found.event.outcome, found.item.id if found.item else None
