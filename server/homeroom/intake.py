"""The hub's sync, read for ever: one row per event and the new cursor in one commit.

Owns the loop around /sync. Knows nothing of Letta. Invariant: the cursor never gets ahead of the
events it stands for; a failure of the homeserver is waited out, not counted as an empty answer.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace

import anyio

from homeroom.errors import Rejected, Unavailable
from homeroom.matrix import Matrix
from homeroom.model import RoomEvent
from homeroom.retry import pause_s
from homeroom.store import Decide, Store

log = logging.getLogger(__name__)

HEARD_TYPES = frozenset({"m.room.message", "m.room.encrypted"})
"""Event types that are kept; everything else in a timeline is nobody's message."""
LONG_POLL_MS = 30_000
"""How long the homeserver may hold an empty /sync."""

CURSOR_LAG_S = 60.0
"""How old the stored cursor may get while nobody but us speaks."""
REFUSED_PAUSE_S = 30.0
"""A token that is refused does not heal by itself; no need to ask often."""


@dataclass(slots=True)
class IntakeState:
    """What health reports of the loop. Times are seconds since the epoch."""

    last_answer_at_s: float = 0.0
    problem: str = ""


async def run_intake(
    store: Store, matrix: Matrix, decide: Decide, *, fence: int, state: IntakeState
) -> None:
    """Reads until cancelled.

    A homeserver that is away, or refuses our token, is asked again later; health says so meanwhile.

    Raises:
        LeaseLost: another process runs the bridge.
    """
    cursor, failures = await store.get_cursor(), 0
    committed_at_s = float("-inf")
    while True:
        try:
            batch = await matrix.sync(cursor, LONG_POLL_MS if cursor else 0)
        except (Unavailable, Rejected) as error:
            failures += 1
            state.problem = str(error)
            asked_s = error.retry_after_s if isinstance(error, Unavailable) else REFUSED_PAUSE_S
            wait_s = pause_s(failures, asked_s)
            log.warning("sync_failed", extra={"reason": str(error), "next_try_s": round(wait_s, 1)})
            await anyio.sleep(wait_s)
            continue
        failures, state.problem, state.last_answer_at_s = 0, "", time.time()
        heard = tuple(e for e in batch.events if _is_message(e) and not matrix.is_ghost(e.sender))
        # What our own ghosts said is no news. Reading it again after a crash does no harm, so the
        # cursor may lag behind by that much, and a post costs no commit when it comes back.
        stale = time.monotonic() - committed_at_s > CURSOR_LAG_S
        if heard or batch.members or batch.left_rooms or (stale and batch.cursor != cursor):
            await store.record_batch(replace(batch, events=heard), decide, matrix.is_ghost, fence)
            committed_at_s = time.monotonic()
        cursor = batch.cursor


def _is_message(event: RoomEvent) -> bool:
    return event.type in HEARD_TYPES and event.state_key is None
