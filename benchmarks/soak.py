"""``python benchmarks/soak.py``: kills the bridge at every commit point and at random moments.

Ten agents, twenty rooms, four people who talk all the time; a real Synapse, a real App Server, a
scripted model. A life of the bridge is killed (SIGKILL) at its first commit, the next at its
second, and so on up to the commits that it takes to start and to answer, each before and after the
commit is on disk; then lives end at random moments. Prints the table and exits 1 if a message was
lost, doubled or out of order, if one was given up for another reason than that it was in hand at
ten deaths, and if a life was not lived or did not come to the commit at which it was to end.
Takes at most ``--minutes``, and says what it did not get to.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(ROOT / name) for name in ("server", "tools", "tests", "")]

from benchmarks.stand import Stand, stand  # noqa: E402
from support.home import make_home  # noqa: E402
from support.load import Crowd, crowd  # noqa: E402
from support.soak import Soak  # noqa: E402

PEOPLE = ("bob", "cleo", "dan", "eve")
AGENTS, FURTHER_ROOMS = 10, 10
ANSWERS = 3
"""A life is followed up to so many answers: by then each kind of commit was there."""
SETTLE_MINUTES = 2.0
MOMENTS = ("before", "after")


async def _points(soak: Soak, people: Crowd) -> int:
    """How many commits a life makes from its start until it has answered something."""
    soak.commits.unlink(missing_ok=True)
    soak.start(commits=str(soak.commits))
    await people.wait_answers(ANSWERS)
    count = len(soak.commits.read_text().splitlines())
    soak.stop()
    return count


@dataclass
class Lives:
    """What was to be done, and what was."""

    plan: list[tuple[int, str] | None]
    """Commit and moment of each death; None for a random one."""
    points: int
    done: int = 0

    def __str__(self) -> str:
        randoms = self.plan.count(None)
        whole = f"{self.points} commits each before and after, {randoms} at random"
        missed = [_named(life) for life in self.plan[self.done :] if life]
        left = f"\nno time for: {', '.join(missed) or 'random moments'}" if self.left else ""
        return f"{self.done} of {len(self.plan)} lives: {whole}{left}"

    @property
    def left(self) -> int:
        return len(self.plan) - self.done


def _named(life: tuple[int, str]) -> str:
    return f"{life[1]} commit {life[0]}"


async def _kill(soak: Soak, people: Crowd, random_count: int, until_s: float) -> Lives:
    points = await _points(soak, people)
    chance = random.Random(0)
    lives = Lives(
        [*((n, when) for n in range(1, points + 1) for when in MOMENTS), *[None] * random_count],
        points,
    )
    # Mixed, so that no message is in hand at ten deaths one after the other.
    chance.shuffle(lives.plan)
    for life in lives.plan:
        if time.monotonic() > until_s:
            break
        if life is None:
            await soak.live_random(people, chance)
        else:
            await soak.live(*life)
        lives.done += 1
        if lives.done % 20 == 0:
            said = len(people.said)
            print(f"{lives.done} of {len(lives.plan)} lives, {said} messages", flush=True)
    return lives


async def _run(servers: Stand, random_count: int, until_s: float) -> bool:
    """Whether every life was lived to its end and nothing went wrong."""
    home = make_home(servers.homeserver, servers.letta, servers.directory / "soak", *PEOPLE)
    home.environ["HOMEROOM_INVITE_POLL_S"] = "1"
    soak = Soak(home)
    try:
        soak.start()
        async with crowd(home, PEOPLE, agents=AGENTS, further_rooms=FURTHER_ROOMS) as people:
            soak.stop()
            async with people.talking():
                lives = await _kill(soak, people, random_count, until_s)
            figures = await soak.finish(people)
    finally:
        soak.stop()
    print(f"\n{lives}\n\n{soak.table(figures)}\n\nKilled")
    for where, count in sorted(soak.kills.items()):
        print(f"{count:5} {where}")
    for where in soak.unreached:
        print(f"not reached: {where}")
    for why, count in soak.given_up.items():
        print(f"parked: {count:3} {why}")
    whole = not (lives.left or soak.unreached or soak.left or soak.sick)
    return whole and figures.is_clean


def main() -> int:
    """The exit code: 0 if all lives were lived and each message was answered once, in order."""
    parser = argparse.ArgumentParser(prog="python benchmarks/soak.py")
    parser.add_argument("--random", type=int, default=200, metavar="N", help="random moments")
    parser.add_argument("--minutes", type=float, default=45.0, help="most time it takes")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    began_s = time.monotonic()
    until_s = began_s + 60 * max(0.0, options.minutes - SETTLE_MINUTES)
    temporary = tempfile.TemporaryDirectory(prefix="homeroom-soak-")
    with temporary as name, stand(Path(name).resolve()) as servers:
        clean = asyncio.run(_run(servers, options.random, until_s))
    load = "/".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"\n{os.cpu_count()} cores, load {load}, {time.monotonic() - began_s:.0f} s")
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
