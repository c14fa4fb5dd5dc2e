"""What the hub's sync costs: a commit for what is news, and none for what our ghosts said."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import anyio

from homeroom.intake import IntakeState, run_intake
from homeroom.items import Decision
from homeroom.matrix import Matrix
from homeroom.model import EventId, Mapping, RoomEvent, RoomId, StateEvent, SyncBatch
from homeroom.store import open_store

ROOM, GHOST = RoomId("!r:hs.test"), "@agent_1:hs.test"


def ignore(event: RoomEvent, mapping: Mapping, people: int) -> Decision:
    return Decision("ignored")


class Hub:
    """A homeserver whose sync brings these batches, and then nothing for ever."""

    hub = "@agent_hub:hs.test"

    def __init__(self, *batches: SyncBatch) -> None:
        self._batches, self.read_all = list(batches), anyio.Event()

    def is_ghost(self, user: str) -> bool:
        return user == GHOST

    async def sync(self, since: str, timeout_ms: int, find_absences: object) -> SyncBatch:
        if not self._batches:
            self.read_all.set()
            await anyio.sleep_forever()
        return self._batches.pop(0)


async def test_what_a_ghost_changed_is_recorded_and_what_it_said_costs_no_commit(
    tmp_path: Path,
) -> None:
    said = RoomEvent(EventId("$1"), ROOM, GHOST, "m.room.message", {"body": "x"}, 1)
    named = StateEvent(ROOM, "m.room.name", "", {"name": "Ada"}, GHOST)
    hub = Hub(SyncBatch("first"), SyncBatch("changed", state=(named,)), SyncBatch("said", (said,)))
    async with open_store(tmp_path / "s.db") as store:
        fence = (await store.take_lease("me", rank=1, ttl_ms=60_000)).fence

        async def read() -> None:
            await run_intake(
                store, cast(Matrix, hub), ignore, lambda *_: (), lambda _: None,
                fence=fence, state=IntakeState(),
            )  # fmt: skip

        async with anyio.create_task_group() as group:
            group.start_soon(cast(Any, read))
            with anyio.fail_after(10):
                await hub.read_all.wait()
            assert await store.get_cursor() == "changed"
            assert (await store.list_rooms())[ROOM].name.text == "Ada"
            group.cancel_scope.cancel()
