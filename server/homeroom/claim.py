"""One Homeroom per homeserver: the note by which two stores learn of each other.

Owns a note in the hub's account data that says which store runs the bridge. The lease keeps two
processes over one store apart; this keeps two stores apart, which would answer everything twice.
Every writing of the note bears a mark that is in the store before: so a note with a mark that the
store does not know was written over another store, be it a copy of this one. A mark that it knows
can be that of the store it was copied from, unless the note names the very file: its writer is
asked, in the note, for a new one, and is believed to be gone only if none comes.
Invariant: whoever finds another's live note does not read rooms, and never takes it by force.
"""

from __future__ import annotations

import logging
import secrets
import time

import anyio

from homeroom.errors import Rejected, Unavailable
from homeroom.matrix import Matrix
from homeroom.model import Json
from homeroom.store import Store

log = logging.getLogger(__name__)

NOTE_TYPE = "org.homeroom.bridge"
VALID_S = 90.0
"""A note that was not renewed for so long belongs to a bridge that is gone."""
RENEW_S = 30.0
LOOK_S = 3.0
"""How soon a bridge notices that another's has come or asks, and one that stands back that it may
go on: a request that the homeserver answers from memory."""
ANSWER_S = 5.0
"""Whoever is asked and writes no new note for so long is gone: a look, and what requests take."""
RELEASE_LIMIT_S = 1.0
SETTLE_S = 1.0
"""Who takes the homeserver over looks again after this: of two that came at once, both found it
free, and the homeserver keeps the note that was written last. Longer than a request takes; who
takes longer to write its note waits until the other has looked again and stands back."""
MARKS = "bridge_marks"
"""Where the store keeps the marks of the note that is there and of the one to be written."""


