"""Which item heads each lane: a table that triggers keep, so that a look for work need not ask."""

from __future__ import annotations

_OPEN = "('waiting', 'claimed', 'delivering')"
_RENEW = """DELETE FROM lane_head WHERE lane = {lane};
    INSERT INTO lane_head SELECT lane, id, kind, priority FROM (
        SELECT lane, id, kind, priority, state FROM item WHERE lane = {lane} AND state IN {open}
        ORDER BY rank, id LIMIT 1) WHERE state = 'waiting'"""


def _renew(lane: str) -> str:
    return _RENEW.format(lane=lane, open=_OPEN)


HEADS = (
    # A lane that is worked on, or has nothing to do, has no row.
    "CREATE TABLE lane_head (lane TEXT PRIMARY KEY, item_id TEXT NOT NULL, kind TEXT NOT NULL,"
    " priority INTEGER NOT NULL) WITHOUT ROWID",
    "INSERT INTO lane_head SELECT lane, id, kind, priority FROM item AS i WHERE state = 'waiting'"
    f" AND id = (SELECT j.id FROM item AS j WHERE j.lane = i.lane AND j.state IN {_OPEN}"
    " ORDER BY j.rank, j.id LIMIT 1)",
    "CREATE INDEX lane_head_next ON lane_head (kind, priority DESC, item_id)",
    # Most items are put behind others, and leave the head alone.
    "CREATE TRIGGER lane_joined AFTER INSERT ON item WHEN new.id = (SELECT id FROM item"
    f" WHERE lane = new.lane AND state IN {_OPEN} ORDER BY rank, id LIMIT 1)"
    f" BEGIN {_renew('new.lane')}; END",
    "CREATE TRIGGER lane_moved AFTER UPDATE OF state, rank ON item"
    " WHEN old.state != new.state OR old.rank != new.rank"
    f" BEGIN {_renew('new.lane')}; END",
    "CREATE TRIGGER lane_changed AFTER UPDATE OF lane ON item WHEN old.lane != new.lane"
    f" BEGIN {_renew('old.lane')}; {_renew('new.lane')}; END",
    f"CREATE TRIGGER lane_left AFTER DELETE ON item WHEN old.state IN {_OPEN}"
    f" BEGIN {_renew('old.lane')}; END",
    # Whoever looks for work looks at the heads.
    "DROP INDEX item_waiting",
)
"""The statements of the step that brings the table."""
