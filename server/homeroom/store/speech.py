"""How far the answers have got that are being made, for the processes that do not make them.

A row is there only while its turn is being delivered: a trigger takes it away with that state.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from homeroom.items import Spoken
from homeroom.model import ItemId
from homeroom.store.items import Items


class Speech(Items):
    """Statements about what agents say while they speak."""

    async def save_spoken(self, said: Mapping[ItemId, Spoken], fence: int) -> None:
        """Tells every process how far these answers have got; one that has ended is left out.
        Raises LeaseLost."""

        def write() -> None:
            self._conn.executemany(
                "INSERT OR REPLACE INTO spoken (item_id, count, tail)"
                " SELECT id, ?, ? FROM item WHERE id = ? AND state = 'delivering'",
                [(one.count, one.tail, item_id) for item_id, one in said.items()],
            )

        await self._write(write, fence)

    async def find_spoken(self, item_id: ItemId) -> Spoken | None:
        """What was last told of the answer to that item; None if nothing was, or it has ended."""
        sql = "SELECT count, tail FROM spoken WHERE item_id = ?"
        row = await self._run(partial(self._row, sql, (item_id,)))
        return Spoken(row["count"], row["tail"]) if row else None
