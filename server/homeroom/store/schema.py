"""The tables, and the steps that lead from one version of them to the next (append only)."""

from __future__ import annotations

from sqlite_utils import Database, Migrations

from homeroom.store.schema_claims import CLAIMS
from homeroom.store.schema_heads import HEADS

migrations = Migrations("homeroom")

_OPEN = "('waiting', 'claimed', 'delivering')"


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


@migrations()
def m005_adopted_rooms_and_history(db: Database) -> None:
    # Every room until now was made or found by its alias, with our marker in it.
    db.conn.execute("ALTER TABLE mapping ADD COLUMN marked INTEGER NOT NULL DEFAULT 1")
    for column in ("history_due", "history_written"):
        db.conn.execute(f"ALTER TABLE mapping ADD COLUMN {column} INTEGER NOT NULL DEFAULT 0")
    db.conn.execute(
        "CREATE TABLE import_run (id INTEGER PRIMARY KEY, entries TEXT NOT NULL,"
        " requested_ms INTEGER NOT NULL, finished_ms INTEGER, report TEXT)"
    )


@migrations()
def m006_state_of_rooms(db: Database) -> None:
    db.conn.execute(
        "CREATE TABLE room_state (room_id TEXT NOT NULL, type TEXT NOT NULL,"
        " state_key TEXT NOT NULL, content TEXT NOT NULL, sender TEXT NOT NULL,"
        " PRIMARY KEY (room_id, type, state_key)) WITHOUT ROWID"
    )


@migrations()
def m007_drift_of_homes(db: Database) -> None:
    for statement in (
        "ALTER TABLE mapping ADD COLUMN room_gone INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE mapping ADD COLUMN alias_room TEXT",
        "ALTER TABLE mapping ADD COLUMN put_back TEXT NOT NULL DEFAULT '[]'",
        "ALTER TABLE sync_run ADD COLUMN audit INTEGER NOT NULL DEFAULT 0",
    ):
        db.conn.execute(statement)


@migrations()
def m008_space_avatars_and_progress(db: Database) -> None:
    for statement in (
        "ALTER TABLE mapping ADD COLUMN avatar TEXT NOT NULL DEFAULT '{}'",
        "ALTER TABLE mapping ADD COLUMN refused_actions TEXT NOT NULL DEFAULT '[]'",
        "CREATE TABLE space (only_one INTEGER PRIMARY KEY CHECK (only_one = 1), room_id TEXT,"
        " name TEXT NOT NULL, invited TEXT NOT NULL, avatar TEXT NOT NULL,"
        " refused_actions TEXT NOT NULL, alias_room TEXT)",
        "ALTER TABLE sync_run ADD COLUMN progress TEXT",
    ):
        db.conn.execute(statement)


@migrations()
def m009_trouble_outlives_a_restart(db: Database) -> None:
    db.conn.execute(
        "CREATE TABLE trouble (agent_id TEXT NOT NULL, task TEXT NOT NULL,"
        " failures INTEGER NOT NULL, final INTEGER NOT NULL, next_try_ms INTEGER NOT NULL,"
        " problem TEXT NOT NULL, PRIMARY KEY (agent_id, task)) WITHOUT ROWID"
    )
    db.conn.execute("ALTER TABLE mapping ADD COLUMN retired_ms INTEGER NOT NULL DEFAULT 0")


@migrations()
def m010_items_have_priority_and_expiry_and_say_when_they_are_delivered(db: Database) -> None:
    for statement in (
        "ALTER TABLE item ADD COLUMN origin TEXT NOT NULL DEFAULT 'follow_up'",
        "ALTER TABLE item ADD COLUMN who TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE item ADD COLUMN priority INTEGER NOT NULL DEFAULT 2",
        "ALTER TABLE item ADD COLUMN rank INTEGER NOT NULL DEFAULT 3",
        "ALTER TABLE item ADD COLUMN expires_ms INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE item ADD COLUMN crash_count INTEGER NOT NULL DEFAULT 0",
        "UPDATE item SET origin = CASE WHEN dedupe_key LIKE 'event:%' THEN 'room_event'"
        " WHEN dedupe_key LIKE 'chat:%' THEN 'tool_call' ELSE 'follow_up' END",
        "UPDATE item SET who = coalesce(json_extract(payload, '$.sender'),"
        " json_extract(payload, '$.client'), '') WHERE kind = 'turn'",
        # A claim used to mean that the outside world may have been touched; that is delivering now.
        "UPDATE item SET state = 'delivering' WHERE state = 'claimed'",
        "UPDATE item SET rank = CASE WHEN state = 'delivering' THEN -1"
        " WHEN attempts > 0 OR begun THEN 0 ELSE 3 END",
        "DROP INDEX item_open",
        "DROP INDEX item_waiting",
        "DROP INDEX item_claimed",
        "CREATE INDEX item_open ON item (lane, rank, id)"
        " WHERE state IN ('waiting', 'claimed', 'delivering')",
        "CREATE INDEX item_waiting ON item (priority DESC, id) WHERE state = 'waiting'",
        "CREATE INDEX item_worked ON item (id) WHERE state IN ('claimed', 'delivering')",
        "CREATE INDEX item_expiring ON item (expires_ms)"
        " WHERE state = 'waiting' AND expires_ms > 0",
    ):
        db.conn.execute(statement)


