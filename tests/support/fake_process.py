"""How the tests of the transports start ``fake_server.py``, and how long they wait for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

SERVER = Path(__file__).with_name("fake_server.py")
START_LIMIT_S = 30.0
END_LIMIT_S = 30.0
"""How long the end of a process is waited for: what has not ended by then hangs, or waits for an
agent that takes a minute. How long an end takes is measured by the benchmarks."""


def import_path() -> str:
    """Where a process finds what the tests find."""
    return os.pathsep.join([str(SERVER.parents[1]), *filter(None, sys.path)])


def environment() -> dict[str, str]:
    """The environment in which a script finds what the tests find."""
    # Safe path: else the script's directory comes first, and homeroom.py in it is taken for us.
    return {**os.environ, "PYTHONPATH": import_path(), "PYTHONSAFEPATH": "1"}
