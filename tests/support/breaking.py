"""Breaking what stands before or under the reconciler, for the tests of its faults."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from support.fault_proxy import Fault, FaultProxy, Request, call
from support.home import Home

T = TypeVar("T")

MATRIX = "HOMEROOM_MATRIX_URL"
LETTA = "HOMEROOM_LETTA_URL"
UNHARMED = Fault()
DIES_S = 120.0
OFTEN = {"HOMEROOM_SYNC_INTERVAL_S": "1", "HOMEROOM_RETIRE_AFTER_S": "0"}
_NO_CHANGE = re.compile(r"/account_data/|/typing/|/receipt/|/sync$")


def changes(asked: Request) -> bool:
    """Whether a request to the homeserver changes what people can see."""
    return asked.method in ("PUT", "POST", "DELETE") and not _NO_CHANGE.search(asked.path)


@contextmanager
def before(home: Home, setting: str) -> Iterator[tuple[Home, FaultProxy]]:
    """The home, with a proxy before the server whose URL that setting is."""
    with FaultProxy(home.environ[setting]) as proxy:
        yield replace(home, environ=home.environ | {setting: proxy.url}), proxy


def sync_until_killed(
    home: Home, proxy: FaultProxy, fault: Fault, skip: int, *arguments: str
) -> None:
    """Runs ``homeroom sync``, which dies at the change number ``skip``."""
    log = home.directory / "killed.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "homeroom", "sync", *arguments],
            env=home.environ, cwd=home.directory, stdout=out, stderr=out,
        )  # fmt: skip
    proxy.on(
        changes, fault & call(lambda: os.kill(process.pid, signal.SIGKILL)), skip=skip, times=1
    )
    try:
        code = process.wait(DIES_S)
        assert code == -signal.SIGKILL, f"it made no change number {skip}:\n{log.read_text()}"
    finally:
        process.kill()
        process.wait()
        proxy.heal()


async def killed_at_each_step(
    home: Home, proxy: FaultProxy, change: Callable[[], Awaitable[T]], *arguments: str,
    least: int, fault: Fault = UNHARMED,
) -> AsyncIterator[T]:  # fmt: skip
    """Makes ``change`` as often as there are steps in the sync that follows it, and kills that sync
    each time at the next one (``fault`` is what becomes of its request).

    Gives what ``change`` returned, once a sync has ended well after the kill. ``least`` is how many
    steps there must be: with fewer, nothing was tried.
    """
    await change()
    begun = proxy.count(changes)
    assert_syncs(home, *arguments)
    steps = proxy.count(changes) - begun
    assert steps >= least
    for step in range(steps):
        changed = await change()
        sync_until_killed(home, proxy, fault, step, *arguments)
        assert_syncs(home)
        yield changed


def assert_syncs(home: Home, *arguments: str, **environ: str) -> None:
    done = home.run("sync", *arguments, **environ)
    assert done.returncode == 0, done.stdout + done.stderr
