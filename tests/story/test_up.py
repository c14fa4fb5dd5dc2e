"""`homeroom up` when one of the servers it started dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import httpx
import pytest

from homeroom.local.child import free_port

END_S = 30.0


class Up:
    """`homeroom up` in a directory of its own; what it says on stderr is kept in a file."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.port = directory, free_port()
        self.stderr = directory / "stderr"
        with self.stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "homeroom", "up", "--dir", directory / "local",
                 "--http", str(self.port)],
                env={"PATH": os.environ["PATH"], "HOME": str(directory)},
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )  # fmt: skip

    async def ready(self) -> None:
        async with httpx.AsyncClient(trust_env=False) as http:
            with anyio.fail_after(60):
                while not await self._answers(http):
                    assert self.process.poll() is None, self.stderr.read_text()
                    await anyio.sleep(0.2)  # there is no event to wait for

    async def _answers(self, http: httpx.AsyncClient) -> bool:
        try:
            return (await http.get(f"http://127.0.0.1:{self.port}/health")).status_code == 200
        except httpx.HTTPError:
            return False

    def children(self) -> dict[int, str]:
        """Process id -> command line of the servers it started."""
        found = {}
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                if f"\nPPid:\t{self.process.pid}\n" in status.read_text():
                    line = (status.parent / "cmdline").read_bytes()
                    found[int(status.parent.name)] = line.replace(b"\0", b" ").decode()
            except OSError:
                continue  # it has just ended
        return found


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    up = Up(tmp_path)
    yield up
    up.process.terminate()
    up.process.wait(END_S)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the servers by /proc")
@pytest.mark.parametrize(
    ("server", "says"),
    [("synapse.app", "Synapse ended"), ("letta", "the Letta App Server ended")],
)
async def test_a_server_that_dies_ends_it_with_1_and_with_what_died(
    up: Up, server: str, says: str
) -> None:
    await up.ready()
    children = up.children()
    assert len(children) == 3
    (victim,) = [pid for pid, line in children.items() if server in line]
    os.kill(victim, signal.SIGKILL)
    assert await anyio.to_thread.run_sync(up.process.wait, END_S) == 1
    said = up.stderr.read_text()
    assert f"homeroom: {says} by itself (signal 9)" in said
    assert "Traceback" not in said
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()], "the others are stopped"
