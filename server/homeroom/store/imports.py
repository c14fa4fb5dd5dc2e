"""Requests for an import, from processes that do not run the bridge, and their reports."""

from __future__ import annotations

from functools import partial

from homeroom.store.history import History

_KEPT = 20


class Imports(History):
    """Statements about imports. What is imported, and what came of it, is the caller's text."""

    async def request_import(self, entries: str) -> int:
        """Asks the process that runs the bridge for an import. Returns the request's id."""

        def ask() -> int:
            cursor = self._conn.execute(
                "INSERT INTO import_run (entries, requested_ms) VALUES (?, ?)",
                (entries, self._now_ms()),
            )
            return int(cursor.lastrowid or 0)

        return await self._write(ask)

    async def pending_imports(self) -> dict[int, str]:
        """The imports that wait, by their ids, in the order in which they were asked for."""
        sql = "SELECT id, entries FROM import_run WHERE finished_ms IS NULL ORDER BY id"
        return {row["id"]: row["entries"] for row in await self._run(partial(self._rows, sql))}

    async def finish_import(self, request: int, report: str, fence: int) -> None:
        """Raises LeaseLost."""

        def write() -> None:
            self._conn.execute(
                "UPDATE import_run SET finished_ms = ?, report = ?, entries = '' WHERE id = ?",
                (self._now_ms(), report, request),
            )
            self._conn.execute(
                "DELETE FROM import_run WHERE finished_ms IS NOT NULL"
                " AND id <= (SELECT max(id) FROM import_run) - ?",
                (_KEPT,),
            )

        await self._write(write, fence)

    async def find_import_report(self, request: int) -> str | None:
        """What came of an import; None while it waits."""
        sql = "SELECT report FROM import_run WHERE id = ?"
        row = await self._run(partial(self._row, sql, (request,)))
        return row["report"] if row else None
