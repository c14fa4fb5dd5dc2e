"""The runs of Letta's V1 REST API: what became of a message, and how a run is ended.

Owns how a message is found again by its key, and when that can be known. Does not send messages.
Invariant: a message counts as never taken only when it can no longer turn up, and nothing is ended
here whose server may still work on it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from homeroom.errors import NotFound, Uncertain
from homeroom.letta.answer import Answer
from homeroom.letta.wire import CONNECT_S, Http, Sought
from homeroom.model import AgentId, Capabilities, ConversationId, Turn

PAGE_COUNT = 100
HISTORY_PAGES = 10
"""How far back a message is looked for: 1,000 rows. Turns of a conversation come one at a time, so
the one looked for is among the newest unless other clients wrote that much since."""
POLL_S = 0.5
POLL_MOST_S = 5.0
ARRIVAL_S = CONNECT_S + 30.0
"""A message that was written to a socket may become a run so long after its turn began. V1 works on
one core: with 20 at once half of them took 2.3 s, and one 31 s (measured)."""
_CANCEL_S = 1.0
"""A run that lives after all notices its cancellation within half a second (measured)."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run that has not ended, as Letta tells it."""

    id: str
    created_at: str


@dataclass(frozen=True, slots=True)
class Recorded:
    """A message that Letta's history holds, with what the agent has answered so far."""

    run_id: str
    answer: Answer


