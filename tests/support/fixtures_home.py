"""pytest plugin: everything real and of the test's own, for stories and faults."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from homeroom.local.scripted_model import ScriptedModel
from support.app_server import AppServerHarness
from support.homeroom import Home, make_home
from support.synapse import Homeserver


@pytest.fixture
def own_app_server(scripted_model: ScriptedModel, tmp_path: Path) -> Iterator[AppServerHarness]:
    """A running App Server that this test alone uses, and may kill."""
    server = AppServerHarness(tmp_path / "letta", scripted_model)
    with ExitStack() as stack:
        stack.callback(server.stop)
        yield server.start()


@pytest.fixture
def home(own_synapse: Homeserver, own_app_server: AppServerHarness, tmp_path: Path) -> Home:
    """Settings of a Homeroom whose rooms Alice is invited to; nothing of it runs yet."""
    return make_home(own_synapse, own_app_server, tmp_path / "homeroom", "alice")
