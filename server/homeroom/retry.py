"""The one retry policy: exponential with full jitter, never earlier than the service asks.

Owns how long to wait. Does not know what failed, and sleeps only in ``keep_trying``.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import anyio

BASE_S = 0.5
"""The first pause lies between 0 and this."""
CAP_S = 60.0
"""No pause is longer, unless the service itself asks for more: people wait behind it."""


def pause_s(attempt: int, retry_after_s: float | None = None) -> float:
    """How long to wait after the ``attempt``-th failure (1 is the first), in seconds.

    Full jitter spreads those who failed together; see
    Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    ceiling = min(CAP_S, BASE_S * 2.0 ** min(attempt, 16))
    return max(random.uniform(0, ceiling), retry_after_s or 0.0)


async def pauses() -> AsyncIterator[int]:
    """Counts 1, 2, 3 ... for ever, waiting ``pause_s`` between two numbers."""
    attempt = 0
    while True:
        attempt += 1
        yield attempt
        await anyio.sleep(pause_s(attempt))
