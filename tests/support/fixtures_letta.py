"""pytest plugin: the scripted model and real Lettas, each started when a test first asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import pytest

from homeroom.config import Config
from homeroom.local.scripted_model import ScriptedModel
from homeroom.model import Agent, BackendName


class LettaServer(Protocol):
    """What every harness around a real Letta offers to tests."""

    @property
    def url(self) -> str: ...
    def config(self, **overrides: Any) -> Config: ...
    async def create_agent(
        self,
        name: str,
        description: str = "",
        blocks: dict[str, str] | None = None,
        tags: Sequence[str] = (),
    ) -> Agent: ...
    async def create_many(self, count: int) -> None: ...
    async def delete_agent(self, agent_id: str) -> None: ...
    async def rename_agent(self, agent_id: str, name: str) -> None: ...
    async def describe_agent(self, agent_id: str, description: str) -> None: ...
    def lose_agents(self) -> None: ...
    def restore_agents(self) -> None: ...


@pytest.fixture(scope="session")
def scripted_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptedModel]:
    """A model that does what the last message says."""
    model = ScriptedModel(tmp_path_factory.mktemp("model"))
    with ExitStack() as stack:
        stack.callback(model.stop)
        yield model.start()


@pytest.fixture(scope="session")
def letta_v1(scripted_model: ScriptedModel) -> Iterator[Any]:
    """A V1 API server shared by the session: make agents of your own."""
    from support.letta_v1 import LettaV1

    server = LettaV1(scripted_model.base_url)
    with ExitStack() as stack:
        stack.callback(server.stop)
        yield server.start()


@pytest.fixture
def emptied_letta_v1(letta_v1: Any) -> Any:
    """The session's V1 server without agents: its start takes too long for one of its own each."""
    letta_v1.lose_agents()
    return letta_v1


@pytest.fixture
def own_letta_v1(scripted_model: ScriptedModel) -> Iterator[Any]:
    """A V1 API server that this test alone uses, and may kill."""
    from support.letta_v1 import LettaV1

    server = LettaV1(scripted_model.base_url)
    with ExitStack() as stack:
        stack.callback(server.stop)
        yield server.start()


@pytest.fixture(scope="session")
def app_server(
    scripted_model: ScriptedModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """An App Server shared by the session: make agents of your own."""
    from support.app_server import AppServerHarness

    server = AppServerHarness(tmp_path_factory.mktemp("app-server"), scripted_model)
    with ExitStack() as stack:
        stack.callback(server.stop)
        server.start()
        yield server


@pytest.fixture(params=["rest", "app-server"])
def backend(request: pytest.FixtureRequest) -> BackendName:
    """The back end that a contract test is run over."""
    name: BackendName = request.param
    return name


@pytest.fixture
def letta_server(request: pytest.FixtureRequest, backend: BackendName) -> LettaServer:
    """The real Letta behind that back end."""
    fixture = "letta_v1" if backend == "rest" else "app_server"
    server: LettaServer = request.getfixturevalue(fixture)
    return server
