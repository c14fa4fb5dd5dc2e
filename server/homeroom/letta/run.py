"""One message under way on an App Server: its text, and how it ended.

Pure: events in, a turn out. Invariant: only what belongs to the message's own runs counts, however
many others speak in the same conversation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from homeroom.errors import Rejected, Unavailable
from homeroom.letta import OnDelta
from homeroom.letta.events import Aborted, Broke, End, Event, Queue, Said, Sign, Status
from homeroom.model import Turn

_FAILED = ("error", "llm_api_error")
_BUSY = "already has an active run"
_PASSING = ("408", "409", "425", "429")
"""Client errors of a model's API that go away by themselves."""
_WORDS = re.compile(r"[A-Za-z ,.'-]{1,60}")
"""What a failure without a status looks like: "terminated", "Connection error."."""


@dataclass(slots=True)
class LoopState:
    """What a conversation is doing, by the server's own replay."""

    busy: bool = False
    queued: tuple[str, ...] = ()
    runs: dict[str, Collection[str]] = field(default_factory=dict)
    """The message ids that each recent run took."""

    def see(self, event: Event | None) -> None:
        match event:
            case Status():
                self.busy = event.busy
                self.runs.update(event.ids_by_run)
            case Queue():
                self.queued = event.ids


@dataclass(frozen=True, slots=True)
class Earlier:
    """The traces of a key: how often it was tried, and what it got."""

    count: int
    turn: Turn | None = None
    """Its turn, if we saw it end."""
    text: str = ""
    """What the history has for it, whole or not."""
    newest: bool = False
    """Nobody said anything after it."""


class Run:
    """Collects the text of one message's answer and notices its end.

    Several messages may share a run (the server coalesces what waits in its queue), and one
    message may take several runs (one per step, and one more per repeated model call).
    """

    def __init__(
        self,
        message_id: str,
        on_delta: OnDelta | None = None,
        runs: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        self.id = message_id
        self.begun = False
        """The server was seen working in this conversation."""
        self.waiting = False
        """It stands in the server's queue, behind another's turn."""
        self.ended = ""
        """The stop reason, once there is one."""
        self.aborted = False
        """Cancelled; it ends when the model lets go of it, which may be never."""
        self._on_delta: Callable[[str], None] = on_delta or (lambda _: None)
        self._runs: set[str] = set()
        self._texts: dict[tuple[str, str], str] = {}
        self._error = ""
        self._run_id = ""
        self._claim(runs or {})

    def see(self, event: Event | None) -> None:
        """Takes notice of one event of the conversation."""
        match event:
            case Said() | Broke() | Sign():
                self.begun = True
                self._see_sign(event)
            case Status():
                self.begun = self.begun or event.busy
                self._claim(event.ids_by_run)
            case Queue():
                self.waiting = self.id in event.ids
                self.begun = self.begun or self.waiting
            case End():
                self._see_end(event)
            case Aborted():
                self.aborted = True

    def _claim(self, ids_by_run: Mapping[str, Collection[str]]) -> None:
        self._runs.update(run for run, ids in ids_by_run.items() if self.id in ids)

    def _see_sign(self, event: Said | Broke | Sign) -> None:
        if isinstance(event, Sign) or (event.run_id and event.run_id not in self._runs):
            return
        if isinstance(event, Said):
            place = (event.run_id, event.message_id)
            self._texts[place] = self._texts.get(place, "") + event.text
            if event.text:
                self._on_delta(event.text)
        else:
            self._error = event.error or self._error
            # The server repeats the call; what the broken one said is not part of the answer.
            kept = {at: text for at, text in self._texts.items() if at[0] != event.run_id}
            self._texts = kept

    def _see_end(self, event: End) -> None:
        # A turn that is refused a run names none. One turn is up at a time: ours, unless it waits.
        if event.run_id in self._runs or not (event.run_id or self.waiting):
            self.ended, self._run_id = event.reason, event.run_id
            self._error = self._error or event.error

    @property
    def failed(self) -> bool:
        return self.ended in _FAILED

    @property
    def refused(self) -> bool:
        """The conversation takes no turn, because it counts one as running."""
        return self.failed and _BUSY in self._error

    def result(self) -> Turn:
        """The finished turn.

        Raises:
            Unavailable: the model failed; the same message may work later.
            Rejected: the model refused for a reason that time does not change.
        """
        if self.failed:
            raise model_error(self._error)
        return Turn(joined(self._texts.values()), self.ended, self._run_id)


def model_error(error: str) -> Unavailable | Rejected:
    """A language model's error as the server quotes it: ``401: {...}``, or a few words. The
    provider's own message stays out: it may quote the conversation or a key."""
    status = re.match(r"\D{0,60}\b([45]\d\d)\b", error)
    if status is None:
        return Unavailable("model", error if _WORDS.fullmatch(error) else "", foreign=True)
    reason = f"it answered HTTP {status[1]}"
    if status[1] < "500" and status[1] not in _PASSING:
        return Rejected("model", reason, status[1])
    return Unavailable("model", reason)


def joined(texts: Iterable[str]) -> str:
    """The messages of one answer as one text; a step that only called a tool says nothing."""
    return "\n\n".join(text for text in (text.strip() for text in texts) if text)


def message_id_of(key: str, attempt: int) -> str:
    return key if attempt == 1 else f"{key}#{attempt}"


def attempt_of(message_id: str, key: str) -> int:
    """Which attempt at ``key`` a message id is, from 1; 0 if it is another's."""
    if message_id == key:
        return 1
    start, _, number = message_id.rpartition("#")
    return int(number) if start == key and number.isdecimal() else 0
