"""What the store keeps of the hub's absences, so that nothing said meanwhile is missed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from homeroom.items import Decision
from homeroom.model import (
    Absence,
    AgentId,
    GhostId,
    Mapping,
    Member,
    RoomEvent,
    RoomId,
    SyncBatch,
)
from homeroom.residence import Claim
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


def went(room: RoomId, since: str, membership: str = "leave") -> SyncBatch:
    member = Member(room, HUB, membership, "Homeroom", 1)
    if membership == "join":
        return SyncBatch("after", members=(member,), joined_ms={room: 1}, since=since)
    return SyncBatch("after", members=(member,), left_rooms=(room,), since=since)


async def test_a_room_is_missed_from_before_the_hub_went_until_it_is_back(tmp_path: Path) -> None:
    async with opened(tmp_path) as (store, fence):
        found = await store.find_absences(HUB, ROOMS)
        assert found == {HOME: Absence(ADA.ghost), CHAT: Absence(ADA.ghost)}
        for room in ROOMS:
            await store.record_batch(went(room, f"s1-{room}"), ignore, is_ghost, fence)
        # It came back and went again without a step in between: the first time counts.
        await store.record_batch(went(HOME, "s2"), ignore, is_ghost, fence)
        found = await store.find_absences(HUB, ROOMS)
        assert {room: absence.since for room, absence in found.items()} == {
            HOME: f"s1-{HOME}",
            CHAT: f"s1-{CHAT}",
        }
        assert not any(absence.was_in for absence in found.values())

    async with open_store(tmp_path / "s.db") as store:  # it outlives a restart
        fence = (await store.take_lease("you", rank=2, ttl_ms=60_000)).fence
        await store.record_batch(went(HOME, "s3", "join"), ignore, is_ghost, fence)
        found = await store.find_absences(HUB, ROOMS)
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
        assert (await store.find_absences(HUB, [CHAT])) == {CHAT: Absence(ADA.ghost)}


async def test_an_absence_ends_with_the_last_claim_on_the_room(tmp_path: Path) -> None:
    async with opened(tmp_path) as (store, fence):
        await store.record_batch(went(CHAT, "s1"), ignore, is_ghost, fence)
        await store.end_claims(CHAT, "the agent's user was put out", fence)
        assert await store.find_absences(HUB, [CHAT]) == {}
        await store.record_batch(went(HOME, "s2"), ignore, is_ghost, fence)
        await store.open_claim(Claim(CHAT, ADA.agent_id), fence)
        assert (await store.find_absences(HUB, [CHAT])) == {CHAT: Absence(ADA.ghost)}
