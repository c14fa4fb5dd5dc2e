"""What is installed for the tests once on a machine and then kept."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path


def prepared(name: str, build: Callable[[Path], object]) -> Path:
    """The directory of that name in the cache, which ``build`` fills if nobody has done so yet.

    Test runs that want it at the same time wait for the one that builds. What a build that failed
    left behind is thrown away by the next one.
    """
    home = _cache_dir() / name
    ready = home / ".ready"
    if ready.exists():
        return home
    home.parent.mkdir(parents=True, exist_ok=True)
    with (home.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir(mode=0o755)
            build(home)
            ready.touch()
    return home


def _cache_dir() -> Path:
    """Where it is kept between test runs.

    Postgres refuses root and then runs as another user, who must be able to reach it: not in
    root's home.
    """
    named = os.environ.get("HOMEROOM_TEST_CACHE")
    if named:
        return Path(named)
    if os.geteuid() == 0:
        return Path("/var/cache/homeroom-tests")
    return Path.home() / ".cache" / "homeroom-tests"
