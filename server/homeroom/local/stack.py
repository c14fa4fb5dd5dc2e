"""The embedded stack: a real Synapse and a real Letta App Server, for ``homeroom up`` and ``demo``.

Owns one directory, the children in it, and what a person needs to log in. Knows nothing of the
bridge. Invariant: everything listens on loopback; secrets are drawn once, kept 0600 and stay.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import anyio

from homeroom.errors import Rejected
from homeroom.local.app_server import AppServer, ModelProvider, provider_from_environment
from homeroom.local.scripted_model import ScriptedModel
from homeroom.local.synapse import Synapse
from homeroom.model import Agent
from homeroom.registration import new_registration, write_registration

SERVER_NAME = "homeroom.local"
PERSON = "you"

SEEDS: tuple[tuple[str, str, str], ...] = (
    ("Ada", "Keeps notes and answers questions about them.", "I am Ada. I keep notes, briefly."),
    ("Brook", "Plans days and trips.", "I am Brook. I plan, and I ask before I assume."),
    ("Cleo", "Reads drafts and says what to cut.", "I am Cleo. I edit: short, kind, exact."),
)
"""Name, description and persona of the agents that a new stack begins with."""

WATCH_S = 0.5
"""How often the servers are looked at: nothing works without one of them."""
Report = Callable[[str], None]


class LocalStack:
    """Synapse, the App Server and, without a model key, the scripted model.

    Start it from the main thread before any event loop: children live as long as the thread that
    started them.
    """

    def __init__(self, directory: Path, environ: Mapping[str, str]) -> None:
        self.directory = directory
        self._provider = provider_from_environment(environ)
        self._model: ScriptedModel | None = None
        self._app_server: AppServer | None = None
        self._synapse: Synapse | None = None
        self.password = ""

    @property
    def is_scripted(self) -> bool:
        """Whether no model was named in the environment, so that a script answers."""
        return self._provider is None

    @property
    def model_name(self) -> str:
        if self._provider is None:
            named = "OPENAI_API_KEY, ANTHROPIC_API_KEY or OLLAMA_HOST"
            return f"scripted model (set {named} for a real one)"
        return f"{self._provider.kind} {self._provider.model}".strip()

    @property
    def person_id(self) -> str:
        return f"@{PERSON}:{SERVER_NAME}"

    @property
    def homeserver_url(self) -> str:
        assert self._synapse is not None
        return self._synapse.url

    @property
    def environ(self) -> dict[str, str]:
        """The settings with which Homeroom works on this stack."""
        assert self._synapse is not None and self._app_server is not None
        return {
            "HOMEROOM_LETTA_URL": self._app_server.url,
            "HOMEROOM_LETTA_BACKEND": "app-server",
            "HOMEROOM_MATRIX_URL": self._synapse.url,
            "HOMEROOM_MATRIX_SERVER_NAME": SERVER_NAME,
            "HOMEROOM_MATRIX_REGISTRATION": str(self._registration_path),
            "HOMEROOM_INVITE": self.person_id,
            "HOMEROOM_DATA_DIR": str(self.directory / "data"),
        }

    @property
    def _registration_path(self) -> Path:
        return self.directory / "registration.yaml"

    def start(self, report: Report) -> None:
        """Starts what is missing; ``report`` is told each step before it begins.

        Raises:
            ConfigError: the ``local`` extra is not installed.
            ChildFailed: a server did not start; the end of its log says why.
        """
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock()
        provider = self._provider
        if provider is None:
            report("a scripted model")
            self._model = ScriptedModel(self.directory, directives=False, persona=True).start()
            provider = ModelProvider("openai-compatible", self._model.base_url, "none", "scripted")
        report("Letta App Server")
        port = self._remember("letta_port", lambda: 0)
        self._app_server = AppServer(self.directory / "letta", provider, int(port))
        self._app_server.start()
        self._remember("letta_port", lambda: 0, str(self._app_server.port))
        report("Synapse")
        if not self._registration_path.exists():
            write_registration(new_registration(SERVER_NAME), self._registration_path)
        self._synapse = Synapse(
            self.directory / "synapse", SERVER_NAME, registrations=[self._registration_path]
        )
        self._synapse.start()
        self.password = self._remember("password", lambda: secrets.token_urlsafe(12))
        self._synapse.register_person(PERSON, self.password)

    async def seed(self) -> list[Agent]:
        """The agents there are, all with a model that is there; three are made if there is none."""
        assert self._app_server is not None
        await self._app_server.mend_models()
        agents = await self._app_server.list_agents()
        if not agents:
            for name, description, persona in SEEDS:
                human = "What I know about the person I talk to:"
                agents.append(
                    await self._app_server.create_agent(name, description, persona, human)
                )
        return agents

    async def watch(self) -> None:
        """Runs until cancelled.

        Raises:
            ChildFailed: one of the servers has ended by itself; the text has the end of its log.
        """
        while True:
            for child in self._children:
                child.check()
            await anyio.sleep(WATCH_S)

    def stop(self) -> None:
        """Stops everything; safe to call at any time."""
        for child in self._children:
            child.stop()

    @property
    def _children(self) -> list[Synapse | AppServer | ScriptedModel]:
        children = (self._synapse, self._app_server, self._model)
        return [child for child in children if child is not None]

    def _lock(self) -> None:
        """Raises Rejected if another process runs a stack in this directory."""
        if sys.platform == "win32":
            return  # no such locks there; the ports are taken all the same
        import fcntl

        self._held = (self.directory / "lock").open("w")
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            reason = f"{self.directory} is in use by another homeroom up; use it, or another --dir"
            raise Rejected("store", reason) from None

    def _remember(self, key: str, draw: Callable[[], object], value: str = "") -> str:
        """A value that stays the same over restarts: ``value``, else the stored one, else drawn."""
        path = self.directory / "stack.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        result: str = value or known.get(key) or str(draw())
        if known.get(key) != result:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(fd, "w") as file:
                json.dump(known | {key: result}, file)
        return result
