"""What a person ends before it is done: at once if it has not begun, else by whoever works on it.

Any process may ask for it, and that is on disk before anybody acts on it. Invariant: from then on
no verdict about the item but ``cancelled`` is written, however its work ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from homeroom.errors import Misuse, NotFound
from homeroom.items import STOP_ASKED, Item, ItemKind, ItemState, StopWish, Tell
from homeroom.model import ItemId
from homeroom.store.item_rows import OPEN, STOPPING, item_of
from homeroom.store.items import Items

_NO_STOP = "is being delivered, and what is on its way to a room cannot be stopped"
_HAS_ENDED = {
    ItemState.DONE: "is done",
    ItemState.PARKED: "is parked: `homeroom parked drop` ends it",
    ItemState.EXPIRED: "has expired",
    ItemState.CANCELLED: "is cancelled already",
}


class Stops(Items):
    """Statements about what is to end."""

    async def cancel(self, item_id: ItemId, reason: str, tell: Tell, who: str = "") -> Item:
        """Ends an item, and returns it as it is then: cancelled, if certainly nothing of it was
        delivered; else (a turn) open, with its ``stop``, for whoever works on it to end.

        ``tell`` gives what is told of one that ends at once.
        Raises NotFound, and Misuse if it has ended or is a post that is being made.
        """

        def write() -> Item:
            row = self._row("SELECT * FROM item WHERE id = ?", (item_id,))
            if row is None:
                raise NotFound("item", item_id[:80], advice="`homeroom tail` shows ids.")
            item = item_of(row)
            if problem := _HAS_ENDED.get(item.state):
                raise Misuse(f"Item {item_id} {problem}. Nothing was changed.")
            if item.kind is not ItemKind.TURN and item.state is not ItemState.WAITING:
                raise Misuse(f"Item {item_id} {_NO_STOP}. Nothing was changed.")
            self._stop(item, StopWish(who, reason, True, tell))
            after = self._row("SELECT * FROM item WHERE id = ?", (item_id,))
            assert after is not None
            return item_of(after)

        return await self._write(write)

    async def list_stopping(self) -> list[Item]:
        """What somebody works on and a person wants to end."""
        return [item_of(row) for row in await self._run(partial(self._rows, STOPPING))]

    def _stop_turns(self, lanes: Iterable[str], wish: StopWish) -> int:
        """Ends the turns on these lanes that are under way, and those that wait if that is wished.
        Returns how many.

        One that was put off is under way as well: an agent's server may be busy with it.
        """
        found = [
            item_of(row)
            for lane in lanes
            for row in self._rows(
                f"SELECT * FROM item WHERE lane = ? AND state IN {OPEN} AND kind = 'turn'"
                " AND (? OR attempts > 0) ORDER BY rank, id",
                (lane, wish.waiting_too),
            )
        ]
        for item in found:
            self._stop(item, wish)
        return len(found)

    def _stop(self, item: Item, wish: StopWish) -> None:
        if item.stop:  # the first word counts
            return
        self._conn.execute(
            "UPDATE item SET stop_ms = ?, stop_who = ?, stop_reason = ? WHERE id = ?",
            (self._now_ms(), wish.who, wish.reason, item.id),
        )
        waits = item.state is ItemState.WAITING
        if waits and not (item.begun and item.kind is ItemKind.TURN):
            self._set_state(item.id, ItemState.CANCELLED, wish.reason)
            row = self._row("SELECT * FROM item WHERE id = ?", (item.id,))
            assert row is not None
            for notice in wish.tell(item_of(row)):
                self._put(notice)
            return
        # What keeps it from being taken up again keeps it from being stopped as well.
        self._conn.execute("UPDATE item SET not_before_ms = 0 WHERE id = ?", (item.id,))
        self._log(item.id, item.state, f"{STOP_ASKED}{wish.reason}")
