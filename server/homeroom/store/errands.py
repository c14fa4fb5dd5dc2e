"""What any process may ask of the one that runs the bridge, besides a sync; and its answers."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Literal

from homeroom.store.exchanges import Exchanges

ErrandKind = Literal["invite", "fix_rooms", "catch_up"]
"""``invite``: a person (the argument) asks to be invited again. ``fix_rooms``: mend the rooms.
``catch_up``: answer what came too late, in a room (the argument) or, without one, in all."""

_KEPT = 50
"""Finished errands that are remembered for whoever asked."""


class Errands(Exchanges):
    """Statements about errands."""

    async def request_errand(self, kind: ErrandKind, argument: str = "") -> int:
        """Asks the process that runs the bridge. Returns the errand's id."""
        return await self._write(partial(self._put_errand, kind, argument))

    def _put_errand(self, kind: ErrandKind, argument: str) -> int:
        cursor = self._conn.execute(
            "INSERT INTO errand (kind, argument, requested_ms) VALUES (?, ?, ?)",
            (kind, argument, self._now_ms()),
        )
        return int(cursor.lastrowid or 0)

    async def pending_errands(self, kind: ErrandKind) -> dict[int, str]:
        """Ids of those that wait, oldest first, each with its argument."""
        sql = "SELECT id, argument FROM errand WHERE kind = ? AND finished_ms IS NULL ORDER BY id"
        rows = await self._run(partial(self._rows, sql, (kind,)))
        return {row["id"]: row["argument"] for row in rows}

    async def finish_errands(self, ids: Iterable[int], answer: str, fence: int) -> None:
        await self._write(partial(self._finish_errands, tuple(ids), answer), fence)

    def _finish_errands(self, ids: Iterable[int], answer: str = "") -> None:
        now = self._now_ms()
        self._conn.executemany(
            "UPDATE errand SET finished_ms = ?, answer = ? WHERE id = ?",
            [(now, answer, errand) for errand in ids],
        )
        self._conn.execute(
            "DELETE FROM errand WHERE finished_ms IS NOT NULL"
            " AND id <= (SELECT max(id) FROM errand) - ?",
            (_KEPT,),
        )

    async def find_errand_answer(self, errand: int) -> str | None:
        """The answer; None while there is none."""
        sql = "SELECT answer FROM errand WHERE id = ? AND finished_ms IS NOT NULL"
        row = await self._run(partial(self._row, sql, (errand,)))
        return (row["answer"] or None) if row else None
