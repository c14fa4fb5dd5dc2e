"""Two bridges that start at the same moment, or one beside its copy: one of them is the bridge."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from support import two_starts
from support.home import Home
from support.soak import import_path

ROUNDS = 50


@pytest.mark.parametrize("stores", ["same", "own", "copy", "live"])
def test_of_two_bridges_exactly_one_reads_the_rooms(home: Home, stores: str) -> None:
    """``same``: one lease. ``own`` and ``copy``: two leases, and one claim on the homeserver.
    ``live``: the second starts over a copy that was just made of the first, which runs."""
    done = subprocess.run(
        [sys.executable, two_starts.__file__, str(home.directory / stores), str(ROUNDS), stores],
        env=home.environ | {"PYTHONPATH": import_path(), "HOMEROOM_LETTA_URL": "ws://127.0.0.1:9"},
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rounds) == ROUNDS, done.stderr[-2000:]
    for number, pair in enumerate(rounds):
        assert len(pair) == 2, f"round {number}: {pair}\n{done.stderr}"
        assert sum(one["lease"] for one in pair) == (1 if stores == "same" else 2), (number, pair)
        assert sum(one["reads"] for one in pair) == 1, (number, pair)
        if stores != "same":
            assert any("Another Homeroom" in str(one["problem"]) for one in pair), (number, pair)
    if stores == "live":
        assert all("a copy of this data directory" in str(two["problem"]) for _, two in rounds)
    if stores == "copy":
        told = [str(one["problem"]) for pair in rounds[1:] for one in pair if one["problem"]]
        assert all("a copy of this data directory" in problem for problem in told), told
