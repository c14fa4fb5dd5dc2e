"""How Homeroom talks to its operator: log lines on stderr.

Owns the format and the levels. A log message is a constant ``noun_verb_past``; the facts are in
``extra``. Never bodies of messages, tokens or full URLs.
"""

from __future__ import annotations

import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_CHATTY = ("httpx", "httpcore", "nio", "aiohttp", "websockets", "mcp", "uvicorn.access", "asyncio")
"""Libraries that log request lines (tokens in URLs among them) or every frame."""

_REJECTED = re.compile(r"input_value=.*(?=, input_type=)")
"""How pydantic repeats what it rejected, which may be a piece of a message or a token. Source:
https://docs.pydantic.dev/latest/errors/errors/"""


class _KeyValue(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        # A library's message may hold what a client sent: it must not look like a line of ours.
        parts = [at, record.levelname, record.name, _escaped(record.getMessage())]
        parts += [f"{k}={_quoted(str(v))}" for k, v in vars(record).items() if k not in _STANDARD]
        line = " ".join(parts)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line

    def formatException(self, ei: Any) -> str:
        text = _REJECTED.sub("input_value=...", super().formatException(ei))
        return "\n".join(f"  {_escaped(line)}" for line in text.split("\n"))


def _escaped(text: str) -> str:
    """``text`` with an escape for whatever a terminal would obey or not show."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _quoted(text: str) -> str:
    """A value that ends where it seems to: bare if it is one word, else in quotes."""
    if text and not (set(text) & set(' "\\')) and text.isprintable():
        return text
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_escaped(quoted)}"'


def setup_logging(level: str) -> None:
    """Sends every log line of this process to stderr. Call it before an MCP server is built: that
    would set up the root logger in its own way."""
    out = logging.StreamHandler(sys.stderr)
    out.setFormatter(_KeyValue())
    logging.basicConfig(level=level, handlers=[out], force=True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    # nio warns of answers that its schemas do not know, though they are sound and not read by it.
    logging.getLogger("nio.responses").setLevel(logging.ERROR)
