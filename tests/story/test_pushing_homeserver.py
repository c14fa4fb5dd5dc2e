"""A homeserver that pushes, and Homeroom as the service it pushes to. All real."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from homeroom.local.child import free_port
from support.app_server import AppServerHarness
from support.home import Home, make_home
from support.rooms import ghost_of, new_room
from support.synapse import prepare_homeserver
from support.talk import ask


@pytest.fixture
def push_port() -> int:
    return free_port()


@pytest.fixture
def pushing_home(
    own_app_server: AppServerHarness, tmp_path: Path, push_port: int
) -> Iterator[Home]:
    """A home whose registration names ``push_port``."""
    url = f"http://127.0.0.1:{push_port}"
    homeserver = prepare_homeserver(tmp_path / "homeserver", push_url=url)
    try:
        homeserver.synapse.start()
        yield make_home(homeserver, own_app_server, tmp_path / "homeroom", "alice")
    finally:
        homeserver.synapse.stop()


async def test_pushes_reach_the_service_and_each_message_is_answered_once(
    pushing_home: Home, push_port: int
) -> None:
    home = pushing_home
    await home.letta.create_agent("Ada")
    away = home.run("doctor")
    assert away.returncode == 1 and "✗ pushes" in away.stdout
    async with home.login() as alice:
        with home.service(start=False) as service:
            service.port = push_port
            service.start()
            well = home.run("doctor")
            assert well.returncode == 0, well.stdout
            assert "reach us in" in well.stdout
            room = await alice.join(await alice.wait_invite())
            assert (await ask(alice, room, "!say pushed"))["content"]["body"] == "pushed"
            assert (await alice.bodies(room)).count("pushed") == 1


async def test_an_invitation_that_is_pushed_is_taken_up_though_nobody_would_have_asked_for_it(
    pushing_home: Home, push_port: int
) -> None:
    home = pushing_home
    ada = await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service(start=False, HOMEROOM_INVITE_POLL_S="3600") as service:
            service.port = push_port
            service.start()
            await alice.join(await alice.wait_invite())
            chat = await new_room(alice, ghost_of(ada), direct=True)
            assert (await ask(alice, chat, "!say pushed"))["content"]["body"] == "pushed"
            assert service.log().count("invitation_accepted") == 1
