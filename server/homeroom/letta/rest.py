"""Letta's V1 REST API: self-hosted servers up to 0.16.8, and Letta Cloud.

Owns the paths and the order of calls; how HTTP fails is ``wire``'s, how an answer is put together
is ``answer``'s. Keeps no state but what the server can do, read when it is opened. Invariant: a
message is posted once per ``turn`` and carries its key as ``otid``, which is how it is found again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from homeroom.config import EXAMPLES, Config, variable_of
from homeroom.errors import (
    ConfigError,
    HomeroomError,
    NotFound,
    Rejected,
    Unavailable,
    Uncertain,
)
from homeroom.letta.answer import Answer
from homeroom.letta.wire import Frame, Http, SilenceLimit, Sought, agent_of, model_failure
from homeroom.model import Agent, AgentId, Block, Capabilities, ConversationId, Turn

if TYPE_CHECKING:
    from homeroom.letta import OnDelta

SDK_VERSION = "1.12.1"
"""Any value makes the server treat us as a current client; without it agent lists carry every
relationship of every agent and streaming is refused."""
PAGE_COUNT = 100
_LIST_ATTEMPTS = 3
HISTORY_PAGES = 10
"""How far back a message is looked for: 1,000 rows. Turns of a conversation come one at a time, so
the one looked for is among the newest unless other clients wrote that much since."""
POLL_S = 0.5
SETTLE_S = 1.0
"""A request that broke off may still be on its way to becoming a run."""
_FAILED_STOPS = frozenset({"error", "llm_api_error", "invalid_llm_response"})


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A message that Letta's history holds, with what the agent has answered so far."""

    run_id: str
    answer: Answer


