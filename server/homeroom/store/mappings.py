"""A mapping as a row of its table, and a row as a mapping: the columns stand here alone."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from homeroom.model import AgentId, GhostId, Mapping
from homeroom.store.space import dump_avatar, read_avatar, read_pairs

COLUMNS = (
    "agent_id, agent_name, ghost, room_id, ghost_ready, display_name, room_name, topic, hub_joined,"
    " invited, refused, heard_from_ms, problem, missing_since_ms, missing_seen, retired,"
    " avatar, refused_actions, room_gone, alias_room, put_back, retired_ms, marked, history_due,"
    " history_written, made_ms"
)
PLACES = ", ".join("?" for _ in COLUMNS.split(","))


def read_mapping(row: sqlite3.Row) -> Mapping:
    return Mapping(
        agent_id=AgentId(row["agent_id"]), agent_name=row["agent_name"],
        ghost=GhostId(row["ghost"]),
        room_id=row["room_id"], ghost_ready=bool(row["ghost_ready"]),
        display_name=row["display_name"], room_name=row["room_name"], topic=row["topic"],
        hub_joined=bool(row["hub_joined"]), invited=frozenset(json.loads(row["invited"])),
        refused=tuple((person, why) for person, why in json.loads(row["refused"])),
        heard_from_ms=row["heard_from_ms"], problem=row["problem"],
        missing_since_ms=row["missing_since_ms"], missing_seen=row["missing_seen"],
        avatar=read_avatar(row["avatar"]),
        refused_actions=read_pairs(row["refused_actions"]),
        retired=bool(row["retired"]), retired_ms=row["retired_ms"],
        marked=bool(row["marked"]), history_due=bool(row["history_due"]),
        history_written=bool(row["history_written"]),
        room_gone=bool(row["room_gone"]), made_ms=row["made_ms"],
        alias_room=row["alias_room"],
        put_back=tuple((what, at_ms) for what, at_ms in json.loads(row["put_back"])),
    )  # fmt: skip


def dump_mapping(mapping: Mapping) -> tuple[Any, ...]:
    return (
        mapping.agent_id, mapping.agent_name, mapping.ghost, mapping.room_id,
        int(mapping.ghost_ready), mapping.display_name, mapping.room_name, mapping.topic,
        int(mapping.hub_joined), json.dumps(sorted(mapping.invited)), json.dumps(mapping.refused),
        mapping.heard_from_ms, mapping.problem, mapping.missing_since_ms, mapping.missing_seen,
        int(mapping.retired), dump_avatar(mapping.avatar), json.dumps(mapping.refused_actions),
        int(mapping.room_gone), mapping.alias_room,
        json.dumps(mapping.put_back), mapping.retired_ms, int(mapping.marked),
        int(mapping.history_due), int(mapping.history_written), mapping.made_ms,
    )  # fmt: skip
