"""From the start of the process to its first answer on stdout, as an LLM client waits for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.table import Row, in_turns

TARGET = 1.25
BARE = [sys.executable, str(Path(__file__).with_name("bare_server.py"))]
OURS = [sys.executable, "-m", "homeroom", "serve"]

_CLIENT = {"name": "benchmark", "version": "1"}
ERAS: Mapping[str, dict[str, Any]] = {
    "initialize": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": _CLIENT,
    },
    "server/discover": {
        "_meta": {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
            "io.modelcontextprotocol/clientInfo": _CLIENT,
        }
    },
}
"""The first request of each era of the protocol."""


async def measure(count: int, environ: Mapping[str, str]) -> list[Row]:
    """One row per era. ``environ`` are Homeroom's settings; both sides get them."""
    rows = []
    for method in ERAS:
        ours, bare = await in_turns(
            count, _starting(OURS, method, environ), _starting(BARE, method, environ)
        )
        rows.append(Row(f"stdio: start to the answer of {method}", ours, bare, target=TARGET))
    return rows


def _starting(
    argv: Sequence[str], method: str, environ: Mapping[str, str]
) -> Callable[[], Awaitable[float]]:
    async def once() -> float:
        return first_answer_ms(argv, method, environ)

    return once


def first_answer_ms(argv: Sequence[str], method: str, environ: Mapping[str, str]) -> float:
    """Starts the process, asks at once, and stops it when it has answered."""
    request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": ERAS[method]}
    started_s = time.perf_counter()
    with subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environ},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        took_ms = (time.perf_counter() - started_s) * 1000
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=10)
    assert b'"result"' in answer, f"{argv} answered {answer!r}: {log.decode()[-2000:]}"
    return took_ms
