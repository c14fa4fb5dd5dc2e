"""How often one caller may ask: a bucket of tokens for each. Pure but for the clock it is given."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

BURST_S = 4.0
"""A caller that was silent may ask as much at once as otherwise in so many seconds."""

MAX_NAMES = 4096
"""Most names whose failures are remembered."""


class Rates:
    """Lets each caller ask ``per_s`` times a second in the long run, 0 means as often as it likes.

    There are as many buckets as names, and names come from tokens, not from whoever asks.
    """

    def __init__(self, per_s: float, clock: Callable[[], float] = monotonic) -> None:
        self._per_s, self._clock = per_s, clock
        self._size = max(1.0, per_s * BURST_S)
        self._left: dict[str, tuple[float, float]] = {}

    def wait_s(self, name: str) -> float:
        """0 if ``name`` may ask now, which then counts; else the seconds until it may."""
        if not self._per_s:
            return 0.0
        now_s = self._clock()
        left, at_s = self._left.get(name, (self._size, now_s))
        left = min(self._size, left + (now_s - at_s) * self._per_s)
        allowed = left >= 1.0
        self._left[name] = (left - 1.0 if allowed else left, now_s)
        return 0.0 if allowed else (1.0 - left) / self._per_s


class Failures:
    """Who has failed too often to be heard at once: ``burst`` failures are free, then ``per_s``.

    Its names come from whoever asks, so no more than ``MAX_NAMES`` are remembered: the oldest goes.
    """

    def __init__(self, burst: int, per_s: float, clock: Callable[[], float] = monotonic) -> None:
        self._burst, self._per_s, self._clock = burst, per_s, clock
        self._failed: dict[str, tuple[float, float]] = {}

    def wait_s(self, name: str) -> float:
        """0 if ``name`` may try now, else the seconds until it may."""
        return max(0.0, self._owed(name) + 1.0 - self._burst) / self._per_s

    def count(self, name: str) -> None:
        """``name`` has failed."""
        owed = self._owed(name) + 1.0
        self._failed.pop(name, None)
        self._failed[name] = (owed, self._clock())
        if len(self._failed) > MAX_NAMES:
            del self._failed[next(iter(self._failed))]

    def _owed(self, name: str) -> float:
        owed, at_s = self._failed.get(name, (0.0, 0.0))
        return max(0.0, owed - (self._clock() - at_s) * self._per_s)