class RestLetta:
    """Letta over its V1 REST API. See ``homeroom.letta.Letta`` for what each method promises."""

    def __init__(self, http: Http, capabilities: Capabilities, silence_s: float) -> None:
        self._http, self._silence_s = http, silence_s
        self._capabilities = capabilities

    @classmethod
    @asynccontextmanager
    async def open(cls, config: Config) -> AsyncIterator[RestLetta]:
        """Connects, checks the token and asks what the server can do.

        Raises:
            Unavailable: nothing answers.
            Rejected: the token is wrong.
            ConfigError: what answers is no Letta with a REST API.
        """
        headers = {"X-Stainless-Package-Version": SDK_VERSION}
        async with Http.open(config, headers) as http:
            yield cls(http, await _capabilities(http), config.turn_silence_s)

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    async def list_agents(self) -> list[Agent]:
        for _ in range(_LIST_ATTEMPTS):
            agents = await self._list_once()
            if agents is not None:
                return agents
        raise Unavailable("letta", "the list of agents changed while it was read")

    async def _list_once(self) -> list[Agent] | None:
        """All pages, oldest first so that a new agent comes last; None if a page came twice.

        Letta ignores a cursor it does not know (its agent was deleted) and starts over.
        """
        agents: dict[AgentId, Agent] = {}
        cursor = ""
        while True:
            params: dict[str, str | int] = {
                "limit": PAGE_COUNT,
                "order": "asc",
                "order_by": "created_at",
                "include": "agent.tags",
            }
            page = await self._http.request(
                "GET", "/v1/agents/", params={**params, "after": cursor} if cursor else params
            )
            if not page:
                return list(agents.values())
            for agent in map(agent_of, page):
                if agent.id in agents:
                    return None
                agents[agent.id] = agent
            # A server may give fewer than asked for, so only an empty page is the end.
            cursor = str(page[-1]["id"])

    async def get_agent(self, agent_id: AgentId) -> Agent:
        found = await self._http.request(
            "GET",
            f"/v1/agents/{_quoted(agent_id)}",
            params={"include": "agent.tags"},
            sought=Sought("agent", agent_id),
        )
        return agent_of(found)

    async def open_conversation(
        self, agent_id: AgentId, title: str, like: ConversationId | None = None
    ) -> ConversationId | None:
        if not self._capabilities.conversations:
            return None
        made = await self._http.request(
            "POST",
            "/v1/conversations/",
            params={"agent_id": agent_id},
            body={"summary": title},
            sought=Sought("agent", agent_id),
        )
        return ConversationId(str(made["id"]))

    async def turn(
        self,
        agent_id: AgentId,
        text: str,
        *,
        conversation: ConversationId | None,
        key: str,
        on_delta: OnDelta | None = None,
    ) -> Turn:
        """See the protocol. Letta's keep-alives prove that the server lives, not that the agent
        does: they do not count as speech, but a run that was cancelled elsewhere shows by them.
        """
        place, sought = self._place(agent_id, conversation)
        body = {
            "messages": [{"role": "user", "content": text, "otid": key}],
            "streaming": True,
            "stream_tokens": True,
            "include_pings": True,
        }
        answer = Answer(on_delta)
        async with SilenceLimit(self._silence_s, key) as limit:
            opened = self._http.stream(f"{place}/messages", body, key=key, sought=sought)
            async with opened as frames:
                async for frame in frames:
                    if frame.data.get("message_type") == "ping":
                        if await self._is_cancelled(answer, frame):
                            return Turn(answer.text, "cancelled", answer.run_id)
                        continue
                    limit.heard()
                    if frame.failed or frame.data.get("message_type") == "error_message":
                        raise _failed(frame, answer, key)
                    answer.take(frame.data)
        answer.finish()
        return await self._finished(agent_id, conversation, key, answer)

    async def _is_cancelled(self, answer: Answer, ping: Frame) -> bool:
        # The first ping only tells the run's id; a run that just began is not over.
        first, answer.run_id = not answer.run_id, str(ping.data.get("run_id") or answer.run_id)
        if first or not self._capabilities.finds_turns or not answer.run_id:
            return False
        try:
            run = await self._run(answer.run_id)
        except (Unavailable, Rejected):
            return False  # a side question: the stream itself will tell how the turn ends
        return bool(run.get("status") == "cancelled")

    async def _finished(
        self, agent_id: AgentId, conversation: ConversationId | None, key: str, answer: Answer
    ) -> Turn:
        if not answer.stop_reason:
            raise Uncertain("letta", key, "the answer broke off")
        if answer.stop_reason in _FAILED_STOPS:
            raise _half_done(Unavailable("model", answer.stop_reason), answer, key)
        if not answer.text and answer.stop_reason == "end_turn":
            # Token streams of the older agent types carry thoughts only (seen on 0.16.8); what
            # the agent said is in the history.
            try:
                recorded = await self._recorded(agent_id, conversation, key)
            except Unavailable as error:
                raise Uncertain("letta", key, error.reason) from error
            if recorded:
                answer.say(recorded.answer.text, None)
        return Turn(answer.text, answer.stop_reason, answer.run_id)

    async def find_turn(
        self, agent_id: AgentId, *, conversation: ConversationId | None, key: str, text: str
    ) -> Turn | None:
        """See the protocol. How it can know, measured on 0.16.8: the history keeps the ``otid`` of
        a message and names its run, but shows it only when the first step of the run is over;
        until then there is a run of this conversation that has not ended. A failed or cancelled
        run leaves no message unless a tool had run.

        A server that was killed leaves its runs "running" for ever: after the silence limit they
        are Uncertain, and ``cancel`` clears them.
        """
        del text  # the otid is exact
        clock = asyncio.get_running_loop().time
        seen: object = None
        silent_until, settled = clock() + self._silence_s, False
        while True:
            # Runs before history: one that ends between the two is then in the history.
            active = await self._active_runs(agent_id, conversation)
            found = await self._recorded(agent_id, conversation, key)
            if found and found.run_id not in active:
                return await self._recorded_turn(found, key)
            if not found and not active:
                if not self._capabilities.finds_turns:
                    raise Uncertain("letta", key, "this version does not tell what is running")
                if settled:
                    return None
                settled = True
                await asyncio.sleep(SETTLE_S)
                continue
            if seen != (now := (sorted(active), len(found.answer.text) if found else -1)):
                seen, silent_until = now, clock() + self._silence_s
            if clock() > silent_until:
                raise Uncertain("letta", key, f"a run is silent for {self._silence_s:.0f} s")
            await asyncio.sleep(POLL_S)

    async def _recorded_turn(self, found: _Recorded, key: str) -> Turn:
        if not self._capabilities.finds_turns:
            if not found.answer.text:
                raise Uncertain("letta", key, "it took the message and has no answer yet")
            return Turn(found.answer.text)
        stop_reason = "end_turn"
        if found.run_id:
            stop_reason = str((await self._run(found.run_id)).get("stop_reason") or stop_reason)
        return Turn(found.answer.text, stop_reason, found.run_id)

    async def _run(self, run_id: str) -> dict[str, Any]:
        try:
            run = await self._http.request(
                "GET", f"/v1/runs/{_quoted(run_id)}", sought=Sought("run", run_id)
            )
        except NotFound:
            return {}
        return run if isinstance(run, dict) else {}

    async def _active_runs(
        self, agent_id: AgentId, conversation: ConversationId | None
    ) -> list[str]:
        """Ids of the runs of this conversation that have not ended."""
        if not self._capabilities.finds_turns:
            return []
        runs = await self._http.request(
            "GET",
            "/v1/runs/",
            params={"agent_id": agent_id, "active": "true", "limit": PAGE_COUNT},
            sought=Sought("agent", agent_id),
        )
        return [
            str(run["id"])
            for run in runs
            if (run.get("conversation_id") or "default") == (conversation or "default")
        ]

    async def _recorded(
        self, agent_id: AgentId, conversation: ConversationId | None, key: str
    ) -> _Recorded | None:
        """The message with this ``otid`` and what followed it, from the newest pages."""
        place, sought = self._place(agent_id, conversation)
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
                    return _Recorded(run_id, _answer_after(run_id, reversed(newer)))
                newer.append(message)
            params["before"] = str(newest_first[-1]["id"])
        return None

    async def cancel(self, agent_id: AgentId, conversation: ConversationId | None) -> bool:
        runs = await self._active_runs(agent_id, conversation)
        if not runs:
            return False
        # By id: without ids Letta cancels the agent's runs of all conversations.
        results = await self._http.request(
            "POST",
            f"/v1/agents/{_quoted(agent_id)}/messages/cancel",
            body={"run_ids": runs},
            sought=Sought("agent", agent_id),
        )
        return "cancelled" in results.values() if isinstance(results, dict) else bool(results)

    async def list_blocks(self, agent_id: AgentId) -> list[Block]:
        return [_block(raw) for raw in await self._raw_blocks(agent_id)]

    async def _raw_blocks(self, agent_id: AgentId) -> list[dict[str, Any]]:
        blocks: list[dict[str, Any]] = await self._http.request(
            "GET",
            f"/v1/agents/{_quoted(agent_id)}/core-memory/blocks",
            sought=Sought("agent", agent_id),
        )
        return blocks

    async def write_block(self, agent_id: AgentId, label: str, value: str) -> Block:
        """See the protocol. Also raises Uncertain(key=label) when the answer was lost; writing
        the same value again is safe."""
        blocks = {str(raw["label"]): raw for raw in await self._raw_blocks(agent_id)}
        if label not in blocks:
            raise NotFound("memory block", label, sorted(blocks))
        # By the block's own id: no quoting carries a label with a slash through to the server.
        written = await self._http.request(
            "PATCH",
            f"/v1/blocks/{_quoted(str(blocks[label]['id']))}",
            body={"value": value},
            sought=Sought("memory block", label),
            key=label,
        )
        return _block(written)

    def _place(self, agent_id: AgentId, conversation: ConversationId | None) -> tuple[str, Sought]:
        if conversation and self._capabilities.conversations:
            path = f"/v1/conversations/{_quoted(conversation)}"
            return path, Sought("conversation", conversation)
        return f"/v1/agents/{_quoted(agent_id)}", Sought("agent", agent_id)


