"""A person whose homeserver is away costs nobody else anything. A real Synapse that federates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from homeroom.model import BackendName
from support.breaking import OFTEN
from support.census import Census
from support.fixtures_letta import LettaServer
from support.home import Home, make_home
from support.rooms import is_called, join_rooms
from support.synapse import prepare_homeserver
from support.talk import ask

NAMES = ("Ada", "Brook", "Cleo", "Dora")
FAR = "@far:nowhere.invalid"
"""Source: https://www.rfc-editor.org/rfc/rfc6761#section-6.4 (no name below ``invalid`` exists)."""


@pytest.fixture
def open_home(tmp_path: Path, home_letta: tuple[BackendName, LettaServer]) -> Iterator[Home]:
    """A home whose homeserver talks to others."""
    backend, letta = home_letta
    everybody = {"federation_domain_whitelist": None}
    homeserver = prepare_homeserver(tmp_path / "open", extra=everybody)
    with ExitStack() as stack:
        stack.callback(homeserver.synapse.stop)
        homeserver.synapse.start()
        yield make_home(homeserver, letta, tmp_path / "homeroom", "alice", backend=backend)


async def test_whoever_cannot_be_reached_freezes_no_home_and_the_homeserver_is_not_away(
    open_home: Home,
) -> None:
    home = open_home
    agents = [await home.letta.create_agent(name) for name in NAMES]
    async with home.login() as alice:
        assert home.run("sync").returncode == 0
        rooms = await join_rooms(alice, len(agents))
        home.environ["HOMEROOM_INVITE"] += f",{FAR}"
        home.environ["HOMEROOM_SKIP_AFTER"] = "2"
        with home.service(**OFTEN) as service:
            sync = await service.wait_sync(lambda sync: bool(sync.get("failing")))
            assert any("Can't connect to server" in reason for reason in sync["failures"])
            for agent in agents:
                await home.letta.rename_agent(agent.id, f"{agent.name} Renamed")
            await home.letta.create_agent("Newcomer")
            for name, room in rooms.items():
                await alice.wait_event(is_called(room, f"{name} Renamed - Letta Agent Chat"))
            new = await alice.join(await alice.wait_invite())
            assert (await ask(alice, new, "!say welcome"))["content"]["body"] == "welcome"
            sync = await service.wait_sync(
                lambda sync: (
                    sum(f["action"] == "invite_person" and f["times"] >= 2 for f in sync["failing"])
                    == 5
                )
            )
            assert sync["away"] == {}
            kinds = {failing["action"] for failing in sync["failing"]}
            assert kinds == {"invite_person", "invite_to_space"}, "nothing else waits"
            assert all(failing["next_try_s"] > sync["at_s"] for failing in sync["failing"])
    with Census(home.homeserver) as census:
        assert len(census.rooms()) == 5, "the one that was made with a failed invitation, too"
        (space,) = census.spaces()
        assert space.children == frozenset(room.id for room in census.rooms())


async def test_the_first_sync_of_all_makes_every_home_without_whoever_cannot_be_reached(
    open_home: Home,
) -> None:
    home = open_home
    home.environ["HOMEROOM_INVITE"] = f"{FAR},{home.environ['HOMEROOM_INVITE']}"
    for name in NAMES:
        await home.letta.create_agent(name)
    async with home.login() as alice:
        done = home.run("sync")
        assert done.returncode == 2, done.stdout + done.stderr
        await join_rooms(alice, 4)
        await alice.wait_space_invite()
    with Census(home.homeserver) as census:
        rooms = census.rooms()
        assert {room.name for room in rooms} == {f"{name} - Letta Agent Chat" for name in NAMES}
        assert len(rooms) == 4 and len(census.spaces()) == 1
