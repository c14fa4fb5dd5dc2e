"""What stands in the log, and what does not, though a library would write it."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
from mcp_types import jsonrpc_message_adapter

from homeroom.telemetry import _KeyValue

SECRET = "words-of-a-message"


def formatted(log: logging.Logger, write: str) -> str:
    """The line for a rejected message or for a hostile text, as the handler would write it."""
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler = Keep()
    log.addHandler(handler)
    try:
        if write == "rejected":
            try:
                jsonrpc_message_adapter.validate_python({"jsonrpc": "2.0", "method": [SECRET]})
            except ValueError:
                log.exception("Failed to parse message")
        else:
            log.warning(f"Received invalid session ID: {write}")  # noqa: G004 - as the SDK does
    finally:
        log.removeHandler(handler)
    return _KeyValue().format(records[0])


def test_a_rejected_message_is_not_repeated_in_the_log() -> None:
    line = formatted(logging.getLogger("mcp.server.sse"), "rejected")
    assert "ValidationError" in line and "input_type=" in line
    assert SECRET not in line


def test_what_a_client_sent_cannot_look_like_a_line_of_ours() -> None:
    line = formatted(logging.getLogger("mcp.server.sse"), "x\n2026 INFO a\x1b[2J\u2028b")
    assert line.endswith(r"x\n2026 INFO a\x1b[2J\u2028b") and line.count("\n") == 0


def logged(error: BaseException | None = None, **facts: object) -> str:
    record = logging.makeLogRecord({"name": "homeroom.x", "msg": "thing_done", **facts})
    record.exc_info = (type(error), error, None) if error else None
    return _KeyValue().format(record).partition("thing_done ")[2]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("one", "one"),
        ("so so", '"so so"'),
        ("", '""'),
        ('x" by="root', r'"x\" by=\"root"'),
        ("a\\", r'"a\\"'),
        ("a\rb\nc\x1b[2Jd\u2028e", r'"a\rb\nc\x1b[2Jd\u2028e"'),
        ("a\tby=root\xa0x", r'"a\tby=root\xa0x"'),
        ("\u202eevil\u200b\x9b1m\ud800", r'"\u202eevil\u200b\x9b1m\ud800"'),
        ("Zoë 猫", '"Zoë 猫"'),
    ],
)
def test_a_fact_ends_where_it_seems_to_and_commands_no_terminal(value: str, shown: str) -> None:
    assert logged(why=value, n=1) == f"why={shown} n=1"


def test_the_text_of_an_exception_cannot_look_like_a_line_of_ours() -> None:
    lines = logged(ValueError("a\n2026-01-01 INFO homeroom b\x1b[2J"), n=1).split("\n")
    assert lines[0] == "n=1" and all(line.startswith("  ") for line in lines[1:])
    assert lines[-1] == r"  2026-01-01 INFO homeroom b\x1b[2J"


def test_the_log_goes_to_stderr_and_facts_are_pairs() -> None:
    code = (
        "import logging; from homeroom.telemetry import setup_logging; setup_logging('INFO');"
        "logging.getLogger('homeroom.x').info('thing_done', extra={'why': 'so so', 'n': 1})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "" and done.stderr.endswith('homeroom.x thing_done why="so so" n=1\n')