async def _capabilities(http: Http) -> Capabilities:
    no_letta = ConfigError(
        variable_of("letta_url"),
        "names a server that has no Letta REST API",
        EXAMPLES["letta_url"],
    )
    try:
        version = await _version(http)
        # The health check needs no token, this does.
        agents = await http.request(
            "GET", "/v1/agents/", params={"limit": 1}, sought=Sought("path", "agents")
        )
    except NotFound:
        raise no_letta from None
    except Rejected as error:
        if error.code in ("401", "403"):
            raise
        raise no_letta from error
    if not isinstance(agents, list):
        raise no_letta
    return Capabilities(
        backend="rest",
        version=version,
        conversations=await _has(http, "/v1/conversations/"),
        memory=True,
        cancel=True,
        finds_turns=await _has(http, "/v1/runs/"),
    )


async def _version(http: Http) -> str:
    try:
        health = await http.request("GET", "/v1/health/", sought=Sought("path", "health"))
    except NotFound:
        return ""  # a gateway may keep it to itself
    return str(health.get("version") or "") if isinstance(health, dict) else ""


async def _has(http: Http, path: str) -> bool:
    """Whether this version of Letta knows the path."""
    try:
        await http.request("GET", path, params={"limit": 1}, sought=Sought("path", path))
    except (NotFound, Rejected):
        return False
    return True


def _failed(frame: Frame, answer: Answer, key: str) -> HomeroomError:
    data = frame.data
    told = data.get("error")
    error = told if isinstance(told, dict) else data
    kind = str(error.get("error_type") or error.get("type") or data.get("code") or "")
    return _half_done(model_failure(kind, error.get("detail")), answer, key)


def _half_done(error: HomeroomError, answer: Answer, key: str) -> HomeroomError:
    """A failure after a tool has run is not "nothing was delivered"."""
    if answer.acted and isinstance(error, Unavailable):
        return Uncertain("letta", key, "the run failed after the agent had used a tool")
    return error


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


def _block(raw: dict[str, Any]) -> Block:
    return Block(
        label=str(raw.get("label") or ""),
        value=str(raw.get("value") or ""),
        limit=int(raw.get("limit") or 0),
        read_only=bool(raw.get("read_only")),
        description=str(raw.get("description") or ""),
    )


def _quoted(part: str) -> str:
    return quote(part, safe="")
