"""The one retry policy: exponential with full jitter, never earlier than the service asks.

Owns how long to wait, on tenacity's arithmetic. Does not know what failed, and does not wait: what
is retried here are durable rows and loops that live as long as the process.
"""

from __future__ import annotations

import random

from tenacity import RetryCallState, Retrying, wait_random_exponential

BASE_S = 1.0
"""The first pause lies between 0 and this."""
CAP_S = 60.0
"""No pause is longer, unless the service itself asks for more: people wait behind it."""

SKIP_BASE_S = 60.0
"""What was given up for now is looked at again after about this long, then ever more rarely ..."""
SKIP_CAP_S = 3600.0
"""... but at least once an hour: somebody may have mended it."""

_wait = wait_random_exponential(multiplier=BASE_S, max=CAP_S)


def pause_s(attempt: int, retry_after_s: float | None = None) -> float:
    """How long to wait after the ``attempt``-th failure (1 is the first), in seconds.

    Full jitter spreads those who failed together; see
    Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    state = RetryCallState(Retrying(), None, (), {})
    state.attempt_number = attempt
    return max(_wait(state), retry_after_s or 0.0)


def skip_pause_s(times: int, retry_after_s: float | None = None) -> float:
    """How long to leave alone what has failed too often, the ``times``-th time (1 is the first).

    It doubles up to an hour. Jitter takes away at most half, so that the pauses do grow.
    """
    whole = min(SKIP_CAP_S, SKIP_BASE_S * 2.0 ** min(times, 16))
    return max(random.uniform(whole / 2, whole), retry_after_s or 0.0)
