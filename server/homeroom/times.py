"""Points in time that others wrote, kept within what a calendar can show. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

_LAST_MS = 253_402_300_799_000
"""The end of the year 9999, which is the last that a calendar here has."""


def point_in_time_ms(given: object) -> int:
    """``given`` as a time that can be shown: from 1970 to 9999; 0 if it is no whole number.

    Homeservers pass on whatever time another one wrote into an event.
    Source: https://spec.matrix.org/v1.16/client-server-api/#room-event-format (origin_server_ts)
    """
    return min(max(given, 0), _LAST_MS) if isinstance(given, int) else 0


def utc_iso(ms: int) -> str | None:
    """A point in time for a program or a model: ISO 8601, UTC, to the second; None for never."""
    at_ms = point_in_time_ms(ms)
    return (
        datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds") if at_ms else None
    )


def utc_text(ms: int) -> str:
    """A point in time for people to read: UTC, to the second."""
    shown = datetime.fromtimestamp(point_in_time_ms(ms) / 1000, UTC)
    return shown.strftime("%Y-%m-%d %H:%M:%S UTC")
