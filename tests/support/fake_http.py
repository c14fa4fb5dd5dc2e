"""``fake_server.py`` over HTTP as a process, and raw requests to it."""

from __future__ import annotations

import http.client
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from support.fake_process import SERVER, START_LIMIT_S, environment

ACCEPT = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "raw", "version": "1"},
    },
}


def serve(directory: Path, host: str = "127.0.0.1", token: str = "", *more: str) -> Iterator[int]:
    """The port of a server of its own; it is stopped, and has to stop, when this is done."""
    with (directory / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, str(SERVER), "http", "-", host, token, *more],
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment(),
        )
    assert process.stdout is not None
    try:
        ready, _, _ = select.select([process.stdout], [], [], START_LIMIT_S)
        assert ready, "it did not start"
        yield int(process.stdout.readline())
        process.terminate()
        assert process.wait(START_LIMIT_S) == 0  # that it is quick is a test of its own
        assert token == "" or token not in (directory / "stderr").read_text()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def ask(
    port: int,
    method: str,
    path: str,
    headers: dict[str, str] | None = None,
    body: str | bytes | None = None,
) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_LIMIT_S)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        if "event-stream" not in response.headers.get("content-type", ""):
            response.read()
        return response
    finally:
        connection.close()
