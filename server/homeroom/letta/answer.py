"""An agent's answer, put together from the messages of one run.

Owns which of Letta's message types hold text. Pure: no I/O, no clock. Invariant: the pieces given
to ``on_delta`` concatenate to ``text``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from homeroom.letta.wire import text_of

if TYPE_CHECKING:
    from homeroom.letta import OnDelta


class Answer:
    """Collects the messages of one run, streamed in pieces or whole; unknown ones are ignored.

    Text is what assistant messages hold and what older agents hand to their ``send_message``
    tool. Pieces with the same id belong together; messages are set apart by an empty line.
    """

    def __init__(self, on_delta: OnDelta | None = None) -> None:
        self._on_delta = on_delta
        self._pieces: list[str] = []
        self._last_id: object = None
        self._calls: dict[str, list[str]] = {}
        self._call_names: dict[str, str] = {}
        self.stop_reason = ""
        """Empty until the run has said why it stopped."""
        self.run_id = ""
        self.acted = False
        """A tool has run, so Letta has kept the message, whatever comes after."""

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def take(self, message: Mapping[str, Any]) -> None:
        """Adds one message or one piece of it."""
        self.run_id = str(message.get("run_id") or self.run_id)
        kind = message.get("message_type")
        if kind == "tool_call_message":
            self._take_call(message.get("tool_call"))
            return
        self._say_calls()
        if kind == "assistant_message":
            self.say(text_of(message.get("content")), message.get("id"))
        elif kind == "tool_return_message":
            self.acted = True
        elif kind == "stop_reason":
            self.stop_reason = str(message.get("stop_reason") or "end_turn")

    def say(self, text: str, message_id: object) -> None:
        """Adds text of the message ``message_id``."""
        if not text:
            return
        if self._pieces and message_id != self._last_id:
            text = "\n\n" + text
        self._last_id = message_id
        self._pieces.append(text)
        if self._on_delta:
            self._on_delta(text)

    def finish(self) -> None:
        """Says what is left when no message follows."""
        self._say_calls()

    def _take_call(self, call: object) -> None:
        # Of a streamed call the first piece has the name, the others parts of the arguments.
        if not isinstance(call, dict):
            return
        call_id = str(call.get("tool_call_id") or next(reversed(self._calls), ""))
        self._calls.setdefault(call_id, []).append(str(call.get("arguments") or ""))
        self._call_names[call_id] = self._call_names.get(call_id) or str(call.get("name") or "")

    def _say_calls(self) -> None:
        calls, self._calls = self._calls, {}
        for call_id, parts in calls.items():
            if self._call_names.get(call_id) != "send_message":
                continue
            try:
                arguments = json.loads("".join(parts))
            except (ValueError, RecursionError):
                continue
            if isinstance(arguments, dict):
                self.say(text_of(arguments.get("message")), call_id)
