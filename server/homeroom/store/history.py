"""What became of a message: its event, its item, their history and what followed, read together."""

from __future__ import annotations

from functools import partial

from homeroom.model import (
    Change,
    Delivery,
    EventId,
    HeardEvent,
    ItemId,
    ItemKind,
    ItemState,
    RoomId,
)
from homeroom.store.items import item_of
from homeroom.store.rooms import Rooms

_CAUSED_BY_EVENT = "event:"
"""Begins the dedupe key of an item that an event became."""
_FOLLOWERS = ("reply", "delay", "parked")
"""What begins the dedupe keys of the posts that follow from an item; its id comes next."""


class History(Rooms):
    """Statements that look back."""

    async def find_delivery(self, name: str) -> Delivery | None:
        """The story of an event or of an item, whichever has that id; None if neither has."""
        return await self._run(partial(self._delivery, name))

    def _delivery(self, name: str) -> Delivery | None:
        event = self._heard_event(name)
        row = self._row(
            "SELECT * FROM item WHERE id = coalesce("
            "(SELECT item_id FROM event WHERE event_id = ?), ?)",
            (name, name),
        )
        if row is None:
            return Delivery(event, None) if event else None
        item = item_of(row)
        if event is None and item.dedupe_key.startswith(_CAUSED_BY_EVENT):
            event = self._heard_event(item.dedupe_key.removeprefix(_CAUSED_BY_EVENT))
        posts = []
        if item.kind is ItemKind.TURN:
            for what in _FOLLOWERS:
                # ";" comes right after ":", which leads to the further pieces of a long text.
                posts += self._rows(
                    "SELECT * FROM item WHERE dedupe_key >= ? AND dedupe_key < ? ORDER BY id",
                    (f"{what}:{item.id}", f"{what}:{item.id};"),
                )
        return Delivery(
            event, item, self._changes(item.id), self._place_in_lane(item),
            tuple((item_of(post), self._changes(post["id"])) for post in posts),
        )  # fmt: skip

    def _heard_event(self, event_id: str) -> HeardEvent | None:
        row = self._row("SELECT * FROM event WHERE event_id = ?", (event_id,))
        if row is None:
            return None
        return HeardEvent(
            id=EventId(row["event_id"]), room_id=RoomId(row["room_id"]), sender=row["sender"],
            sent_ms=row["origin_ms"], received_ms=row["received_ms"], outcome=row["outcome"],
        )  # fmt: skip

    def _changes(self, item_id: ItemId | str) -> tuple[Change, ...]:
        rows = self._rows("SELECT * FROM item_history WHERE item_id = ? ORDER BY rowid", (item_id,))
        return tuple(
            Change(row["at_ms"], ItemState(row["state"]), row["reason"], row["next_try_ms"])
            for row in rows
        )
