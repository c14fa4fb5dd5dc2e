"""Ghosts as guests on a real homeserver: their invitations, leaving, and rooms that are lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import SecretStr

from homeroom.errors import Rejected, Unavailable
from homeroom.guests import Guests
from homeroom.items import Decision
from homeroom.matrix import Matrix, open_matrix
from homeroom.model import AgentId, GhostId, Mapping, RoomEvent, RoomId
from homeroom.residence import Claim
from homeroom.store import Store, open_store
from support.matrix import as_ghost, connect
from support.person import Person
from support.rooms import invite, kick, new_room
from support.synapse import PASSWORD, Homeserver, matrix_config


@asynccontextmanager
async def person(homeserver: Homeserver, name: str) -> AsyncIterator[Person]:
    homeserver.person(name)
    async with Person.login(homeserver.url, name, PASSWORD) as someone:
        yield someone


async def test_a_ghost_sees_its_invitations_once_and_says_when_it_was_invited(
    synapse: Homeserver, unique: Callable[[str], str]
) -> None:
    async with connect(synapse) as matrix, person(synapse, unique("you")) as you:
        await matrix.check()
        ghost = await matrix.ensure_ghost(unique("agent_guest"))
        chat = await new_room(you, ghost, direct=True)
        space = await new_room(you, ghost, creation_content={"type": "m.space"})
        old = {"predecessor": {"room_id": "!old:hs.test", "event_id": "$x"}}
        new = await new_room(you, ghost, creation_content=old)
        found, since = await matrix.invitations(ghost, "")
        by_room = {invitation.room_id: invitation for invitation in found}
        assert set(by_room) == {chat, space, new}
        assert {invitation.inviter for invitation in found} == {you.id}
        assert by_room[RoomId(chat)].is_direct and not by_room[RoomId(new)].is_direct
        assert by_room[RoomId(space)].is_space and not by_room[RoomId(chat)].is_space
        assert by_room[RoomId(new)].predecessor == "!old:hs.test"
        again, since = await matrix.invitations(ghost, since)
        assert again == ()

        await matrix.ensure_joined(ghost, RoomId(chat))
        invited_ms = await matrix.invited_ms(ghost, RoomId(chat))
        (event,) = [
            event
            for event in await you.messages(chat, ("m.room.member",))
            if event["state_key"] == ghost and event["content"]["membership"] == "invite"
        ]
        assert invited_ms == event["origin_server_ts"]
        await matrix.ensure_left(ghost, RoomId(space), "no talk here")
        await matrix.ensure_left(ghost, RoomId(space))
        declined = await you.state(space, "m.room.member", ghost)
        assert (declined["membership"], declined["reason"]) == ("leave", "no talk here")
        assert await matrix.invited_ms(ghost, RoomId(space)) == 0
        await matrix.ensure_left(ghost, RoomId("!nowhere:hs.test"))
        assert await matrix.invitations(ghost, since) == (
            (),
            (await matrix.invitations(ghost, since))[1],
        )


def ignore(event: RoomEvent, mapping: Mapping, people: int) -> Decision:
    return Decision("ignored")


@asynccontextmanager
async def guests(
    homeserver: Homeserver, path: Path, localpart: str, **settings: Any
) -> AsyncIterator[tuple[Guests, Store, Matrix, GhostId, int]]:
    """A Guests with one agent, over a real store; nothing else of Homeroom runs."""
    async with connect(homeserver) as matrix, open_store(path / "s.db") as store:
        await matrix.check()
        ghost = await matrix.ensure_ghost(localpart)
        fence = (await store.take_lease("me", rank=1, ttl_ms=600_000)).fence
        row = Mapping(AgentId("agent-1"), ghost, ghost_ready=True, agent_name="Ada")
        await store.save_mapping(row, ignore, fence)
        config = matrix_config(homeserver, **settings)
        yield Guests(config, store, matrix, ignore, fence=fence), store, matrix, ghost, fence


async def settled(store: Store, stage: str) -> Claim:
    with anyio.fail_after(20):
        while True:
            changed = store.changed
            claims = await store.list_claims()
            if claims and claims[0].stage == stage:
                return claims[0]
            await changed.wait()


async def test_every_step_into_a_room_is_taken_once_and_a_room_lost_is_given_up(
    synapse: Homeserver, unique: Callable[[str], str], tmp_path: Path
) -> None:
    async with person(synapse, unique("you")) as you:
        it = guests(synapse, tmp_path, unique("agent_guest"), accept_invites=you.id)
        async with it as (loop, store, matrix, ghost, fence):
            chat = RoomId(await new_room(you))
            async with anyio.create_task_group() as group:
                group.start_soon(loop.run)
                await invite(you, chat, ghost)
                loop.hint([ghost, "@nobody:hs.test"])
                claim = await settled(store, "open")
                assert (claim.room_id, claim.invited_by) == (chat, you.id)
                assert claim.heard_from_ms == await matrix.invited_ms(ghost, chat)
                assert set(await you.members(chat)) == {you.id, ghost, matrix.hub}
                group.cancel_scope.cancel()

            # While nothing runs both go, and nothing tells of it any more.
            for user in (ghost, matrix.hub):
                for what in ("leave", "forget"):
                    as_ghost(synapse, user, "POST", f"/_matrix/client/v3/rooms/{chat}/{what}")
            again = Guests(
                matrix_config(synapse, accept_invites=you.id), store, matrix, ignore, fence=fence
            )
            async with anyio.create_task_group() as group:
                group.start_soon(again.run)
                claim = await settled(store, "left")
                assert "neither the agent's user nor the hub" in claim.end_reason
                group.cancel_scope.cancel()


async def test_an_invitation_that_was_taken_back_is_given_up_at_once(
    synapse: Homeserver, unique: Callable[[str], str], tmp_path: Path
) -> None:
    """403 is final: it is not asked again."""
    guest = guests(synapse, tmp_path, unique("agent_guest"))
    async with person(synapse, unique("you")) as you, guest as it:
        loop, store, matrix, ghost, fence = it
        chat = RoomId(await new_room(you, ghost))
        claim = Claim(chat, AgentId("agent-1"), invited_by=you.id)
        await store.open_claim(claim, fence)
        await kick(you, chat, ghost)
        with pytest.raises(Rejected):
            await matrix.ensure_joined(ghost, chat)
        async with anyio.create_task_group() as group:
            group.start_soon(loop.run)
            ended = await settled(store, "left")
            assert "does not let the agent in" in ended.end_reason
            group.cancel_scope.cancel()
        assert set(await you.members(chat)) == {you.id}


async def test_what_is_switched_off_is_left_to_people(
    synapse: Homeserver, unique: Callable[[str], str], tmp_path: Path
) -> None:
    """Whoever is not switched off, and begins later, has taken two invitations meanwhile."""
    off = guests(
        synapse, tmp_path, unique("agent_guest"), switch_off="accept_invites", invite_poll_s=1
    )
    (tmp_path / "other").mkdir()
    on = guests(
        synapse, tmp_path / "other", unique("agent_other"), accept_invites="local", invite_poll_s=1
    )
    async with (
        person(synapse, unique("you")) as you,
        off as (loop, store, _, ghost, _),
        on as (other_loop, others, _, other, _),
    ):
        chat = await new_room(you, ghost)
        async with anyio.create_task_group() as group:
            group.start_soon(loop.run)
            loop.hint([ghost])
            group.start_soon(other_loop.run)
            for count in (1, 2):
                await new_room(you, other)
                with anyio.fail_after(60):
                    while (changed := others.changed) and len(await others.list_claims()) < count:
                        await changed.wait()
            group.cancel_scope.cancel()
        assert await store.list_claims() == []
        assert (await you.state(chat, "m.room.member", ghost))["membership"] == "invite"


async def test_a_dead_token_ends_no_claim_and_is_no_reason_to_hurry(
    synapse: Homeserver, unique: Callable[[str], str], tmp_path: Path, caplog: Any
) -> None:
    """Complaints about others: a tight retry loop on a token that was replaced."""
    guest = guests(synapse, tmp_path, unique("agent_guest"), invite_poll_s=1)
    async with person(synapse, unique("you")) as you, guest as (_, store, _, ghost, fence):
        chat = RoomId(await new_room(you, ghost))
        await store.open_claim(Claim(chat, AgentId("agent-1"), invited_by=you.id), fence)
        dead = synapse.registration.model_copy(update={"as_token": SecretStr("replaced")})
        config = matrix_config(synapse, invite_poll_s=1)
        async with open_matrix(config, dead) as refused:
            loop = Guests(config, store, refused, ignore, fence=fence)
            with caplog.at_level("INFO", "homeroom.guests"), anyio.move_on_after(4):
                await loop.run()
        said = [record.message for record in caplog.records]
        assert 1 <= said.count("rooms_unsettled") <= 40
        assert 1 <= said.count("invitations_unknown") <= 40
        (claim,) = await store.list_claims()
        assert claim.stage == "joining" and not claim.problem


class OutOfReach(Matrix):
    """The homeserver is well, but whoever is in one room is not: a server far away that is gone."""

    far = RoomId("!far:gone.test")

    async def ensure_joined(self, ghost: GhostId, room_id: RoomId) -> None:
        if room_id == self.far:
            raise Unavailable("matrix", "no answer from gone.test")
        await super().ensure_joined(ghost, room_id)


async def test_a_room_out_of_reach_holds_up_no_other_and_is_given_up_in_the_end(
    synapse: Homeserver, unique: Callable[[str], str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("homeroom.guests.pause_s", lambda *_: 0.05)
    guest = guests(synapse, tmp_path, unique("agent_guest"), accept_invites="local")
    async with person(synapse, unique("you")) as you, guest as (_, store, matrix, ghost, fence):
        far = OutOfReach(matrix._wire, matrix.server_name, synapse.registration)
        await store.open_claim(Claim(far.far, AgentId("agent-1")), fence)
        near = RoomId(await new_room(you, ghost))
        loop = Guests(
            matrix_config(synapse, accept_invites="local"), store, far, ignore, fence=fence
        )
        async with anyio.create_task_group() as group:
            group.start_soon(loop.run)
            with anyio.fail_after(30):
                stages: dict[RoomId, str] = {}
                while stages.get(near) != "open" or stages.get(far.far) != "left":
                    changed = store.changed
                    claims = await store.list_claims()
                    stages = {claim.room_id: claim.stage for claim in claims}
                    if stages.get(near) != "open" or stages.get(far.far) != "left":
                        await changed.wait()
            (lost,) = [claim for claim in claims if claim.room_id == far.far]
            assert "out of reach: no answer from gone.test" in lost.end_reason
            group.cancel_scope.cancel()