@migrations()
def m011_room_claims(db: Database) -> None:
    for statement in CLAIMS.split(";;\n"):
        if statement.strip():
            db.conn.execute(statement)


@migrations()
def m012_what_tools_ask(db: Database) -> None:
    for statement in (
        "CREATE TABLE memory_version (seq INTEGER PRIMARY KEY, agent_id TEXT NOT NULL,"
        " label TEXT NOT NULL, revision TEXT NOT NULL, replaced TEXT NOT NULL,"
        " value TEXT NOT NULL, at_ms INTEGER NOT NULL, caller TEXT NOT NULL)",
        "CREATE INDEX memory_version_of ON memory_version (agent_id, label, seq)",
        # When somebody last spoke in a room: without these every list of rooms reads every row.
        "CREATE INDEX event_of_room ON event (room_id, received_ms)",
        "CREATE INDEX item_of_lane ON item (lane, created_ms)",
    ):
        db.conn.execute(statement)


@migrations()
def m013_exchanges_between_agents(db: Database) -> None:
    db.conn.execute(
        "CREATE TABLE exchange (low TEXT NOT NULL, high TEXT NOT NULL, low_name TEXT NOT NULL,"
        " high_name TEXT NOT NULL, hour_from_ms INTEGER NOT NULL, count INTEGER NOT NULL,"
        " why TEXT NOT NULL, reached INTEGER NOT NULL, paused_ms INTEGER NOT NULL,"
        " until_ms INTEGER NOT NULL, resumed_ms INTEGER NOT NULL, PRIMARY KEY (low, high))"
        " WITHOUT ROWID"
    )


@migrations()
def m014_how_a_process_died_with_an_item_and_since_when_it_may_be_delivered(db: Database) -> None:
    for statement in (
        "ALTER TABLE item ADD COLUMN claim_crash_count INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE item ADD COLUMN begun_ms INTEGER NOT NULL DEFAULT 0",
        "UPDATE item SET begun_ms = created_ms WHERE begun OR state = 'delivering'",
    ):
        db.conn.execute(statement)


@migrations()
def m015_own_posts_are_found_by_their_events(db: Database) -> None:
    db.conn.execute(
        "CREATE INDEX item_posted_as ON item (json_extract(result, '$.event_id'))"
        " WHERE kind = 'post'"
    )


@migrations()
def m016_lease_says_how_long_and_how_it_is(db: Database) -> None:
    for column in ("ttl_ms INTEGER NOT NULL DEFAULT 0", "taken_ms INTEGER NOT NULL DEFAULT 0",
                   "problem TEXT NOT NULL DEFAULT ''"):  # fmt: skip
        db.conn.execute(f"ALTER TABLE lease ADD COLUMN {column}")


@migrations()
def m017_from_where_to_read_what_the_hub_was_out_for(db: Database) -> None:
    db.conn.execute(
        "CREATE TABLE hub_absence (room_id TEXT PRIMARY KEY, since TEXT NOT NULL) WITHOUT ROWID"
    )


