"""kill -9 of the reconciler after each thing it does: the next run converges, and nothing is there
twice. Real servers; a proxy before the homeserver says when."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import anyio
import anyio.to_thread
import pytest

from homeroom.avatar import avatar_png
from homeroom.model import AgentId, ghost_localpart
from support.admin import admin_of
from support.breaking import MATRIX, OFTEN, assert_syncs, before, killed_at_each_step
from support.census import Census, Room, assert_one_of_each
from support.fault_proxy import Fault, FaultProxy, call, drop_before, path
from support.home import Home, Service
from support.person import Event
from support.rooms import is_called, says
from support.talk import ask


@pytest.mark.parametrize("recorded", [False, True], ids=["applied", "recorded"])
async def test_a_kill_after_each_action_makes_nothing_twice(own_home: Home, recorded: bool) -> None:
    """``applied``: killed when the homeserver has carried it out and nobody has written that down.
    ``recorded``: killed when the next one is about to be sent."""
    with before(own_home, MATRIX) as (home, proxy), Census(home.homeserver) as census:
        person = home.homeserver.person(home.person)
        numbers = itertools.count(1)

        async def one_more() -> int:
            number = next(numbers)
            await home.letta.create_agent(f"Agent {number}")
            return number

        await one_more()
        assert_syncs(home)
        fault = drop_before() if recorded else Fault()
        # User, names, picture, room, the hub's joining, the space.
        async for agents in killed_at_each_step(home, proxy, one_more, least=9, fault=fault):
            assert_one_of_each(census, agents, person)


async def test_a_kill_after_each_step_of_new_settings_converges(own_home: Home) -> None:
    """Another name of the agent and of the space, and one more person."""
    with before(own_home, MATRIX) as (home, proxy), Census(home.homeserver) as census:
        person = home.homeserver.person(home.person)
        ada = await home.letta.create_agent("Ada")
        assert_syncs(home)
        numbers = itertools.count()

        async def change() -> tuple[int, str]:
            number = next(numbers)
            guest = home.homeserver.person(f"guest{number}")
            home.environ["HOMEROOM_INVITE"] += f",{guest}"
            home.environ["HOMEROOM_SPACE_NAME"] = f"Space {number}"
            await home.letta.rename_agent(ada.id, f"Name {number}")
            return number, guest

        # The agent's, room's and space's name, topic, two invitations.
        async for number, guest in killed_at_each_step(home, proxy, change, least=6):
            assert_one_of_each(census, 1, person)
            (room,), (space,) = census.rooms(), census.spaces()
            assert room.name == f"Name {number} - Letta Agent Chat"
            assert space.name == f"Space {number}"
            assert room.invites[guest] == space.invites[guest] == 1


@pytest.mark.parametrize("purged", [Census.spaces, Census.rooms], ids=["space", "room"])
async def test_a_kill_after_each_step_of_making_again_what_was_purged_leaves_one_in_the_space(
    own_home: Home, purged: Callable[[Census], list[Room]]
) -> None:
    async with admin_of(own_home.homeserver, "root") as admin:
        with before(own_home, MATRIX) as (home, proxy), Census(home.homeserver) as census:
            person = home.homeserver.person(home.person)
            await home.letta.create_agent("Ada")
            assert_syncs(home)

            async def purge() -> None:
                (only,) = purged(census)
                await admin.delete_room(only.id)

            # The space, its child, the room's parent and no longer the old one; or
            # the room, the hub's joining, hung in the space, the old one out.
            async for _ in killed_at_each_step(home, proxy, purge, "--audit", least=4):
                assert_one_of_each(census, 1, person)


async def test_a_kill_after_each_step_of_a_picture_shows_it_once_and_uploads_it_once(
    own_home: Home,
) -> None:
    off = {"HOMEROOM_SWITCH_OFF": "avatars"}
    with before(own_home, MATRIX) as (home, proxy), Census(home.homeserver) as census:
        async with home.login() as alice:
            made: list[str] = []

            async def undressed() -> str:
                agent = await home.letta.create_agent(f"Agent {len(made)}")
                made.append(agent.id)
                assert_syncs(home, **off)
                return made[-1]

            await undressed()
            assert_syncs(home)
            # An address, the picture, its user's, its room's.
            async for agent_id in killed_at_each_step(home, proxy, undressed, least=4):
                ghost = f"@{ghost_localpart(AgentId(agent_id))}:{home.homeserver.server_name}"
                mxc = (await alice.profile(ghost))["avatar_url"]
                assert await alice.fetch_media(mxc) == avatar_png(agent_id)
                assert census.files(ghost) == [mxc]
                room = next(room for room in census.rooms() if ghost in room.members)
                await alice.join(room.id)
                shown = await alice.messages(room.id, ("m.room.avatar",))
                assert [event["content"]["url"] for event in shown] == [mxc]
            assert_one_of_each(census, len(made), alice.id)


@pytest.mark.parametrize("recorded", [False, True], ids=["applied", "recorded"])
async def test_a_kill_after_each_step_of_leaving_and_returning_says_both_once(
    own_home: Home, recorded: bool
) -> None:
    """The room's name, then the notice: killed when the homeserver has it, or just before."""
    with before(own_home, MATRIX) as (home, proxy):
        await home.letta.create_agent("Ada")
        async with home.login() as alice:
            with home.service(**OFTEN) as service:
                room = await alice.join(await alice.wait_invite())
                await ask(alice, room, "!say before")
                gone = f"{NAME} (retired)"
                for step in range(2):
                    for happens, name, said in (
                        (home.letta.lose_agents, gone, "I am retired"),
                        (home.letta.restore_agents, NAME, "I am back"),
                    ):
                        seen = list(alice.events)
                        await kill_at(service, proxy, recorded, step, happens)
                        service.start()
                        await alice.wait_event(later(seen, is_called(room, name)), STEP_S)
                        await alice.wait_event(later(seen, says(room, said)), STEP_S)
                assert (await ask(alice, room, "!say after"))["content"]["body"] == "after"
                names = await alice.messages(room, ("m.room.name",))
                assert [e["content"]["name"] for e in names] == [NAME, gone, NAME, gone, NAME]
                bodies = await alice.bodies(room)
                assert sum("I am retired" in body for body in bodies) == 2
                assert sum("I am back" in body for body in bodies) == 2


NAME = "Ada - Letta Agent Chat"
STEP_S = 60.0


async def kill_at(
    service: Service, proxy: FaultProxy, recorded: bool, step: int, happens: Callable[[], None]
) -> None:
    """Kills the service at what it tells the room as number ``step`` after ``happens``."""
    tells = path(r"/state/m\.room\.name|/send/m\.room\.message")
    died = threading.Event()

    def kill() -> None:
        service.kill()
        died.set()

    fault = (drop_before() if recorded else Fault()) & call(kill)
    proxy.on(tells, fault, skip=step, times=1)
    await anyio.to_thread.run_sync(happens)
    assert await anyio.to_thread.run_sync(died.wait, STEP_S), "it told the room nothing"
    proxy.heal()


def later(seen: list[Event], wanted: Callable[[Event], bool]) -> Callable[[Event], bool]:
    """The same of events that are not among ``seen``."""
    return lambda e: wanted(e) and e not in seen
