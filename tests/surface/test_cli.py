"""What the commands answer to whoever mistypes them, and what reaches the server they start."""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from homeroom import doctor, resume_command
from homeroom.config import PREFIX, Config
from homeroom.doctor import Check
from homeroom.errors import ConfigError, HomeroomError, Misuse
from homeroom.exchange import Exchange, between
from homeroom.local.stack import LocalStack
from homeroom.main import EXIT_CONFIG, EXIT_USAGE, _print_welcome, cli, main
from homeroom.model import AgentId
from homeroom.store import Store
from homeroom.telemetry import setup_logging


@pytest.fixture(autouse=True)
def logging_left_alone() -> Iterator[None]:
    """A command sets up the logging of its process, which is ours here."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


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


def test_a_pause_cannot_be_ended_for_one_agent_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "resume", "Ada") == EXIT_USAGE
    assert "homeroom resume A B" in capsys.readouterr().err


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
    with serving(tmp_path, "0") as url:
        yield url


@contextmanager
def serving(tmp_path: Path, http: str) -> Iterator[str]:
    """The address that a `serve --http` of this value says that it has."""
    environ = {
        **os.environ,
        "HOMEROOM_LETTA_URL": "http://127.0.0.1:9",
        "HOMEROOM_DATA_DIR": str(tmp_path / "data"),
        "HOMEROOM_HTTP_HOSTS": "homeroom.example.org, Bridge.internal",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "homeroom", "serve", "--http", http],
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


@pytest.fixture
def has_ipv6() -> None:
    """Skips where the machine has no IPv6 loopback."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return
    except OSError:
        pytest.skip("no IPv6 here")


@pytest.mark.usefixtures("has_ipv6")
def test_the_address_that_is_told_of_an_ipv6_socket_can_be_used(tmp_path: Path) -> None:
    with serving(tmp_path, "[::1]:0") as url:
        assert url.startswith("http://[::1]:")
        assert httpx.get(f"{url}/none", trust_env=False).status_code == 404


def test_what_up_says_of_its_address_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stack = LocalStack(tmp_path, {})
    for name in ("homeserver_url", "environ"):  # of servers that nobody needs to start for this
        monkeypatch.setattr(LocalStack, name, {})
    for host, base in (("::1", "http://[::1]:8017"), ("127.0.0.1", "http://127.0.0.1:8017")):
        _print_welcome(stack, host, 8017)
        told = re.findall(r"https?://\S+/(?:mcp|sse|health)\b", capsys.readouterr().out)
        assert told == [f"{base}/{path}" for path in ("mcp", "sse", "health", "mcp")]


def test_answers_that_nio_does_not_know_are_not_complained_about(
    capsys: pytest.CaptureFixture[str],
) -> None:
    setup_logging("DEBUG")
    logging.getLogger("nio.responses").warning("'room_id' is a required property")
    logging.getLogger("homeroom").warning("something_happened")
    assert "room_id" not in (said := capsys.readouterr().err) and "something_happened" in said


def test_a_token_is_printed_once_alone_and_then_listed_and_revoked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOMEROOM_LETTA_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("HOMEROOM_DATA_DIR", str(tmp_path / "data"))
    assert run(monkeypatch, "token", "new", "phone", "--scope", "read", "--scope", "chat") == 0
    shown = capsys.readouterr()
    token = shown.out.strip()
    assert re.fullmatch(r"hr_[\w-]{43}", token) and token not in shown.err
    assert run(monkeypatch, "token", "list") == 0
    listed = capsys.readouterr().out
    assert listed.split()[:2] == ["phone", "read,chat"] and token not in listed
    assert run(monkeypatch, "token", "new", "phone", "--scope", "read") == 1
    assert "already" in capsys.readouterr().err
    assert run(monkeypatch, "token", "new", "desk") == 1
    assert "at least one scope" in capsys.readouterr().err
    assert run(monkeypatch, "token", "revoke", "fone") == 1
    assert "Did you mean: phone?" in capsys.readouterr().err
    assert run(monkeypatch, "token", "revoke", "phone") == 0
    shown = capsys.readouterr()
    assert "revoked" in shown.out and "No token is left" in shown.err


def test_a_server_open_to_others_without_a_token_ends_with_78(tmp_path: Path) -> None:
    environ = {
        **os.environ,
        "HOMEROOM_LETTA_URL": "http://127.0.0.1:9",
        "HOMEROOM_DATA_DIR": str(tmp_path / "data"),
    }
    ended = subprocess.run(
        [sys.executable, "-m", "homeroom", "serve", "--http", "0.0.0.0:0"],
        env=environ, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ended.returncode == EXIT_CONFIG
    assert "HOMEROOM_HTTP_TOKEN" in ended.stderr and "homeroom token new" in ended.stderr
    assert ended.stdout == ""


@pytest.mark.parametrize("http", ["::1", "::1:8017", "fe80::1", "port", "1:2:99999"])
def test_an_address_that_can_be_read_in_two_ways_is_refused(
    http: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOMEROOM_LETTA_URL", "http://127.0.0.1:9")
    assert run(monkeypatch, "serve", "--http", http) == EXIT_CONFIG
    shown = capsys.readouterr()
    assert "--http" in shown.err and "8017" in shown.err and shown.out == ""


def test_what_a_command_shows_is_shown_without_loading_mcp() -> None:
    """It takes longer to load than all the rest of ``homeroom sync``."""
    loads = "import sys, homeroom.screen, homeroom.commands; sys.exit('mcp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loads]).returncode == 0


HOSTILE = "no\x1b[2J\x1b]0;x\x07 \u202eevil\u2069\r\nhomeroom: all is well\u2028✓ letta"


@pytest.mark.parametrize("error", [Misuse(HOSTILE), ConfigError("X", HOSTILE, "")])
@pytest.mark.parametrize("grouped", [False, True])
def test_an_error_that_repeats_foreign_text_cannot_command_the_terminal(
    error: HomeroomError,
    grouped: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(**given: object) -> None:
        raise ExceptionGroup("x", [error]) if grouped else error

    monkeypatch.setattr(cli, "main", fail)
    run(monkeypatch)
    shown = capsys.readouterr().err
    assert shown.startswith("homeroom: ") and shown.count("\n") == 1
    assert shown[:-1].isprintable() and "all is well" in shown


def test_what_doctor_found_cannot_command_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def examine(config: object) -> AsyncIterator[Check]:
        yield Check("letta", False, HOSTILE, HOSTILE)

    monkeypatch.setattr(doctor, "examine", examine)
    monkeypatch.setenv("HOMEROOM_LETTA_URL", "http://127.0.0.1:9")
    assert run(monkeypatch, "doctor") == 1
    lines = capsys.readouterr().out.split("\n")
    assert len(lines) == 3 and all(line.isprintable() for line in lines)
    monkeypatch.setenv("HOMEROOM_LETTA_URL", HOSTILE)
    assert run(monkeypatch, "doctor") == EXIT_CONFIG
    assert capsys.readouterr().out.removesuffix("\n").isprintable()


async def test_a_pause_names_agents_and_reasons_without_their_controls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paused = between(AgentId("a"), HOSTILE, AgentId("b" + HOSTILE), "Bob")

    async def list_paused(self: Store) -> list[Exchange]:
        return [paused]

    monkeypatch.setattr(Store, "list_paused", list_paused)
    config = Config(letta_url="http://127.0.0.1:9", data_dir=tmp_path)
    await resume_command._list(config)
    lines = capsys.readouterr().out.split("\n")
    assert lines[2:] == ["1 paused", ""] and all(line.isprintable() for line in lines)