class HomeserverClaim:
    """The right of one store to run the bridge on a homeserver, while its lease is ``fence``'s."""

    def __init__(self, matrix: Matrix, store: Store, owner: str, fence: int) -> None:
        self._matrix, self._store, self._owner, self._fence = matrix, store, owner, fence
        self.rival = ""
        """Who runs the bridge over another store, as of the last look; empty if nobody does."""
        self.is_copied = False
        """Whether that store and ours are copies of one another."""
        self._mine: list[str] = []
        """The marks that this process has written, the newest last."""
        self._written_s = float("-inf")
        self._seen: str | None = None
        self._seen_s = 0.0
        self._is_renewed = False
        self.is_asking = False
        """Whether it is being found out if the rival, whose note our store knows, is alive."""
        self._named = ""
        self._asked = ""
        self._gone_s = 0.0
        """When the writer of the note ``_asked`` is gone, unless there is a new one by then."""

    async def take(self) -> str:
        """Writes our note, if it is time to; else why we may not run: another store's bridge does
        or may do so, or nobody can say.

        Raises:
            LeaseLost: another process runs the bridge over our own store.
        """
        began_s = time.monotonic()
        try:
            note = await self._read()
            if self.rival:
                if self.is_asking and note.get("mark") != self._asked:
                    await self._ask(note)
                return self._taken()
            is_mine = note.get("mark") in self._mine[-1:]
            is_young = time.monotonic() - self._written_s < RENEW_S
            if is_mine and is_young and not note.get("asked_by"):
                return ""
            await self._write(note)
            if not is_mine:
                await self._settle(self._written_s - began_s)
                await self._read()
            return self._taken() if self.rival else ""
        except (Unavailable, Rejected) as error:
            self._asked = ""  # nor may whoever was asked have reached the homeserver
            return str(error)

    async def _settle(self, took_s: float) -> None:
        """Gives another that found it free in the same moment the time to see our note or to write
        over it. ``took_s`` went by from our look until ours was written: if that was long, another
        may have written, settled and begun meanwhile, and reads of us at its next look only.
        """
        if took_s > SETTLE_S:
            log.warning("claim_written_late", extra={"took_s": round(took_s, 1)})
            await anyio.sleep(LOOK_S + took_s)
        await anyio.sleep(SETTLE_S)

    async def _read(self) -> Json:
        """The note there is; notes whose it is."""
        note = await self._matrix.get_account_data(self._matrix.hub, NOTE_TYPE)
        mark, is_live = str(note.get("mark")), self._is_live(note)
        is_known = mark in (await self._store.get_meta(MARKS)).split()
        is_ours = mark in self._mine or note.get("place") == self._store.place != ""
        self.is_asking = is_known and not is_ours and self._may_answer(note)
        is_rivals = self.is_asking or (is_live and not is_known)
        self.rival = str(note.get("owner"))[:100] if is_rivals else ""
        store_id = await self._store.get_meta("store_id")
        self.is_copied = bool(self.rival) and note.get("store_id") == store_id
        return note

    def _may_answer(self, note: Json) -> bool:
        """Whether its writer, who has not taken it back, had no time yet to answer us."""
        return bool(note.get("until_ms")) and (
            note.get("mark") != self._asked or time.monotonic() < self._gone_s
        )

    async def _ask(self, note: Json) -> None:
        """Asks its writer for a new note, in the one there is: it keeps its mark, so that it stays
        its writer's, and no bridge has to look at a second place."""
        began_s = time.monotonic()
        asking = {**note, "asked_by": self._owner}
        await self._matrix.put_account_data(self._matrix.hub, NOTE_TYPE, asking)
        log.info("claim_holder_asked", extra={"holder": self.rival})
        self._asked, now_s = str(note.get("mark")), time.monotonic()
        # A homeserver that is slow for us is slow for whoever has to read, answer and be read.
        self._gone_s = now_s + ANSWER_S + 4 * (now_s - began_s)

    def _is_live(self, note: Json) -> bool:
        """Whether its writer may be at work still.

        The time in a note is that of another machine, or of before the clock was set: it is
        believed at first sight only, and never for longer than a note is good for. Whoever was
        seen to write lives, whatever the time is there.
        """
        now_s, until_ms = time.monotonic(), note.get("until_ms")
        written = f"{note.get('owner')} {note.get('mark')} {until_ms}"
        if written != self._seen:
            self._is_renewed = self._seen is not None
            self._seen, self._seen_s = written, now_s
        if not isinstance(until_ms, int | float) or not until_ms:
            return False
        in_time = self._is_renewed or until_ms > time.time() * 1000
        return in_time and now_s - self._seen_s < VALID_S

    def _taken(self) -> str:
        if self.is_asking:
            return (
                "Another Homeroom with this data directory or a copy of it"
                f" ({self.rival}) has run the bridge on this homeserver: it is found out whether it"
                " still does."
            )
        if self._named != self.rival:  # not at every look
            log.warning("homeserver_taken", extra={"by": self.rival, "copy": self.is_copied})
            self._named = self.rival
        if self.is_copied:
            return (
                f"Another Homeroom with a copy of this data directory ({self.rival}) runs the"
                " bridge on this homeserver. Stop one of the two for good: what one has answered,"
                " the other does not know."
            )
        return (
            f"Another Homeroom with a store of its own ({self.rival}) runs the bridge on this"
            " homeserver. Stop it, or set the same HOMEROOM_DATA_DIR for both."
        )

    async def keep(self) -> None:
        """Renews the note; returns when another store's bridge has come all the same."""
        while not self.rival:
            await anyio.sleep(LOOK_S)
            await self.take()

    async def release(self) -> None:
        """Takes the note back, if it is still ours, so that a successor need not wait."""
        if not self._mine:
            return
        with anyio.move_on_after(RELEASE_LIMIT_S, shield=True):
            try:
                note = await self._matrix.get_account_data(self._matrix.hub, NOTE_TYPE)
                if note.get("mark") in self._mine:
                    await self._put(str(note.get("mark")), 0)
            except (Unavailable, Rejected) as error:
                log.warning("claim_not_released", extra={"reason": str(error)})

    async def _write(self, there: Json) -> None:
        mark, until_ms = secrets.token_hex(8), int((time.time() + VALID_S) * 1000)
        known = (await self._store.get_meta(MARKS)).split()
        kept = [str(there.get("mark"))] if str(there.get("mark")) in known else []
        await self._store.put_meta(MARKS, " ".join([*kept, mark]), self._fence)
        self._mine = [*self._mine[-1:], mark]
        await self._put(mark, until_ms)
        self._written_s = time.monotonic()

    async def _put(self, mark: str, until_ms: int) -> None:
        note = {
            "store_id": await self._store.get_meta("store_id"), "owner": self._owner,
            "fence": self._fence, "mark": mark, "until_ms": until_ms, "place": self._store.place,
        }  # fmt: skip
        await self._matrix.put_account_data(self._matrix.hub, NOTE_TYPE, note)
