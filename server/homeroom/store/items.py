"""The mailbox's rows: items on lanes, claims, verdicts and their history."""

from __future__ import annotations

import json
import math
import secrets
import sqlite3
from collections.abc import Collection, Sequence
from functools import partial
from typing import NamedTuple

from homeroom.errors import LeaseLost, LimitExceeded, NotFound, Stopped
from homeroom.items import (
    JOINED,
    QUIET_LIMIT,
    Item,
    ItemKind,
    ItemState,
    NewItem,
    Priority,
    Tell,
    join_turns,
)
from homeroom.model import ItemId, Json
from homeroom.store.connection import Connection
from homeroom.store.item_rows import (
    CLAIMABLE,
    EXPIRED,
    EXPIRING,
    NOT_ON,
    OPEN,
    OPEN_TURNS,
    OPEN_TURNS_OF_LANE,
    PUT_OFF,
    item_of,
)

_RANK_WORKED, _RANK_HELD = -1, 0
"""The lane's order is that of rank, then id. What is worked on comes first, then what was tried
before and holds the head, then the rest by priority."""


class _Limit(NamedTuple):
    what: str
    whose: str
    most: int


def _tell_nobody(item: Item) -> Sequence[NewItem]:
    return ()


class Items(Connection):
    """Statements about items. The order of their ids is the order of their lanes."""

    max_waiting: float = math.inf
    """How many turns may be open on one lane."""
    max_waiting_total: float = math.inf
    """How many turns may be open on all lanes together."""

    async def put(self, items: Sequence[NewItem]) -> list[ItemId]:
        """Puts items on their lanes in one commit; a known dedupe key gives the item it has.

        Raises:
            LimitExceeded: too many turns wait, on a lane or in all; nothing was put.
        """

        def write() -> list[ItemId]:
            ids = []
            for item in items:
                self._check_room(item)
                ids.append(self._put(item))
            return ids

        return await self._write(write)

    def _limit_reached(self, item: NewItem) -> _Limit | None:
        """The limit that leaves no room for a turn; None if there is room.

        Posts always find room: they end what was begun, and tell those who were refused. So does
        a message that joins one which waits.
        """
        if item.kind is not ItemKind.TURN or self._to_join(item):
            return None
        if self._count(OPEN_TURNS_OF_LANE, item.lane) >= self.max_waiting:
            return _Limit("A conversation with an agent", "the agent here", int(self.max_waiting))
        if self.max_waiting_total < math.inf and self._count(OPEN_TURNS) >= self.max_waiting_total:
            count = int(self.max_waiting_total)
            return _Limit("All conversations together", "all agents together", count)
        return None

    def _count(self, sql: str, *args: str) -> int:
        row = self._row(sql, args)
        return int(row["n"]) if row else 0

    def _check_room(self, item: NewItem) -> None:
        known = self._row("SELECT 1 FROM item WHERE dedupe_key = ?", (item.dedupe_key,))
        if not known and (limit := self._limit_reached(item)):
            raise LimitExceeded(limit.what, limit.most, limit.most + 1, "messages waiting")

    def _put(self, item: NewItem) -> ItemId:
        known = self._row("SELECT id FROM item WHERE dedupe_key = ?", (item.dedupe_key,))
        if known:
            return ItemId(known["id"])
        if joined := self._to_join(item):
            return self._join(*joined, item)
        item_id, now = self._new_item_id(), self._now_ms()
        due_ms = now + max(item.delay_ms, item.quiet_ms)
        self._conn.execute(
            "INSERT INTO item (id, lane, kind, payload, dedupe_key, state, created_ms, origin, who,"
            " priority, rank, not_before_ms, expires_ms)"
            " VALUES (?, ?, ?, ?, ?, 'waiting', ?, ?, ?, ?, ?, ?, ?)",
            (item_id, item.lane, item.kind, json.dumps(dict(item.payload)), item.dedupe_key, now,
             item.origin, item.who, int(item.priority), Priority.URGENT + 1 - item.priority,
             due_ms if due_ms > now else 0,
             now + item.expires_after_ms if item.expires_after_ms else 0),
        )  # fmt: skip
        self._log(item_id, ItemState.WAITING, "accepted")
        return item_id

    def _to_join(self, new: NewItem) -> tuple[Item, Json] | None:
        """The waiting message that a new one of the same person joins, and the payload of both.

        Only the newest on the lane, so that nobody is overtaken, and only one that was not tried.
        """
        if not new.quiet_ms:
            return None
        row = self._row(
            f"SELECT * FROM item WHERE lane = ? AND state IN {OPEN} ORDER BY id DESC LIMIT 1",
            (new.lane,),
        )
        last = item_of(row) if row else None
        if last is None or last.state is not ItemState.WAITING or last.attempts or last.begun:
            return None
        if last.replay_count or last.kind is not new.kind or last.who != new.who:
            return None
        both = join_turns(last.payload, new.payload) if last.origin is new.origin else None
        return (last, both) if both else None

    def _join(self, last: Item, both: Json, new: NewItem) -> ItemId:
        latest_ms = last.created_ms + QUIET_LIMIT * new.quiet_ms
        due_ms = min(self._now_ms() + new.quiet_ms, latest_ms)
        self._conn.execute(
            "UPDATE item SET payload = ?, not_before_ms = ? WHERE id = ?",
            (json.dumps(dict(both)), due_ms, last.id),
        )
        self._log(last.id, ItemState.WAITING, f"{JOINED} {both['event_id']}", due_ms)
        return last.id

    def _new_item_id(self) -> ItemId:
        # Sorts by time even if the clock went back or another process is ahead: the order of ids
        # is the order of a lane. The random half makes it unguessable.
        last = self._row("SELECT max(id) AS id FROM item")
        floor = int(last["id"][:13], 16) + 1 if last and last["id"] else 0
        return ItemId(f"{max(floor, self._now_ms() * 1000):013x}{secrets.token_hex(10)}")

    async def claim(
        self, kinds: Sequence[ItemKind], fence: int, *, begin: Sequence[ItemKind] = (),
        on_expired: Tell = _tell_nobody, held: Sequence[str] = (),
    ) -> tuple[Item | None, int | None]:  # fmt: skip
        """The first item of these kinds that heads its lane and is due, now ours; else None and
        when (ms) to look again for one that was put off or expires, or None. Lanes whose names
        begin with one of ``held`` are left alone.

        One of the kinds ``begin`` is being delivered at once. ``item`` is as it was before, so
        that ``item.begun`` says whether an earlier delivery ended without a verdict. What has
        expired meanwhile is ended and never claimed; ``on_expired`` gives what follows from it.
        """

        def look() -> tuple[bool, int | None]:
            now_ms = self._now_ms()
            if self._expired(now_ms) or self._claimable(kinds, now_ms, held):
                return True, None
            return False, self._next_due_ms(kinds, now_ms)

        def take() -> Item | None:
            for row in self._expired(self._now_ms()):
                self._expire(item_of(row), on_expired)
            return self._claim(kinds, fence, begin, held)

        # Most looks find nothing. Those shall not take the write lock, nor count as a change: the
        # worker would wake itself.
        found, due_ms = await self._run(look)
        return (await self._write(take, fence), None) if found else (None, due_ms)

    def _claimable(
        self, kinds: Sequence[ItemKind], now_ms: int, held: Sequence[str]
    ) -> sqlite3.Row | None:
        sql = CLAIMABLE.format(held=NOT_ON * len(held))
        args = (*(name for name in held for _ in range(2)), now_ms, now_ms)
        # One look per kind: an index gives the order of one kind alone.
        looks = (self._row(sql, (kind, *args)) for kind in kinds)
        return min(
            (row for row in looks if row),
            key=lambda row: (-row["priority"], row["id"]),
            default=None,
        )

    def _claim(
        self, kinds: Sequence[ItemKind], fence: int, begin: Sequence[ItemKind],
        held: Sequence[str] = (),
    ) -> Item | None:  # fmt: skip
        row = self._claimable(kinds, self._now_ms(), held)
        if row is None:
            return None
        self._conn.execute(
            "UPDATE item SET attempts = attempts + 1, fence = ? WHERE id = ?", (fence, row["id"])
        )
        self._set_state(row["id"], ItemState.CLAIMED, "")
        if row["kind"] in begin:
            self._begin(row["id"])
        return item_of(row)

    def _begin(self, item_id: str) -> None:
        self._conn.execute(
            "UPDATE item SET begun_ms = ? WHERE id = ? AND (kind = 'turn' OR begun_ms = 0)",
            (self._now_ms(), item_id),
        )
        self._set_state(item_id, ItemState.DELIVERING, "")

    def _expired(self, now_ms: int) -> list[sqlite3.Row]:
        return self._rows(EXPIRED, (now_ms,))

    def _expire(self, item: Item, tell: Tell) -> None:
        self._set_state(item.id, ItemState.EXPIRED, "its time was up before it could be delivered")
        for follower in tell(item):
            self._put(follower)

    def _next_due_ms(self, kinds: Sequence[ItemKind], now_ms: int) -> int | None:
        rows = [self._row(PUT_OFF, (kind, now_ms)) for kind in kinds]
        rows.append(self._row(EXPIRING))
        return min((row["at"] for row in rows if row and row["at"]), default=None)

    def _hand_back(self, row: sqlite3.Row, reason: str, died: bool = False) -> None:
        in_turn = row["kind"] == ItemKind.TURN and row["state"] == ItemState.DELIVERING
        self._conn.execute(
            "UPDATE item SET begun = begun OR state = 'delivering', crash_count = crash_count + ?,"
            " claim_crash_count = claim_crash_count + ? WHERE id = ?",
            (died and in_turn, died and not in_turn, row["id"]),
        )
        self._set_state(row["id"], ItemState.WAITING, reason)

    async def follow_clock(self, step_ms: int, fence: int) -> None:
        """What was put off is due no later because the clock went back (but for a schedule, which
        goes by the clock), and a turn has not been failing for longer because it went on. A post
        has: its key expires."""
        sql = (
            "UPDATE item SET not_before_ms = max(1, not_before_ms + min(0, ?)), failing_since_ms ="
            " iif(kind = 'turn' AND failing_since_ms, max(1, failing_since_ms + ?),"
            " failing_since_ms) WHERE state = 'waiting' AND not_before_ms > 0"
            " AND (attempts > 0 OR origin != 'schedule')"
        )
        await self._write(lambda: self._conn.execute(sql, (step_ms, step_ms)), fence)

    async def begin(self, item: Item, fence: int) -> None:
        """Says durably that the delivery of a claim begins: from now on it may have happened.

        Raises LeaseLost if the claim is no longer ours, Stopped if a person wants it to end: then
        nothing may be sent.
        """

        def write() -> None:
            self._require_claim(item, fence, wanted=True)
            self._begin(item.id)

        await self._write(write, fence)

    async def finish(
        self, item: Item, state: ItemState, *, fence: int, result: Json | None = None,
        reason: str = "", delivered: bool = True, then: Sequence[NewItem] = (),
        claim_next: Sequence[ItemKind] = (),
    ) -> Item | None:  # fmt: skip
        """Ends a claim (DONE, PARKED, CANCELLED) and puts what follows from it, in one commit.

        An item that is parked and certainly was not ``delivered`` gets a fresh key, as in
        ``retry``; any other is looked for should it be replayed.

        Claims the next item of the kinds ``claim_next`` in the same commit, as being delivered, and
        returns it: what follows from an answer is its post, which would otherwise wait for a commit
        of its own.
        Raises LeaseLost if the claim is no longer ours, Stopped if a person wants it to end and
        this is another end: then nothing was written.
        """

        def write() -> Item | None:
            self._require_claim(item, fence, wanted=state is not ItemState.CANCELLED)
            self._conn.execute(
                "UPDATE item SET result = ?, begun = ?, generation = generation + ?,"
                " begun_ms = begun_ms * ?, crash_count = 0, claim_crash_count = 0 WHERE id = ?",
                (
                    json.dumps(dict(result)) if result is not None else None,
                    int(delivered),
                    int(not delivered),
                    int(delivered),
                    item.id,
                ),
            )
            self._set_state(item.id, state, reason)
            for follower in then:
                self._put(follower)
            return self._claim(claim_next, fence, claim_next) if claim_next else None

        return await self._write(write, fence)

    async def retry(
        self, item: Item, *, fence: int, delay_ms: int, reason: str, delivered: bool,
        uncertain: bool = False, then: Sequence[NewItem] = (),
    ) -> None:  # fmt: skip
        """Hands a claim back to the head of its lane for later, and counts its failures.

        ``delivered`` False says that its effect certainly did not happen: the next claim need not
        look for it and uses a fresh key. Raises LeaseLost as ``finish`` does, and Stopped if a
        person wants it to end and nothing of it is left to be stopped.
        """

        def write() -> None:
            self._require_claim(item, fence, wanted=not delivered)
            self._conn.execute(
                "UPDATE item SET not_before_ms = ?, begun = ?, generation = generation + ?,"
                " begun_ms = begun_ms * ?, crash_count = 0, claim_crash_count = 0,"
                " uncertain_count = uncertain_count + ?, failing_since_ms ="
                " CASE failing_since_ms WHEN 0 THEN ? ELSE failing_since_ms END WHERE id = ?",
                (
                    self._now_ms() + delay_ms,
                    int(delivered),
                    int(not delivered),
                    int(delivered),
                    int(uncertain),
                    self._now_ms(),
                    item.id,
                ),
            )
            self._set_state(item.id, ItemState.WAITING, reason, self._now_ms() + delay_ms)
            for follower in then:
                self._put(follower)

        await self._write(write, fence)

    async def hurry(self, item_ids: Collection[ItemId], fence: int) -> None:
        """What keeps these from being tried again is over: those that wait are due now."""

        def write() -> None:
            self._conn.executemany(
                "UPDATE item SET not_before_ms = min(not_before_ms, ?)"
                " WHERE id = ? AND state = 'waiting'",
                [(self._now_ms(), item_id) for item_id in item_ids],
            )

        await self._write(write, fence)

    def _require_claim(self, item: Item, fence: int, *, wanted: bool = False) -> None:
        row = self._row("SELECT state, fence, stop_ms FROM item WHERE id = ?", (item.id,))
        worked = row is not None and row["state"] in (ItemState.CLAIMED, ItemState.DELIVERING)
        if row is None or not worked or row["fence"] != fence:
            raise LeaseLost("another claim", "its end")
        if wanted and row["stop_ms"]:
            raise Stopped

    def _set_state(self, item_id: str, state: ItemState, reason: str, next_try_ms: int = 0) -> None:
        # Whatever waits again was tried before: it holds the head of its lane.
        rank = _RANK_HELD if state is ItemState.WAITING else _RANK_WORKED
        self._conn.execute(
            "UPDATE item SET state = ?, reason = ?, rank = ? WHERE id = ?",
            (state, reason, rank, item_id),
        )
        self._log(item_id, state, reason, next_try_ms)

    def _log(self, item_id: str, state: ItemState, reason: str, next_try_ms: int = 0) -> None:
        self._conn.execute(
            "INSERT INTO item_history (item_id, at_ms, state, reason, next_try_ms)"
            " VALUES (?, ?, ?, ?, ?)",
            (item_id, self._now_ms(), state, reason, next_try_ms),
        )

    async def get_item(self, item_id: ItemId) -> Item:
        """Raises NotFound."""
        row = await self._run(partial(self._row, "SELECT * FROM item WHERE id = ?", (item_id,)))
        if row is None:
            raise NotFound("reply id", item_id[:40])
        return item_of(row)

    async def place_in_lane(self, item: Item) -> int:
        """How many open items of the same lane come before it."""
        return await self._run(partial(self._place_in_lane, item))

    def _place_in_lane(self, item: Item) -> int:
        row = self._row(
            f"SELECT count(*) AS n FROM item WHERE lane = ? AND state IN {OPEN} AND (rank, id) <"
            " (SELECT rank, id FROM item WHERE id = ?)",
            (item.lane, item.id),
        )
        return int(row["n"]) if row else 0

    async def count_items(self) -> dict[str, int]:
        """How many items are in each state."""
        rows = await self._run(
            partial(self._rows, "SELECT state, count(*) AS n FROM item GROUP BY state")
        )
        return {row["state"]: row["n"] for row in rows}
