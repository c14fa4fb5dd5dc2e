"""How the tests of the transports start ``fake_server.py``, and how long they wait for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

SERVER = Path(__file__).with_name("fake_server.py")
START_LIMIT_S = 30.0
EXIT_LIMIT_S = 2.0
"""What the process may take from the signal to its end, in seconds."""
SLACK_S = 15.0
"""What a busy machine may add; what does not end by itself does not end for much longer."""


def import_path() -> str:
    """Where a process finds what the tests find."""
    return os.pathsep.join([str(SERVER.parents[1]), *filter(None, sys.path)])


def environment() -> dict[str, str]:
    """The environment in which a script finds what the tests find."""
    # Safe path: else the script's directory comes first, and homeroom.py in it is taken for us.
    return {**os.environ, "PYTHONPATH": import_path(), "PYTHONSAFEPATH": "1"}
