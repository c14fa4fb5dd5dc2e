"""What others wrote in JavaScript to judge an MCP server: pinned, installed once, kept in a cache.

npm brings the Node that they need as well, so a machine's own Node may be older.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from support.cache import prepared

PACKAGES: Mapping[str, str] = {
    "node": "22.23.3",
    "@modelcontextprotocol/conformance": "0.2.0-alpha.12",
    "@modelcontextprotocol/inspector": "2.12.0",
    "@modelcontextprotocol/sdk": "1.32.2",
    "@anthropic-ai/mcpb": "2.1.2",
}
"""Exact versions. The conformance suite's stable line does not know the stateless era yet."""
_LAYOUT = 1
"""Raised when PACKAGES change; old entries of the cache are then left alone."""
_INSTALL_S = 900.0


def node_home() -> Path:
    """The directory with ``node_modules``; the first call on a machine installs into it."""
    return prepared(f"node-{_LAYOUT}", _install)


def _install(home: Path) -> None:
    manifest = {"private": True, "dependencies": dict(PACKAGES)}
    (home / "package.json").write_text(json.dumps(manifest))
    npm = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(npm, cwd=home, capture_output=True, text=True, timeout=_INSTALL_S)
    assert done.returncode == 0, f"npm install failed: {done.stderr[-2000:]}"


def node_env(home: Path) -> dict[str, str]:
    """The environment in which that Node comes first."""
    path = os.pathsep.join([str(home / "node_modules" / ".bin"), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "NO_COLOR": "1"}


def run_node(
    command: str, *arguments: str, timeout_s: float, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs one of the installed commands to its end."""
    home = node_home()
    argv: Sequence[str] = [str(home / "node_modules" / ".bin" / command), *arguments]
    return subprocess.run(
        argv, cwd=cwd or home, env=node_env(home), capture_output=True, text=True, timeout=timeout_s
    )
