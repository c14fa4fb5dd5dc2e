"""pytest plugin: homeservers. One for the session, and one of its own for a test that kills it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.synapse import Homeserver, prepare_homeserver


@pytest.fixture(scope="session")
def synapse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Homeserver]:
    """A running homeserver shared by the session: leave it running, use names of your own."""
    homeserver = prepare_homeserver(tmp_path_factory.mktemp("homeserver"))
    with ExitStack() as stack:
        stack.callback(homeserver.synapse.stop)
        homeserver.synapse.start()
        yield homeserver


@pytest.fixture
def own_synapse(tmp_path: Path) -> Iterator[Homeserver]:
    """A running homeserver that this test alone uses, and may kill."""
    homeserver = prepare_homeserver(tmp_path / "homeserver")
    with ExitStack() as stack:
        stack.callback(homeserver.synapse.stop)
        homeserver.synapse.start()
        yield homeserver


@pytest.fixture
def unique(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Makes a localpart that no other test of the session uses."""
    count = request.config.stash.get(_COUNT, 0) + 1
    request.config.stash[_COUNT] = count
    return lambda stem: f"{stem}{count}"


_COUNT = pytest.StashKey[int]()
