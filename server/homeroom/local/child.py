"""A child process that is ready, watched, and never outlives its parent.

Owns starting, watching and stopping one subprocess, and what is said when it fails: these errors
stay on this machine and concern whoever started the child. Knows nothing of what it runs.
Invariant: after
``stop()`` (and, on Linux, after a kill -9 of the parent) the child is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from homeroom.errors import HomeroomError

_PR_SET_PDEATHSIG = 1
"""prctl(2): the signal this process gets when the thread that started it dies."""
_POLL_S = 0.02


class ChildFailed(HomeroomError):
    """A server that we run here did not start, or ended by itself. The text has its last words."""


class Child:
    """One subprocess with its output in a file.

    Start it from a thread that lives as long as it shall live: Linux sends the parent-death
    signal when the *starting thread* ends, not the process.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str | os.PathLike[str]],
        *,
        cwd: Path,
        log: Path,
        env: Mapping[str, str] | None = None,
        user: int | None = None,
        group: int | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.name = name
        self.log = log
        self._argv = [os.fspath(part) for part in argv]
        self._cwd, self._env = cwd, env
        self._user, self._group = user, group
        self._stop_signal = stop_signal
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    def check(self) -> None:
        """Nothing while it runs.

        Raises:
            ChildFailed: it ended, and nobody told it to.
        """
        if not self.alive:
            code = self._process.returncode if self._process else None
            how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
            raise self._failed(f"ended by itself ({how})")

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts it; a child that is running already is left alone."""
        if self.alive:
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        extra: dict[str, Any] = {}
        if self._user is not None:
            extra = {"user": self._user, "group": self._group, "extra_groups": []}
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                self._argv,
                cwd=self._cwd,
                env=None if self._env is None else dict(self._env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C at the terminal is ours to handle, not theirs
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
                **extra,
            )

    def wait_ready(self, is_ready: Callable[[], bool], timeout_s: float) -> None:
        """Returns when ``is_ready`` does; it is asked often and may raise OSError meanwhile.

        Raises:
            ChildFailed: it ended or was not ready in time; the end of its log says why.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if not self.alive:
                raise self._failed("did not start: it ended")
            try:
                if is_ready():
                    return
            except OSError:
                pass
            time.sleep(_POLL_S)
        raise self._failed(f"did not start: not ready after {timeout_s:.0f} s")

    def _failed(self, what: str) -> ChildFailed:
        return ChildFailed(f"{self.name} {what}. The end of {self.log}:\n{self.log_tail()}")

    def stop(self, timeout_s: float = 10.0) -> None:
        """Asks it to end, then makes it. Safe to call twice."""
        if self._process is None:
            return
        if self.alive:
            self._process.send_signal(self._stop_signal)
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()
        self._process.wait()

    def kill(self) -> None:
        """kill -9, the whole group; returns when it is gone."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def log_tail(self, line_count: int = 12) -> str:
        if not self.log.exists():
            return "(no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-line_count:])


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _die_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
