"""The tables of who serves which room, and the rule that a home belongs to one agent."""

from __future__ import annotations

CLAIMS = """
CREATE TABLE room_claim (
    room_id TEXT NOT NULL, agent_id TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('home', 'further')),
    stage TEXT NOT NULL CHECK (stage IN ('joining', 'open', 'leaving', 'left')),
    since_ms INTEGER NOT NULL, invited_by TEXT NOT NULL DEFAULT '',
    is_direct INTEGER NOT NULL DEFAULT 0, heard_from_ms INTEGER NOT NULL DEFAULT 0,
    problem TEXT NOT NULL DEFAULT '', opened_ms INTEGER NOT NULL DEFAULT 0,
    ended_ms INTEGER NOT NULL DEFAULT 0, end_reason TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (room_id, agent_id)
) WITHOUT ROWID;;
CREATE UNIQUE INDEX room_claim_one_home ON room_claim (agent_id)
    WHERE kind = 'home' AND stage IN ('joining', 'open');;
CREATE INDEX member_ghost ON member (user_id) WHERE is_ghost;;
CREATE INDEX room_claim_to_do ON room_claim (stage) WHERE stage IN ('joining', 'leaving');;
CREATE TRIGGER room_claim_new BEFORE INSERT ON room_claim
    WHEN NEW.stage IN ('joining', 'open') AND EXISTS (
        SELECT 1 FROM room_claim AS c WHERE c.room_id = NEW.room_id
        AND c.agent_id != NEW.agent_id AND c.stage IN ('joining', 'open')
        AND (c.kind = 'home' OR NEW.kind = 'home'))
    BEGIN SELECT RAISE(ABORT, 'a home belongs to one agent'); END;;
CREATE TRIGGER room_claim_changed BEFORE UPDATE ON room_claim
    WHEN NEW.stage IN ('joining', 'open') AND EXISTS (
        SELECT 1 FROM room_claim AS c WHERE c.room_id = NEW.room_id
        AND c.agent_id != NEW.agent_id AND c.stage IN ('joining', 'open')
        AND (c.kind = 'home' OR NEW.kind = 'home'))
    BEGIN SELECT RAISE(ABORT, 'a home belongs to one agent'); END;;
INSERT INTO room_claim (room_id, agent_id, kind, stage, since_ms)
    SELECT room_id, agent_id, 'home', 'open',
    coalesce((SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'born_ms'), 0)
    FROM mapping WHERE room_id IS NOT NULL;;
CREATE TABLE refusal (
    kind TEXT NOT NULL, room_id TEXT NOT NULL, ghost TEXT NOT NULL, who TEXT NOT NULL,
    reason TEXT NOT NULL, seen_count INTEGER NOT NULL, last_ms INTEGER NOT NULL,
    PRIMARY KEY (kind, room_id, ghost)
) WITHOUT ROWID;;
CREATE TABLE errand (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, argument TEXT NOT NULL,
    requested_ms INTEGER NOT NULL, finished_ms INTEGER, answer TEXT
);;
CREATE INDEX errand_open ON errand (kind, id) WHERE finished_ms IS NULL
"""
"""Statements, each ended by two semicolons because triggers have single ones inside."""
