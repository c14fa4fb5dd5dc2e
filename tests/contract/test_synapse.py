"""The embedded homeserver: its identity, and the ways it can be set up."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from homeroom.errors import ConfigError, Rejected, Unavailable
from homeroom.local.child import free_port
from homeroom.local.synapse import Synapse
from support.matrix import (
    bodies,
    catch_up,
    connect,
    move_in,
    text,
)
from support.synapse import Homeserver, prepare_homeserver

pytest_plugins = ("support.fixtures_matrix",)


async def test_the_embedded_homeserver_keeps_its_identity(own_synapse: Homeserver) -> None:
    synapse, url = own_synapse.synapse, own_synapse.url
    assert own_synapse.person("ann") == own_synapse.person("ann") == "@ann:hs.test"
    with pytest.raises(Rejected):
        own_synapse.person("agent_intruder")
    synapse.stop()
    assert not synapse.alive
    directory = synapse.log.parent
    with pytest.raises(ConfigError, match="cannot change its name"):
        Synapse(directory, "other.test")
    again = Synapse(directory, "hs.test", bcrypt_rounds=4)
    assert again.url == url
    assert directory.stat().st_mode & 0o077 == 0
    private = ("identity.json", "homeserver.yaml")
    assert [(directory / name).stat().st_mode & 0o077 for name in private] == [0, 0]


async def test_ghosts_work_where_logins_are_delegated(tmp_path: Path) -> None:
    # Source: https://element-hq.github.io/matrix-authentication-service/as-login.html
    delegated = {
        "matrix_authentication_service": {
            "enabled": True,
            "endpoint": f"http://127.0.0.1:{free_port()}/",
            "secret": "only-people's-tokens-are-looked-up-there",
        }
    }
    homeserver = prepare_homeserver(tmp_path, extra=delegated)
    try:
        homeserver.synapse.start()
        async with connect(homeserver) as matrix:
            ghost, room = await move_in(matrix, "agent_delegated")
            cursor = await catch_up(matrix)
            await matrix.post(ghost, room, text("no login needed"), "1")
            assert bodies((await matrix.sync(cursor, 0)).events) == ["no login needed"]
        async with httpx.AsyncClient(trust_env=False) as client:
            login = await client.get(f"{homeserver.url}/_matrix/client/v3/login")
        assert login.status_code == 404
    finally:
        homeserver.synapse.stop()


async def test_a_registration_with_a_url_can_be_pinged(tmp_path: Path) -> None:
    homeserver = prepare_homeserver(tmp_path, push_url=f"http://127.0.0.1:{free_port()}")
    try:
        homeserver.synapse.start()
        async with connect(homeserver) as matrix:
            await matrix.check()
            with pytest.raises(Unavailable, match="502"):
                await matrix.ping()
    finally:
        homeserver.synapse.stop()
