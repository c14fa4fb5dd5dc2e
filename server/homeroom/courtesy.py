"""What a ghost does besides answering: it reads what was accepted and types while its agent works.

Owns courtesies alone: all of it happens in the background, and any of it may fail without harm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

import anyio
import anyio.abc

from homeroom.errors import HomeroomError
from homeroom.items import Accepted
from homeroom.matrix import Matrix
from homeroom.model import EventId, GhostId, RoomId

TYPING_MS = 30_000


class Receipts:
    """Shows messages as read by the ghost that has accepted them, in the background.

    One request at a time for each ghost in each room; of several that wait, the newest stands for
    all, because a receipt covers everything before it.
    """

    def __init__(self, matrix: Matrix, background: anyio.abc.TaskGroup) -> None:
        self._matrix, self._background = matrix, background
        self._newest: dict[tuple[RoomId, GhostId], EventId] = {}
        self._busy: set[tuple[RoomId, GhostId]] = set()

    def show(self, accepted: Accepted) -> None:
        """Returns at once."""
        place = (accepted.room_id, accepted.ghost)
        self._newest[place] = accepted.event_id
        if place not in self._busy:
            self._busy.add(place)
            self._background.start_soon(self._send, *place)

    async def _send(self, room_id: RoomId, ghost: GhostId) -> None:
        place = (room_id, ghost)
        try:
            while newest := self._newest.pop(place, None):
                with suppress(HomeroomError):
                    await self._matrix.read_receipt(ghost, room_id, newest)
        finally:
            self._busy.discard(place)


class Typing:
    """Shows ghosts typing while their agents work: a courtesy, which may fail without harm.

    It goes on until the answer is posted, and all of it happens in the background: a homeserver
    does one thing at a time, and the answer shall not wait for the end of the typing.
    """

    def __init__(
        self, matrix: Callable[[], Awaitable[Matrix]], background: anyio.abc.TaskGroup
    ) -> None:
        self._matrix, self._background = matrix, background
        self._turns: Counter[tuple[str, str]] = Counter()
        self._scopes: dict[tuple[str, str], anyio.CancelScope] = {}

    @contextmanager
    def shown(self, ghost: str, room_id: str) -> Iterator[None]:
        """Shows it for a turn; after one that failed nobody waits for a post."""
        place = (ghost, room_id)
        self._turns[place] += 1
        if place not in self._scopes:
            scope = self._scopes[place] = anyio.CancelScope()
            self._background.start_soon(self._show, GhostId(ghost), RoomId(room_id), scope)
        try:
            yield
        except BaseException:
            self._turns[place] -= 1
            self.settle(ghost, room_id)
            raise
        self._turns[place] -= 1

    def settle(self, ghost: str, room_id: str) -> None:
        """Ends it, unless another turn has begun in the room."""
        place = (ghost, room_id)
        if not self._turns[place] and (scope := self._scopes.pop(place, None)):
            scope.cancel()

    async def _show(self, ghost: GhostId, room_id: RoomId, scope: anyio.CancelScope) -> None:
        with suppress(HomeroomError):
            matrix = await self._matrix()
            try:
                with scope:
                    while True:
                        await matrix.set_typing(ghost, room_id, True, TYPING_MS)
                        await anyio.sleep(TYPING_MS / 1000 * 0.8)
            finally:
                with anyio.move_on_after(2, shield=True):
                    await matrix.set_typing(ghost, room_id, False)
