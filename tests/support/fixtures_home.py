"""pytest plugin: everything real and of the test's own, for stories and faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from homeroom.local.scripted_model import ScriptedModel
from support.app_server import AppServerHarness
from support.home import Home, make_home
from support.synapse import Homeserver


@pytest.fixture
def own_app_server(scripted_model: ScriptedModel, tmp_path: Path) -> Iterator[AppServerHarness]:
    """A running App Server that this test alone uses, and may kill."""
    server = AppServerHarness(tmp_path / "letta", scripted_model)
    with ExitStack() as stack:
        stack.callback(server.stop)
        yield server.start()


@pytest.fixture
def home(
    synapse: Homeserver,
    own_app_server: AppServerHarness,
    tmp_path: Path,
    unique: Callable[[str], str],
) -> Home:
    """Settings of a Homeroom whose rooms a new person is invited to; nothing of it runs yet. The
    homeserver has seen other tests: leave it running."""
    return make_home(synapse, own_app_server, tmp_path / "homeroom", unique("alice"))


@pytest.fixture
def own_home(own_synapse: Homeserver, own_app_server: AppServerHarness, tmp_path: Path) -> Home:
    """The same with a homeserver that may be killed."""
    return make_home(own_synapse, own_app_server, tmp_path / "homeroom", "alice")
