"""Homeroom as its users run it: a process of its own, on servers of this test's own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from mcp import StdioServerParameters

from homeroom.local.child import Child, free_port
from support.person import Person
from support.synapse import PASSWORD, Homeserver

READY_S = 60.0
COMMAND_S = 120.0
HEALTH_S = 120.0

on_both_back_ends = pytest.mark.parametrize("home_letta", ["app-server", "rest"], indirect=True)
"""Marks a story whose ``home`` or ``own_home`` shall stand on a real App Server and then on a real
Letta V1."""
on_v1 = pytest.mark.parametrize("home_letta", ["rest"], indirect=True)


@dataclass
class Service:
    """``homeroom serve --http`` on a port that stays the same over restarts."""

    environ: dict[str, str]
    directory: Path
    port: int = field(default_factory=free_port)
    child: Child | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *, wait_ok: bool = True) -> Service:
        """Starts it; ready when it answers, or (``wait_ok``) when a message could pass."""
        self.child = Child(
            "homeroom",
            [sys.executable, "-m", "homeroom", "serve", "--http", str(self.port)],
            cwd=self.directory,
            log=self.directory / "homeroom.log",
            env=self.environ,
        )
        self.child.start()

        def is_ready() -> bool:
            try:
                answer = httpx.get(f"{self.url}/health", timeout=5)
            except httpx.HTTPError:
                return False
            return answer.status_code == 200 or not wait_ok

        self.child.wait_ready(is_ready, READY_S)
        return self

    def stop(self) -> None:
        if self.child:
            self.child.stop()

    def kill(self) -> None:
        """kill -9."""
        if self.child:
            self.child.kill()

    def log(self) -> str:
        path = self.directory / "homeroom.log"
        return path.read_text() if path.exists() else ""

    async def wait_log(self, words: str, *, times: int = 1, timeout_s: float = READY_S) -> None:
        """Returns once ``words`` stand in the log so many times."""
        with anyio.fail_after(timeout_s):
            while self.log().count(words) < times:
                await self.changed()

    async def wait_syncs(self, count: int) -> None:
        """Returns after that many further syncs."""
        words = "sync_finished"
        await self.wait_log(words, times=self.log().count(words) + count)

    async def changed(self) -> None:
        """A breath between two looks at something that has no event to wait for."""
        await anyio.sleep(0.2)

    async def health(self) -> dict[str, Any]:
        async with httpx.AsyncClient() as http:
            return dict((await http.get(f"{self.url}/health", timeout=10)).json())

    async def wait_health(
        self, wanted: Callable[[dict[str, Any]], bool], timeout_s: float = HEALTH_S
    ) -> dict[str, Any]:
        """What /health says, once it is as wanted."""
        with anyio.fail_after(timeout_s):
            while not wanted(health := await self.health()):
                await self.changed()
        return health

    async def wait_sync(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """What /health says of the last sync, once it is as wanted."""
        health = await self.wait_health(lambda health: wanted(health["last_sync"]))
        return dict(health["last_sync"])

    async def wait_in_step(self) -> None:
        """Returns once a sync has left nothing to do."""
        await self.wait_sync(lambda sync: sync.get("left") == 0 and not sync["failures"])


@dataclass
class Home:
    """A homeserver, a Letta and the settings that join them."""

    homeserver: Homeserver
    letta: Any
    directory: Path
    environ: dict[str, str]
    person: str = ""
    """The localpart of whoever is invited to every room."""

    def login(self) -> AbstractAsyncContextManager[Person]:
        """That person, at a client of their own."""
        return Person.login(self.homeserver.url, self.person, PASSWORD)

    @contextmanager
    def service(self, *, start: bool = True, **environ: str) -> Iterator[Service]:
        """A service, stopped at the end; ``environ`` is laid over its settings."""
        service = Service({**self.environ, **environ}, self.directory)
        try:
            yield service.start() if start else service
        finally:
            service.stop()

    def run(
        self, *arguments: str, timeout_s: float = COMMAND_S, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        """A command of ``homeroom`` that runs and ends."""
        return subprocess.run(
            [sys.executable, "-m", "homeroom", *arguments],
            env={**self.environ, **environ},
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def stdio(self, **environ: str) -> StdioServerParameters:
        """What an LLM client starts."""
        env = {**self.environ, "HOMEROOM_LOG_LEVEL": "WARNING", **environ}
        return StdioServerParameters(
            command=sys.executable, args=["-m", "homeroom", "serve"], env=env
        )


def make_home(
    homeserver: Homeserver, letta: Any, directory: Path, *people: str, backend: str = "app-server"
) -> Home:
    """The settings for these servers; ``people`` are localparts that are invited everywhere."""
    directory.mkdir(parents=True, exist_ok=True)
    environ = {
        **{name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ},
        "HOME": str(directory),
        "HOMEROOM_LETTA_URL": letta.url,
        "HOMEROOM_LETTA_TOKEN": letta.config().letta_token.get_secret_value(),
        "HOMEROOM_LETTA_BACKEND": backend,
        "HOMEROOM_MATRIX_URL": homeserver.url,
        "HOMEROOM_MATRIX_SERVER_NAME": homeserver.server_name,
        "HOMEROOM_MATRIX_REGISTRATION": str(homeserver.registration_path),
        "HOMEROOM_INVITE": ",".join(homeserver.person(name) for name in people),
        "HOMEROOM_SYNC_INTERVAL_S": "5",
        "HOMEROOM_DATA_DIR": str(directory / "data"),
    }
    return Home(homeserver, letta, directory, environ, people[0] if people else "")
