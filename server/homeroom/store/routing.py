"""From an event to what becomes of it: every agent that serves its room decides, in one commit."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace

from homeroom.items import Accepted, Decision, ItemKind, NewItem, lane_of_turns
from homeroom.model import EventId, GhostId, Mapping, RoomEvent, RoomId, Unread
from homeroom.residence import Claim, Guest
from homeroom.store.claims import Claims
from homeroom.store.mappings import read_mapping
from homeroom.store.stops import Stops

Decide = Callable[[RoomEvent, Mapping, int], Decision]
"""(event, the mapping of its room, how many people are in the room) -> what becomes of it. Pure."""

Announce = Callable[[Mapping, EventId, int, int], Sequence[NewItem]]
"""(mapping, oldest held event, how many, since when) -> what its room is told. Pure."""

TellUnread = Callable[[Mapping, Unread], Sequence[NewItem]]
"""(mapping, a time in which its room could not be read) -> what the room is told. Pure."""


_TOO_MANY = "too many at once"
"""Begins the outcome of what came too late and found its lane full."""


class Routing(Claims, Stops):
    """Statements about what becomes of events."""

    def _residents(self, room_id: str) -> list[Mapping]:
        """The agents that serve a room: the one whose home it is, or its guests, oldest first."""
        if row := self._row("SELECT * FROM mapping WHERE room_id = ?", (room_id,)):
            return [read_mapping(row)]
        found: list[tuple[Claim, Mapping]] = []
        for claim in self._valid_claims(room_id):
            row = self._row("SELECT * FROM mapping WHERE agent_id = ?", (claim.agent_id,))
            if row and claim.stage == "open":
                found.append((claim, read_mapping(row)))
        names = [(m.ghost, m.display_name or m.agent_name) for _, m in found]
        return [
            Guest.of(m, claim, tuple(name for name in names if name[0] != m.ghost), number == 0)
            for number, (claim, m) in enumerate(found)
        ]

    async def settle_claim_open(
        self, claim: Claim, heard_from_ms: int, decide: Decide, fence: int
    ) -> None:
        """Records that an agent and the hub are in a further room; what was said there since it
        was invited is routed in the same commit."""

        def write() -> None:
            now = self._now_ms()
            self._conn.execute(
                "UPDATE room_claim SET stage = 'open', problem = '', heard_from_ms = ?,"
                " opened_ms = iif(opened_ms, opened_ms, ?)"
                " WHERE room_id = ? AND agent_id = ? AND stage = 'joining'",
                (heard_from_ms, now, claim.room_id, claim.agent_id),
            )
            self._route_room(claim.room_id, decide)
            self.people_version += 1

        await self._write(write, fence)

    def _people_in(self, room_id: str, *memberships: str) -> int:
        marks = ", ".join("?" for _ in memberships)
        row = self._row(
            f"SELECT count(*) AS n FROM member WHERE room_id = ? AND membership IN ({marks})"
            " AND NOT is_ghost",
            (room_id, *memberships),
        )
        return int(row["n"]) if row else 0

    def _route_room(self, room_id: str, decide: Decide) -> list[Accepted]:
        """Decides what has not been decided yet. Returns the newest message each ghost accepted."""
        newest: dict[GhostId, EventId] = {}
        residents = self._residents(room_id)
        if not residents:
            return []
        judge = self._judge_of(room_id, residents, decide)
        rows = self._rows(
            "SELECT * FROM event WHERE room_id = ? AND outcome = '' ORDER BY seq", (room_id,)
        )
        for row in rows:
            decisions = judge(_event(row))
            for number, decision in enumerate(decisions):
                if decision.releases_held:
                    decisions[number] = self._answer_held(room_id, decision, judge)
                if decision.resumes and self._resume_of(
                    residents[number].agent_id, decision.resumes
                ):
                    decisions[number] = replace(decision, items=())
                if decision.stops and self._stop_turns(
                    [lane_of_turns(one.agent_id, room_id) for one in residents], decision.stops
                ):
                    decisions[number] = replace(decision, items=())
            decisions = self._settle(row["seq"], decisions, is_late=row["late_ms"] > 0)
            for resident, decision in zip(residents, decisions, strict=True):
                turns = any(item.kind is ItemKind.TURN for item in decision.items)
                if turns or decision.releases_held:
                    newest[resident.ghost] = EventId(row["event_id"])
        return [Accepted(ghost, RoomId(room_id), event) for ghost, event in newest.items()]

    def _judge_of(
        self, room_id: str, residents: Sequence[Mapping], decide: Decide
    ) -> Callable[[RoomEvent], list[Decision]]:
        people = self._people_in(room_id, "join")
        return lambda event: [decide(event, resident, people) for resident in residents]

    async def count_held(self, room_id: str = "", agent_id: str = "") -> dict[RoomId, int]:
        """How many messages are held in which room; in that one alone, if one is named, or in
        those that an agent serves."""

        def read() -> dict[RoomId, int]:
            held = self._held_counts(room_id)
            if not agent_id:
                return held
            served = self._rows(
                "SELECT room_id FROM mapping WHERE agent_id = ? UNION SELECT room_id FROM"
                " room_claim WHERE agent_id = ? AND stage IN ('joining', 'open')",
                (agent_id, agent_id),
            )
            rooms = {row["room_id"] for row in served}
            return {room: count for room, count in held.items() if room in rooms}

        return await self._run(read)

    def _held_counts(self, room_id: str) -> dict[RoomId, int]:
        rows = self._rows(
            "SELECT room_id, count(*) AS n FROM event WHERE held > 0 AND ? IN ('', room_id)"
            " GROUP BY room_id ORDER BY min(seq)",
            (room_id,),
        )
        return {RoomId(row["room_id"]): row["n"] for row in rows}

    async def answer_held(self, errand: int, room_id: str, decide: Decide, fence: int) -> None:
        """Has what is held in the room (or, without one, in all) answered, as far as the lanes have
        room for it, and says as the errand's answer how much of it and how much is left.

        What is held for an agent that is retired stays held until it is back.
        """

        def write() -> None:
            answered = 0
            for room in self._held_counts(room_id):
                residents = self._residents(room)
                if all(resident.retired for resident in residents):
                    continue
                held = self._rows(
                    "SELECT * FROM event WHERE room_id = ? AND held > 0 ORDER BY seq", (room,)
                )
                answered += self._release(held, self._judge_of(room, residents, decide))
            told = {"answered": answered, "left": sum(self._held_counts(room_id).values())}
            self._finish_errands([errand], json.dumps(told))

        await self._write(write, fence)

    def _answer_held(
        self, room_id: str, asked: Decision, judge: Callable[[RoomEvent], list[Decision]]
    ) -> Decision:
        held = self._rows(
            "SELECT * FROM event WHERE room_id = ? AND held > 0 ORDER BY seq", (room_id,)
        )
        if not held:
            return asked
        return replace(asked, items=() if self._release(held, judge) else asked.if_full)

    def _release(
        self, held: list[sqlite3.Row], judge: Callable[[RoomEvent], list[Decision]]
    ) -> int:
        """Decides held events as if they were not late, while their lane has room for them.

        What is left stays held and is announced again. Returns how many were decided.
        """
        for number, row in enumerate(held):
            decisions = judge(replace(_event(row), late_ms=0))
            if any(self._limit_reached(item) for d in decisions for item in d.items):
                self._conn.execute(
                    "UPDATE event SET held = 1 WHERE room_id = ? AND held > 0 AND seq >= ?",
                    (row["room_id"], row["seq"]),
                )
                return number
            self._settle(row["seq"], decisions)
        return len(held)

    def _settle(
        self, seq: int, decisions: list[Decision], *, is_late: bool = False
    ) -> list[Decision]:
        """Writes down what was decided about an event, and puts what follows.

        Returns the decisions as they stand: a turn for which its lane has no room is refused, or
        held if it ``is_late``: whoever wrote it while nobody listened could not pace themselves.
        """
        for number, decision in enumerate(decisions):
            reached = [at for item in decision.items if (at := self._limit_reached(item))]
            if reached:
                limit = reached[0]
                full = f"{limit.most} messages are waiting for {limit.whose}"
                decisions[number] = (
                    Decision(f"{_TOO_MANY}: {full}", decision.if_held, held=True)
                    if is_late
                    else Decision(f"refused: {full}", decision.if_full)
                )
            elif (
                is_late
                and any(item.kind is ItemKind.TURN for item in decision.items)
                and self._is_backlog_held(seq)
            ):
                why = f"{_TOO_MANY}: others before it had to be left for later"
                decisions[number] = Decision(why, decision.if_held, held=True)
        items = [item for decision in decisions for item in decision.items]
        # Of several agents those count that it was for.
        said = next(
            (d for d in decisions if any(item.kind is ItemKind.TURN for item in d.items)),
            next((d for d in decisions if d.items or d.held), decisions[0]),
        )
        held = any(decision.held for decision in decisions)
        ids = [self._put(item) for item in items]
        # A status says how the message fares; it is not what the message became.
        became = [i for i, item in zip(ids, items, strict=True) if item.kind != "status"]
        # What will not be relayed is not kept either: only its id, so that it stays known.
        self._conn.execute(
            "UPDATE event SET outcome = ?, item_id = ?, held = ?,"
            " content = iif(?, content, '{}') WHERE seq = ?",
            (said.outcome, became[0] if became else None, int(held), int(held), seq),
        )
        for person in [person for decision in decisions for person in decision.asks]:
            self._put_errand("invite", person)
            self._conn.execute("INSERT INTO sync_run (requested_ms) VALUES (?)", (self._now_ms(),))
        return decisions

    def _is_backlog_held(self, seq: int) -> bool:
        """Whether an event before this one of the same backlog found no room: then this one would
        overtake it."""
        row = self._row(
            "SELECT 1 FROM event WHERE room_id = (SELECT room_id FROM event WHERE seq = ?)"
            " AND held > 0 AND held = 1 AND substr(outcome, 1, ?) = ?",
            (seq, len(_TOO_MANY), _TOO_MANY),
        )
        return row is not None

    def _announce_held(self, announce: Announce) -> None:
        rows = self._rows(
            "SELECT room_id, count(*) AS n, min(origin_ms) AS since_ms, min(seq) AS first"
            # "held > 0" stands in the index: without it this reads every event there is.
            " FROM event WHERE held > 0 AND held = 1 GROUP BY room_id"
        )
        for row in rows:
            oldest = self._row("SELECT event_id FROM event WHERE seq = ?", (row["first"],))
            assert oldest is not None
            event_id = EventId(oldest["event_id"])
            for resident in self._residents(row["room_id"])[:1]:
                for notice in announce(resident, event_id, row["n"], row["since_ms"]):
                    self._put(notice)
                self._conn.execute(
                    "UPDATE event SET held = 2 WHERE room_id = ? AND held > 0 AND held = 1",
                    (row["room_id"],),
                )

    def _announce_unread(self, tell: TellUnread) -> None:
        """Tells it once, as the first agent of the room whose ghost is in there again."""
        for row in self._rows("SELECT * FROM unread"):
            for resident in self._residents(row["room_id"]):
                is_in = "SELECT 1 FROM member WHERE room_id = ? AND user_id = ?"
                is_in += " AND membership = 'join'"
                if not self._row(is_in, (row["room_id"], resident.ghost)):
                    continue
                one = Unread(RoomId(row["room_id"]), row["from_ms"], row["to_ms"])
                notices = tell(resident, one)
                for notice in notices:
                    self._put(notice)
                if notices:
                    self._conn.execute(
                        "DELETE FROM unread WHERE room_id = ? AND from_ms = ?",
                        (one.room_id, one.from_ms),
                    )
                break


def _event(row: sqlite3.Row) -> RoomEvent:
    return RoomEvent(
        id=EventId(row["event_id"]), room_id=RoomId(row["room_id"]), sender=row["sender"],
        type=row["type"], content=json.loads(row["content"]),
        origin_server_ts_ms=row["origin_ms"], late_ms=row["late_ms"],
    )  # fmt: skip
