"""A bridge that is killed again and again while people talk to it, and the table of that."""

from __future__ import annotations

import json
import os
import random
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import anyio

from homeroom.items import ItemState
from homeroom.local.child import Child, free_port
from homeroom.store import open_store
from support import sick_homeroom
from support.home import Home
from support.load import Crowd, Figures

DRAIN_S = 60.0
PARKED_MOST = 10_000
KILL_LIMIT_S = 30.0
"""A bridge that does not reach its commit by then is killed where it is."""

_KILLED = re.compile(r"Homeroom died \d+ times while it worked on this\.")


@dataclass
class Soak:
    """One store, one crowd, many lives of the bridge."""

    home: Home
    kills: Counter[str] = field(default_factory=Counter)
    """Where it was killed -> how often."""
    unreached: list[str] = field(default_factory=list)
    """Commits at which it was to die, and which it had not made after ``KILL_LIMIT_S``."""
    recoveries_s: list[float] = field(default_factory=list)
    """From each kill until the first answer after it."""
    port: int = field(default_factory=free_port)
    child: Child | None = None
    left: int = 0
    """Items that were neither done nor given up at the end."""
    given_up: Counter[str] = field(default_factory=Counter)
    """Why items were parked -> how many."""
    _killed_s: float = 0.0

    @property
    def died(self) -> Path:
        return self.home.directory / "died.txt"

    @property
    def commits(self) -> Path:
        return self.home.directory / "commits.txt"

    def start(self, **illness: Any) -> Child:
        """Starts the next life."""
        told = {"died": str(self.died), **illness}
        self.child = Child(
            "homeroom",
            [sys.executable, sick_homeroom.__file__, json.dumps(told), "serve",
             "--http", str(self.port)],
            cwd=self.home.directory,
            log=self.home.directory / "homeroom.log",
            env=self.home.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": import_path()},
        )  # fmt: skip
        self.child.start()
        return self.child

    def stop(self) -> None:
        if self.child:
            self.child.stop()

    async def live(self, kill_at: int, moment: str) -> None:
        """A life that ends at that commit, or ``unreached``."""
        before = len(self._deaths())
        child = self.start(kill_at=kill_at, moment=moment)
        await wait_dead(child, KILL_LIMIT_S)
        self._end(child)
        assert len(self._deaths()) <= before + 1, child.log_tail()
        if len(self._deaths()) > before:
            self.kills[self._deaths()[-1]] += 1
        else:
            self.unreached.append(f"{moment} commit {kill_at}")

    async def live_random(self, crowd: Crowd, chance: random.Random) -> None:
        """A life that ends at a moment of chance's choosing: while it starts, or after it has
        answered something, which is how long recovery took."""
        child = self.start()
        if chance.random() < 0.4:
            await anyio.sleep(chance.uniform(0.0, 2.5))
        else:
            answered_s = await crowd.wait_answers(1)
            if self._killed_s:
                self.recoveries_s.append(answered_s - self._killed_s)
            await anyio.sleep(chance.uniform(0.0, 1.0))
        assert child.alive, child.log_tail()
        self._end(child)
        self.kills["at random"] += 1

    def _end(self, child: Child) -> None:
        child.kill()
        self._killed_s = anyio.current_time()

    def _deaths(self) -> list[str]:
        return self.died.read_text().splitlines() if self.died.exists() else []

    async def finish(self, crowd: Crowd) -> Figures:
        """A last life, in which everything ends, and the count."""
        self.start()
        if crowd.open_count and self._killed_s:
            self.recoveries_s.append(await crowd.wait_answers(1) - self._killed_s)
        await crowd.settle()
        await self._drain()
        figures = await crowd.count()
        self.stop()
        return figures

    async def _drain(self) -> None:
        """Notes what is still open when everybody has been answered: posts that are under way end
        meanwhile."""
        path = Path(self.home.environ["HOMEROOM_DATA_DIR"]) / "homeroom.db"
        async with open_store(path) as store:
            with anyio.move_on_after(DRAIN_S):
                while True:
                    changed, counts = store.changed, await store.count_items()
                    ended = {state for state in ItemState if state.has_ended}
                    self.left = sum(n for state, n in counts.items() if state not in ended)
                    if not self.left:
                        break
                    await changed.wait()
            parked, _ = await store.page_parked("", PARKED_MOST, "")
            self.given_up = Counter(found.item.reason for found in parked)

    def table(self, figures: Figures) -> str:
        """For people."""
        times = sorted(self.recoveries_s) or [float("nan")]
        rows: list[tuple[str, object]] = [
            ("kills (SIGKILL)", sum(self.kills.values())),
            ("distinct commit points", len(self.points)),
            ("commits not reached", len(self.unreached)),
            ("messages said", figures.said),
            ("answered exactly once", figures.answered - figures.doubled),
            ("lost", figures.lost),
            ("doubled", figures.doubled),
            ("out of order", figures.disordered),
            ("parked with a notice", figures.parked),
            ("answers with another text", figures.wrong),
            ("items left undone", self.left),
            ("time to recovery, median", f"{median(times):.1f} s"),
            ("time to recovery, p95", f"{times[int(len(times) * 0.95)]:.1f} s"),
            ("time to recovery, longest", f"{times[-1]:.1f} s"),
        ]
        return "\n".join(f"| {name:28} | {value!s:>8} |" for name, value in rows)

    @property
    def sick(self) -> Counter[str]:
        """Why items were parked, but for those that were in hand at one death too many: of what
        began ``CRASH_LIMIT`` times and was killed each time, nobody can know that it is not the
        message that kills."""
        return Counter({why: n for why, n in self.given_up.items() if not _KILLED.match(why)})

    @property
    def points(self) -> set[str]:
        """The commit points at which it was killed, each with its moment."""
        return {where for where in self.kills if where.partition(" ")[0] in ("before", "after")}


async def wait_dead(child: Child, limit_s: float) -> bool:
    """Whether it has ended by itself within that time."""
    with anyio.move_on_after(limit_s):
        while child.alive:  # noqa: ASYNC110  # a process that may be killed here has no event
            await anyio.sleep(0.02)
        return True
    return False


def import_path() -> str:
    """What a process of ours needs to import Homeroom and these modules."""
    return os.pathsep.join([str(Path(sick_homeroom.__file__).parents[1]), *filter(None, sys.path)])
