"""The official conformance suite and the Inspector, against Homeroom's own process, in both eras.

Source: https://github.com/modelcontextprotocol/conformance,
https://github.com/modelcontextprotocol/inspector
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from homeroom.local.child import Child, free_port
from support.fake_http import serve
from support.fake_process import environment
from support.node import run_node

FIXTURES = Path(__file__).parents[1] / "support" / "conformance.py"
READY_S = 60.0
SUITE_LIMIT_S = 300.0
SCENARIOS = {"2025-11-25": 33, "2026-07-28": 40}
"""How many scenarios the pinned suite has for a server of each era: none is left out."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where ``homeroom serve --http`` listens, with the fixtures. Its Letta is away."""
    directory, port = tmp_path_factory.mktemp("conformance"), free_port()
    settings = {
        "HOMEROOM_LETTA_URL": "http://127.0.0.1:9",
        "HOMEROOM_DATA_DIR": str(directory / "data"),
        "HOMEROOM_HTTP_RATE": "0",
    }
    server = Child(
        "homeroom",
        [sys.executable, str(FIXTURES), "serve", "--http", str(port)],
        cwd=directory,
        log=directory / "homeroom.log",
        env=environment() | settings,
    )
    try:
        server.start()
        base = f"http://127.0.0.1:{port}"

        def is_up() -> bool:
            try:
                httpx.get(f"{base}/health", timeout=5)  # 503 while Letta is away
            except httpx.HTTPError:
                return False
            return True

        server.wait_ready(is_up, READY_S)
        yield f"{base}/mcp"
    finally:
        server.stop()


@pytest.mark.parametrize("version", SCENARIOS)
def test_every_scenario_of_the_official_suite_passes(
    url: str, version: str, tmp_path: Path
) -> None:
    asked = ["--url", url, "--suite", "all", "--spec-version", version, "-o", str(tmp_path)]
    done = run_node("conformance", "server", *asked, timeout_s=SUITE_LIMIT_S)
    assert done.returncode == 0, done.stdout[-6000:]
    results = re.findall(r"^(\S) (\S+): (\d+) passed, (\d+) failed$", done.stdout, re.M)
    assert len(results) == SCENARIOS[version]
    assert all(mark == "✓" and failed == "0" for mark, _, _, failed in results)
    # What the suite wrote down agrees with what it printed.
    files = tmp_path.rglob("checks.json")
    checks = [check for file in files for check in json.loads(file.read_text())]
    assert len(checks) >= sum(int(passed) for _, _, passed, _ in results)
    assert not [check for check in checks if check["status"] == "FAILURE"]


@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_the_inspector_finds_nothing_to_complain_of_in_our_schemas(
    tmp_path: Path, era: str
) -> None:
    for port in serve(tmp_path):  # our own tools alone
        asked = ["--transport", "http", "--protocol-era", era, "--method", "tools/list", "--strict"]
        target = f"http://127.0.0.1:{port}/mcp"
        done = run_node("mcp-inspector", "--cli", target, *asked, timeout_s=SUITE_LIMIT_S)
    assert (done.returncode, done.stderr) == (0, "")
    tools: list[dict[str, Any]] = json.loads(done.stdout)["tools"]
    assert "chat_with_agent" in [tool["name"] for tool in tools]
