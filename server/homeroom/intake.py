"""The hub's sync, read for ever: one row per event and the new cursor in one commit.

Owns the loop around /sync. Knows nothing of Letta. Invariant: the cursor never gets ahead of the
events it stands for; a failure of the homeserver is waited out, not counted as an empty answer.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection
from collections.abc import Mapping as Dict
from dataclasses import dataclass, replace

import anyio

from homeroom.errors import Rejected, Unavailable
from homeroom.items import Accepted
from homeroom.matrix import Matrix
from homeroom.model import RoomEvent, RoomId, SyncBatch
from homeroom.residence import Absence
from homeroom.retry import pause_s
from homeroom.store import Announce, Decide, Store, TellUnread

log = logging.getLogger(__name__)

HEARD_TYPES = frozenset({"m.room.message", "m.room.encrypted"})
"""Event types that are kept; everything else in a timeline is nobody's message."""
LONG_POLL_MS = 30_000
"""How long the homeserver may hold an empty /sync."""

LIVE_MS = 2 * LONG_POLL_MS
"""An answer that comes later than this after the one before is no live one: we were suspended."""
CURSOR_LAG_S = 60.0
"""How old the stored cursor, and the time it stands for, may get while nobody but us speaks."""
REFUSED_PAUSE_S = 30.0
"""A token that is refused does not heal by itself; no need to ask often."""


@dataclass(slots=True)
class IntakeState:
    """What health reports of the loop."""

    problem: str = ""


async def run_intake(
    store: Store, matrix: Matrix, decide: Decide, announce: Announce,
    on_accepted: Callable[[Accepted], None], *, fence: int, state: IntakeState,
    tell_unread: TellUnread = lambda *_: (), reach_ms: float = math.inf,
) -> None:  # fmt: skip
    """Reads until cancelled; ``on_accepted`` hears of what is safe in the store and must not wait.

    ``tell_unread`` says what a room is told that nobody could read for a time. What was said longer
    than ``reach_ms`` before the hub came into a room is not looked for.
    A homeserver that is away, or refuses our token, is asked again later; health says so meanwhile.

    Raises:
        LeaseLost: another process runs the bridge.
    """
    cursor, failures = await store.get_cursor(), 0
    heard_ms, live = await store.get_heard_ms(), False
    heard_s: float | None = None
    committed_at_s = float("-inf")
    while True:
        try:
            batch = await _next(store, matrix, cursor, fence, reach_ms)
        except (Unavailable, Rejected) as error:
            failures, live = failures + 1, False
            state.problem = str(error)
            asked_s = error.retry_after_s if isinstance(error, Unavailable) else REFUSED_PAUSE_S
            wait_s = pause_s(failures, asked_s)
            log.warning("sync_failed", extra={"reason": str(error), "next_try_s": round(wait_s, 1)})
            await anyio.sleep(wait_s)
            continue
        failures, state.problem = 0, ""
        now_ms = time.time_ns() // 1_000_000
        # Of our own silence a clock tells that nobody sets; of the one before we began, there is
        # the time of day alone.
        silent_ms = now_ms - heard_ms if heard_s is None else int((_running_s() - heard_s) * 1000)
        silent_ms = 0 if live and silent_ms < LIVE_MS else silent_ms
        heard = tuple(
            replace(event, late_ms=late_ms(event, batch, batch.now_ms or now_ms, silent_ms))
            for event in batch.events
            if _is_message(event) and not matrix.is_ghost(event.sender)
        )
        if not batch.has_more:  # else what comes next is as old as this
            heard_s, live = _running_s(), True
        # What our own ghosts said is no news, unlike what they changed. Reading it again after a
        # crash does no harm, so the cursor may lag behind by that much, and a post costs no commit
        # when it comes back.
        stale = time.monotonic() - committed_at_s > CURSOR_LAG_S
        if heard or batch.members or batch.state or batch.left_rooms or batch.unread or stale:
            accepted = await store.record_batch(
                replace(batch, events=heard),
                decide,
                matrix.is_ghost,
                fence,
                announce,
                tell_unread,
            )
            for newest in accepted:
                on_accepted(newest)
            committed_at_s = time.monotonic()
        cursor = batch.cursor


async def _next(
    store: Store, matrix: Matrix, cursor: str, fence: int, reach_ms: float
) -> SyncBatch:
    """The next step of the sync. A hub that the homeserver has lost is made again first.

    Its homeserver then is another one than before, or an older one: the cursor means nothing to
    it, and an audit has to tell what else it lost.
    """

    async def absences(rooms: Collection[RoomId]) -> Dict[RoomId, Absence]:
        found = await store.find_absences(matrix.hub, rooms)
        return {room: replace(absence, reach_ms=reach_ms) for room, absence in found.items()}

    try:
        return await matrix.sync(cursor, LONG_POLL_MS if cursor else 0, absences)
    except Rejected as refusal:
        if refusal.code != "M_FORBIDDEN" or not await matrix.revive_hub():
            raise
    log.warning("hub_was_missing")
    await store.ask_audit(fence)
    await store.note_hub_lost(matrix.hub, fence)
    return await matrix.sync("", 0)


def _running_s() -> float:
    """Seconds that pass while this machine sleeps, too, and that no setting of its clock changes.

    Source: https://man7.org/linux/man-pages/man2/clock_gettime.2.html (CLOCK_BOOTTIME); elsewhere
    the monotonic clock goes on in sleep.
    """
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


def late_ms(event: RoomEvent, batch: SyncBatch, now_ms: int, silent_ms: int) -> int:
    """How long an event had been there, ``silent_ms`` after we last heard all there was. Pure.

    ``now_ms`` is the homeserver's time where it tells it, so that an event of its own has the age
    that it has, although our clock was set since we last ran.
    Its own time comes from another machine's clock, so it is believed only where it can be true:
    what we did not hear before cannot be older than our silence, and what comes in a live long
    poll (no silence) is never late. A homeserver whose clock is hours off therefore loses nothing.
    In a room that the hub has just joined the silence was longer than ours; there the event is
    compared with the hub's joining, which has the time of the same clock.
    """
    late = min(now_ms - event.origin_server_ts_ms, silent_ms)
    if joined_ms := batch.joined_ms.get(event.room_id):
        late = max(late, joined_ms - event.origin_server_ts_ms)
    return max(0, late)


def _is_message(event: RoomEvent) -> bool:
    return event.type in HEARD_TYPES and event.state_key is None
