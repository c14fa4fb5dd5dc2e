"""kill -9 at commit points and at random moments, while four people talk to ten agents in twenty
rooms. ``make soak`` is the long form of this, at every commit point."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support import sick_homeroom
from support.home import Home, make_home
from support.load import crowd
from support.soak import Soak, import_path

PEOPLE = ("ann", "bob", "cleo", "dan")
POINTS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 30)
"""Commits since the start at which the process dies: the first few are those of a start."""
RANDOM_KILLS = 8


async def test_twenty_kills_under_load_lose_double_and_disorder_nothing(
    own_home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    home = make_home(own_home.homeserver, own_home.letta, own_home.directory, *PEOPLE)
    home.environ["HOMEROOM_INVITE_POLL_S"] = "1"
    chance = random.Random(1)
    soak = Soak(home)
    try:
        soak.start()
        async with crowd(home, PEOPLE, agents=10, further_rooms=10) as people:
            soak.stop()
            async with people.talking():
                for number, point in enumerate(POINTS):
                    await soak.live(point, ("before", "after")[number % 2])
                for _ in range(RANDOM_KILLS):
                    await soak.live_random(people, chance)
            figures = await soak.finish(people)
    finally:
        soak.stop()
    with capsys.disabled():
        print("\n" + soak.table(figures))  # noqa: T201
    assert figures.is_clean and figures.parked == 0, figures
    assert figures.answered == figures.said > 40 and soak.left == 0, figures
    assert not soak.unreached and soak.kills["at random"] == RANDOM_KILLS
    assert sum(soak.kills.values()) == len(POINTS) + RANDOM_KILLS
    assert len(soak.points) >= 6, soak.kills
    assert "before " in " ".join(soak.points) and "after " in " ".join(soak.points)


def test_a_process_that_dies_while_it_makes_its_store_leaves_none_that_is_half_made(
    tmp_path: Path,
) -> None:
    environ = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": import_path(),
        "HOMEROOM_LETTA_URL": "http://127.0.0.1:9",
        "HOMEROOM_DATA_DIR": str(tmp_path / "data"),
    }

    def explain(illness: dict[str, object]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, sick_homeroom.__file__, json.dumps(illness), "explain", "nothing"],
            env=environ, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    died = tmp_path / "died.txt"
    killed = explain({"kill_at": 0, "moment": "before", "died": str(died)})
    assert killed.returncode == -signal.SIGKILL and died.read_text() == "before open_store\n"
    again = explain({})
    assert again.returncode == 1 and "no message 'nothing'" in again.stderr
