"""The mailbox's rows: items on lanes, claims, verdicts and their history; and the lease.

They belong together: whoever takes the lease takes over the claims of the holder before.
"""

from __future__ import annotations

import json
import math
import secrets
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from homeroom.errors import LeaseLost, LimitExceeded, NotFound
from homeroom.model import (
    Item,
    ItemId,
    ItemKind,
    ItemState,
    Json,
    NewItem,
)
from homeroom.store.connection import Connection


@dataclass(frozen=True, slots=True)
class LeaseState:
    """Who runs the bridge. ``fence`` is 0 when it is not us."""

    owner: str
    until_ms: int
    fence: int


class Items(Connection):
    """Statements about items. The order of their ids is the order of their lanes."""

    max_waiting: float = math.inf
    """How many turns may be open on one lane."""

    # --- the lease --------------------------------------------------------------------------------

    async def take_lease(
        self, owner: str, *, rank: int, ttl_ms: int,
        is_gone: Callable[[str], bool] = lambda owner: False,
    ) -> LeaseState:  # fmt: skip
        """The lease if it was free, had lapsed or its holder has a lower ``rank``; else who has it.

        ``is_gone`` may know that a holder is dead before its time has run out. Taking the lease
        hands every claim of the holder before back to its lane, marked as begun.
        """

        def take() -> LeaseState:
            now = self._now_ms()
            row = self._row("SELECT * FROM lease")
            held = row and row["until_ms"] > now and row["rank"] >= rank
            if row and held and not is_gone(row["owner"]):
                return LeaseState(row["owner"], row["until_ms"], 0)
            fence = (row["fence"] if row else 0) + 1
            self._conn.execute(
                "INSERT OR REPLACE INTO lease VALUES ('bridge', ?, ?, ?, ?)",
                (owner, fence, rank, now + ttl_ms),
            )
            for claimed in self._rows("SELECT id FROM item WHERE state = 'claimed'"):
                self._set_state(claimed["id"], ItemState.WAITING, "the process that had it is gone")
            return LeaseState(owner, now + ttl_ms, fence)

        return await self._write(take)

    async def renew_lease(self, fence: int, ttl_ms: int) -> None:
        """Raises LeaseLost."""

        def renew() -> None:
            self._conn.execute("UPDATE lease SET until_ms = ?", (self._now_ms() + ttl_ms,))

        await self._write(renew, fence)

    async def release_lease(self, fence: int) -> None:
        """Gives it up, if it is still ours, and every claim with it."""

        def release() -> None:
            done = self._conn.execute("UPDATE lease SET until_ms = 0 WHERE fence = ?", (fence,))
            if done.rowcount:
                for row in self._rows(
                    "SELECT id FROM item WHERE state='claimed' AND fence=?", (fence,)
                ):
                    self._set_state(row["id"], ItemState.WAITING, "the process that had it stopped")

        await self._write(release)

    async def get_lease(self) -> LeaseState | None:
        """Who holds it, or None when nobody does."""

        def read() -> LeaseState | None:
            row = self._row("SELECT * FROM lease WHERE until_ms > ?", (self._now_ms(),))
            return LeaseState(row["owner"], row["until_ms"], row["fence"]) if row else None

        return await self._run(read)

    # --- items -----------------------------------------------------------------------------------

    async def put(self, items: Sequence[NewItem]) -> list[ItemId]:
        """Puts items on their lanes in one commit; a known dedupe key gives the item it has.

        Raises:
            LimitExceeded: too many turns wait on a lane; nothing was put.
        """

        def write() -> list[ItemId]:
            for item in items:
                self._check_room(item)
            return [self._put(item) for item in items]

        return await self._write(write)

    def _is_full(self, item: NewItem) -> bool:
        """Whether a turn finds no room on its lane. Posts always do: they end what was begun."""
        return item.kind is ItemKind.TURN and self._open_count(item.lane) >= self.max_waiting

    def _open_count(self, lane: str) -> int:
        row = self._row(
            "SELECT count(*) AS n FROM item WHERE lane = ? AND state IN ('waiting', 'claimed')",
            (lane,),
        )
        return int(row["n"]) if row else 0

    def _check_room(self, item: NewItem) -> None:
        known = self._row("SELECT 1 FROM item WHERE dedupe_key = ?", (item.dedupe_key,))
        if not known and self._is_full(item):
            count = self._open_count(item.lane)
            what = "A conversation with an agent"
            raise LimitExceeded(what, int(self.max_waiting), count + 1, "messages waiting")

    def _put(self, item: NewItem) -> ItemId:
        known = self._row("SELECT id FROM item WHERE dedupe_key = ?", (item.dedupe_key,))
        if known:
            return ItemId(known["id"])
        item_id = self._new_item_id()
        self._conn.execute(
            "INSERT INTO item (id, lane, kind, payload, dedupe_key, state, created_ms)"
            " VALUES (?, ?, ?, ?, ?, 'waiting', ?)",
            (item_id, item.lane, item.kind, json.dumps(dict(item.payload)), item.dedupe_key,
             self._now_ms()),
        )  # fmt: skip
        self._log(item_id, ItemState.WAITING, "accepted")
        return item_id

    def _new_item_id(self) -> ItemId:
        # Sorts by time even if the clock went back or another process is ahead: the order of ids
        # is the order of a lane. The random half makes it unguessable.
        last = self._row("SELECT max(id) AS id FROM item")
        floor = int(last["id"][:13], 16) + 1 if last and last["id"] else 0
        return ItemId(f"{max(floor, self._now_ms() * 1000):013x}{secrets.token_hex(10)}")

    async def claim(self, kinds: Sequence[ItemKind], fence: int) -> tuple[Item | None, int | None]:
        """The oldest item of these kinds that heads its lane and is due, now ours; else None and
        when (ms) the next one that was put off becomes due, or None.

        ``item.begun`` says whether an earlier claim of it ended without a verdict.
        """

        def take() -> tuple[Item | None, int | None]:
            # Most looks find nothing: those shall not take the write lock.
            now_ms = self._now_ms()
            if self._claimable(kinds, now_ms):
                with self._transaction():
                    self._check_fence(fence)
                    if item := self._claim(kinds, fence):
                        return item, None
            return None, self._next_due_ms(kinds, now_ms)

        # A look that finds nothing must not count as a change, or the worker would wake itself.
        item, due_ms = await self._run(take)
        if item:
            self._notify()
        return item, due_ms

    def _claimable(self, kinds: Sequence[ItemKind], now_ms: int) -> sqlite3.Row | None:
        marks = ", ".join("?" for _ in kinds)
        return self._row(
            "SELECT * FROM item AS i WHERE state = 'waiting' AND not_before_ms <= ?"
            f" AND kind IN ({marks}) AND NOT EXISTS (SELECT 1 FROM item AS j WHERE"
            " j.lane = i.lane AND j.state IN ('waiting', 'claimed')"
            # A replayed item is older than one that its lane may have come to meanwhile.
            " AND (j.id < i.id OR j.state = 'claimed'))"
            " ORDER BY i.id LIMIT 1",
            (now_ms, *kinds),
        )

    def _claim(self, kinds: Sequence[ItemKind], fence: int) -> Item | None:
        row = self._claimable(kinds, self._now_ms())
        if row is None:
            return None
        self._conn.execute(
            "UPDATE item SET state='claimed', attempts=attempts+1, begun=1, fence=? WHERE id=?",
            (fence, row["id"]),
        )
        self._log(row["id"], ItemState.CLAIMED, "")
        return item_of(row)

    def _next_due_ms(self, kinds: Sequence[ItemKind], now_ms: int) -> int | None:
        marks = ", ".join("?" for _ in kinds)
        row = self._row(
            "SELECT min(not_before_ms) AS at FROM item WHERE state = 'waiting'"
            f" AND not_before_ms > ? AND kind IN ({marks})",
            (now_ms, *kinds),
        )
        return row["at"] if row else None

    async def finish(
        self, item: Item, state: ItemState, *, fence: int, result: Json | None = None,
        reason: str = "", delivered: bool = True, then: Sequence[NewItem] = (),
        claim_next: Sequence[ItemKind] = (),
    ) -> Item | None:  # fmt: skip
        """Ends a claim with DONE or PARKED and puts what follows from it, in one commit.

        An item that is parked and certainly was not ``delivered`` gets a fresh key, as in
        ``retry``; any other is looked for should it be replayed.

        Claims the next item of the kinds ``claim_next`` in the same commit and returns it: what
        follows from an answer is its post, which would otherwise wait for a commit of its own.
        Raises LeaseLost if the claim is no longer ours: then nothing was written.
        """

        def write() -> Item | None:
            self._require_claim(item, fence)
            self._conn.execute(
                "UPDATE item SET result = ?, begun = ?, generation = generation + ? WHERE id = ?",
                (
                    json.dumps(dict(result)) if result is not None else None,
                    int(delivered),
                    int(not delivered),
                    item.id,
                ),
            )
            self._set_state(item.id, state, reason)
            for follower in then:
                self._put(follower)
            return self._claim(claim_next, fence) if claim_next else None

        return await self._write(write, fence)

    async def retry(
        self, item: Item, *, fence: int, delay_ms: int, reason: str, delivered: bool,
        uncertain: bool = False, then: Sequence[NewItem] = (),
    ) -> None:  # fmt: skip
        """Hands a claim back to the head of its lane for later, and counts its failures.

        ``delivered`` False says that its effect certainly did not happen: the next claim need not
        look for it and uses a fresh key.
        """

        def write() -> None:
            self._require_claim(item, fence)
            self._conn.execute(
                "UPDATE item SET not_before_ms = ?, begun = ?, generation = generation + ?,"
                " uncertain_count = uncertain_count + ?, failing_since_ms ="
                " CASE failing_since_ms WHEN 0 THEN ? ELSE failing_since_ms END WHERE id = ?",
                (
                    self._now_ms() + delay_ms,
                    int(delivered),
                    int(not delivered),
                    int(uncertain),
                    self._now_ms(),
                    item.id,
                ),
            )
            self._set_state(item.id, ItemState.WAITING, reason, self._now_ms() + delay_ms)
            for follower in then:
                self._put(follower)

        await self._write(write, fence)

    def _require_claim(self, item: Item, fence: int) -> None:
        row = self._row("SELECT state, fence FROM item WHERE id = ?", (item.id,))
        if row is None or row["state"] != "claimed" or row["fence"] != fence:
            raise LeaseLost("another claim", "its end")

    def _set_state(self, item_id: str, state: ItemState, reason: str, next_try_ms: int = 0) -> None:
        self._conn.execute(
            "UPDATE item SET state = ?, reason = ? WHERE id = ?", (state, reason, item_id)
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
            "SELECT count(*) AS n FROM item WHERE lane = ? AND id < ?"
            " AND state IN ('waiting', 'claimed')",
            (item.lane, item.id),
        )
        return int(row["n"]) if row else 0

    async def count_items(self) -> dict[str, int]:
        """How many items are in each state."""
        rows = await self._run(
            partial(self._rows, "SELECT state, count(*) AS n FROM item GROUP BY state")
        )
        return {row["state"]: row["n"] for row in rows}


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
        replay_count=row["replay_count"],
    )  # fmt: skip
