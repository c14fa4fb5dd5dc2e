"""One outside service, connected to for as long as it takes.

Owns the connection and the trying again. Does not know what the service is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar

import anyio

from homeroom.errors import HomeroomError, Unavailable
from homeroom.retry import pause_s

log = logging.getLogger(__name__)

T = TypeVar("T")


class Service(Generic[T]):
    """One outside service, connected to for as long as it takes.

    ``run`` owns the connection, so that whoever uses it may come and go.
    """

    def __init__(self, opener: Callable[[], AbstractAsyncContextManager[T]], name: str) -> None:
        self._open, self._name = opener, name
        self._service: T | None = None
        self._ready = anyio.Event()
        self._tried = anyio.Event()
        self.error: HomeroomError | None = None

    async def run(self) -> None:
        """Connects, and connects again, until cancelled."""
        failures = 0
        while True:
            try:
                async with self._open() as service:
                    self._service, self.error, failures = service, None, 0
                    self._tried.set()
                    self._ready.set()
                    log.info("service_connected", extra={"service": self._name})
                    await anyio.sleep_forever()
            except HomeroomError as error:
                self._service, self.error = None, error
                self._tried.set()
                if self._ready.is_set():
                    self._ready = anyio.Event()
                failures += 1
                wait_s = pause_s(failures)
                log.warning(
                    "service_away",
                    extra={"service": self._name, "reason": str(error), "wait_s": round(wait_s, 1)},
                )  # fmt: skip
                await anyio.sleep(wait_s)

    @property
    def problem(self) -> str:
        """Why it cannot be used now; empty while it is connected."""
        if self._service is not None:
            return ""
        return str(self.error or f"{self._name} is not connected yet")

    async def get(self) -> T:
        """The connected service; raises why there is none as soon as that is known."""
        await self._tried.wait()
        if self._service is None:
            raise self.error or Unavailable("store", f"{self._name} is not connected")
        return self._service

    async def is_connected(self) -> bool:
        """Whether it is, as soon as that is known."""
        await self._tried.wait()
        return self._service is not None

    async def wait(self) -> T:
        """The connected service, however long it takes."""
        while self._service is None:
            await self._ready.wait()
        return self._service
