"""The events of one conversation on an App Server, read from what came over the wire.

Owns their shape. Pure. Invariant: an event is read whole or refused: of what cannot be read it is
not known what it said, and to pass over a piece of an answer, or the end of one, would give a
person half of it, or none. What the server leaves out, or gives as null, is read as "none"
wherever it does so of its own accord; kinds that are nothing to us are let by, whatever is in them.

Source: Letta Code 0.34.12, as measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from homeroom.errors import Unavailable
from homeroom.letta.wire import text_of
from homeroom.model import Json

_IDLE = "WAITING_ON_INPUT"
_SAID = "assistant_message"
_FAILED = ("error_message", "loop_error")


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of an answer."""

    run_id: str
    message_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Broke:
    """A call of the model that broke off; the server repeats it."""

    run_id: str
    error: str


@dataclass(frozen=True, slots=True)
class Sign:
    """The agent does something that is no part of its answer."""


@dataclass(frozen=True, slots=True)
class Status:
    """What the conversation is doing, and the message ids that each recent run took."""

    busy: bool
    ids_by_run: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Queue:
    """The message ids that wait in the conversation; one without an id is another client's."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class End:
    """A turn has ended. Without ``run_id`` it is one that was refused a run."""

    run_id: str
    reason: str
    error: str


@dataclass(frozen=True, slots=True)
class Aborted:
    """The turn was cancelled; it ends when the model lets go of it."""


@dataclass(frozen=True, slots=True)
class Approval:
    """The agent asks whether it may use a tool."""

    request_id: str


Event = Said | Broke | Sign | Status | Queue | End | Aborted | Approval


def read_event(raw: Json) -> Event | None:
    """What an event says; None for what does not concern a turn.

    Raises:
        Unavailable: it is of a kind that does, and cannot be read.
    """
    match raw["type"]:
        case "stream_delta":
            return _delta(raw)
        case "update_loop_status":
            status = _fields(raw.get("loop_status"))
            taken = _fields(status.get("client_message_ids_by_run_id") or {})
            ids = {run: _ids(listed) for run, listed in taken.items()}
            return Status(_text(status.get("status")) != _IDLE, ids)
        case "update_queue":
            items = [_fields(item) for item in _listed(raw.get("queue"))]
            return Queue(_ids([item.get("client_message_id") for item in items]))
        case "turn_finished":
            reason = _text(raw.get("stop_reason")) or "end_turn"
            return End(_text(raw.get("run_id")), reason, _words(raw.get("error")))
        case "abort_message_response":
            return Aborted() if raw.get("aborted") is True else None
        case "control_request":
            if not (request_id := _text(raw.get("request_id"))):
                raise _unreadable()
            return Approval(request_id)
    return None


def _delta(raw: Json) -> Said | Broke | Sign:
    delta = _fields(raw.get("delta"))
    run_id, kind = _text(delta.get("run_id")), _text(delta.get("message_type"))
    if raw.get("subagent_id"):
        return Sign()
    if kind == _SAID:
        content = delta.get("content")
        if not _is_content(content):
            raise _unreadable()
        return Said(run_id, str(delta.get("id")), text_of(content))
    if kind in _FAILED:
        return Broke(run_id, _words(delta.get("api_error")) or _words(delta))
    return Sign()


def _is_content(content: object) -> bool:
    """Whether it is what a message may hold: nothing, text, or parts of which some have text."""
    if isinstance(content, list):
        return all(
            isinstance(part, str)
            or (isinstance(part, dict) and isinstance(part.get("text"), str | None))
            for part in content
        )
    return content is None or isinstance(content, str)


def _words(told: object) -> str:
    """Why something failed. That it did counts, so what cannot be read is no reason given."""
    if isinstance(told, dict):
        return _words(told.get("detail")) or _words(told.get("message"))
    return told if isinstance(told, str) else ""


def _fields(value: object) -> Json:
    if isinstance(value, dict):
        return value
    raise _unreadable()


def _listed(value: object) -> list[object]:
    if isinstance(value, list):
        return value
    raise _unreadable()


def _text(value: object) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    raise _unreadable()


def _ids(value: object) -> tuple[str, ...]:
    return tuple(filter(None, map(_text, _listed(value))))


def _unreadable() -> Unavailable:
    return Unavailable("letta", "one of its events could not be read")
