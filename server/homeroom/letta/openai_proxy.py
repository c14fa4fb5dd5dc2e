"""Agents as models: any server that lists them at ``/v1/models``, such as an App Server's own.

Owns the little of OpenAI's protocol that discovery and chat need. What the protocol lacks (memory,
cancelling, looking a turn up again) is refused in words. Invariant: a lane keeps one chat key.
"""

from __future__ import annotations

import difflib
import re
import uuid
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
    Unsupported,
)
from homeroom.letta.answer import Answer
from homeroom.letta.wire import Http, SilenceLimit, Sought, text_of
from homeroom.model import (
    Agent,
    AgentId,
    Block,
    Capabilities,
    ConversationId,
    Exchange,
    Turn,
)
from homeroom.reading import Recall

if TYPE_CHECKING:
    from homeroom.letta import OnDelta

CHAT_KEY = "X-Letta-Chat-Key"
"""Pins a chat to one conversation; an App Server forgets its keys when it restarts."""
_NO_MEMORY = (
    "This Letta is reached through the OpenAI protocol, which has no memory. "
    f"Point {variable_of('letta_url')} at the App Server or the REST API itself."
)
_NO_HISTORY = (
    "This Letta is reached through the OpenAI protocol, which does not tell what was said before. "
    f"Point {variable_of('letta_url')} at the App Server or the REST API itself, or set "
    f"{variable_of('history_count')} to 0."
)


class OpenAIProxyLetta:
    """Letta over OpenAI's protocol. See ``homeroom.letta.Letta`` for what each method promises."""

    def __init__(self, http: Http, capabilities: Capabilities, silence_s: float) -> None:
        self._http, self._silence_s = http, silence_s
        self._capabilities = capabilities

    @classmethod
    @asynccontextmanager
    async def open(cls, config: Config) -> AsyncIterator[OpenAIProxyLetta]:
        """Connects and checks that there is a list of models.

        Raises:
            Unavailable: nothing answers.
            Rejected: the token is wrong.
            ConfigError: what answers has no such list.
        """
        async with Http.open(config, {}) as http:
            try:
                models = await http.request("GET", "/v1/models", sought=Sought("path", "models"))
            except NotFound:
                models = None
            if not is_model_list(models):
                raise ConfigError(
                    variable_of("letta_url"),
                    "names a server that lists no agents at /v1/models",
                    EXAMPLES["letta_url"],
                )
            capabilities = await _capabilities(http)
            http.is_opening = False
            yield cls(http, capabilities, config.turn_silence_s)

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    async def list_agents(self) -> list[Agent]:
        models = await self._http.request("GET", "/v1/models")
        if not is_model_list(models):
            raise Unavailable("letta", "what it answered is no list of models")
        agents = (_agent(model) for model in models["data"] if model.get("id"))
        return list({agent.id: agent for agent in agents}.values())

    async def get_agent(self, agent_id: AgentId) -> Agent:
        agents = {agent.id: agent for agent in await self.list_agents()}
        if agent_id not in agents:
            raise NotFound("agent", agent_id, difflib.get_close_matches(agent_id, agents))
        return agents[agent_id]

    async def open_conversation(
        self, agent_id: AgentId, title: str, like: ConversationId | None = None
    ) -> ConversationId | None:
        """A fresh chat key, which the server turns into a conversation at the first message; None
        where the server is not known to honour such keys."""
        if not self._capabilities.conversations:
            return None
        await self.get_agent(agent_id)
        return ConversationId(f"homeroom-{uuid.uuid4().hex}")

    async def turn(
        self,
        agent_id: AgentId,
        text: str,
        *,
        conversation: ConversationId | None,
        key: str,
        on_delta: OnDelta | None = None,
    ) -> Turn:
        body = {
            "model": agent_id,
            "messages": [{"role": "user", "content": text}],
            "stream": True,
        }
        # Without a key an App Server gives every message a conversation of its own.
        chat_key = conversation or f"homeroom-{uuid.uuid5(uuid.NAMESPACE_URL, agent_id).hex}"
        answer = Answer(on_delta)
        async with SilenceLimit(self._silence_s, key) as limit:
            opened = self._http.stream(
                "/v1/chat/completions",
                body,
                key=key,
                sought=Sought("agent", agent_id),
                headers={CHAT_KEY: chat_key},
            )
            async with opened as frames:
                async for frame in frames:
                    limit.heard()
                    if frame.failed:
                        if answer.text:
                            raise Uncertain("letta", key, "the run failed in mid-answer")
                        raise _failed(frame.data)
                    _take(answer, frame.data)
        if not answer.stop_reason:
            raise Uncertain("letta", key, "the answer broke off")
        return Turn(answer.text, answer.stop_reason, answer.run_id)

    async def find_turn(
        self, agent_id: AgentId, *, conversation: ConversationId | None, key: str, text: str,
        begun_ms: int = 0,
    ) -> Turn | None:  # fmt: skip
        """Always raises Uncertain: the protocol cannot look a message up again."""
        raise Uncertain("letta", key, "the OpenAI protocol cannot look a message up")

    async def cancel(self, agent_id: AgentId, conversation: ConversationId | None) -> bool:
        """Always False: the protocol cannot stop a run."""
        return False

    async def run_changes(self, on_change: Callable[[], None]) -> None:
        """Returns: this protocol tells of no change by itself."""

    async def list_blocks(self, agent_id: AgentId) -> list[Block]:
        raise Unsupported(_NO_MEMORY)

    async def write_block(self, agent_id: AgentId, label: str, value: str) -> Block:
        raise Unsupported(_NO_MEMORY)

    async def list_history(self, agent_id: AgentId, limit: int) -> list[Exchange]:
        raise Unsupported(_NO_HISTORY)

    async def search_passages(self, agent_id: AgentId, query: str, limit: int) -> Recall:
        raise Unsupported(_NO_MEMORY)


