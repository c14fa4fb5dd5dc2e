"""A real Letta App Server with the scripted model, for tests."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from homeroom.config import Config
from homeroom.errors import Rejected
from homeroom.letta.app_server import AppServerLetta
from homeroom.local.app_server import AppServer, ModelProvider
from homeroom.local.scripted_model import ScriptedModel
from homeroom.model import Agent, AgentId


class AppServerHarness:
    """Starts, crashes and restarts one App Server; its state stays under ``directory``."""

    def __init__(self, directory: Path, model: ScriptedModel, token: str = "test-token") -> None:
        self.directory, self.model, self.token = directory, model, token
        provider = ModelProvider("openai-compatible", model.base_url, "sk-test", "scripted")
        self._server = AppServer(directory, provider, token=token)

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def http_url(self) -> str:
        return self._server.http_url

    def start(self) -> AppServerHarness:
        self._server.start()
        return self

    def stop(self) -> None:
        self._server.stop()

    def crash(self) -> None:
        """kill -9; ``start`` brings it back on the same port with the same state."""
        self._server.kill()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Its connections stay open meanwhile, and nobody is at home."""
        assert self._server._child
        pid = self._server._child.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def unlock(self) -> None:
        """Restarts it without the deny rules: the App Server of somebody who set up his own."""
        self.stop()
        settings = self.directory / ".letta/settings.json"
        self._server.rules = ()
        self.start()
        assert json.loads(settings.read_text())["permissions"]["deny"] == []

    def config(self, **overrides: Any) -> Config:
        """``overrides`` may go below a setting's bounds: tests are in a hurry."""
        settings: dict[str, Any] = {
            "letta_url": self.url,
            "letta_backend": "app-server",
            "letta_token": self.token,
        }
        base = Config(**settings, data_dir=self.directory / "data")
        return base.model_copy(update=overrides)

    async def create_agent(
        self,
        name: str,
        description: str = "",
        blocks: dict[str, str] | None = None,
        tags: tuple[str, ...] = (),
    ) -> Agent:
        async with AppServerLetta.connect(self.url, self.token) as letta:
            model = "openai-compatible/scripted"
            known = {agent.id for agent in await letta.list_agents()}
            for attempt in itertools.count():
                try:
                    return await letta.create_agent(name, description, blocks, tags, model)
                except Rejected as refusal:
                    # On a busy machine the server's first commit of an agent's memory may fail, and
                    # leaves half an agent (seen with 0.34.12).
                    if "git" not in refusal.reason or attempt == 4:
                        raise
                    for agent in await letta.list_agents():
                        if agent.id not in known and agent.name == name:
                            await _delete(letta, agent.id)
        raise AssertionError("unreachable")

    async def rename_agent(self, agent_id: AgentId, name: str) -> None:
        async with AppServerLetta.connect(self.url, self.token) as letta:
            body = {"name": name}
            await letta._link.request("agent_update", key=name, agent_id=agent_id, body=body)

    async def describe_agent(self, agent_id: AgentId, description: str) -> None:
        async with AppServerLetta.connect(self.url, self.token) as letta:
            body = {"description": description}
            await letta._link.request("agent_update", key=description, agent_id=agent_id, body=body)

    async def create_many(self, count: int) -> None:
        """Agents by the hundred: copies of one, made while it is down."""
        await self.create_agent("one of many")
        self.stop()
        (first,) = self._agents.iterdir()
        agent = json.loads(first.read_text())
        for number in range(1, count):
            copy = agent | {"id": f"agent-local-{uuid.uuid4()}", "name": f"one of many {number}"}
            name = base64.urlsafe_b64encode(copy["id"].encode()).decode().rstrip("=")
            first.with_name(f"{name}.json").write_text(json.dumps(copy))
        self.start()

    def lose_agents(self) -> None:
        """Restarts it as one that was set up anew, without its agents."""
        self._move(self._agents, self._agents.with_name("agents-lost"))

    def restore_agents(self) -> None:
        """Restarts it with what ``lose_agents`` took away, as from a backup."""
        self._move(self._agents.with_name("agents-lost"), self._agents)

    @property
    def _agents(self) -> Path:
        return self.directory / "backend/agents"

    def _move(self, source: Path, target: Path) -> None:
        self.stop()
        shutil.rmtree(target, ignore_errors=True)
        source.rename(target)
        self.start()

    async def delete_agent(self, agent_id: AgentId) -> None:
        async with AppServerLetta.connect(self.url, self.token) as letta:
            await _delete(letta, agent_id)


async def _delete(letta: AppServerLetta, agent_id: AgentId) -> None:
    await letta._link.request("agent_delete", key=agent_id, agent_id=agent_id)
