"""What became of a message: its event, its item, their history and what followed, read together."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

from homeroom.errors import Misuse, NotFound
from homeroom.items import (
    Change,
    Delivery,
    HeardEvent,
    Item,
    ItemKind,
    ItemState,
    Moved,
    Parked,
    Tell,
)
from homeroom.model import EventId, ItemId, RoomId
from homeroom.store.item_rows import item_of
from homeroom.store.rooms import Rooms

_CAUSED_BY_EVENT = "event:"
"""Begins the dedupe key of an item that an event became."""
_FOLLOWERS = ("reply", "delay", "parked", "replay", "expired", "cancelled", "stopped",
              "dropped")  # fmt: skip
"""What begins the dedupe keys of the posts that follow from an item; its id comes next."""

_DAY_MS = 86_400_000
_SAID_ONCE = "('encrypted:', 'address:', 'needs-hub:', 'moved:', 'presence:')"
"""Beginnings of the dedupe keys of notices that a room gets once, however long ago that was."""
_PRUNED_AT_ONCE = 500
"""Rows of one commit: others write meanwhile."""


class History(Rooms):
    """Statements that look back, and what a person decides about what was given up."""

    # --- parked items -----------------------------------------------------------------------------

    async def get_parked(self, item_id: ItemId) -> Parked:
        """Raises NotFound, or Misuse if the item is in another state."""
        return await self._run(lambda: self._parked(self._require_parked(item_id)))

    async def replay(self, item_id: ItemId, tell: Tell) -> tuple[Item, int]:
        """Puts a parked item back at its old place, which is the head of its lane.

        Returns it and how many items come first. ``tell`` gives the notices that go along with
        it. Raises NotFound, or Misuse if it is not parked (any more).
        """

        def write() -> tuple[Item, int]:
            self._require_parked(item_id)
            self._conn.execute(
                "UPDATE item SET replay_count = replay_count + 1, attempts = 0, expires_ms = 0,"
                " not_before_ms = 0, uncertain_count = 0, crash_count = 0, claim_crash_count = 0,"
                " failing_since_ms ="
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

    async def drop(self, item_id: ItemId, reason: str, tell: Tell) -> None:
        """Ends a parked item as cancelled. ``tell`` gives the notices that go along.

        Raises NotFound, or Misuse if it is not parked.
        """

        def write() -> None:
            item = self._require_parked(item_id)
            self._set_state(item_id, ItemState.CANCELLED, reason)
            for notice in tell(item):
                self._put(notice)

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

        Parked items stay until a person decides, and what a room is told only once stays, too. The
        id of an event stays a day longer than its item and as long as there is one, so that nothing
        is taken for new that was answered.
        """

        def write() -> int:
            before_ms = self._now_ms() - keep_ms
            items = self._rows(
                "SELECT id FROM item WHERE id < ? AND state IN ('done', 'cancelled', 'expired')"
                f" AND substr(dedupe_key, 1, instr(dedupe_key, ':')) NOT IN {_SAID_ONCE}"
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
            self._prune_exchanges(before_ms)
            return len(items) + events.rowcount

        return await self._write(write, fence)

    # --- what moves -------------------------------------------------------------------------------

    async def last_change(self, before: int = 0) -> int:
        """The ``seq`` after which the newest ``before`` changes come."""
        sql = "SELECT rowid FROM item_history ORDER BY rowid DESC LIMIT 1 OFFSET ?"
        row = await self._run(partial(self._row, sql, (before,)))
        return row["rowid"] if row else 0

    async def list_changes(self, after: int, limit: int) -> list[Moved]:
        """The oldest ``limit`` changes of items with a ``seq`` above ``after``, in order."""
        rows = await self._run(
            partial(
                self._rows,
                "SELECT h.rowid AS seq, h.at_ms, h.state AS new_state, h.reason AS why,"
                " h.next_try_ms, i.* FROM item_history AS h JOIN item AS i ON i.id = h.item_id"
                " WHERE h.rowid > ? ORDER BY h.rowid LIMIT ?",
                (after, limit),
            )
        )
        return [
            Moved(
                row["seq"], item_of(row),
                Change(row["at_ms"], ItemState(row["new_state"]), row["why"], row["next_try_ms"]),
            )
            for row in rows
        ]  # fmt: skip

    # --- the story of one message -----------------------------------------------------------------

    async def find_delivery(self, name: str) -> Delivery | None:
        """The story of an event or of an item, whichever has that id; None if neither has. Of an
        event that we posted it is the story of the item that the post followed from."""
        return await self._run(partial(self._delivery, name))

    def _delivery(self, name: str) -> Delivery | None:
        event = self._heard_event(name)
        row = self._row(
            "SELECT * FROM item WHERE id = coalesce("
            "(SELECT item_id FROM event WHERE event_id = ?), ?)",
            (name, name),
        )
        if row is None:
            return Delivery(event, None) if event else self._delivery_of_own(name)
        item = item_of(row)
        if event is None and item.dedupe_key.startswith(_CAUSED_BY_EVENT):
            event = self._heard_event(item.payload["event_id"])
        posts = []
        if item.kind is ItemKind.TURN:
            for what in _FOLLOWERS:
                # ";" comes right after ":", which leads to the further pieces of a long text.
                posts += self._rows(
                    "SELECT * FROM item WHERE dedupe_key >= ? AND dedupe_key < ? ORDER BY id",
                    (f"{what}:{item.id}", f"{what}:{item.id};"),
                )
        also = []
        if event:
            # "A" comes right after "@", which leads to the agent of a room that several share.
            also = self._rows(
                "SELECT * FROM item WHERE dedupe_key >= ? AND dedupe_key < ? AND id != ?"
                " ORDER BY id",
                (f"{_CAUSED_BY_EVENT}{event.id}@", f"{_CAUSED_BY_EVENT}{event.id}A", item.id),
            )
        return Delivery(
            event, item, self._changes(item.id), self._place_in_lane(item),
            tuple((item_of(post), self._changes(post["id"])) for post in posts),
            tuple(item_of(row) for row in also),
        )  # fmt: skip

    def _delivery_of_own(self, event_id: str) -> Delivery | None:
        row = self._row(
            "SELECT * FROM item WHERE kind = 'post' AND json_extract(result, '$.event_id') = ?",
            (event_id,),
        )
        if row is None:
            return None
        post = item_of(row)
        what, _, cause = post.dedupe_key.partition(":")
        cause = re.split("[:.]", cause)[0]
        turn = self._row(
            "SELECT id FROM item WHERE kind = 'turn' AND (id = ? OR dedupe_key = ?)",
            (cause if what in _FOLLOWERS else "", f"chat:{cause}" if what == "mirror" else ""),
        )
        found = self._delivery(turn["id"] if turn else post.id)
        return found and replace(found, own=post)

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
