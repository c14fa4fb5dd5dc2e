"""A circuit breaker: a service that is away is left alone, and asked by one probe at a time.

Owns when a service counts as away and when it is asked again. Knows neither Letta nor Matrix.
It opens when several of those who asked in turn got no proper answer, whoever they are; one agent
that fails alone, however often, never opens it. Homeroom's own because those on PyPI (purgatory,
pybreaker, aiobreaker) wait a fixed time, count failures without asking whose they are, and let
everybody through together as soon as it is over.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from homeroom.errors import HomeroomError, Service, Unavailable, Uncertain
from homeroom.model import Outage
from homeroom.retry import CAP_S, pause_s

log = logging.getLogger(__name__)

THRESHOLD = 3
"""So many different askers must have failed, with no success in between."""


class Breaker:
    """One service's breaker. All times are milliseconds of ``now_ms``."""

    def __init__(
        self, service: Service, now_ms: Callable[[], int], threshold: int = THRESHOLD
    ) -> None:
        self._service: Service = service
        self._now_ms, self._threshold = now_ms, threshold
        self._failed: dict[str, None] = {}
        self._openings = 0
        self._probing = False
        self._retry_after_s = 0.0
        self._outage: Outage | None = None

    @property
    def outage(self) -> Outage | None:
        """Why the service is left alone, and until when; None while it is used."""
        return self._outage

    def check(self, *, at_once: bool = False) -> None:
        """Returns if the service may be asked. Whoever gets through an open breaker is its probe
        and must report what came of it.

        Args:
            at_once: A person is waiting: probe now, unless a probe is under way.

        Raises:
            Unavailable: it is away, and it is not time to probe yet.
        """
        outage = self._outage
        if outage is None:
            return
        left_s = (outage.next_try_ms - self._now_ms()) / 1000
        # A clock that was set back must not keep the breaker open for ever.
        due = at_once or left_s <= 0 or left_s > max(CAP_S, self._retry_after_s)
        if due and not self._probing:
            self._probing = True
            return
        raise Unavailable(self._service, outage.reason, max(left_s, 1.0))

    async def probe(self, ask: Callable[[], Awaitable[None]], *, at_once: bool) -> None:
        """If the service is away and it is time to, asks whether it is back."""
        try:
            self.check(at_once=at_once)
        except Unavailable:
            return
        if self._outage is None:
            return
        try:
            await ask()
        except HomeroomError as error:
            self.failed(error, "probe")
        except BaseException:
            self.gave_up()
            raise
        else:
            self.succeeded(by_probe=True)

    def succeeded(self, *, by_probe: bool = False) -> None:
        """The service answered. After a mere probe it is on trial: one failure opens it again."""
        self._failed.clear()
        self._probing = False
        if not by_probe:
            self._openings = 0
        if self._outage is not None:
            self._outage = None
            log.info("breaker_closed", extra={"service": self._service})

    def gave_up(self) -> None:
        """The probe was called off; the next one may go."""
        self._probing = False

    def failed(self, error: HomeroomError, asker: str) -> None:
        """``asker`` got ``error``. A refusal is an answer: the service is there."""
        self._probing = False
        if getattr(error, "service", "") != self._service:
            return
        if not isinstance(error, Unavailable | Uncertain):
            self.succeeded()
            return
        self._failed[asker] = None
        on_trial = self._openings > 0
        if not (self._outage or on_trial or len(self._failed) >= self._threshold):
            return
        self._openings += 1
        asked_s = error.retry_after_s if isinstance(error, Unavailable) else None
        self._retry_after_s = asked_s or 0.0
        wait_s = pause_s(self._openings, asked_s)
        now_ms = self._now_ms()
        since_ms = self._outage.since_ms if self._outage else now_ms
        next_ms = now_ms + round(wait_s * 1000)
        self._outage = Outage(self._service, error.reason, since_ms, next_ms)
        log.warning(
            "breaker_opened",
            extra={"service": self._service, "reason": error.reason, "wait_s": round(wait_s, 1)},
        )
