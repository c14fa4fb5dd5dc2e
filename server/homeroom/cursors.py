"""Where a page goes on, as text that a client hands back unread. Pure.

A cursor holds what the last entry of a page is ordered by, so it survives a restart.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from homeroom.errors import Misuse


def write_cursor(*parts: int | str) -> str:
    """A cursor that holds these parts; it may stand in a URL."""
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


def read_cursor(cursor: str, *kinds: type[int] | type[str], tool: str) -> list[Any]:
    """The parts of a cursor that ``tool`` gave, which are of these kinds. Raises Misuse."""
    try:
        parts = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, RecursionError):  # binascii.Error is a ValueError
        parts = None
    if not (isinstance(parts, list) and [type(part) for part in parts] == list(kinds)):
        raise refused_cursor(f"not one that {tool} gave")
    return parts


def refused_cursor(why: str) -> Misuse:
    """What to raise for a cursor that is this."""
    return Misuse(f"This cursor is {why}. Begin without one.")