@migrations()
def m018_what_waits_is_found_by_its_kind(db: Database) -> None:
    for statement in (
        # With the slots of one kind full, a look for another read all that waits for them.
        "DROP INDEX item_waiting",
        "CREATE INDEX item_waiting ON item (kind, priority DESC, id) WHERE state = 'waiting'",
        "CREATE INDEX item_put_off ON item (kind, not_before_ms)"
        " WHERE state = 'waiting' AND not_before_ms > 0",
        # Each message that is accepted asks how many turns are open: nobody has to count them.
        "CREATE TABLE open_turns (only_one INTEGER PRIMARY KEY CHECK (only_one = 1),"
        " count INTEGER NOT NULL)",
        "INSERT INTO open_turns SELECT 1, count(*) FROM item"
        f" WHERE kind = 'turn' AND state IN {_OPEN}",
        "CREATE TRIGGER turn_opened AFTER INSERT ON item"
        f" WHEN new.kind = 'turn' AND new.state IN {_OPEN}"
        " BEGIN UPDATE open_turns SET count = count + 1; END",
        "CREATE TRIGGER turn_moved AFTER UPDATE OF state ON item WHEN new.kind = 'turn'"
        f" AND (new.state IN {_OPEN}) != (old.state IN {_OPEN}) BEGIN UPDATE open_turns SET"
        f" count = count + iif(new.state IN {_OPEN}, 1, -1); END",
        "CREATE TRIGGER turn_removed AFTER DELETE ON item"
        f" WHEN old.kind = 'turn' AND old.state IN {_OPEN}"
        " BEGIN UPDATE open_turns SET count = count - 1; END",
    ):
        db.conn.execute(statement)


@migrations()
def m019_one_at_a_time_changes_a_memory_block(db: Database) -> None:
    db.conn.execute(
        "CREATE TABLE memory_edit (agent_id TEXT NOT NULL, label TEXT NOT NULL,"
        " owner TEXT NOT NULL, until_ms INTEGER NOT NULL, PRIMARY KEY (agent_id, label))"
        " WITHOUT ROWID"
    )


@migrations()
def m020_what_agents_say_while_they_speak(db: Database) -> None:
    for statement in (
        "CREATE TABLE spoken (item_id TEXT PRIMARY KEY, count INTEGER NOT NULL,"
        " tail TEXT NOT NULL) WITHOUT ROWID",
        # However a delivery ends, and whoever ends it: also one that died with its process.
        "CREATE TRIGGER spoken_ended AFTER UPDATE OF state ON item WHEN new.kind = 'turn'"
        " AND old.state = 'delivering' AND new.state != 'delivering'"
        " BEGIN DELETE FROM spoken WHERE item_id = old.id; END",
    ):
        db.conn.execute(statement)


@migrations()
def m021_how_many_turns_of_an_agent_have_ended(db: Database) -> None:
    for statement in (
        "CREATE TABLE ended_turns (agent_id TEXT PRIMARY KEY, count INTEGER NOT NULL)"
        " WITHOUT ROWID",
        # Whatever came of it, for it may have changed the agent's memory all the same; and when it
        # is found after a crash, for it may have gone on until then.
        "CREATE TRIGGER turn_ended AFTER UPDATE OF state ON item WHEN new.kind = 'turn'"
        " AND new.state != old.state AND (old.state = 'delivering' OR new.state = 'done')"
        " BEGIN INSERT INTO ended_turns"
        " VALUES (coalesce(json_extract(new.payload, '$.agent_id'), ''), 1)"
        " ON CONFLICT (agent_id) DO UPDATE SET count = count + 1; END",
    ):
        db.conn.execute(statement)


@migrations()
def m022_what_is_under_way_can_be_stopped(db: Database) -> None:
    for statement in (
        "ALTER TABLE item ADD COLUMN stop_ms INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE item ADD COLUMN stop_who TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE item ADD COLUMN stop_reason TEXT NOT NULL DEFAULT ''",
        "CREATE INDEX item_stopping ON item (stop_ms)"
        " WHERE stop_ms > 0 AND state IN ('claimed', 'delivering')",
    ):
        db.conn.execute(statement)


@migrations()
def m023_a_look_for_work_reads_the_heads_of_lanes_alone(db: Database) -> None:
    for statement in HEADS:
        db.conn.execute(statement)


@migrations()
def m024_what_nobody_could_read_is_told(db: Database) -> None:
    for statement in (
        "ALTER TABLE hub_absence ADD COLUMN out_ms INTEGER NOT NULL DEFAULT 0",
        "CREATE TABLE unread (room_id TEXT NOT NULL, from_ms INTEGER NOT NULL,"
        " to_ms INTEGER NOT NULL, PRIMARY KEY (room_id, from_ms)) WITHOUT ROWID",
    ):
        db.conn.execute(statement)


@migrations()
def m025_since_when_agents_are_known_and_who_left_the_space(db: Database) -> None:
    db.conn.execute("ALTER TABLE mapping ADD COLUMN made_ms INTEGER NOT NULL DEFAULT 0")
    db.conn.execute("ALTER TABLE space ADD COLUMN absent TEXT NOT NULL DEFAULT '[]'")


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
