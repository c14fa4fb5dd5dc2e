"""What a look at all rooms finds, and what of it may be mended."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from homeroom.model import AgentId, GhostId, Mapping, RoomId, RoomView, Unread
from homeroom.residence import Claim, RoomsReport, RoomState, Stage
from homeroom.rooms_report import dump_fixed, examine_rooms, read_fixed, with_fixed

HUB, ADA, BROOK = (GhostId(f"@agent_{name}:hs.test") for name in ("hub", "1", "2"))
HOME, OTHER, CHAT, LOOSE = (RoomId(f"!{name}") for name in ("home", "other", "chat", "loose"))
YOU = "@you:hs.test"
ROWS = {
    AgentId("agent-1"): Mapping(AgentId("agent-1"), ADA, HOME, hub_joined=True, agent_name="Ada"),
    AgentId("agent-2"): Mapping(AgentId("agent-2"), BROOK, OTHER, agent_name="Brook"),
}
HOMES = [
    Claim(HOME, AgentId("agent-1"), "home", "open", 7),
    Claim(OTHER, AgentId("agent-2"), "home", "open", 8),
]


def view(room: RoomId, *joined: str, **more: object) -> RoomView:
    members = dict.fromkeys(joined, "join")
    return RoomView(room, known=True, members=members, **more)  # type: ignore[arg-type]


SOUND = {HOME: view(HOME, HUB, ADA, YOU), OTHER: view(OTHER, HUB, BROOK, YOU)}


def look(
    *views: RoomView, claims: list[Claim] | None = None, rows: dict[AgentId, Mapping] = ROWS
) -> dict[RoomId, RoomState]:
    seen = SOUND | {view.room_id: view for view in views}
    found = examine_rooms(
        seen, rows, [*HOMES, *(claims or [])], HUB, lambda user: user.startswith("@agent_")
    )
    return {state.room_id: state for state in found}


def kinds(state: RoomState) -> list[str]:
    return [fault.kind for fault in state.faults]


def test_what_nobody_could_read_is_shown_until_its_room_was_told() -> None:
    unread = [Unread(CHAT, 1_000, 61_000), Unread(LOOSE, 1_000, 61_000)]
    found = examine_rooms({}, ROWS, [Claim(CHAT, AgentId("agent-1"))], HUB, lambda u: True, unread)
    (room,) = found
    (fault,) = [fault for fault in room.faults if "could not be read" in fault.detail]
    assert "between 1970-01-01 00:00:01 UTC and 1970-01-01 00:01:01 UTC" in fault.detail


def test_sound_rooms_are_told_with_who_serves_them_since_when() -> None:
    chat = Claim(CHAT, AgentId("agent-1"), stage="open", since_ms=9, is_direct=True)
    found = look(view(CHAT, HUB, ADA, YOU), claims=[chat])
    assert [room.kind for room in found.values()] == ["home", "home", "further"]
    assert all(not room.faults and room.people_count == 1 for room in found.values())
    (server,) = found[HOME].served_by
    assert (server.agent_name, server.since_ms) == ("Ada", 7)
    assert found[CHAT].is_direct


def test_what_should_not_be_so_is_named() -> None:
    assert kinds(look(view(HOME, ADA, YOU))[HOME]) == ["hub_missing"]
    assert kinds(look(view(HOME, HUB, YOU))[HOME]) == ["failing"]
    assert kinds(look(view(HOME, HUB, ADA))[HOME]) == ["no_people"]
    assert kinds(look(view(HOME, HUB, ADA, BROOK, YOU))[HOME]) == ["conflict"]
    assert kinds(look(view(LOOSE, HUB, ADA, YOU))[LOOSE]) == ["stray_ghost"]
    chat = [Claim(CHAT, AgentId("agent-1"), stage="open")]
    assert kinds(look(view(CHAT, HUB, YOU), claims=chat)[CHAT]) == ["stale_claim"]
    assert kinds(look(view(CHAT, HUB, ADA), claims=chat)[CHAT]) == ["stale_claim"]
    assert kinds(look(view(CHAT, HUB, ADA, YOU, closed=True), claims=chat)[CHAT]) == ["stale_claim"]
    assert kinds(look(claims=chat)[CHAT]) == ["hub_missing"]
    shared = [*chat, Claim(CHAT, AgentId("agent-2"), stage="open")]
    assert kinds(look(view(CHAT, HUB, ADA, BROOK, YOU), claims=shared)[CHAT]) == []


def test_a_second_room_marked_as_a_home_is_shown_and_never_emptied() -> None:
    marked = view(LOOSE, HUB, ADA, YOU, marker={"agent_id": "agent-1"}, marked_by=ADA)
    (fault,) = look(marked)[LOOSE].faults
    assert fault.kind == "duplicate" and not fault.fixable and HOME in fault.detail
    forged = replace(marked, marked_by=YOU)
    assert kinds(look(forged)[LOOSE]) == ["stray_ghost"], "anybody may write such a thing"
    lost = {k: replace(row, room_id=None) for k, row in ROWS.items()}
    found = examine_rooms({LOOSE: forged}, lost, [], HUB, lambda u: u.startswith("@agent_"))
    assert found == (), "an agent whose home is not known may be at home here"


def test_a_space_is_no_room_to_talk_in() -> None:
    assert LOOSE not in look(view(LOOSE, HUB, ADA, YOU, room_type="m.space"))


stages = st.sampled_from(["joining", "open", "leaving", "left"])


@given(
    st.dictionaries(
        st.sampled_from([HOME, OTHER, CHAT, LOOSE]),
        st.dictionaries(
            st.sampled_from([HUB, ADA, BROOK, YOU, "@agent_9:hs.test"]),
            st.sampled_from(["join", "invite", "leave", "ban"]),
        ),
    ),
    st.lists(st.tuples(st.sampled_from([CHAT, LOOSE]), st.sampled_from([1, 2]), stages)),
)
def test_nothing_that_may_be_mended_takes_an_agent_out_of_its_home(
    members: dict[RoomId, dict[str, str]], claimed: list[tuple[RoomId, int, Stage]]
) -> None:
    claims = [Claim(room, AgentId(f"agent-{n}"), stage=stage) for room, n, stage in claimed]
    views = {room: RoomView(room, known=True, members=who) for room, who in members.items()}
    found = examine_rooms(views, ROWS, [*HOMES, *claims], HUB, lambda u: u.startswith("@agent_"))
    own = {(row.room_id, row.ghost) for row in ROWS.values()}
    for room in found:
        for fault in room.faults:
            if fault.fixable and fault.kind != "hub_missing":
                assert (room.room_id, fault.ghost) not in own and fault.ghost != HUB


def test_what_was_mended_is_told_in_its_room_and_survives_the_way_through_the_store() -> None:
    (state,) = [room for room in look(view(LOOSE, HUB, ADA, YOU)).values() if room.faults]
    fixed = [(state.room_id, replace(state.faults[0], fixed=True))]
    assert list(read_fixed(dump_fixed(fixed))) == fixed
    report = with_fixed(RoomsReport(rooms=()), fixed)
    assert report.rooms[0].faults[0].fixed and report.fault_count == 0
