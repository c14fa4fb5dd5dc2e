"""A store as an older release left it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from sqlite_utils import Database

from homeroom.store.schema import migrations

RELEASED = "m005_adopted_rooms_and_history"
"""The first step that no store of the first release has taken."""
NO_DELIVERING = "m010_items_have_priority_and_expiry_and_say_when_they_are_delivered"
"""The step before which a claim was no more than that."""


def age_store(path: Path, before: str = NO_DELIVERING) -> None:
    """Takes the file back to before that step: the same rows, in the tables of then."""
    old = path.with_suffix(".old")
    with closing(sqlite3.connect(old, isolation_level=None)) as connection:
        db = Database(connection, execute_plugins=False)
        migrations.apply(db, stop_before=before)
        connection.execute("ATTACH ? AS newer", (str(path),))
        for table in db.table_names():
            if table.startswith("_sqlite"):
                continue
            known = {row[1] for row in connection.execute(f"PRAGMA newer.table_info({table})")}
            shared = ", ".join(column.name for column in db[table].columns if column.name in known)
            connection.execute(f"DELETE FROM {table}")
            connection.execute(f"INSERT INTO {table} ({shared}) SELECT {shared} FROM newer.{table}")
        if before <= NO_DELIVERING:
            connection.execute("UPDATE item SET begun = 1 WHERE state IN ('claimed', 'delivering')")
            connection.execute("UPDATE item SET state = 'claimed' WHERE state = 'delivering'")
    for part in ("", "-wal", "-shm"):
        Path(f"{path}{part}").unlink(missing_ok=True)
    old.rename(path)