class Runs:
    """Looks into the runs and the history of one server."""

    def __init__(self, http: Http, capabilities: Capabilities, silence_s: float) -> None:
        self._http, self._capabilities, self._silence_s = http, capabilities, silence_s

    async def find_turn(
        self, agent_id: AgentId, conversation: ConversationId | None, key: str, begun_ms: int
    ) -> Turn | None:
        """See the protocol. How it can know, measured on 0.16.8: the history keeps the ``otid`` of
        a message and names its run, but shows it only when the first step of the run is over;
        until then there is a run of this conversation that has not ended. A failed or cancelled
        run leaves no message unless a tool had run.

        A server that was killed leaves its runs "running" for ever. Where it is known to have been
        away since they began, they are cancelled; else they are Uncertain after the silence limit.
        """
        clock = asyncio.get_running_loop().time
        seen: object = None
        silent_until, pause_s = clock() + self._silence_s, POLL_S
        arrival_until = clock() + _arrival_left_s(begun_ms)
        cancelled: set[str] = set()
        while True:
            died = self._http.absence.is_after(begun_ms)
            left_s = 0.0 if died else arrival_until - clock()
            # Runs before history: one that ends between the two is then in the history.
            active = {run.id: run for run in await self.active(agent_id, conversation)}
            found = await self.recorded(agent_id, conversation, key)
            if found and found.run_id not in active:
                return await self._recorded_turn(found, key)
            dead = {run.id for run in active.values() if self._http.absence.ended(run.created_at)}
            if found and found.run_id in dead:
                return _left_behind(found, key)
            if not found and dead - cancelled:
                await self.cancel(agent_id, sorted(dead - cancelled))
                cancelled |= dead
                await asyncio.sleep(_CANCEL_S)
                continue
            if not found and not active:
                if not self._capabilities.finds_turns:
                    raise Uncertain("letta", key, "this version does not tell what is running")
                if left_s <= 0:
                    return None
                await asyncio.sleep(min(pause_s, left_s))
                pause_s = min(2 * pause_s, POLL_MOST_S)
                continue
            if seen != (now := (sorted(active), len(found.answer.text) if found else -1)):
                seen, silent_until = now, clock() + self._silence_s
            if clock() > silent_until:
                raise Uncertain("letta", key, f"a run is silent for {self._silence_s:.0f} s")
            await asyncio.sleep(POLL_S)

    async def _recorded_turn(self, found: Recorded, key: str) -> Turn:
        if not self._capabilities.finds_turns:
            if not found.answer.text:
                raise Uncertain("letta", key, "it took the message and has no answer yet")
            return Turn(found.answer.text)
        stop_reason = "end_turn"
        if found.run_id:
            stop_reason = str((await self.get(found.run_id)).get("stop_reason") or stop_reason)
        return Turn(found.answer.text, stop_reason, found.run_id)

    async def get(self, run_id: str) -> dict[str, Any]:
        """What Letta tells of a run; nothing if there is no such run."""
        try:
            run = await self._http.request(
                "GET", f"/v1/runs/{quoted(run_id)}", sought=Sought("run", run_id)
            )
        except NotFound:
            return {}
        return run if isinstance(run, dict) else {}

    async def active(self, agent_id: AgentId, conversation: ConversationId | None) -> list[Run]:
        """The runs of this conversation that have not ended."""
        if not self._capabilities.finds_turns:
            return []
        runs = await self._http.request(
            "GET",
            "/v1/runs/",
            params={"agent_id": agent_id, "active": "true", "limit": PAGE_COUNT},
            sought=Sought("agent", agent_id),
        )
        return [
            Run(str(run["id"]), str(run.get("created_at") or ""))
            for run in runs
            if (run.get("conversation_id") or "default") == (conversation or "default")
        ]

    async def recorded(
        self, agent_id: AgentId, conversation: ConversationId | None, key: str
    ) -> Recorded | None:
        """The message with this ``otid`` and what followed it, from the newest pages."""
        place, sought = self.place(agent_id, conversation)
        newer: list[dict[str, Any]] = []
        params: dict[str, str | int] = {"limit": PAGE_COUNT, "order": "desc"}
        for _ in range(HISTORY_PAGES):
            page = await self._http.request(
                "GET", f"{place}/messages", params=params, sought=sought
            )
            if not page:
                return None
            # A conversation's page is newest first, an agent's page oldest first.
            newest_first = page if place.startswith("/v1/conversations/") else page[::-1]
            for message in newest_first:
                if message.get("otid") == key and message.get("message_type") == "user_message":
                    run_id = str(message.get("run_id") or "")
                    return Recorded(run_id, _answer_after(run_id, reversed(newer)))
                newer.append(message)
            params["before"] = str(newest_first[-1]["id"])
        return None

    async def cancel(self, agent_id: AgentId, run_ids: Sequence[str]) -> bool:
        """Ends these runs. Returns whether one of them had not ended."""
        if not run_ids:
            return False
        # By id: without ids Letta cancels the agent's runs of all conversations.
        results = await self._http.request(
            "POST",
            f"/v1/agents/{quoted(agent_id)}/messages/cancel",
            body={"run_ids": list(run_ids)},
            sought=Sought("agent", agent_id),
        )
        return "cancelled" in results.values() if isinstance(results, dict) else bool(results)

    def place(self, agent_id: AgentId, conversation: ConversationId | None) -> tuple[str, Sought]:
        """The path of a conversation, or of the agent's own thread, and what it is called."""
        if conversation and self._capabilities.conversations:
            path = f"/v1/conversations/{quoted(conversation)}"
            return path, Sought("conversation", conversation)
        return f"/v1/agents/{quoted(agent_id)}", Sought("agent", agent_id)


def _arrival_left_s(begun_ms: int) -> float:
    """How long a message that was sent then may still turn up, even if the clock was set back."""
    return min(ARRIVAL_S, ARRIVAL_S - (time.time() - begun_ms / 1000))


def _left_behind(found: Recorded, key: str) -> Turn:
    """What a server that was killed has left of a turn: the whole of it, if it was only about to
    write down that it had ended."""
    if found.answer.text and not found.answer.acted:
        return Turn(found.answer.text, "end_turn", found.run_id)
    did = "had used a tool" if found.answer.acted else "had read the message"
    raise Uncertain("letta", key, f"it was stopped after the agent {did}")


def _answer_after(run_id: str, later: Iterable[dict[str, Any]]) -> Answer:
    answer = Answer()
    for message in later:
        if run_id and message.get("run_id") != run_id:
            continue
        if not run_id and message.get("message_type") == "user_message":
            break  # servers that name no run: the next message begins the next turn
        answer.take(message)
    answer.finish()
    return answer


def quoted(part: str) -> str:
    """As one segment of a path."""
    return quote(part, safe="")
