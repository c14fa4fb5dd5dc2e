"""The tables, and the steps that lead from one version of them to the next (append only)."""

from __future__ import annotations

from sqlite_utils import Database, Migrations

migrations = Migrations("homeroom")


@migrations()
def m001_first(db: Database) -> None:
    for statement in _SCHEMA.split(";\n"):
        if statement.strip():
            db.conn.execute(statement)


@migrations()
def m002_patience_is_counted_from_the_first_failure(db: Database) -> None:
    for statement in (
        "ALTER TABLE item ADD COLUMN failing_since_ms INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE item ADD COLUMN uncertain_count INTEGER NOT NULL DEFAULT 0",
        # Without it every look for work reads every item there ever was.
        "CREATE INDEX item_waiting ON item (id) WHERE state = 'waiting'",
        "CREATE INDEX item_claimed ON item (id) WHERE state = 'claimed'",
    ):
        db.conn.execute(statement)


@migrations()
def m002_next_try(db: Database) -> None:
    db.conn.execute("ALTER TABLE item_history ADD COLUMN next_try_ms INTEGER NOT NULL DEFAULT 0")


@migrations()
def m003_replay(db: Database) -> None:
    db.conn.execute("ALTER TABLE item ADD COLUMN replay_count INTEGER NOT NULL DEFAULT 0")
    db.conn.execute("CREATE INDEX item_parked ON item (id) WHERE state = 'parked'")


@migrations()
def m004_held(db: Database) -> None:
    db.conn.execute("ALTER TABLE event ADD COLUMN late_ms INTEGER NOT NULL DEFAULT 0")
    # 0: no, 1: held and not announced in its room yet, 2: held and announced.
    db.conn.execute("ALTER TABLE event ADD COLUMN held INTEGER NOT NULL DEFAULT 0")
    db.conn.execute("CREATE INDEX event_held ON event (room_id, seq) WHERE held > 0")


@migrations()
def m002_retired_agents(db: Database) -> None:
    for column in ("missing_since_ms", "missing_seen", "retired"):
        db.conn.execute(f"ALTER TABLE mapping ADD COLUMN {column} INTEGER NOT NULL DEFAULT 0")
    db.conn.execute("ALTER TABLE sync_run ADD COLUMN confirm_removals INTEGER NOT NULL DEFAULT 0")


_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE lease (
    name TEXT PRIMARY KEY, owner TEXT NOT NULL, fence INTEGER NOT NULL,
    rank INTEGER NOT NULL, until_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE mapping (
    agent_id TEXT PRIMARY KEY, agent_name TEXT NOT NULL, ghost TEXT NOT NULL UNIQUE,
    room_id TEXT UNIQUE, ghost_ready INTEGER NOT NULL, display_name TEXT NOT NULL,
    room_name TEXT NOT NULL, topic TEXT NOT NULL, hub_joined INTEGER NOT NULL,
    invited TEXT NOT NULL, refused TEXT NOT NULL, heard_from_ms INTEGER NOT NULL,
    problem TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE event (
    seq INTEGER PRIMARY KEY, event_id TEXT NOT NULL UNIQUE, room_id TEXT NOT NULL,
    sender TEXT NOT NULL, type TEXT NOT NULL, content TEXT NOT NULL,
    origin_ms INTEGER NOT NULL, received_ms INTEGER NOT NULL,
    outcome TEXT NOT NULL, item_id TEXT
);
CREATE INDEX event_unrouted ON event (room_id, seq) WHERE outcome = '';
CREATE TABLE member (
    room_id TEXT NOT NULL, user_id TEXT NOT NULL, membership TEXT NOT NULL,
    display_name TEXT NOT NULL, is_ghost INTEGER NOT NULL, PRIMARY KEY (room_id, user_id)
) WITHOUT ROWID;
CREATE TABLE conversation (
    agent_id TEXT NOT NULL, scope TEXT NOT NULL, conversation_id TEXT NOT NULL,
    PRIMARY KEY (agent_id, scope)
) WITHOUT ROWID;
CREATE TABLE item (
    id TEXT PRIMARY KEY, lane TEXT NOT NULL, kind TEXT NOT NULL, payload TEXT NOT NULL,
    dedupe_key TEXT NOT NULL UNIQUE, state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
    begun INTEGER NOT NULL DEFAULT 0, generation INTEGER NOT NULL DEFAULT 0,
    created_ms INTEGER NOT NULL, not_before_ms INTEGER NOT NULL DEFAULT 0,
    fence INTEGER NOT NULL DEFAULT 0, result TEXT, reason TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
CREATE INDEX item_open ON item (lane, id) WHERE state IN ('waiting', 'claimed');
CREATE TABLE item_history (
    item_id TEXT NOT NULL, at_ms INTEGER NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL
);
CREATE INDEX item_history_of ON item_history (item_id);
CREATE TABLE sync_run (
    id INTEGER PRIMARY KEY, requested_ms INTEGER NOT NULL, finished_ms INTEGER, report TEXT
);
"""
