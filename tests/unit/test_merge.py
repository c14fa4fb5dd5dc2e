"""Two readers' parts of one stretch of a room become one, in the room's order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from homeroom.matrix._absences import merge, walk_back


def raws(ids: list[int]) -> list[dict[str, object]]:
    return [{"event_id": number} for number in ids]


def ids(found: list[dict[str, object]]) -> list[object]:
    return [raw["event_id"] for raw in found]


@given(
    st.lists(st.sampled_from(["both", "ghost", "hub"]), max_size=20),
    st.lists(st.sampled_from(["both", "hub"]), max_size=5),
)
def test_nothing_is_lost_or_doubled_and_each_readers_order_holds(
    seen_by: list[str], at_last: list[str]
) -> None:
    whole = [*seen_by, *at_last]
    hub = [number for number, who in enumerate(whole) if who != "ghost"]
    ghost = [number for number, who in enumerate(whole) if who != "hub"]
    merged = ids(merge(raws(hub), raws(ghost)))
    assert sorted(merged) == list(range(len(whole)))
    assert [number for number in merged if number in hub] == hub
    assert [number for number in merged if number in ghost] == ghost


def test_what_the_hub_alone_saw_stands_before_the_next_that_both_saw() -> None:
    assert ids(merge(raws([3, 4, 5, 7]), raws([1, 2, 5, 6]))) == [1, 2, 3, 4, 5, 6, 7]


async def test_a_walk_back_ends_where_the_room_is_known_or_begins_or_goes_on_too_long() -> None:
    asked: list[str] = []

    async def read(end: str) -> tuple[list[dict[str, object]], str]:
        asked.append(end)
        at = int(end)
        return [{"origin_server_ts": at - 1}], str(at - 1) if at > 1 else ""

    assert await walk_back(read, "9", 6) == "6"
    assert asked == ["9", "8", "7"]
    assert await walk_back(read, "9", 0) == "1"
    asked.clear()
    assert await walk_back(read, "100", 0) == "80" and len(asked) == 20
