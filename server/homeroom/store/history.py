"""What became of a message: its event, its item, their history and what followed, read together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from homeroom.errors import Misuse, NotFound
from homeroom.model import (
    Change,
    Delivery,
    EventId,
    HeardEvent,
    Item,
    ItemId,
    ItemKind,
    ItemState,
    NewItem,
    Parked,
    RoomId,
)
from homeroom.store.items import item_of
from homeroom.store.rooms import Rooms

_CAUSED_BY_EVENT = "event:"
"""Begins the dedupe key of an item that an event became."""
_FOLLOWERS = ("reply", "delay", "parked", "replay")
"""What begins the dedupe keys of the posts that follow from an item; its id comes next."""

_DAY_MS = 86_400_000
_PRUNED_AT_ONCE = 500
"""Rows of one commit: others write meanwhile."""


class History(Rooms):
    """Statements that look back, and what a person decides about what was given up."""

    # --- parked items -----------------------------------------------------------------------------

    async def list_parked(self, limit: int) -> tuple[list[Parked], int]:
        """The newest ``limit`` parked items, oldest first, and how many there are in all."""

        def read() -> tuple[list[Parked], int]:
            rows = self._rows(
                "SELECT * FROM item WHERE state = 'parked' ORDER BY id DESC LIMIT ?", (limit,)
            )
            total = self._row("SELECT count(*) AS n FROM item WHERE state = 'parked'")
            found = [self._parked(item_of(row)) for row in reversed(rows)]
            return found, total["n"] if total else 0

        return await self._run(read)

    async def get_parked(self, item_id: ItemId) -> Parked:
        """Raises NotFound, or Misuse if the item is in another state."""
        return await self._run(lambda: self._parked(self._require_parked(item_id)))

    async def replay(
        self, item_id: ItemId, tell: Callable[[Item], Sequence[NewItem]]
    ) -> tuple[Item, int]:
        """Puts a parked item back at its old place, which is the head of its lane.

        Returns it and how many items come first. ``tell`` gives the notices that go along with
        it. Raises NotFound, or Misuse if it is not parked (any more).
        """

        def write() -> tuple[Item, int]:
            self._require_parked(item_id)
            self._conn.execute(
                "UPDATE item SET replay_count = replay_count + 1, attempts = 0,"
                " not_before_ms = 0, uncertain_count = 0, failing_since_ms ="
                # A post that may have been made gets no new time: its key is known for a day only.
                " iif(kind = ? AND begun, created_ms, 0) WHERE id = ?",
                (ItemKind.POST, item_id),
            )
            self._set_state(item_id, ItemState.WAITING, "a person had it replayed")
            row = self._row("SELECT * FROM item WHERE id = ?", (item_id,))
            assert row is not None
            item = item_of(row)
            for notice in tell(item):
                self._put(notice)
            return item, self._place_in_lane(item)

        return await self._write(write)

    async def drop(self, item_id: ItemId, reason: str) -> None:
        """Ends a parked item as cancelled. Raises NotFound, or Misuse if it is not parked."""

        def write() -> None:
            self._require_parked(item_id)
            self._set_state(item_id, ItemState.CANCELLED, reason)

        await self._write(write)

    def _require_parked(self, item_id: ItemId) -> Item:
        row = self._row("SELECT * FROM item WHERE id = ?", (item_id,))
        if row is None:
            advice = "`homeroom parked` and list_parked show the ids there are."
            raise NotFound("parked item", item_id[:80], advice=advice)
        if row["state"] != ItemState.PARKED:
            raise Misuse(f"Item {item_id} is {row['state']}, not parked. Nothing was changed.")
        return item_of(row)

    def _parked(self, item: Item) -> Parked:
        row = self._row(
            "SELECT max(at_ms) AS at FROM item_history WHERE item_id = ? AND state = 'parked'",
            (item.id,),
        )
        return Parked(item, row["at"] if row and row["at"] else item.created_ms)

    # --- what is kept -----------------------------------------------------------------------------

    async def prune(self, keep_ms: int, fence: int) -> int:
        """Deletes some of what ended more than ``keep_ms`` ago. Returns how much: ask until 0.

        Parked items stay until a person decides. The id of an event stays a day longer than its
        item and as long as there is one, so that nothing is taken for new that was answered.
        """

        def write() -> int:
            before_ms = self._now_ms() - keep_ms
            items = self._rows(
                "SELECT id FROM item WHERE id < ? AND state IN ('done', 'cancelled')"
                " AND NOT EXISTS (SELECT 1 FROM item_history AS h"
                " WHERE h.item_id = item.id AND h.at_ms >= ?) ORDER BY id LIMIT ?",
                (f"{max(0, before_ms) * 1000:013x}", before_ms, _PRUNED_AT_ONCE),
            )
            for row in items:
                self._conn.execute("DELETE FROM item_history WHERE item_id = ?", (row["id"],))
                self._conn.execute("DELETE FROM item WHERE id = ?", (row["id"],))
            events = self._conn.execute(
                "DELETE FROM event WHERE seq IN (SELECT seq FROM event AS e WHERE received_ms < ?"
                " AND NOT EXISTS (SELECT 1 FROM item WHERE item.id = e.item_id)"
                " ORDER BY seq LIMIT ?)",
                (before_ms - _DAY_MS, _PRUNED_AT_ONCE),
            )
            return len(items) + events.rowcount

        return await self._write(write, fence)

    # --- the story of one message -----------------------------------------------------------------

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
            held=row["held"] > 0,
        )  # fmt: skip

    def _changes(self, item_id: ItemId | str) -> tuple[Change, ...]:
        rows = self._rows("SELECT * FROM item_history WHERE item_id = ? ORDER BY rowid", (item_id,))
        return tuple(
            Change(row["at_ms"], ItemState(row["state"]), row["reason"], row["next_try_ms"])
            for row in rows
        )
