"""Letta's V1 REST API: self-hosted servers up to 0.16.8, and Letta Cloud.

Owns the paths and the order of calls; how HTTP fails is ``wire``'s, how an answer is put together
is ``answer``'s. Keeps no state but what the server can do, read when it is opened. Invariant: a
message is posted once per ``turn`` and carries its key as ``otid``, which is how it is found again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from homeroom.config import EXAMPLES, Config, variable_of
from homeroom.errors import (
    ConfigError,
    HomeroomError,
    NotFound,
    Rejected,
    Unavailable,
    Uncertain,
)
from homeroom.letta.absence import Absence
from homeroom.letta.answer import Answer
from homeroom.letta.past import exchanges_of
from homeroom.letta.runs import HISTORY_PAGES, PAGE_COUNT, Runs, quoted
from homeroom.letta.wire import Frame, Http, SilenceLimit, Sought, agent_of, model_failure
from homeroom.model import (
    Agent,
    AgentId,
    Block,
    Capabilities,
    ConversationId,
    Exchange,
    Turn,
)
from homeroom.reading import Passage, Recall

if TYPE_CHECKING:
    from homeroom.letta import OnDelta

SDK_VERSION = "1.12.1"
"""Any value makes the server treat us as a current client; without it agent lists carry every
relationship of every agent and streaming is refused."""
_LIST_ATTEMPTS = 3
_FAILED_STOPS = frozenset({"error", "llm_api_error", "invalid_llm_response"})


class RestLetta:
    """Letta over its V1 REST API. See ``homeroom.letta.Letta`` for what each method promises."""

    def __init__(self, http: Http, capabilities: Capabilities, silence_s: float) -> None:
        self._http, self._silence_s = http, silence_s
        self._capabilities = capabilities
        self._runs = Runs(http, capabilities, silence_s)

    @classmethod
    @asynccontextmanager
    async def open(cls, config: Config, absence: Absence | None = None) -> AsyncIterator[RestLetta]:
        """Connects, checks the token and asks what the server can do.

        Raises:
            Unavailable: nothing answers.
            Rejected: the token is wrong.
            ConfigError: what answers is no Letta with a REST API.
        """
        headers = {"X-Stainless-Package-Version": SDK_VERSION}
        async with Http.open(config, headers, absence) as http:
            capabilities = await _capabilities(http)
            http.is_opening = False
            yield cls(http, capabilities, config.turn_silence_s)

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
            f"/v1/agents/{quoted(agent_id)}",
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
        place, sought = self._runs.place(agent_id, conversation)
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
            run = await self._runs.get(answer.run_id)
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
                recorded = await self._runs.recorded(agent_id, conversation, key)
            except HomeroomError as error:
                # Whatever this question came to, the turn itself has ended.
                reason = "its answer could not be read afterwards"
                raise Uncertain("letta", key, reason) from error
            if recorded:
                answer.say(recorded.answer.text, None)
        return Turn(answer.text, answer.stop_reason, answer.run_id)

    async def find_turn(
        self,
        agent_id: AgentId,
        *,
        conversation: ConversationId | None,
        key: str,
        text: str,
        begun_ms: int = 0,
    ) -> Turn | None:
        del text  # the otid is exact
        return await self._runs.find_turn(agent_id, conversation, key, begun_ms)

    async def cancel(self, agent_id: AgentId, conversation: ConversationId | None) -> bool:
        runs = await self._runs.active(agent_id, conversation)
        return await self._runs.cancel(agent_id, [run.id for run in runs])

    async def run_changes(self, on_change: Callable[[], None]) -> None:
        """Returns: this protocol tells of no change by itself."""

    async def list_blocks(self, agent_id: AgentId) -> list[Block]:
        return [_block(raw) for raw in await self._raw_blocks(agent_id)]

    async def _raw_blocks(self, agent_id: AgentId) -> list[dict[str, Any]]:
        blocks: list[dict[str, Any]] = await self._http.request(
            "GET",
            f"/v1/agents/{quoted(agent_id)}/core-memory/blocks",
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
            f"/v1/blocks/{quoted(str(blocks[label]['id']))}",
            body={"value": value},
            sought=Sought("memory block", label),
            key=label,
        )
        return _block(written)

    async def list_history(self, agent_id: AgentId, limit: int) -> list[Exchange]:
        """See the protocol. No further back than ``HISTORY_PAGES`` pages."""
        place, sought = self._runs.place(agent_id, None)
        found: list[dict[str, Any]] = []
        params: dict[str, str | int] = {"limit": PAGE_COUNT, "order": "desc"}
        for _ in range(HISTORY_PAGES):
            page = await self._http.request(
                "GET", f"{place}/messages", params=params, sought=sought
            )
            if not page:
                break
            found = [*page, *found]  # the newest page comes first, and each is oldest first
            # One more than asked for: the oldest may begin in the page before.
            if len(exchanges := exchanges_of(found, limit + 1)) > limit:
                return exchanges[-limit:]
            params["before"] = str(page[0]["id"])
        return exchanges_of(found, limit)

    async def search_passages(self, agent_id: AgentId, query: str, limit: int) -> Recall:
        """See the protocol. Of an agent without an embedding model Letta looks for the words
        themselves (seen on 0.16.8), and so do we where its search fails or is not there."""
        sought = Sought("agent", agent_id)
        place = f"/v1/agents/{quoted(agent_id)}"
        agent = await self._http.request("GET", place, sought=sought)
        by_meaning = bool(agent.get("embedding") or agent.get("embedding_config"))
        path = f"{place}/archival-memory"
        params: dict[str, str | int] = {"query": query, "top_k": limit}
        try:
            body = await self._http.request("GET", f"{path}/search", params=params, sought=sought)
        except (NotFound, Rejected, Unavailable):
            params = {"search": query, "limit": limit}
            found = await self._http.request("GET", path, params=params, sought=sought)
            return Recall("text", _passages(found, "text"))
        results = body.get("results") if isinstance(body, dict) else None
        return Recall("semantic" if by_meaning else "text", _passages(results, "content"))


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
        history=True,
    )


async def _version(http: Http) -> str:
    try:
        health = await http.request("GET", "/v1/health/", sought=Sought("path", "health"))
    except (NotFound, ConfigError):
        return ""  # a gateway may keep it to itself
    return str(health.get("version") or "") if isinstance(health, dict) else ""


async def _has(http: Http, path: str) -> bool:
    """Whether this version of Letta knows the path."""
    try:
        await http.request("GET", path, params={"limit": 1}, sought=Sought("path", path))
    except (NotFound, Rejected, ConfigError):
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


def _block(raw: dict[str, Any]) -> Block:
    return Block(
        label=str(raw.get("label") or ""),
        value=str(raw.get("value") or ""),
        limit=int(raw.get("limit") or 0),
        read_only=bool(raw.get("read_only")),
        description=str(raw.get("description") or ""),
    )


def _passages(raw: object, text: str) -> tuple[Passage, ...]:
    found = raw if isinstance(raw, list) else []
    return tuple(
        Passage(str(entry.get("id") or ""), str(entry.get(text) or ""))
        for entry in found
        if isinstance(entry, dict)
    )