def is_model_list(body: object) -> bool:
    """Whether an answer is OpenAI's list of models: an object with ``data``, a list of objects.

    Source: https://platform.openai.com/docs/api-reference/models/list
    """
    data = body.get("data") if isinstance(body, dict) else None
    return isinstance(data, list) and all(isinstance(model, dict) for model in data)


async def _capabilities(http: Http) -> Capabilities:
    # Only an App Server is known to honour chat keys; another proxy may put every message into
    # the agent's one thread, where two at a time would lose context.
    try:
        info = await http.request("GET", "/app-server-info", sought=Sought("path", "info"))
    except (NotFound, Rejected, ConfigError):
        return Capabilities(backend="openai")
    version = str(info.get("version") or "") if isinstance(info, dict) else ""
    return Capabilities(backend="openai", version=version, conversations=True)


def _take(answer: Answer, chunk: Any) -> None:
    answer.run_id = str(chunk.get("id") or answer.run_id)
    for choice in chunk.get("choices") or ():
        # Old servers answer a stream request with one whole message.
        said = choice.get("delta") or choice.get("message") or {}
        answer.say(text_of(said.get("content")), answer.run_id)
        reason = choice.get("finish_reason")
        if reason:
            answer.stop_reason = "end_turn" if reason == "stop" else str(reason)


def _failed(data: Any) -> HomeroomError:
    """What an error in the stream means; the words of it are not passed on."""
    error = data.get("error")
    words = f"{error.get('code')} {error.get('message')}" if isinstance(error, dict) else str(error)
    if re.search(r"\b401\b|invalid.api.key|authenticat", words, re.IGNORECASE):
        return Rejected("model", "the agent's provider does not accept its API key", "401")
    if re.search(r"\b429\b|rate.limit", words, re.IGNORECASE):
        return Unavailable("model", "its provider limits the rate")
    return Unavailable("model", "the run failed")


def _agent(model: dict[str, Any]) -> Agent:
    return Agent(id=AgentId(str(model["id"])), name=str(model.get("name") or model["id"]))
