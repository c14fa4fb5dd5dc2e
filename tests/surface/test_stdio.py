"""A real process on stdin and stdout: what it writes, and that it ends."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from homeroom_tools import register
from support.fake_app import FakeApp
from support.fake_process import END_LIMIT_S, SERVER, START_LIMIT_S, environment
from support.wire import MODERN, Wire

TOOL_COUNT = len(register(FakeApp()))  # type: ignore[arg-type]


class Logged(Wire):
    """``fake_server.py``, which notes its clean-up in ``log``."""

    def __init__(self, log: Path) -> None:
        super().__init__([sys.executable, str(SERVER), "stdio", str(log)], environment())
        self.log = log

    def ended(self) -> tuple[int, list[str]]:
        """The exit code and what the clean-up noted, once it has ended."""
        return self.wait(), self.log.read_text().splitlines()[1:]


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Logged]:
    wire = Logged(tmp_path / "log")
    try:
        yield wire
    finally:
        wire.close()


def test_a_client_that_probes_and_falls_back_is_served(wire: Logged) -> None:
    """Regression for https://github.com/anthropics/claude-code/issues/96183."""
    probe = wire.call("server/discover", {"_meta": MODERN})
    assert probe["result"]["supportedVersions"] == ["2026-07-28"]
    assert probe["result"]["instructions"]
    assert wire.handshake()["result"]["protocolVersion"] == "2025-11-25"
    assert len(wire.call("tools/list")["result"]["tools"]) == TOOL_COUNT


def test_a_client_that_probes_and_stays_is_served(wire: Logged) -> None:
    wire.call("server/discover", {"_meta": MODERN})
    assert len(wire.call("tools/list", {"_meta": MODERN})["result"]["tools"]) == TOOL_COUNT
    again = wire.call("server/discover", {"_meta": MODERN})
    first = json.loads(wire.lines[0])["result"]
    assert again["result"]["capabilities"] == first["capabilities"]


@pytest.mark.parametrize("era", ["legacy", "2026-07-28"])
def test_whoever_started_the_process_is_the_caller(wire: Logged, era: str) -> None:
    call: dict[str, Any] = {"name": "list_agents", "arguments": {}}
    if era == "legacy":
        wire.handshake()
    else:
        call["_meta"] = MODERN
    assert not wire.call("tools/call", call)["result"].get("isError")
    wire.close_stdin()
    assert wire.ended() == (0, ["caller stdio", "on_exit", "cleaned up"])


def test_a_line_that_is_no_json_does_not_end_the_conversation(wire: Logged) -> None:
    wire.handshake()
    assert wire.process.stdin is not None
    wire.process.stdin.write(b"\xff\xfe not json\n")
    assert wire.call("ping")["result"] == {}


def test_end_of_input_ends_the_process(wire: Logged) -> None:
    wire.handshake()
    call = {"name": "chat_with_agent", "arguments": {"agent": "Slow Sam", "message": "x"}}
    wire.send("tools/call", call)
    wire.close_stdin()
    assert wire.ended() == (0, ["on_exit", "cleaned up"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_with_its_clean_up(wire: Logged, number: signal.Signals) -> None:
    wire.handshake()
    call = {"name": "chat_with_agent", "arguments": {"agent": "Slow Sam", "message": "x"}}
    wire.send("tools/call", call, id_=7)
    assert wire.call("ping")["id"] == 1
    wire.process.send_signal(number)
    assert wire.ended() == (128 + number, ["on_exit", "cleaned up"])


def test_a_signal_before_the_first_message_ends_it_too(wire: Logged) -> None:
    # The probe is answered without any session: the server is up and nobody has spoken for real.
    wire.call("server/discover", {"_meta": MODERN})
    wire.process.terminate()
    assert wire.ended() == (128 + signal.SIGTERM, ["on_exit", "cleaned up"])


def test_stdout_carries_nothing_but_json(wire: Logged) -> None:
    wire.handshake()
    wire.call("tools/call", {"name": "chat_with_agent", "arguments": {"agent": "No"}})
    wire.call("no/such/method")
    wire.close_stdin()
    wire.ended()
    assert wire.process.stdout is not None
    rest = wire.process.stdout.read().decode().splitlines()
    assert all(json.loads(line)["jsonrpc"] == "2.0" for line in [*wire.lines, *rest])


@pytest.mark.skipif(sys.platform == "win32", reason="there, nobody is told a parent's fate")
def test_a_parent_that_vanishes_leaves_no_orphan(tmp_path: Path) -> None:
    log = tmp_path / "log"
    # The test holds the pipe's other end as well, so the death of the parent brings no EOF.
    read, write = os.pipe()
    stdout_read, stdout_write = os.pipe()
    start = (
        "import subprocess, sys; "
        f"subprocess.Popen([sys.executable, {str(SERVER)!r}, 'stdio', {str(log)!r}]); "
        "import signal; signal.pause()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", start],
        stdin=read,
        stdout=stdout_write,
        stderr=subprocess.DEVNULL,
        env=environment(),
    )
    os.close(stdout_write)
    try:
        probe = {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "server/discover",
            "params": {"_meta": MODERN},
        }
        os.write(write, json.dumps(probe).encode() + b"\n")
        ready, _, _ = select.select([stdout_read], [], [], START_LIMIT_S)
        assert ready and os.read(stdout_read, 65_536)
        parent.kill()
        parent.wait()
        # Nobody holds the other end of stdout once the orphan has ended.
        ready, _, _ = select.select([stdout_read], [], [], END_LIMIT_S)
        assert ready and os.read(stdout_read, 65_536) == b""
        assert log.read_text().splitlines()[1:] == ["on_exit", "cleaned up"]
    finally:
        parent.kill()
        parent.wait()
        for fd in (read, write, stdout_read):
            os.close(fd)


@pytest.mark.parametrize("era", ["legacy", "auto", "2026-07-28"])
async def test_the_official_client_talks_to_it(tmp_path: Path, era: str) -> None:
    parameters = StdioServerParameters(
        command=sys.executable,
        args=[str(SERVER), "stdio", str(tmp_path / "log")],
        env=environment(),
    )
    with (tmp_path / "stderr").open("w") as stderr:
        async with Client(stdio_client(parameters, errlog=stderr), mode=era) as client:
            result = await client.call_tool("chat_with_agent", {"agent": "Ada", "message": "Hi"})
    assert result.structured_content is not None
    assert result.structured_content["reply"] == "Hi"


def test_starting_imports_nothing_that_a_bare_server_does_not() -> None:
    heavy = [
        "nio",
        "sqlite3",
        "sqlite_utils",
        "rich",
        "tenacity",
        "platformdirs",
        "nh3",
        "prometheus_client",
    ]
    heavy += ["homeroom.app", "homeroom.config", "homeroom.store", "homeroom.matrix"]
    # Building an MCPServer imports `rich` where it is installed; importing us must not.
    look = f"import sys, homeroom_tools.serve; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", look], env=environment(), capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
