"""A clock of ours that is set while we are down makes no young message an old one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from homeroom.intake import IntakeState, run_intake
from homeroom.items import Decision
from homeroom.matrix import Matrix
from homeroom.matrix._client import _date_ms
from homeroom.model import AgentId, EventId, GhostId, Mapping, RoomEvent, RoomId, SyncBatch
from homeroom.store import open_store

HOUR_MS = 3_600_000
ROOM = RoomId("!r:hs.test")
HOME = Mapping(agent_id=AgentId("agent-1"), ghost=GhostId("@agent_1:hs.test"), room_id=ROOM)


class Hub:
    """A homeserver whose sync brings this batch, and then nothing for ever."""

    hub = "@agent_hub:hs.test"

    def __init__(self, batch: SyncBatch) -> None:
        self._batches = [batch]

    def is_ghost(self, user: str) -> bool:
        return user.startswith("@agent_")

    async def sync(self, since: str, timeout_ms: int, _: object = None) -> SyncBatch:
        if not self._batches:
            await anyio.sleep_forever()
        return self._batches.pop()


@pytest.mark.parametrize(("age_h", "homeserver_tells"), [(0, True), (3, True), (0, False)])
async def test_the_homeservers_clock_says_how_old_its_messages_are(
    age_h: int, homeserver_tells: bool, tmp_path: Path
) -> None:
    """Ours was five hours behind when it ran last: it was put right while we were down."""
    true_ms = time.time_ns() // 1_000_000
    said = RoomEvent(
        EventId("$1"), ROOM, "@you:hs.test", "m.room.message", {"body": "x", "msgtype": "m.text"},
        true_ms - age_h * HOUR_MS,
    )  # fmt: skip
    heard, late = anyio.Event(), list[int]()

    def judge(event: RoomEvent, mapping: Mapping, people: int) -> Decision:
        late.append(event.late_ms)
        anyio.from_thread.run_sync(heard.set)
        return Decision("ignored")

    path = tmp_path / "s.db"
    async with open_store(path, lambda: true_ms - 5 * HOUR_MS) as store:
        fence = (await store.take_lease("me", rank=1, ttl_ms=60_000)).fence
        await store.save_mapping(HOME, judge, fence)
        await store.record_batch(SyncBatch("s0"), judge, lambda user: False, fence)
    ahead_ms = 2 * HOUR_MS  # and it is off by so much even now
    batch = SyncBatch("s1", (said,), now_ms=true_ms if homeserver_tells else 0)
    now_ms = true_ms + ahead_ms
    async with open_store(path, lambda: now_ms) as store, anyio.create_task_group() as group:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(time, "time_ns", lambda: now_ms * 1_000_000)

            async def read() -> None:
                await run_intake(
                    store, cast(Matrix, Hub(batch)), judge, lambda *_: (), lambda _: None,
                    fence=fence, state=IntakeState(),
                )  # fmt: skip

            group.start_soon(cast(Any, read))
            with anyio.fail_after(10):
                await heard.wait()
            group.cancel_scope.cancel()
    assert late == [age_h * HOUR_MS if homeserver_tells else ahead_ms]


def test_a_date_that_nobody_can_read_is_no_date() -> None:
    assert _date_ms({"Date": "Thu, 01 Jan 1970 00:00:05 GMT"}) == 5_000
    for headers in ({}, {"Date": ""}, {"Date": "soon"}, {"Date": "Thu, 99 Jan 1970 00:00:05 GMT"}):
        assert _date_ms(headers) == 0
