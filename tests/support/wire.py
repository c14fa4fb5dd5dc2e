"""A server on stdin and stdout, line by line."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

from support.fake_process import END_LIMIT_S, START_LIMIT_S

MODERN = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
}
INITIALIZE = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "raw", "version": "1"},
}


class Wire:
    """The server's process and the JSON lines to and from it."""

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str]) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environ,
        )
        self._rest = b""

    def send(self, method: str, params: dict[str, Any] | None = None, id_: int | None = 1) -> None:
        frame: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": params or {}}
        if id_ is not None:
            frame["id"] = id_
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(frame).encode() + b"\n")
        self.process.stdin.flush()

    def receive(self, timeout_s: float = START_LIMIT_S) -> dict[str, Any]:
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self.process.stdout], [], [], deadline - time.monotonic())
            assert ready, "no answer in time"
            chunk = os.read(self.process.stdout.fileno(), 65_536)
            assert chunk, f"the server ended: {self.stderr()}"
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        self.lines.append(line.decode())
        frame: dict[str, Any] = json.loads(line)
        return frame

    def call(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        self.send(method, params)
        return self.receive()

    def handshake(self) -> dict[str, Any]:
        answer = self.call("initialize", INITIALIZE)
        self.send("notifications/initialized", id_=None)
        return answer

    def close_stdin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def stderr(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def wait(self) -> int:
        """The exit code, once it has ended."""
        return self.process.wait(END_LIMIT_S)

    def rest(self) -> list[str]:
        """The lines on stdout that nobody has received, once it has ended."""
        assert self.process.stdout is not None
        return (self._rest + self.process.stdout.read()).decode().splitlines()

    def close(self) -> None:
        """Kills it, if it still runs."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
