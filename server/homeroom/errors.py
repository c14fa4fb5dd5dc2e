"""The taxonomy: an error is named by what its caller does next.

Owns every exception that crosses a module of Homeroom. Pure: no I/O, no logging, no clock.
Invariant: ``str(error)`` is one or two sentences that say what happened and what to do next, and
holds neither a secret nor a request body, so it may be shown to a person or a model as it is.

    HomeroomError
      Misuse          change the request
        NotFound      ... `candidates` are the names that exist
        Ambiguous     ... `candidates` are the ids that share the name
        LimitExceeded
          ExchangePaused  ... two agents have talked too much; wait, or ask a person
        Conflict
        Unsupported   ... this back end has no such thing
      Unavailable     the same call later (nothing was delivered)
      Rejected        stop; a person must act
      Uncertain       may have been delivered; retry only with the same key
      LeaseLost       stop writing
      Stopped         leave off: a person has ended it
      ConfigError     fix the configuration and restart
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

Service = Literal["letta", "matrix", "model", "store"]

_HANDLE = re.compile(
    r"[a-z0-9._/-]{1,24}"  # a name or a label, too short to say much
    r"|agent-(local-)?[0-9a-f-]{36}"  # an id of Letta's
    r"|(?=.{1,64}\Z)[!#][\w.=~+/-]+(:[\w.:-]+)?",  # of a Matrix room, or its alias
    re.ASCII | re.IGNORECASE,
)


def is_handle(name: str) -> bool:
    """Whether a name of somebody else's is an id, or one short word, so that it says nothing to
    whoever reads it in words of ours. Underscores and dots make a sentence of a long one."""
    return _HANDLE.fullmatch(name) is not None


class HomeroomError(Exception):
    """Base of every error that Homeroom raises on purpose."""

    @property
    def own_words(self) -> str:
        """The same without what others wrote: what a service said, names that are sentences."""
        return str(self)


class Misuse(HomeroomError):
    """The request cannot succeed as it is; change it."""

    def __init__(self, text: str, own_words: str = "") -> None:
        super().__init__(text)
        self._own_words = own_words or text

    @property
    def own_words(self) -> str:
        return self._own_words


class NotFound(Misuse):
    """There is no such thing. ``candidates`` are names or ids that do exist, nearest first.

    ``advice`` says what such names look like, where no candidate can.
    """

    def __init__(
        self, kind: str, name: str, candidates: Sequence[str] = (), advice: str = ""
    ) -> None:
        self.kind, self.name, self.candidates = kind, name, tuple(candidates)
        self.advice = advice
        super().__init__(self._text(self.candidates))

    @property
    def own_words(self) -> str:
        return self._text([name for name in self.candidates if is_handle(name)])

    def _text(self, candidates: Sequence[str]) -> str:
        hint = f" Did you mean: {', '.join(candidates)}?" if candidates else ""
        advice = f" {self.advice}" if self.advice else ""
        return f"There is no {self.kind} {self.name!r}.{hint}{advice}"


class Ambiguous(Misuse):
    """Several things carry that name. ``candidates`` are their ids."""

    def __init__(self, kind: str, name: str, candidates: Sequence[str]) -> None:
        self.kind, self.name, self.candidates = kind, name, tuple(candidates)
        super().__init__(self._text(self.candidates))

    @property
    def own_words(self) -> str:
        return self._text([name for name in self.candidates if is_handle(name)])

    def _text(self, candidates: Sequence[str]) -> str:
        which = f": {', '.join(candidates)}" if candidates else ""
        return f"{len(self.candidates)} {self.kind}s are called {self.name!r}. Use an id{which}."


class LimitExceeded(Misuse):
    """A size or count is over its limit; nothing was written."""

    def __init__(self, what: str, limit: int, actual: int, unit: str) -> None:
        self.what, self.limit, self.actual, self.unit = what, limit, actual, unit
        super().__init__(
            f"{what} may have at most {limit} {unit} and this has {actual}. Nothing was written."
        )


class ExchangePaused(LimitExceeded):
    """Two agents have reached a limit on what they may send each other; nothing was sent.

    ``pair`` are their ids, ``limit`` is the one that was reached and ``until`` (UTC) when the pause
    ends by itself.
    """

    def __init__(self, pair: tuple[str, str], reason: str, limit: int, until: str) -> None:
        self.pair, self.reason, self.limit, self.until = pair, reason, limit, until
        self.what, self.actual, self.unit = "An exchange between agents", limit + 1, "messages"
        # Letta's ids are words; what is more than a word does not get into an error's text.
        low, high = (agent if is_handle(agent) else "AGENT" for agent in pair)
        whose = f"between the agents {low} and {high}"
        if pair[0] == pair[1]:
            whose = f"of the agent {low} to itself"
        Misuse.__init__(
            self,
            f"Messages {whose} are paused until {until}, because {reason}. Nothing was sent, and"
            " nothing will be until then. Go on without it, or ask a person, who can end the pause"
            " by writing !resume in the room of either agent or with"
            f" `homeroom resume {low} {high}`.",
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

    ``what`` says what happened, without the advice. ``foreign``: the reason is the service's own.
    ``code`` is the service's own, if it answered itself that this request failed.
    """

    def __init__(
        self, service: Service, reason: str = "", retry_after_s: float | None = None,
        *, foreign: bool = False, code: str = "",
    ) -> None:  # fmt: skip
        self.service, self.reason, self.retry_after_s = service, reason, retry_after_s
        self.foreign, self.code = foreign, code
        because = f" ({reason})" if reason else ""
        self.what = f"{_NAMES[service]} is not available{because}."
        self._when = f"Try again in {retry_after_s:.0f} s." if retry_after_s else "Try again later."
        super().__init__(f"{self.what} {self._when}")

    @property
    def own_words(self) -> str:
        if not self.foreign:
            return str(self)
        return f"{_NAMES[self.service]} is not available. {self._when}"


