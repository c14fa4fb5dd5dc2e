"""The bundle for Claude Desktop: the official tool packs and checks it, and its content serves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from homeroom import __version__
from support.node import node_home, run_node
from support.wire import INITIALIZE, Wire

ROOT = Path(__file__).parents[2]
LIMIT_S = 300.0
GIVEN = {"letta_url": "http://127.0.0.1:9"}
"""What a person fills in; the rest has its defaults."""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle as a host lays it out."""
    directory = tmp_path_factory.mktemp("bundle")
    bundle, out = directory / "homeroom.mcpb", directory / "unpacked"
    mcpb = node_home() / "node_modules" / ".bin" / "mcpb"
    env = {**os.environ, "PATH": f"{mcpb.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "bundle" / "build.py"), "--mcpb", str(mcpb), str(bundle)],
        env=env, capture_output=True, text=True, timeout=LIMIT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert run_node("mcpb", "unpack", str(bundle), str(out), timeout_s=LIMIT_S).returncode == 0
    return out


def test_the_official_tool_finds_nothing_wrong_with_it(unpacked: Path) -> None:
    done = run_node("mcpb", "validate", str(unpacked / "manifest.json"), timeout_s=LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((unpacked / "manifest.json").read_text())["version"] == __version__
    names = {path.name for path in unpacked.iterdir()}
    assert names == {"manifest.json", "server", "tools", "pyproject.toml", "README.md", "LICENSE"}
    assert not list(unpacked.rglob("__pycache__"))


def test_what_its_manifest_starts_serves(unpacked: Path, tmp_path: Path) -> None:
    manifest = json.loads((unpacked / "manifest.json").read_text())
    config: dict[str, Any] = manifest["server"]["mcp_config"]
    asked = manifest["user_config"]
    values = {name: GIVEN.get(name, about.get("default")) for name, about in asked.items()}

    def filled(text: str) -> str:
        for name, value in values.items():
            text = text.replace(f"${{user_config.{name}}}", value)
        return text.replace("${__dirname}", str(unpacked))

    assert config["command"] == "uv"
    environ = {
        # Neither our sources nor our installation: uv makes the bundle one of its own.
        **{
            name: os.environ[name]
            for name in os.environ
            if name not in ("PYTHONPATH", "VIRTUAL_ENV")
        },
        **{name: filled(value) for name, value in config["env"].items()},
        "HOMEROOM_DATA_DIR": str(tmp_path / "data"),
        "UV_PYTHON": sys.executable,
    }
    argv = [sys.executable, "-m", *(filled(part) for part in [config["command"], *config["args"]])]
    wire = Wire(argv, environ)
    try:
        wire.send("initialize", INITIALIZE)
        assert wire.receive(LIMIT_S)["result"]["serverInfo"]["version"] == __version__
        wire.send("notifications/initialized", id_=None)
        tools = [tool["name"] for tool in wire.call("tools/list")["result"]["tools"]]
        assert "chat_with_agent" in tools
        wire.close_stdin()
        assert wire.wait() == 0
    finally:
        wire.close()
