"""Nothing that a run produces holds a secret: output, results, errors, files, the store."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import yaml

from homeroom.local.scripted_model import ScriptedModel
from support.app_server import AppServerHarness
from support.client import connect
from support.home import Home, make_home
from support.synapse import Homeserver
from support.talk import ask

SHARED = f"shared-{secrets.token_urlsafe(24)}"
LETTA = f"letta-{secrets.token_urlsafe(24)}"
WRONG = f"wrong-{secrets.token_urlsafe(24)}"


@pytest.fixture
def secret_home(
    own_synapse: Homeserver, scripted_model: ScriptedModel, tmp_path: Path
) -> Iterator[Home]:
    """A home whose Letta has a password that nothing else could be."""
    letta = AppServerHarness(tmp_path / "letta", scripted_model, token=LETTA)
    try:
        letta.start()
        yield make_home(own_synapse, letta, tmp_path / "homeroom", "alice")
    finally:
        letta.stop()


def spellings(secret: str) -> set[bytes]:
    """The secret as it is, in a URL, and in base64 wherever it may begin in it."""
    raw = secret.encode()
    found = {raw, quote(secret, safe="").encode(), repr(secret)[1:-1].encode()}
    for shift in range(3):
        whole = base64.b64encode(b"\0" * shift + raw)
        found.add(whole[4 : len(whole) - 4])
    return found


class Produced:
    """Everything that came out of a run, by where it came out."""

    def __init__(self) -> None:
        self.parts: dict[str, bytes] = {}

    def add(self, where: str, what: Any) -> None:
        data = what if isinstance(what, bytes) else str(what).encode()
        self.parts[f"{len(self.parts)} {where}"] = data

    def add_files(self, directory: Path) -> None:
        for path in sorted(directory.rglob("*")):
            if path.is_file():
                self.add(str(path.relative_to(directory)), path.read_bytes())

    def holding(self, secret: str) -> list[str]:
        return [
            where
            for where, data in self.parts.items()
            if any(spelling in data for spelling in spellings(secret))
        ]


async def test_no_secret_is_in_anything_that_a_run_produced(secret_home: Home) -> None:
    home, out = secret_home, Produced()
    registration = yaml.safe_load(home.homeserver.registration_path.read_text())
    made: dict[str, str] = {}
    for name, scope in (("full", "chat"), ("reader", "read")):
        done = home.run("token", "new", name, "--scope", scope, "--scope", "read")
        assert done.returncode == 0, done.stderr
        made[name] = done.stdout.strip()
        out.add("token new, stderr", done.stderr)
    for arguments in (["token", "list"], ["doctor"], ["sync", "--dry-run"]):
        add_run(out, home, *arguments)
    await home.letta.create_agent("Ada", "Keeps notes", {"human": "Nothing."})
    done = home.run(
        "token", "new", "agents", "--scope", "chat", "--scope", "read", "--agent", "Ada"
    )
    assert done.returncode == 0, done.stderr
    made["agents"] = done.stdout.strip()
    out.add("token new --agent, stderr", done.stderr)

    settings = {
        "HOMEROOM_LOG_LEVEL": "DEBUG", "HOMEROOM_HTTP_TOKEN": SHARED, "HOMEROOM_PAIR_BUDGET": "1",
    }  # fmt: skip
    async with home.login() as alice:
        with home.service(**settings) as service:
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say hello")
            await use(out, service.url, made)
            await pause_ada(out, service.url, made["agents"])
            for arguments in (["resume"], ["resume", "Ada", "Nobody"], ["resume", "Ada", "Ada"]):
                add_run(out, home, *arguments)
            add_run(out, home, "token", "list")
            push(out, service.url, registration["hs_token"])
            home.letta.crash()
            await use(out, service.url, made)
            home.homeserver.synapse.stop()
            out.add("health", json.dumps(await service.health()))
    for wrong in (
        {"HOMEROOM_LETTA_TOKEN": WRONG},
        {"HOMEROOM_LETTA_URL": f"http://me:{WRONG}@127.0.0.1:1"},
        {"HOMEROOM_MATRIX_URL": f"http://127.0.0.1:1?access_token={WRONG}"},
        {"HOMEROOM_HTTP_RATE": WRONG},
    ):
        add_run(out, home, "doctor", **wrong)
        add_run(out, home, "sync", **wrong)
    add_run(out, home, "serve", "--http", "192.0.2.7:8017", **settings)
    add_run(out, home, "serve", "--no-such-option", **settings)
    out.add_files(home.directory)

    assert out.holding("doctor") and out.holding("service_away")  # it does find what is there
    assert out.holding("are paused until") and out.holding("may write to each other again")
    in_play = {
        "as_token": registration["as_token"],
        "hs_token": registration["hs_token"],
        "Letta's password": LETTA,
        "HOMEROOM_HTTP_TOKEN": SHARED,
        "a wrong token": WRONG,
        **made,
    }
    leaks = {name: out.holding(secret) for name, secret in in_play.items()}
    assert not any(leaks.values()), leaks


def add_run(out: Produced, home: Home, *arguments: str, **environ: str) -> None:
    done = home.run(*arguments, **environ)
    out.add(" ".join(arguments), f"{' '.join(arguments)}\n{done.stdout}\n{done.stderr}")


async def use(out: Produced, url: str, tokens: dict[str, str]) -> None:
    """Calls that succeed, that fail and that are refused, over both HTTP transports."""
    for name, token in tokens.items():
        async with connect(url, token, "sse") as client:
            out.add(f"tools for {name}", (await client.list_tools()).model_dump_json())
            for tool, arguments in (
                ("list_agents", {}),
                ("get_sync_status", {}),
                ("get_agent_memory", {"agent": "Ada"}),
                ("get_agent_memory", {"agent": "Nobody"}),
                ("list_parked", {}),
            ):
                result = await client.call_tool(tool, arguments)
                out.add(f"{tool} for {name}", result.model_dump_json())
    async with httpx.AsyncClient(base_url=url, timeout=30) as http:
        for token in (*tokens.values(), SHARED, WRONG, ""):
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            for path in ("/health", "/metrics", "/mcp", "/none"):
                answer = await http.get(path, headers=headers)
                out.add(f"{path} {answer.status_code}", f"{answer.headers} {answer.text}")


async def pause_ada(out: Produced, url: str, token: str) -> None:
    """Ada writes to herself once more than she may."""
    async with connect(url, token, "sse") as client:
        for text in ("!say one", "!say two"):
            result = await client.call_tool("chat_with_agent", {"agent": "Ada", "message": text})
            out.add("chat of an agent", result.model_dump_json())
    assert "of the agent" in str(result.content) and "to itself are paused" in str(result.content)


def push(out: Produced, url: str, hs_token: str) -> None:
    """Pushes with the token where homeservers put it, and with a wrong one."""
    for token in (hs_token, WRONG):
        answer = httpx.put(
            f"{url}/_matrix/app/v1/transactions/1?access_token={token}", json={"events": []}
        )
        out.add("push", f"{answer.status_code} {answer.headers} {answer.text}")
