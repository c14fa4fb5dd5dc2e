"""When Letta was away: what it was doing before that, nobody does any more.

Owns the conclusion from failed requests that the server itself had ended, and the translation
between its clock and ours. Knows no path and no run. Invariant: a connection that merely breaks, a
network that is away and a gateway that is out of sorts for a moment are no proof.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

GATEWAY_S = 3.0
"""A gateway must have missed its server for so long, without one proper answer in between: a rate
limit may look the same. Letta V1 takes at least 7 s to start (measured)."""
NO_CONNECTION = "no connection could be made"
"""The reason of ``Unavailable`` where a request did not even get to a server."""
DATE_STEP_S = 1.0
"""The server tells its time in whole seconds, rounded down."""
_NOBODY_THERE = frozenset({502, 503})
"""What gateways say when no server takes their connection (nginx, Caddy: 502; HAProxy, Envoy: 503).
504 is said of a server that is there and slow."""


class Absence:
    """What is known of the last time that one server was away. It outlives connections."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._clock, self._now_s = clock, now_s
        self._away_s: float | None = None
        self._missed_since_s: float | None = None
        self._server_ahead_s: float | None = None
        """The server's time of day minus our ``clock``."""

    def note_lost(self, error: BaseException) -> None:
        """A request failed. That nobody listens on the port is proof, all else is not."""
        if any(isinstance(cause, ConnectionRefusedError) for cause in _causes(error)):
            self._away_s = self._clock()

    def note_answer(self, status: int, *, is_json: bool, date: str = "") -> None:
        """A request was answered. ``date`` is the answer's Date header."""
        now_s = self._clock()
        if is_json:
            self._missed_since_s = None
            self._server_ahead_s = (_time_of_day(date) or self._now_s()) - now_s
        elif status in _NOBODY_THERE:
            if self._missed_since_s is None:
                self._missed_since_s = now_s
            elif now_s - self._missed_since_s >= GATEWAY_S:
                self._away_s = now_s

    def ended(self, created_at: str) -> bool:
        """Whether what the server began at that time (ISO 8601, by its clock) ended with it."""
        if self._away_s is None or self._server_ahead_s is None:
            return False
        try:
            began = datetime.fromisoformat(created_at)
        except ValueError:
            return False
        if began.tzinfo is None:
            began = began.replace(tzinfo=UTC)
        return began.timestamp() <= self._away_s + self._server_ahead_s + DATE_STEP_S

    def is_after(self, at_ms: int) -> bool:
        """Whether the server was away at some time after ``at_ms`` by our clock."""
        if self._away_s is None:
            return False
        return self._now_s() - (self._clock() - self._away_s) > at_ms / 1000


def _causes(error: BaseException) -> Iterator[BaseException]:
    yield error
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _causes(one)
    if cause := error.__cause__ or error.__context__:
        yield from _causes(cause)


def _time_of_day(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None
