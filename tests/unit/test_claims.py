"""One agent per room, as a constraint: over a real store."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeroom.errors import LeaseLost, Rejected
from homeroom.items import Decision, ItemKind, NewItem
from homeroom.model import (
    AgentId,
    EventId,
    GhostId,
    Mapping,
    Member,
    RoomEvent,
    RoomId,
    StateEvent,
    SyncBatch,
)
from homeroom.residence import Claim, Guest, Refusal
from homeroom.store import Store, open_store
from support.outcome import outcome_of

HUB, ADA, BROOK = (GhostId(f"@agent_{name}:hs.test") for name in ("hub", "1", "2"))
HOME, OTHER, CHAT = RoomId("!home"), RoomId("!other"), RoomId("!chat")
YOU, ME = "@you:hs.test", "@me:hs.test"
ROWS = [
    Mapping(AgentId("agent-1"), ADA, HOME, hub_joined=True, agent_name="Ada"),
    Mapping(AgentId("agent-2"), BROOK, OTHER, hub_joined=True, agent_name="Brook"),
]


def is_ghost(user: str) -> bool:
    return user.startswith("@agent_")


def decide(event: RoomEvent, mapping: Mapping, people: int) -> Decision:
    """Every agent in the room takes a turn."""
    key = f"{event.id}@{mapping.agent_id}"
    turn = NewItem(f"lane:{mapping.agent_id}", ItemKind.TURN, {"room": mapping.room_id}, key)
    return Decision("relayed", (turn,))


class World:
    def __init__(self, store: Store, fence: int) -> None:
        self.store, self.fence = store, fence

    async def hear(self, *members: Member, **batch: object) -> None:
        told = SyncBatch("s", members=members, **batch)  # type: ignore[arg-type]
        await self.store.record_batch(told, decide, is_ghost, self.fence)

    async def enter(self, agent: int, room: RoomId = CHAT, heard_ms: int = 5) -> Claim:
        """The agent comes into a further room, and so does the hub."""
        claim = Claim(room, AgentId(f"agent-{agent}"), invited_by=YOU)
        await self.store.open_claim(claim, self.fence)
        ghost = (ADA, BROOK)[agent - 1]
        await self.hear(*(Member(room, user, "join") for user in (YOU, ghost, HUB)))
        await self.store.settle_claim_open(claim, heard_ms, decide, self.fence)
        return claim

    async def stages(self, room: RoomId = CHAT) -> dict[str, str]:
        claims = await self.store.list_claims()
        return {claim.agent_id: claim.stage for claim in claims if claim.room_id == room}


@asynccontextmanager
async def world(path: Path) -> AsyncIterator[World]:
    async with open_store(path / "s.db") as store:
        fence = (await store.take_lease("me", rank=1, ttl_ms=60_000)).fence
        for row in ROWS:
            await store.save_mapping(row, decide, fence)
        yield World(store, fence)


async def test_a_home_is_claimed_by_its_row_and_nobody_else_can_claim_it(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        assert await it.stages(HOME) == {"agent-1": "open"}
        with pytest.raises(Rejected, match="a home belongs to one agent"):
            await it.store.open_claim(Claim(HOME, AgentId("agent-2")), it.fence)
    # Nor around the code: the rule stands in the schema.
    connection = sqlite3.connect(tmp_path / "s.db")
    for kind in ("home", "further"):
        with pytest.raises(sqlite3.IntegrityError, match="a home belongs to one agent"):
            connection.execute(
                "INSERT OR REPLACE INTO room_claim (room_id, agent_id, kind, stage, since_ms)"
                " VALUES ('!home', 'agent-2', ?, 'open', 1)",
                (kind,),
            )
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute(
            "INSERT INTO room_claim (room_id, agent_id, kind, stage, since_ms)"
            " VALUES ('!second', 'agent-1', 'home', 'open', 1)"
        )
    connection.close()


async def test_an_agent_that_moves_gives_its_old_home_back_and_its_new_home_is_its_own(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as it:
        await it.enter(2)
        moved = Mapping(AgentId("agent-1"), ADA, CHAT, hub_joined=True, agent_name="Ada")
        await it.store.save_mapping(moved, decide, it.fence)
        assert await it.stages(HOME) == {"agent-1": "left"}
        assert await it.stages(CHAT) == {"agent-1": "open", "agent-2": "leaving"}
        (work,) = await it.store.list_unsettled(HUB)
        assert work.ghost == BROOK and not work.is_last, "the hub stays"


async def test_several_agents_may_share_a_further_room_and_each_hears_it(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        await it.enter(1)
        await it.enter(2)
        seen: list[tuple[str, bool, tuple[str, ...]]] = []

        def judge(event: RoomEvent, mapping: Mapping, people: int) -> Decision:
            assert isinstance(mapping, Guest) and mapping.room_id == CHAT and people == 1
            names = tuple(name for _, name in mapping.others)
            seen.append((mapping.agent_id, mapping.is_first, names))
            return decide(event, mapping, people)

        event = RoomEvent(EventId("$1"), CHAT, YOU, "m.room.message", {"body": "x"}, 9)
        accepted = await it.store.record_batch(SyncBatch("s", (event,)), judge, is_ghost, it.fence)
        assert seen == [("agent-1", True, ("Brook",)), ("agent-2", False, ("Ada",))]
        assert {a.ghost for a in accepted} == {ADA, BROOK}
        assert (await it.store.count_items())["waiting"] == 2
        outcome = await outcome_of(it.store, "$1")
        assert outcome and outcome[0] == "relayed" and outcome[1]


async def test_what_is_said_while_the_hub_settles_in_is_routed_when_it_has(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        claim = Claim(CHAT, AgentId("agent-1"))
        await it.store.open_claim(claim, it.fence)
        event = RoomEvent(EventId("$1"), CHAT, YOU, "m.room.message", {"body": "x"}, 9)
        await it.hear(events=(event,))
        assert await it.store.count_items() == {}
        await it.store.settle_claim_open(claim, 5, decide, it.fence)
        assert await it.store.count_items() == {"waiting": 1}


@pytest.mark.parametrize(
    ("batch", "stages"),
    [
        (SyncBatch("s", members=(Member(CHAT, ADA, "leave"),)), ("leaving", "open")),
        (SyncBatch("s", members=(Member(CHAT, ADA, "ban"),)), ("leaving", "open")),
        (SyncBatch("s", members=(Member(CHAT, YOU, "leave"),)), ("leaving", "leaving")),
        (
            SyncBatch("s", members=(Member(CHAT, ME, "invite"), Member(CHAT, YOU, "leave"))),
            ("open", "open"),
        ),
        (SyncBatch("s", members=(Member(OTHER, YOU, "leave"),)), ("open", "open")),
        (SyncBatch("s", left_rooms=(CHAT,)), ("joining", "joining")),
        (
            SyncBatch("s", state=(StateEvent(CHAT, "m.room.tombstone", "", {"body": "x"}, YOU),)),
            ("leaving", "leaving"),
        ),
        (
            # Told of a past in which the agent was out, and of its coming back since.
            SyncBatch("s", members=(Member(CHAT, ADA, "leave"), Member(CHAT, ADA, "join"))),
            ("open", "open"),
        ),
    ],
)
async def test_a_claim_ends_with_the_agent_the_people_or_the_room(
    tmp_path: Path, batch: SyncBatch, stages: tuple[str, str]
) -> None:
    async with world(tmp_path) as it:
        await it.enter(1)
        await it.enter(2)
        await it.store.record_batch(batch, decide, is_ghost, it.fence)
        now = await it.stages()
        assert (now["agent-1"], now["agent-2"]) == stages
        homes = await it.stages(HOME) | await it.stages(OTHER)
        assert set(homes.values()) == {"open"}, "a home does not end so"


async def test_a_room_without_the_hub_is_tried_again_once_the_hub_is_invited(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as it:
        claim = Claim(CHAT, AgentId("agent-1"))
        await it.store.open_claim(claim, it.fence)
        assert [w.claim.room_id for w in await it.store.list_unsettled(HUB)] == [CHAT]
        await it.store.note_claim_problem(claim, HUB, "not let in", it.fence)
        assert await it.store.list_unsettled(HUB) == []
        await it.hear(Member(CHAT, HUB, "invite"))
        (work,) = await it.store.list_unsettled(HUB)
        assert work.hub_is_invited and work.is_last
        await it.store.note_claim_problem(claim, HUB, "still not", it.fence)
        assert await it.store.list_unsettled(HUB) == [], "the invitation is used up"


async def test_a_start_ends_what_the_hub_knows_to_be_over_and_nothing_else(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        await it.enter(1)
        await it.enter(2, RoomId("!dead"))
        await it.enter(1, RoomId("!dead2"))
        connection = sqlite3.connect(tmp_path / "s.db")
        out = "UPDATE member SET membership = 'leave' WHERE room_id = ? AND user_id = ?"
        connection.execute(out, ("!dead", BROOK))
        connection.execute(out, ("!dead2", YOU))
        connection.commit()
        connection.close()
        await it.store.end_stale_claims(it.fence)
        assert await it.stages() == {"agent-1": "open"}
        assert await it.stages(RoomId("!dead")) == {"agent-2": "leaving"}
        assert await it.stages(RoomId("!dead2")) == {"agent-1": "leaving"}


async def test_an_agent_in_the_home_of_another_is_seen_until_it_is_turned_away(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as it:
        await it.hear(Member(HOME, BROOK, "invite"), Member(HOME, ADA, "join"))
        (intruder,) = await it.store.list_intruders()
        assert (intruder.ghost, intruder.host, intruder.own_room) == (BROOK, ADA, OTHER)
        refusal = Refusal("conflict", HOME, BROOK, "", "not its home", 1, 0)
        await it.store.note_refusal(refusal, it.fence)
        assert await it.store.list_intruders() == []
        await it.store.note_refusal(refusal, it.fence)
        (seen,), counts = await it.store.list_refusals()
        assert seen.count == 2 and counts == {"invitation": 0, "conflict": 2}


async def test_no_claim_is_written_by_a_process_that_does_not_run_the_bridge(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as it:
        old = it.fence
        await it.store.release_lease(old)
        await it.store.take_lease("another", rank=1, ttl_ms=60_000)
        with pytest.raises(LeaseLost):
            await it.store.open_claim(Claim(CHAT, AgentId("agent-1")), old)
        with pytest.raises(LeaseLost):
            await it.store.end_claims(CHAT, "x", old)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("cmed"), st.integers(1, 2), st.integers(0, 2))))
def test_whatever_happens_a_home_has_one_agent_and_an_agent_one_home(
    steps: list[tuple[str, int, int]],
) -> None:
    """Claims, moves, ends and departures in any order: the rule holds after each."""
    import tempfile

    import anyio

    rooms = [HOME, OTHER, CHAT]

    async def play(path: Path) -> None:
        async with world(path) as it:
            for what, agent, room in steps:
                row = ROWS[agent - 1]
                try:
                    if what == "c":
                        await it.store.open_claim(Claim(rooms[room], row.agent_id), it.fence)
                    elif what == "m":
                        moved = Mapping(row.agent_id, row.ghost, rooms[room])
                        await it.store.save_mapping(moved, decide, it.fence)
                    elif what == "e":
                        await it.store.end_claims(rooms[room], "x", it.fence)
                    else:
                        await it.hear(Member(rooms[room], row.ghost, "leave"))
                except Rejected:
                    continue
                valid = [c for c in await it.store.list_claims() if c.is_valid]
                homes = {c.room_id: c.agent_id for c in valid if c.kind == "home"}
                rows = (await it.store.list_mappings()).values()
                assert homes == {m.room_id: m.agent_id for m in rows if m.room_id}
                for claim in valid:
                    assert homes.get(claim.room_id, claim.agent_id) == claim.agent_id

    with tempfile.TemporaryDirectory() as directory:
        anyio.run(play, Path(directory))
