"""What the store keeps of the hub's absences, so that nothing said meanwhile is missed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from homeroom.decide import unread_notice
from homeroom.items import Decision
from homeroom.model import (
    AgentId,
    EventId,
    GhostId,
    Mapping,
    Member,
    RoomEvent,
    RoomId,
    SyncBatch,
    Unread,
)
from homeroom.residence import Absence, Claim
from homeroom.store import Store, open_store

HUB = GhostId("@agent_hub:hs.test")
HOME, CHAT, NOBODYS = RoomId("!home:hs.test"), RoomId("!chat:hs.test"), RoomId("!x:hs.test")
ROOMS = (HOME, CHAT, NOBODYS)
ADA = Mapping(
    agent_id=AgentId("agent-1"), ghost=GhostId("@agent_1:hs.test"), room_id=HOME, hub_joined=True
)


def ignore(event: RoomEvent, mapping: Mapping, people: int) -> Decision:
    return Decision("ignored")


def is_ghost(user: str) -> bool:
    return user.startswith("@agent_")


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[tuple[Store, int]]:
    """A store in which Ada has a home and a direct chat."""
    async with open_store(path / "s.db") as store:
        fence = (await store.take_lease("me", rank=1, ttl_ms=60_000)).fence
        await store.save_mapping(ADA, ignore, fence)
        claim = Claim(CHAT, ADA.agent_id)
        await store.open_claim(claim, fence)
        await store.settle_claim_open(claim, 1, ignore, fence)
        yield store, fence


async def absences(store: Store, *rooms: RoomId) -> dict[RoomId, Absence]:
    """What is known, but for how much of a room is."""
    found = await store.find_absences(HUB, rooms)
    return {room: replace(absence, known_ms=0) for room, absence in found.items()}


def went(room: RoomId, since: str, membership: str = "leave") -> SyncBatch:
    member = Member(room, HUB, membership, "Homeroom", 1)
    if membership == "join":
        return SyncBatch("after", members=(member,), joined_ms={room: 1}, since=since)
    return SyncBatch("after", members=(member,), left_rooms=(room,), since=since)


async def test_a_room_is_missed_from_before_the_hub_went_until_it_is_back(tmp_path: Path) -> None:
    async with opened(tmp_path) as (store, fence):
        found = await absences(store, *ROOMS)
        assert found == {HOME: Absence(ADA.ghost), CHAT: Absence(ADA.ghost)}
        for room in ROOMS:
            await store.record_batch(went(room, f"s1-{room}"), ignore, is_ghost, fence)
        # It came back and went again without a step in between: the first time counts.
        await store.record_batch(went(HOME, "s2"), ignore, is_ghost, fence)
        found = await absences(store, *ROOMS)
        assert {room: absence.since for room, absence in found.items()} == {
            HOME: f"s1-{HOME}",
            CHAT: f"s1-{CHAT}",
        }
        assert not any(absence.was_in for absence in found.values())

    async with open_store(tmp_path / "s.db") as store:  # it outlives a restart
        fence = (await store.take_lease("you", rank=2, ttl_ms=60_000)).fence
        await store.record_batch(went(HOME, "s3", "join"), ignore, is_ghost, fence)
        found = await absences(store, *ROOMS)
        assert found == {
            HOME: Absence(ADA.ghost, was_in=True),
            CHAT: Absence(ADA.ghost, f"s1-{CHAT}"),
        }


async def test_where_the_hub_left_of_itself_nothing_is_missed(tmp_path: Path) -> None:
    async with opened(tmp_path) as (store, fence):
        await store.end_claims(CHAT, "asked to", fence)
        await store.record_batch(went(CHAT, "s1"), ignore, is_ghost, fence)
        claim = Claim(CHAT, ADA.agent_id)
        await store.open_claim(claim, fence)
        assert await absences(store, CHAT) == {CHAT: Absence(ADA.ghost)}


async def test_what_nobody_could_read_is_told_once_by_a_ghost_that_is_there(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as (store, fence):
        lost = Unread(HOME, 1_000, 61_000)
        nowhere = Unread(NOBODYS, 1_000, 61_000)

        def in_home(membership: str, *unread: Unread) -> SyncBatch:
            member = Member(HOME, ADA.ghost, membership, "Ada", 1)
            return SyncBatch("after", members=(member,), unread=unread)

        async def hear(batch: SyncBatch) -> list[str]:
            await store.record_batch(batch, ignore, is_ghost, fence, tell_unread=unread_notice)
            rows = store._rows("SELECT payload FROM item WHERE kind = 'post' ORDER BY id")
            return [json.loads(row["payload"])["content"]["body"] for row in rows]

        assert await hear(in_home("leave", lost, nowhere)) == [], "nobody is there to tell it"
        assert await store.list_unread() == [lost]
        (told,) = await hear(in_home("join"))
        assert "1970-01-01 00:00:01 UTC" in told and "00:01:01 UTC could not be read" in told
        assert await store.list_unread() == []
        assert await hear(in_home("join", lost)) == [told], "said once"


async def test_a_hub_that_the_homeserver_has_lost_is_nowhere_and_no_token_leads_back(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as (store, fence):
        await store.record_batch(went(HOME, "s1", "join"), ignore, is_ghost, fence)
        await store.record_batch(went(CHAT, "s2"), ignore, is_ghost, fence)
        said = RoomEvent(EventId("$1"), HOME, "@you:hs.test", "m.room.message", {}, 77)
        await store.record_batch(SyncBatch("s3", (said,)), ignore, is_ghost, fence)
        await store.note_hub_lost(HUB, fence)
        found = await store.find_absences(HUB, [HOME, CHAT])
        assert {(one.since, one.was_in) for one in found.values()} == {("", False)}
        assert found[HOME].known_ms == 77, "it is read back to there"


async def test_an_absence_ends_with_the_last_claim_on_the_room(tmp_path: Path) -> None:
    async with opened(tmp_path) as (store, fence):
        await store.record_batch(went(CHAT, "s1"), ignore, is_ghost, fence)
        await store.end_claims(CHAT, "the agent's user was put out", fence)
        assert await absences(store, CHAT) == {}
        await store.record_batch(went(HOME, "s2"), ignore, is_ghost, fence)
        await store.open_claim(Claim(CHAT, ADA.agent_id), fence)
        assert await absences(store, CHAT) == {CHAT: Absence(ADA.ghost)}