class Rejected(HomeroomError):
    """The service refused for good; a person must act. ``code`` is the service's own code.

    ``foreign``: the reason is in the service's own words.
    """

    def __init__(
        self, service: Service, reason: str, code: str = "", *, foreign: bool = False
    ) -> None:
        self.service, self.reason, self.code, self.foreign = service, reason, code, foreign
        self._coded = f" ({code})" if code else ""
        super().__init__(f"{_NAMES[service]} refused{self._coded}: {reason}")

    @property
    def own_words(self) -> str:
        if not self.foreign:
            return str(self)
        return (
            f"{_NAMES[self.service]} refused{self._coded}. Why, in its own words, stands in"
            " Homeroom's log: a person has to look."
        )


class Uncertain(HomeroomError):
    """The answer was lost on the way: the request may have been carried out.

    ``key`` is the idempotency key it was sent with; only a retry with that same key is safe.
    """

    def __init__(self, service: Service, key: str, reason: str = "") -> None:
        self.service, self.key, self.reason = service, key, reason
        because = f" ({reason})" if reason else ""
        self.what = f"{_NAMES[service]} did not answer{because}."
        super().__init__(f"{self.what} It may have been delivered.")


def was_answered(error: HomeroomError) -> bool:
    """Whether the service itself said that the request failed: it is there, and done with it."""
    return isinstance(error, Rejected) or (isinstance(error, Unavailable) and bool(error.code))


class LeaseLost(HomeroomError):
    """Another process runs the bridge now; this one must stop writing."""

    def __init__(self, owner: str, until: str) -> None:
        self.owner, self.until = owner, until
        super().__init__(f"The bridge is run by {owner} until {until}.")


class Stopped(HomeroomError):
    """A person wants the item to end: whoever works on it leaves off, and nothing of it counts."""

    def __init__(self) -> None:
        super().__init__("A person has stopped it. Nothing more of it is sent.")


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
