"""The rows of items: by which statements they are found, and how they are read.

The statements of the hot path stand here, so that a test can ask SQLite how it carries them out.
"""

from __future__ import annotations

import json
import sqlite3

from homeroom.items import Item, ItemKind, ItemState, Origin, Priority, Stop
from homeroom.model import ItemId

OPEN = "('waiting', 'claimed', 'delivering')"
WORKED = "('claimed', 'delivering')"
"""Written out as in the indexes, so that SQLite uses them."""

CLAIMABLE = """
SELECT i.* FROM lane_head AS h CROSS JOIN item AS i ON i.id = h.item_id
WHERE h.kind = ? {held}AND i.not_before_ms <= ?
AND (i.expires_ms = 0 OR i.expires_ms > ? OR i.begun)
ORDER BY h.priority DESC, h.item_id LIMIT 1"""
"""Filled in with an ``AND`` for each beginning of lanes that wait, or with nothing. Triggers keep
the heads: a lane in hand has none, and what waits behind one is not read. ``CROSS``: the heads
come first (https://sqlite.org/optoverview.html#manual_control_of_query_plans_using_cross_join)."""
NOT_ON = "AND substr(h.lane, 1, length(?)) != ? "
PUT_OFF = (
    "SELECT min(not_before_ms) AS at FROM item WHERE state = 'waiting' AND kind = ?"
    " AND not_before_ms > 0 AND not_before_ms > ?"
)
EXPIRING = (
    "SELECT min(expires_ms) AS at FROM item WHERE state = 'waiting' AND expires_ms > 0"
    " AND NOT begun"
)
EXPIRED = (
    "SELECT * FROM item WHERE state = 'waiting' AND expires_ms > 0 AND expires_ms <= ?"
    # What may have been delivered is looked for, however late.
    " AND NOT begun"
)
STOPPING = f"SELECT * FROM item WHERE stop_ms > 0 AND state IN {WORKED}"
OPEN_TURNS = "SELECT count AS n FROM open_turns WHERE only_one = 1"
"""Triggers keep count."""
OPEN_TURNS_OF_LANE = (
    f"SELECT count(*) AS n FROM item WHERE lane = ? AND state IN {OPEN} AND kind = 'turn'"
)


def item_of(row: sqlite3.Row) -> Item:
    """A row of ``item`` as a record."""
    return Item(
        id=ItemId(row["id"]), lane=row["lane"], kind=ItemKind(row["kind"]),
        payload=json.loads(row["payload"]), dedupe_key=row["dedupe_key"],
        state=ItemState(row["state"]), attempts=row["attempts"], created_ms=row["created_ms"],
        begun=bool(row["begun"]), generation=row["generation"],
        not_before_ms=row["not_before_ms"], failing_since_ms=row["failing_since_ms"],
        uncertain_count=row["uncertain_count"],
        result=json.loads(row["result"]) if row["result"] else None, reason=row["reason"],
        replay_count=row["replay_count"], origin=Origin(row["origin"]), who=row["who"],
        priority=Priority(row["priority"]), expires_ms=row["expires_ms"],
        crash_count=row["crash_count"], claim_crash_count=row["claim_crash_count"],
        begun_ms=row["begun_ms"],
        stop=Stop(row["stop_who"], row["stop_reason"], row["stop_ms"]) if row["stop_ms"] else None,
    )  # fmt: skip
