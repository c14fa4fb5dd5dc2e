"""The taxonomy: an error is named by what its caller does next.

Owns every exception that crosses a module of Homeroom. Pure: no I/O, no logging, no clock.
Invariant: ``str(error)`` is one or two sentences that say what happened and what to do next, and
holds neither a secret nor a request body, so it may be shown to a person or a model as it is.

    HomeroomError
      Misuse          change the request
        NotFound      ... `candidates` are the names that exist
        Ambiguous     ... `candidates` are the ids that share the name
        LimitExceeded
        Conflict
        Unsupported   ... this back end has no such thing
      Unavailable     the same call later (nothing was delivered)
      Rejected        stop; a person must act
      Uncertain       may have been delivered; retry only with the same key
      LeaseLost       stop writing
      ConfigError     fix the configuration and restart
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Service = Literal["letta", "matrix", "model", "store"]


class HomeroomError(Exception):
    """Base of every error that Homeroom raises on purpose."""


class Misuse(HomeroomError):
    """The request cannot succeed as it is; change it."""


class NotFound(Misuse):
    """There is no such thing. ``candidates`` are names or ids that do exist, nearest first.

    ``advice`` says what such names look like, where no candidate can.
    """

    def __init__(
        self, kind: str, name: str, candidates: Sequence[str] = (), advice: str = ""
    ) -> None:
        self.kind, self.name, self.candidates = kind, name, tuple(candidates)
        hint = f" Did you mean: {', '.join(self.candidates)}?" if self.candidates else ""
        advice = f" {advice}" if advice else ""
        super().__init__(f"There is no {kind} {name!r}.{hint}{advice}")


class Ambiguous(Misuse):
    """Several things carry that name. ``candidates`` are their ids."""

    def __init__(self, kind: str, name: str, candidates: Sequence[str]) -> None:
        self.kind, self.name, self.candidates = kind, name, tuple(candidates)
        super().__init__(
            f"{len(self.candidates)} {kind}s are called {name!r}. Use an id instead: "
            f"{', '.join(self.candidates)}."
        )


class LimitExceeded(Misuse):
    """A size or count is over its limit; nothing was written."""

    def __init__(self, what: str, limit: int, actual: int, unit: str) -> None:
        self.what, self.limit, self.actual, self.unit = what, limit, actual, unit
        super().__init__(
            f"{what} may have at most {limit} {unit} and this has {actual}. Nothing was written."
        )


class Conflict(Misuse):
    """The thing changed since it was read; read it again and decide anew."""

    def __init__(self, what: str, expected: str, actual: str) -> None:
        self.what, self.expected, self.actual = what, expected, actual
        super().__init__(
            f"{what} is at revision {actual}, not {expected}: it changed since you read it. "
            "Nothing was written; read it again and repeat the change on what it says now."
        )


class Unsupported(Misuse):
    """The back end in use has no such feature."""


class Unavailable(HomeroomError):
    """The service did not take the request; nothing was delivered. The same call may work later.

    ``what`` says what happened, without the advice.
    """

    def __init__(
        self, service: Service, reason: str = "", retry_after_s: float | None = None
    ) -> None:
        self.service, self.reason, self.retry_after_s = service, reason, retry_after_s
        because = f" ({reason})" if reason else ""
        self.what = f"{_NAMES[service]} is not available{because}."
        when = f"Try again in {retry_after_s:.0f} s." if retry_after_s else "Try again later."
        super().__init__(f"{self.what} {when}")


class Rejected(HomeroomError):
    """The service refused for good; a person must act. ``code`` is the service's own code."""

    def __init__(self, service: Service, reason: str, code: str = "") -> None:
        self.service, self.reason, self.code = service, reason, code
        coded = f" ({code})" if code else ""
        super().__init__(f"{_NAMES[service]} refused{coded}: {reason}")


class Uncertain(HomeroomError):
    """The answer was lost on the way: the request may have been carried out.

    ``key`` is the idempotency key it was sent with; only a retry with that same key is safe.
    """

    def __init__(self, service: Service, key: str, reason: str = "") -> None:
        self.service, self.key, self.reason = service, key, reason
        because = f" ({reason})" if reason else ""
        self.what = f"{_NAMES[service]} did not answer{because}."
        super().__init__(f"{self.what} It may have been delivered.")


class LeaseLost(HomeroomError):
    """Another process runs the bridge now; this one must stop writing."""

    def __init__(self, owner: str, until: str) -> None:
        self.owner, self.until = owner, until
        super().__init__(f"The bridge is run by {owner} until {until}.")


class ConfigError(HomeroomError):
    """A setting is missing or malformed; ``variable`` names it."""

    def __init__(self, variable: str, problem: str, example: str) -> None:
        self.variable, self.problem, self.example = variable, problem, example
        super().__init__(f"{variable} {problem}, for example {variable}={example}")


_NAMES: dict[Service, str] = {
    "letta": "Letta",
    "matrix": "The Matrix homeserver",
    "model": "The agent's language model",
    "store": "Homeroom's store",
}
