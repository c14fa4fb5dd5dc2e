"""What the commands answer to whoever mistypes them, and what reaches the server they start."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from homeroom.config import PREFIX
from homeroom.main import EXIT_CONFIG, EXIT_USAGE, cli, main
from homeroom.telemetry import setup_logging


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of a command that ends before it starts anything."""
    monkeypatch.setattr(sys, "argv", ["homeroom", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize("command", ["", *cli.commands])
@pytest.mark.parametrize("wrong", ["--no-such-option", "no-such-argument"])
def test_a_mistyped_command_line_ends_with_64_because_2_means_drift(
    command: str, wrong: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = (
        [p for p in cli.commands[command].params if p.param_type_name == "argument"]
        if command
        else []
    )
    arguments = [*filter(None, [command]), *("x" for _ in wanted), wrong]
    assert run(monkeypatch, *arguments) == EXIT_USAGE == 64
    shown = capsys.readouterr()
    assert wrong in shown.err and shown.out == ""


@pytest.mark.parametrize("command", ["", *cli.commands])
def test_asking_for_help_is_no_mistake(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *([command, "--help"] if command else ["--help"])) == 0
    assert "Usage" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["https://example.org", "example.org/", "@you:example.org", "a b"])
def test_a_registration_is_written_for_a_server_name_only(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "registration.yaml"
    given = ["registration", "--out", str(out)]
    assert run(monkeypatch, *given, "--server-name", name) == EXIT_CONFIG
    assert "--server-name must be a bare server name" in capsys.readouterr().err
    monkeypatch.setenv("HOMEROOM_MATRIX_SERVER_NAME", name)
    assert run(monkeypatch, *given) == EXIT_CONFIG
    assert "HOMEROOM_MATRIX_SERVER_NAME must be a bare" in capsys.readouterr().err
    assert not out.exists()


def test_a_registration_says_who_has_to_read_it_and_takes_a_url_without_its_last_slash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "registration.yaml"
    given = ["registration", "--out", str(out), "--server-name", "example.org"]
    assert run(monkeypatch, *given, "--url", "bridge:8017") == EXIT_CONFIG
    assert "--url must be a URL" in capsys.readouterr().err
    assert run(monkeypatch, *given, "--url", "http://bridge:8017/") == 0
    assert "let the homeserver's user read it" in capsys.readouterr().out
    assert yaml.safe_load(out.read_text())["url"] == "http://bridge:8017"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address of a `serve --http` that answers to two more names. Its Letta is away."""
    environ = {
        **os.environ,
        "HOMEROOM_LETTA_URL": "http://127.0.0.1:9",
        "HOMEROOM_DATA_DIR": str(tmp_path / "data"),
        "HOMEROOM_HTTP_HOSTS": "homeroom.example.org, Bridge.internal",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "homeroom", "serve", "--http", "0"],
        env=environ,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"MCP at (http://\S+)/mcp", line):
                yield found[1]
                break
    finally:
        process.terminate()
        process.communicate(timeout=20)


def test_http_clients_may_use_the_names_in_the_settings_and_no_other(served: str) -> None:
    for host, status in (
        ("homeroom.example.org", 404),
        ("bridge.internal:443", 404),
        ("evil.example.org", 421),
    ):
        answer = httpx.get(f"{served}/none", headers={"Host": host}, trust_env=False)
        assert answer.status_code == status, host


def test_answers_that_nio_does_not_know_are_not_complained_about(
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        setup_logging("DEBUG")
        logging.getLogger("nio.responses").warning("'room_id' is a required property")
        logging.getLogger("homeroom").warning("something_happened")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert "room_id" not in (said := capsys.readouterr().err) and "something_happened" in said
