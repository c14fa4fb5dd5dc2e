"""Every fault of the wire on every way that a message takes with an App Server: to it, into the
room and out of it. Each message is answered once, in order, and nothing is given up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from homeroom.local.scripted_model import ScriptedModel
from support.app_server import AppServerHarness
from support.fault_proxy import Fault, Match
from support.faulty import (
    APP_TURN,
    HANDSHAKE,
    MATRIX,
    SEND,
    SYNC,
    TORN,
    Stand,
    faulty_stand,
    run_fault,
    upgrade,
)
from support.synapse import Homeserver

WAYS: dict[str, tuple[Match, dict[str, tuple[Fault, int]]]] = {
    "send": (SEND, MATRIX),
    "sync": (SYNC, MATRIX),
    "message": (APP_TURN, TORN),
    "handshake": (upgrade, HANDSHAKE),
}


@pytest.fixture(scope="module")
def on_app_server(
    synapse: Homeserver, scripted_model: ScriptedModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stand]:
    """One for all faults."""
    directory = tmp_path_factory.mktemp("faulty-app-server")
    letta = AppServerHarness(directory / "letta", scripted_model)
    try:
        letta.start()
        with faulty_stand(
            letta, "app-server", synapse, scripted_model, directory / "bridge"
        ) as stand:
            yield stand
    finally:
        letta.stop()


@pytest.mark.parametrize(
    ("way", "name"),
    [(way, name) for way, (_, faults) in WAYS.items() for name in faults],
)
async def test_a_message_to_an_app_server_is_answered_once_whatever_befalls_its_way(
    on_app_server: Stand, way: str, name: str
) -> None:
    match, faults = WAYS[way]
    proxy = on_app_server.letta if way in ("message", "handshake") else on_app_server.matrix
    fault, times = faults[name]
    await run_fault(on_app_server, proxy, match, fault, times=times, cut_all=way == "handshake")
