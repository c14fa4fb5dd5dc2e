"""What an agent and people said to each other before: Letta's messages as exchanges.

Owns which of Letta's messages are a person's words and which the agent's answer. Pure: messages
in, exchanges out. Invariant: tool calls, thoughts and what systems say are in no exchange, and an
exchange has both sides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from homeroom.letta.answer import Answer
from homeroom.letta.wire import text_of
from homeroom.model import Exchange, encodable

_REMINDER = re.compile(r"<system-reminder>.*?(</system-reminder>|\Z)", re.DOTALL)
"""What an App Server puts before a person's words: facts about its machine, for the model alone."""


@dataclass(slots=True)
class _Open:
    asked: str
    asked_ms: int
    answer: Answer = field(default_factory=Answer)
    answered_ms: int = 0


def exchanges_of(messages: Iterable[Mapping[str, Any]], limit: int) -> list[Exchange]:
    """The newest ``limit`` exchanges in ``messages`` (oldest first), oldest first.

    Messages of several conversations may be mixed: a run, or else a conversation, keeps an answer
    with its question. What came without a question of a person (a heartbeat, a schedule) is left
    out with its answer, and so is a question that has none.
    """
    begun: list[_Open] = []
    latest: dict[str, _Open | None] = {}
    for message in messages:
        thread = str(message.get("run_id") or message.get("conversation_id") or "")
        at_ms = _time_ms(message.get("date"))
        if message.get("message_type") == "user_message":
            said = words_of(message.get("content"))
            latest[thread] = None
            if said:
                latest[thread] = _Open(said, at_ms)
                begun.append(latest[thread])  # type: ignore[arg-type]
        elif current := latest.get(thread):
            before = current.answer.text
            current.answer.take(message)
            if current.answer.text != before:
                current.answered_ms = at_ms
    for exchange in begun:
        exchange.answer.finish()  # what a tool was asked to say last
    done = [
        Exchange(one.asked, encodable(one.answer.text.strip()), one.asked_ms,
                 one.answered_ms or one.asked_ms)
        for one in begun if one.answer.text.strip()
    ]  # fmt: skip
    return sorted(done, key=lambda exchange: exchange.asked_ms)[-limit:]


def words_of(content: object) -> str:
    """What a person said, in a message of role ``user``; empty where no person did.

    Older agents store a person's words in a JSON envelope that tells them from login notes,
    heartbeats and alerts.
    """
    text = _REMINDER.sub("", text_of(content)).strip()
    if text.startswith("{"):
        try:
            envelope = json.loads(text)
        except (ValueError, RecursionError):
            return encodable(text)
        if isinstance(envelope, dict) and isinstance(envelope.get("type"), str):
            if envelope["type"] != "user_message":
                return "" if envelope["type"] in _SYSTEM_TYPES else encodable(text)
            return encodable(str(envelope.get("message") or "").strip())
    return encodable(text)


_SYSTEM_TYPES = frozenset({"heartbeat", "login", "system_alert", "bootup"})


def _time_ms(date: object) -> int:
    """A date of Letta's as ms; 0 for none. One without a zone is UTC."""
    if not isinstance(date, str):
        return 0
    try:
        when = datetime.fromisoformat(date)
    except ValueError:
        return 0
    return round((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)
