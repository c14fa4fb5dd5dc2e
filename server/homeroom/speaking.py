"""What agents say while they speak: told to whoever waits for it here, and elsewhere by the store.

Owns the short form of an answer in the making. Invariants: of what is said in rooms, for which
nobody can wait, nothing is kept; the store is written at once, then once a second at most, and
never waited for by a turn.
"""

from __future__ import annotations

from collections import OrderedDict

import anyio

from homeroom.chats import is_chat
from homeroom.items import Item, Spoken
from homeroom.model import ItemId
from homeroom.store import Store

WRITE_EVERY_S = 1.0
TAIL_CHARS = 400
"""How much of an answer in the making is kept for those who follow it."""
ANSWERS_FOLLOWED = 256


class Speaking:
    """What has been said so far of answers that are being made, by whichever process."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._said: OrderedDict[ItemId, Spoken] = OrderedDict()
        self._unsaved: set[ItemId] = set()
        self._more = anyio.Event()
        self._is_ours = False

    def note(self, item: Item, piece: str) -> None:
        """Takes the next piece of the answer to ``item``."""
        if not is_chat(item):
            return
        said = self._said.pop(item.id, Spoken())
        self._said[item.id] = Spoken(
            said.count + len(piece), (said.tail + piece)[-TAIL_CHARS:]
        )  # fmt: skip
        while len(self._said) > ANSWERS_FOLLOWED:
            self._said.popitem(last=False)
        self._unsaved.add(item.id)
        self._more.set()

    async def find(self, item_id: ItemId) -> Spoken | None:
        """How far the answer has got; None if nothing of it was said, or it is there."""
        if self._is_ours:
            return self._said.get(item_id)
        return await self._store.find_spoken(item_id)

    async def run(self, fence: int) -> None:
        """Writes what is new for other processes, until cancelled: for as long as this one alone
        runs turns. Raises LeaseLost."""
        self._is_ours = True
        try:
            while True:
                await self._more.wait()
                self._more, unsaved = anyio.Event(), self._unsaved
                self._unsaved = set()
                said = {one: self._said[one] for one in unsaved if one in self._said}
                await self._store.save_spoken(said, fence)
                await anyio.sleep(WRITE_EVERY_S)
        finally:
            self._is_ours = False
            self._said.clear()
            self._unsaved.clear()
