"""A child process that fails says so in its own name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from homeroom.local.child import Child, ChildFailed

Start = Callable[[str], Child]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a child that runs this Python code."""
    with ExitStack() as stack:

        def started(code: str) -> Child:
            child = Child(
                "Abacus", [sys.executable, "-c", code], cwd=tmp_path, log=tmp_path / "log"
            )
            child.start()
            stack.callback(child.kill)
            return child

        yield started


def test_a_child_that_ends_at_its_start_is_named_with_its_last_words(start: Start) -> None:
    child = start("raise SystemExit('no beads')")
    with pytest.raises(ChildFailed, match=r"(?s)^Abacus did not start: it ended\..*no beads"):
        child.wait_ready(lambda: False, 20)


def test_a_child_that_is_never_ready_is_given_up(start: Start) -> None:
    child = start("import time; time.sleep(60)")
    with pytest.raises(ChildFailed, match=r"^Abacus did not start: not ready after 0 s"):
        child.wait_ready(lambda: False, 0.1)
    child.check()


def test_a_child_that_is_gone_is_noticed_with_how_it_ended(start: Start) -> None:
    child = start("import time; time.sleep(60)")
    child.check()
    child.kill()
    with pytest.raises(ChildFailed, match=r"^Abacus ended by itself \(signal 9\)"):
        child.check()
