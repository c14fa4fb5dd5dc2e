"""One Homeroom per homeserver: the note by which two stores learn of each other.

Owns a note in the hub's account data that says which store runs the bridge. The lease keeps two
processes over one store apart; this keeps two stores apart, which would answer everything twice.
Invariant: whoever finds another's fresh note does not read rooms.
"""

from __future__ import annotations

import logging
import time

import anyio

from homeroom.errors import Rejected, Unavailable
from homeroom.matrix import Matrix

log = logging.getLogger(__name__)

NOTE_TYPE = "org.homeroom.bridge"
VALID_S = 90.0
"""A note that was not renewed for so long belongs to a bridge that is gone."""
RENEW_S = 30.0
RETRY_CLAIM_S = 10.0
"""How soon a bridge that had to stand back looks again."""
RELEASE_LIMIT_S = 1.0


class HomeserverClaim:
    """The right of one store to run the bridge on a homeserver."""

    def __init__(self, matrix: Matrix, store_id: str, owner: str) -> None:
        self._matrix, self._store_id, self._owner = matrix, store_id, owner
        self._is_ours = False

    async def take(self) -> str:
        """Writes our note; else why we may not run: another store does, or nobody can say."""
        try:
            note = await self._matrix.get_account_data(self._matrix.hub, NOTE_TYPE)
            other, until_ms = note.get("store_id"), note.get("until_ms")
            fresh = isinstance(until_ms, int | float) and until_ms > time.time() * 1000
            self._is_ours = other == self._store_id or not fresh
            if self._is_ours:
                await self._write(VALID_S)
                return ""
        except (Unavailable, Rejected) as error:
            return str(error)
        log.warning("homeserver_taken", extra={"by": str(note.get("owner"))[:100]})
        return (
            f"Another Homeroom with a store of its own ({str(note.get('owner'))[:100]}) runs the"
            " bridge on this homeserver. Stop it, or set the same HOMEROOM_DATA_DIR for both."
        )

    async def keep(self) -> None:
        """Renews the note; returns when another store has taken over all the same."""
        while True:
            await anyio.sleep(RENEW_S)
            problem = await self.take()
            if problem and not self._is_ours:
                return

    async def release(self) -> None:
        """Takes the note back, so that a successor need not wait."""
        if self._is_ours:
            with anyio.move_on_after(RELEASE_LIMIT_S, shield=True):
                try:
                    await self._write(0.0)
                except (Unavailable, Rejected) as error:
                    log.warning("claim_not_released", extra={"reason": str(error)})

    async def _write(self, valid_s: float) -> None:
        until_ms = int((time.time() + valid_s) * 1000) if valid_s else 0
        note = {"store_id": self._store_id, "owner": self._owner, "until_ms": until_ms}
        await self._matrix.put_account_data(self._matrix.hub, NOTE_TYPE, note)
