"""Courtesies cost nobody anything: they wait for nothing, and may fail."""

from __future__ import annotations

import anyio
import pytest

from homeroom.courtesy import Receipts
from homeroom.errors import HomeroomError, Rejected, Unavailable
from homeroom.items import Accepted
from homeroom.model import EventId, GhostId, RoomId

GHOST = GhostId("@agent_1:hs.test")


class SlowMatrix:
    """A homeserver that answers when it is told to, or fails."""

    def __init__(self, error: HomeroomError | None = None) -> None:
        self.asked: list[tuple[str, str]] = []
        self.ghosts: list[str] = []
        """Who asked, in the same order."""
        self.go, self.error = anyio.Event(), error

    async def read_receipt(self, ghost: GhostId, room_id: RoomId, event_id: EventId) -> None:
        self.asked.append((room_id, event_id))
        self.ghosts.append(ghost)
        await self.go.wait()
        if self.error:
            raise self.error


def accepted(room: str, event: str, ghost: GhostId = GHOST) -> Accepted:
    return Accepted(ghost, RoomId(room), EventId(event))


async def test_of_many_receipts_of_a_room_the_first_and_the_newest_go_out() -> None:
    matrix = SlowMatrix()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as background:
            receipts = Receipts(matrix, background)  # type: ignore[arg-type]
            receipts.show(accepted("!a", "$1"))
            receipts.show(accepted("!b", "$2"))
            await anyio.wait_all_tasks_blocked()
            for number in range(3, 9):
                receipts.show(accepted("!a", f"${number}"))
            matrix.go.set()
    assert matrix.asked == [("!a", "$1"), ("!b", "$2"), ("!a", "$8")]


async def test_in_a_room_of_several_agents_each_shows_what_it_has_read() -> None:
    matrix, other = SlowMatrix(), GhostId("@agent_2:hs.test")
    with anyio.fail_after(10):
        async with anyio.create_task_group() as background:
            receipts = Receipts(matrix, background)  # type: ignore[arg-type]
            receipts.show(accepted("!a", "$1"))
            receipts.show(accepted("!a", "$1", other))
            await anyio.wait_all_tasks_blocked()
            for number in (2, 3):  # both are busy: of each the newest waits
                receipts.show(accepted("!a", f"${number}"))
                receipts.show(accepted("!a", f"${number}", other))
            matrix.go.set()
    shown = list(zip(matrix.ghosts, matrix.asked, strict=True))
    for ghost in (GHOST, other):
        assert [asked for who, asked in shown if who == ghost] == [("!a", "$1"), ("!a", "$3")]


@pytest.mark.parametrize("error", [Unavailable("matrix"), Rejected("matrix", "no")])
async def test_a_receipt_that_fails_harms_nobody_and_the_next_one_goes_out(
    error: HomeroomError,
) -> None:
    matrix = SlowMatrix(error)
    matrix.go.set()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as background:
            receipts = Receipts(matrix, background)  # type: ignore[arg-type]
            receipts.show(accepted("!a", "$1"))
            await anyio.wait_all_tasks_blocked()
            receipts.show(accepted("!a", "$2"))
    assert matrix.asked == [("!a", "$1"), ("!a", "$2")]
