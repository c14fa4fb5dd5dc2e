"""pytest plugin: everything real and of the test's own, for stories and faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from homeroom.local.scripted_model import ScriptedModel
from homeroom.model import BackendName
from support.app_server import AppServerHarness
from support.fixtures_letta import LettaServer
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
def home_letta(request: pytest.FixtureRequest) -> tuple[BackendName, LettaServer]:
    """The Letta of a home without agents, and how it is spoken to: an App Server of the test's own,
    or the session's V1 server. ``on_both_back_ends`` runs a test on the one, then on the other."""
    backend: BackendName = getattr(request, "param", "app-server")
    fixture = {"app-server": "own_app_server", "rest": "emptied_letta_v1"}[backend]
    return backend, request.getfixturevalue(fixture)


@pytest.fixture
def home(
    synapse: Homeserver,
    tmp_path: Path,
    unique: Callable[[str], str],
    home_letta: tuple[BackendName, LettaServer],
) -> Home:
    """Settings of a Homeroom whose rooms a new person is invited to; nothing of it runs yet. The
    homeserver has seen other tests: leave it running."""
    backend, letta = home_letta
    person = unique("alice")
    return make_home(synapse, letta, tmp_path / "homeroom", person, backend=backend)


@pytest.fixture
def own_home(
    own_synapse: Homeserver, tmp_path: Path, home_letta: tuple[BackendName, LettaServer]
) -> Home:
    """The same with a homeserver that may be killed."""
    backend, letta = home_letta
    return make_home(own_synapse, letta, tmp_path / "homeroom", "alice", backend=backend)
