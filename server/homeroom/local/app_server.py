"""The embedded Letta: a real App Server as a child process, with its agents locked in.

Owns the App Server's directory (settings, model credentials, state) and its process. Knows nothing
of the bridge. Invariant: a model behind this server is refused every tool that reaches the host,
whichever protocol it is spoken to through; that is written to disk before the server starts.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import sysconfig
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from homeroom.errors import ConfigError
from homeroom.letta.app_server import AppServerLetta
from homeroom.local.child import Child, free_port
from homeroom.model import Agent

ProviderKind = Literal["openai-compatible", "openai", "anthropic", "openrouter", "google", "ollama"]

DENIED_TOOLS = (
    "*",
    "Bash",
    "Read",
    "Write",
    "Edit",
    "Glob",
    "Grep",
    "ListDir",
    "ApplyPatch",
    "Task",
)
"""Rules that refuse every tool: ``*`` covers all but the shell and the file tools, which match by
rules of their own, and those are named here by their families (``Read`` is also ViewImage's kin).

Source: the permission matcher of Letta Code 0.34.12, measured tool by tool in the tests.
"""

_START_TIMEOUT_S = 60.0
_PATH = "/usr/local/bin:/usr/bin:/bin"
_PASSED_ON = (
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "NODE_EXTRA_CA_CERTS",
    "SSL_CERT_FILE",
    "TMPDIR",
    "TZ",
)


@dataclass(frozen=True, slots=True)
class ModelProvider:
    """Where the agents' language model is. ``kind`` is also the prefix of Letta's model handle."""

    kind: ProviderKind
    base_url: str = ""
    api_key: str = field(default="", repr=False)
    model: str = ""
    """The provider's own name of the model; empty: the first one it lists."""

    @property
    def handle(self) -> str:
        """How Letta names the model; empty if no model is chosen."""
        return f"{self.kind}/{self.model}" if self.model else ""


def provider_from_environment(environ: Mapping[str, str]) -> ModelProvider | None:
    """The provider that the usual variables name, the first that is set; None if none is.

    ``OPENAI_API_KEY`` (with ``OPENAI_BASE_URL``: any compatible server), ``ANTHROPIC_API_KEY``,
    ``OPENROUTER_API_KEY``, ``GEMINI_API_KEY``, ``OLLAMA_BASE_URL`` or ``OLLAMA_HOST``; the model
    from ``OPENAI_MODEL``, ``ANTHROPIC_MODEL`` and so on, or that provider's usual one.
    """

    def get(name: str) -> str:
        return environ.get(name, "").strip()

    base_url, key = get("OPENAI_BASE_URL").rstrip("/"), get("OPENAI_API_KEY")
    if base_url:
        return ModelProvider("openai-compatible", base_url, key, get("OPENAI_MODEL"))
    named: tuple[tuple[ProviderKind, str, str, str], ...] = (
        ("openai", "OPENAI_API_KEY", "OPENAI_MODEL", "gpt-5.5"),
        ("anthropic", "ANTHROPIC_API_KEY", "ANTHROPIC_MODEL", "claude-opus-4-8"),
        ("openrouter", "OPENROUTER_API_KEY", "OPENROUTER_MODEL", "moonshotai/kimi-k2.6"),
        ("google", "GEMINI_API_KEY", "GEMINI_MODEL", "gemini-3.1-pro-preview"),
    )
    for kind, key_name, model_name, usual in named:
        if get(key_name):
            return ModelProvider(kind, "", get(key_name), get(model_name) or usual)
    host = get("OLLAMA_BASE_URL") or get("OLLAMA_HOST")
    if host:
        return ModelProvider("ollama", _ollama_url(host), "", get("OLLAMA_MODEL"))
    return None


def _ollama_url(host: str) -> str:
    """Ollama's own variable is ``host``, ``host:port`` or a URL; 0.0.0.0 is where it listens."""
    host = host.rstrip("/").removesuffix("/v1").replace("0.0.0.0", "127.0.0.1")
    if "://" in host:
        return host
    return f"http://{host}" if ":" in host else f"http://{host}:11434"


class AppServer:
    """A Letta App Server on loopback, its whole state under one directory."""

    def __init__(
        self, directory: Path, provider: ModelProvider, port: int = 0, token: str = ""
    ) -> None:
        """``port`` 0 takes a free one. With a ``token`` every client must present it."""
        self.directory = directory
        self.port = port or free_port()
        self.rules: tuple[str, ...] = DENIED_TOOLS
        self._provider, self._token = provider, token
        self._child: Child | None = None

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> AppServer:
        """Returns itself, ready to answer. The server also ends by itself, about a second after
        its parent does, on systems that cannot tie a child's life to its parent's.

        Raises:
            ConfigError: Letta is not installed here.
            ChildFailed: it did not start; the end of its log says why.
        """
        self._write_settings()
        argv = [_executable(), "server", "--backend", "local", "--listen", self.url]
        argv.append("--openai-api")
        if self._token:
            token_file = self.directory / "token"
            _write_private(token_file, self._token)
            argv += ["--ws-auth", "capability-token", "--ws-token-file", str(token_file)]
        self._child = Child(
            "the Letta App Server",
            argv,
            cwd=self.directory / "work",
            log=self.directory / "app-server.log",
            env=self._environment(),
        )
        self._child.start()
        self._child.wait_ready(self._is_ready, _START_TIMEOUT_S)
        return self

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop()

    def kill(self) -> None:
        """kill -9, as a crash would."""
        if self._child is not None:
            self._child.kill()

    def check(self) -> None:
        """Raises ChildFailed if it has ended by itself."""
        if self._child is not None:
            self._child.check()

    async def create_agent(self, name: str, description: str, persona: str, human: str) -> Agent:
        """A new agent of this server's model, with two memory files.

        Raises:
            Rejected: the server refused, or has no model.
            Unavailable: it does not answer.
        """
        async with AppServerLetta.connect(self.url, self._token) as letta:
            blocks = {"persona": persona, "human": human}
            model = self._provider.handle or f"{self._provider.kind}/"
            return await letta.create_agent(name, description, blocks, model=model)

    async def mend_models(self) -> None:
        """Moves agents to this server's model whose own went with an earlier provider."""
        async with AppServerLetta.connect(self.url, self._token) as letta:
            await letta.mend_models(self._provider.handle or f"{self._provider.kind}/")

    async def list_agents(self) -> list[Agent]:
        """All agents of this server. Raises Unavailable."""
        async with AppServerLetta.connect(self.url, self._token) as letta:
            return await letta.list_agents()

    def _write_settings(self) -> None:
        for name in (".letta", "backend/providers", "work"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        _write_private(self.directory / "backend/providers/auth.json", self._credentials())
        # The server keeps settings of its own in this file, so the rules are put into it.
        path = self.directory / ".letta/settings.json"
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            settings = {}
        settings = settings if isinstance(settings, dict) else {}
        settings["permissions"] = {"deny": list(self.rules)}
        # Every 25 turns the server would have an agent of its own, with a shell, read over what was
        # said: no rule that we send along with a turn reaches that one (0.34.12).
        settings["reflectionTrigger"] = "off"
        _write_private(path, json.dumps(settings, indent=2))

    def _credentials(self) -> str:
        now = datetime.now(UTC).isoformat()
        record: dict[str, object] = {
            "id": f"local-provider-{self._provider.kind}",
            "name": self._provider.kind,
            "provider_type": self._provider.kind,
            "provider_category": "byok",
            "auth": {"type": "api", "key": self._provider.api_key or "not-needed"},
            "created_at": now,
            "updated_at": now,
        }
        if self._provider.base_url:
            record["base_url"] = self._provider.base_url
        return json.dumps({"version": 1, "providers": {self._provider.kind: record}}, indent=2)

    def _environment(self) -> dict[str, str]:
        """A home of its own, and of ours only what it takes to reach the network: the server runs
        what a model asks for, so keys and paths of the person who starts it stay out."""
        passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        return {
            **passed,
            "PATH": os.environ.get("PATH", _PATH),
            "HOME": str(self.directory),
            "LANG": "C.UTF-8",
            "LETTA_LOCAL_BACKEND_DIR": str(self.directory / "backend"),
            "LETTA_CODE_TELEM": "0",
            "LETTA_DISABLE_MODS": "1",
            "LETTA_CODE_OFFLINE": "1",  # no downloads of tools that are denied anyway
            "DISABLE_AUTOUPDATER": "1",
        }

    def _is_ready(self) -> bool:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=2.0)) as connection:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200


def _executable() -> str:
    """Letta's command, this environment's own before the PATH's."""
    own = Path(sysconfig.get_path("scripts")) / "letta"
    found = str(own) if own.exists() else shutil.which("letta")
    if found is None:
        raise ConfigError(
            "homeroom[local]", "is not installed, so there is no Letta to start", "install it"
        )
    return found


def _write_private(path: Path, text: str) -> None:
    """Replaces a file in one step; only its owner may read it, from the first byte on."""
    draft = path.with_name(path.name + ".new")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(text)
    draft.replace(path)
