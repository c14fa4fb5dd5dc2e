"""Foreign text made fit to be shown: what people, agents and clients wrote.

Owns which characters never reach a model or a terminal, and the length of names. Pure. It cannot
make text trustworthy: that is said by the field the text stands in (see ``views``).
Invariant: the result encodes as UTF-8.
"""

from __future__ import annotations

import re

from homeroom.model import encodable

NAME_CHARS = 100
"""Longest name, label or id of somebody else's that a result repeats, in characters."""
LINE_CHARS = 300
"""Longest description or reason, in characters: two sentences, not a page."""
ERROR_CHARS = 1000
"""Longest error text, in characters: room for a list of candidates."""

_REMOVED = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 and C1 controls, without tab and line feed
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"  # soft hyphen, joiners, fillers
    "\u200b-\u200f\u202a-\u202e\u2060-\u206f"  # zero width, BiDi marks, overrides and isolates
    "\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff9-\ufffb"  # fillers, variation selectors, BOM
    "\U000e0000-\U000e0fff"  # tag characters and the variation selectors behind them
    "]"
)
_BREAKS = re.compile("\r\n?|\u2028|\u2029|\x85|\x0b|\x0c")
# One emoji or text selector after a visible character is how people write a heart; runs of them
# carry hidden bytes.
_STRAY_SELECTORS = re.compile("(?:(?<=\\s)|^|(?<=[\ufe0e\ufe0f]))[\ufe0e\ufe0f]+")
_SPACES = re.compile(r"\s+")


def clean(text: str) -> str:
    """``text`` without control, BiDi, zero-width and tag characters; tabs and line feeds stay."""
    text = _REMOVED.sub("", _BREAKS.sub("\n", text))
    return encodable(_STRAY_SELECTORS.sub("", text))


def clean_line(text: str, limit_chars: int) -> str:
    """``clean(text)`` on one line of at most ``limit_chars`` characters, ``…`` where it was cut."""
    line = _SPACES.sub(" ", clean(text)).strip()
    return line if len(line) <= limit_chars else line[: limit_chars - 1].rstrip() + "…"


def harmless(text: str) -> str:
    """Foreign text as a terminal may be given it: one clean line, as long as an error at most."""
    return clean_line(text, ERROR_CHARS)
