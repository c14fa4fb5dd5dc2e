"""How Homeroom talks to its operator: log lines on stderr.

Owns the format and the levels. A log message is a constant ``noun_verb_past``; the facts are in
``extra``. Never bodies of messages, tokens or full URLs.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_CHATTY = ("httpx", "httpcore", "nio", "aiohttp", "websockets", "mcp", "uvicorn.access", "asyncio")
"""Libraries that log request lines (tokens in URLs among them) or every frame."""


class _KeyValue(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        parts = [at, record.levelname, record.name, record.getMessage()]
        for key, value in vars(record).items():
            if key not in _STANDARD:
                text = str(value).replace("\n", "\\n")
                parts.append(f'{key}="{text}"' if " " in text else f"{key}={text}")
        line = " ".join(parts)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


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
