"""Letta's App Server (WebSocket) behind the ``Letta`` protocol.

Owns what an agent, a turn and a memory file are on this back end; ``link`` owns the connection and
``app_memory`` the files. Invariant: no turn offers its model a tool, and every approval is refused.

What Letta Code 0.34.12 does with a ``client_message_id`` (measured, kill -9 included):

* it takes each id once, whatever became of it: sent again after the turn ended, failed or was
  cancelled, or while it runs, it is accepted and nothing happens. Remembered on disk for an hour;
* the user message carries it as ``otid`` in the conversation's history, for good;
* a server that was killed runs the message again by itself, as soon as somebody opens the
  conversation, and the history then has the user message twice;
* a turn whose last subscriber goes away is cut off. What it had said so far stays in the history
  as if it were whole, and the conversation takes no turn any more ("already has an active run").
  A fork of it does.

* for an input with a ``terminal_consumer_id`` it keeps the end of the turn on disk until that is
  acknowledged, and looks through all that it keeps, with several fsyncs each, at every turn's end
  and whenever somebody opens a conversation. 30 of them stop it for minutes on a busy disk.

So we name no consumer, and an answer counts if we saw its turn end, and not because the history has
a text. A key that was sent and has no such answer is sent again with a new id (``key``, ``key#2``,
...), if need be in a fork: the agent may then have been asked twice, but nobody is answered twice
or with half a text.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

from homeroom.config import Config
from homeroom.errors import (
    ConfigError,
    NotFound,
    Rejected,
    Unavailable,
    Uncertain,
)
from homeroom.letta import OnDelta, app_memory, app_reading, changes
from homeroom.letta.events import Approval, Event, read_event
from homeroom.letta.link import LOST, Link, Scope
from homeroom.letta.run import (
    Earlier,
    LoopState,
    Run,
    attempt_of,
    joined,
    message_id_of,
)
from homeroom.letta.wire import agent_of, text_of
from homeroom.model import (
    Agent,
    AgentId,
    Block,
    Capabilities,
    ConversationId,
    Exchange,
    Json,
    Turn,
)
from homeroom.reading import Recall

_PAGE = 500
_THREAD = "Homeroom: main thread"
"""Title of the conversation that stands for "no conversation in particular"."""
_HISTORY_PAGE = 50
_HISTORY_MESSAGES = 1000
"""How far back a key is looked for; a lane has one message under way, so it is among the last."""
_SEEN_TURNS = 200
_FIRST_SIGN_S = 3.0
"""An input that starts a turn shows within milliseconds; one that is swallowed never does. After so
long the server is asked, which knows: a turn counts as begun before its input is acknowledged."""
_AT_ONCE = 4
"""How many conversations the server is asked to open, fork or take a message for at a time."""
_WIND_DOWN_S = 5.0
"""How long a cancelled turn may take to end before it counts as ended."""
_DENIAL = "Refused: tools that need approval cannot be used from a chat room. Answer without them."
_LIFE = ("stream_delta", "update_loop_status", "control_request", "abort_message_response")
"""Events that show that the agent is alive; device status is the server's small talk."""


log = logging.getLogger(__name__)


class AppServerLetta:
    """One App Server. Several turns run at once on its one connection."""

    def __init__(self, link: Link, version: str, turn_silence_s: float) -> None:
        self._link = link
        self._silence_s = turn_silence_s
        # A bonus, not a record: without it (after a restart) the history is asked.
        self._seen: dict[str, Turn] = {}
        self._tried: dict[str, int] = {}
        """How often each key was sent, as far as we know."""
        self._joined: dict[Scope, int] = {}
        """The connection on which we subscribed to each conversation."""
        self._threads: dict[AgentId, str] = {}
        self._threads_lock = asyncio.Lock()
        self._pace = asyncio.Semaphore(_AT_ONCE)
        self._capabilities = Capabilities(
            backend="app-server",
            version=version,
            conversations=True,
            memory=True,
            cancel=True,
            finds_turns=True,
            history=True,
        )

    @classmethod
    @asynccontextmanager
    async def open(cls, config: Config) -> AsyncIterator[AppServerLetta]:
        """The App Server at ``config.letta_url`` (http, https, ws or wss).

        Raises:
            Unavailable: nothing answers there.
            Rejected: it does not accept the token.
            ConfigError: what answers is no App Server.
        """
        token = config.letta_token.get_secret_value()
        async with cls.connect(config.letta_url, token, config.turn_silence_s) as letta:
            yield letta

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, url: str, token: str = "", turn_silence_s: float = 300.0
    ) -> AsyncIterator[AppServerLetta]:
        """As ``open``, for a server that no configuration names."""
        async with Link.open(url, token) as link:
            about = await link.request("app_server_info")
            yield cls(link, str(about.get("letta_code_version", "")), turn_silence_s)

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    # --- Agents ------------------------------------------------------------------------------

    async def list_agents(self) -> list[Agent]:
        return await app_reading.list_agents(self._link)

    async def run_changes(self, on_change: Callable[[], None]) -> None:
        await changes.run_changes(self._link, on_change)

    async def get_agent(self, agent_id: AgentId) -> Agent:
        return agent_of((await self._link.request("agent_retrieve", agent_id=agent_id))["agent"])

    async def create_agent(
        self,
        name: str,
        description: str = "",
        blocks: Mapping[str, str] | None = None,
        tags: tuple[str, ...] = (),
        model: str = "",
    ) -> Agent:
        """A new agent with one memory file per block. ``model`` is Letta's handle
        (``provider/model``); of ``provider/``, or of nothing, it takes the first there is.

        Raises:
            Rejected: no such model is connected to the server, or it refused.
        """
        if not model or model.endswith("/"):
            handles = [name for name in await self._handles() if name.startswith(model)]
            if not handles:
                raise Rejected("letta", "no language model is connected to it")
            model = handles[0]
        body = {
            "name": name,
            "description": description,
            "model": model,
            "tags": list(tags),
            "memory_blocks": [{"label": k, "value": v} for k, v in (blocks or {}).items()],
        }
        return agent_of((await self._link.request("agent_create", key=name, body=body))["agent"])

    async def mend_models(self, model: str) -> None:
        """Gives ``model`` (see ``create_agent``) to agents whose own is not connected any more."""
        handles = await self._handles()
        fitting = [name for name in handles if name.startswith(model)]
        listed = await self._link.request("agent_list", query={"limit": _PAGE})
        for raw in listed["agents"]:
            if raw.get("model") not in handles and fitting:
                body = {"model": fitting[0]}
                await self._link.request("agent_update", agent_id=raw["id"], body=body)

    async def _handles(self) -> list[str]:
        """The models that are connected, by Letta's names for them."""
        listed = await self._link.request("list_models", force=True)
        # A server that has just started does not know yet which of its models answer.
        return list(listed.get("available_handles") or [e["handle"] for e in listed["entries"]])

    async def open_conversation(
        self, agent_id: AgentId, title: str, like: ConversationId | None = None
    ) -> ConversationId | None:
        if like is not None:
            with suppress(NotFound, Rejected):
                async with self._pace:
                    fork = await self._link.request(
                        "conversation_fork", key=title, agent_id=agent_id, conversation_id=like
                    )
                return ConversationId(fork["conversation"]["id"])
        body = {"agent_id": agent_id, "summary": title}
        answer = await self._link.request("conversation_create", key=title, body=body)
        return ConversationId(answer["conversation"]["id"])

    # --- Turns -------------------------------------------------------------------------------

    async def turn(
        self,
        agent_id: AgentId,
        text: str,
        *,
        conversation: ConversationId | None,
        key: str,
        on_delta: OnDelta | None = None,
    ) -> Turn:
        """``on_delta`` may see words twice: the server repeats a model call that broke off."""
        scope = await self._scope(agent_id, conversation)
        if key in self._seen:
            return self._seen[key]
        with self._link.watch(scope) as events:
            if self._joined.get(scope) != self._link.connection_count:
                await self._join(scope, events)
            run = await self._send(scope, events, text, key, on_delta)
        if run.refused:
            raise NotFound("conversation", scope[1])
        return self._note(key, run.result())

    async def _send(
        self, scope: Scope, events: asyncio.Queue[Json], text: str, key: str,
        on_delta: OnDelta | None,
    ) -> Run:  # fmt: skip
        """The run that the server made of a message, when it has ended.

        From the moment that the server took it, whatever goes wrong on the way leaves open what
        became of it.

        Raises:
            Uncertain: the server may have it.
            Unavailable: the server did not take it.
        """
        taken = False
        try:
            for _ in range(2):
                self._tried[key] = self._tried.get(key, 0) + 1
                run = Run(message_id_of(key, self._tried[key]), on_delta)
                # What it says is waiting it has on disk, and runs.
                run.begun = run.waiting = await self._submit(scope, text, run.id, key) == "queued"
                taken = True
                if await self._follow(scope, events, run, key):
                    return run
                # Taken once before, and it failed without leaving a trace in the history.
        except (Unavailable, Rejected, NotFound, ConfigError) as error:
            if not taken:
                raise
            raise Uncertain("letta", key, f"it has the message, but then: {error}") from error
        raise Uncertain("letta", key, "it took the message and shows nothing for it")

    async def find_turn(
        self, agent_id: AgentId, *, conversation: ConversationId | None, key: str, text: str,
        begun_ms: int = 0,
    ) -> Turn | None:  # fmt: skip
        scope = await self._scope(agent_id, conversation)
        with self._link.watch(scope) as events:
            if key in self._seen:
                return self._seen[key]
            earlier = await self._earlier(scope, events, key)
            self._tried[key] = max(earlier.count, self._tried.get(key, 0))
            return earlier.turn

    async def _scope(self, agent_id: AgentId, conversation: ConversationId | None) -> Scope:
        """The conversation itself, or the one that we keep as the agent's main thread.

        The server's own ``default`` will not do: it counts the running turns of all agents'
        ``default`` conversations as one, and fails every turn but the first (0.34.12).
        """
        if conversation is not None:
            return (agent_id, conversation)
        async with self._threads_lock:
            if agent_id not in self._threads:
                query = {"agent_id": agent_id, "limit": _PAGE}
                listed = await self._link.request("conversation_list", query=query)
                kept = [c["id"] for c in listed["conversations"] if c.get("summary") == _THREAD]
                # The oldest, should two processes ever have made one each.
                thread = kept[-1] if kept else await self.open_conversation(agent_id, _THREAD)
                self._threads[agent_id] = str(thread)
        return (agent_id, self._threads[agent_id])

    def _note(self, key: str, turn: Turn) -> Turn:
        self._seen[key] = turn
        for known in (self._seen, self._tried):
            while len(known) > _SEEN_TURNS:
                del known[next(iter(known))]
        return turn

    async def cancel(self, agent_id: AgentId, conversation: ConversationId | None) -> bool:
        runtime = _runtime(await self._scope(agent_id, conversation))
        answer = await self._link.request("abort_message", runtime=runtime)
        return answer.get("aborted") is True

    async def _earlier(self, scope: Scope, events: asyncio.Queue[Json], key: str) -> Earlier:
        """What became of ``key`` so far, after waiting for it if it is under way."""
        state = await self._join(scope, events)
        earlier = await self._search(scope, key)
        queued = [name for name in state.queued if attempt_of(name, key)]
        if queued or (earlier.newest and state.busy):
            message_id = queued[-1] if queued else message_id_of(key, earlier.count)
            run = Run(message_id, None, state.runs)
            run.begun = True
            await self._follow(scope, events, run, key)
            earlier = await self._search(scope, key)
            if run.failed:
                return Earlier(earlier.count)
            # What it said before we joined is in the history only.
            return Earlier(earlier.count, self._note(key, Turn(earlier.text, run.ended)))
        return earlier

    async def _join(
        self, scope: Scope, events: asyncio.Queue[Json], run: Run | None = None
    ) -> LoopState:
        """Subscribes to the conversation; the server replays the state it is in before it
        answers, and ``run`` sees that too.

        Raises:
            Unavailable: that state cannot be read.
        """
        async with self._pace:
            await self._link.request(
                "runtime_start",
                agent_id=scope[0],
                conversation_id=scope[1],
                mode="strict",
                skill_sources=[],
                wait_for_replay=True,
                force_device_status=False,
            )
        self._joined[scope] = self._link.connection_count
        state = LoopState()
        while not events.empty():
            event = _read(events.get_nowait())
            state.see(event)
            if run is not None:
                run.see(event)
            await self._refuse(scope, event)
        return state

    async def _search(self, scope: Scope, key: str) -> Earlier:
        """Looks for ``key`` in the history, newest message first."""
        answers: list[str] = []
        before: str | None = None
        newest = True
        for _ in range(_HISTORY_MESSAGES // _HISTORY_PAGE):
            query = {"agent_id": scope[0], "limit": _HISTORY_PAGE, "order": "desc"}
            page = await self._link.request(
                "conversation_messages_list",
                conversation_id=scope[1],
                query={**query, **({"before": before} if before else {})},
            )
            for message in page["messages"]:
                kind = message.get("message_type")
                if kind == "assistant_message":
                    answers.append(text_of(message.get("content")))
                elif kind == "user_message":
                    count = attempt_of(str(message.get("otid") or ""), key)
                    if count:
                        return Earlier(count, None, joined(reversed(answers)), newest)
                    answers, newest = [], False
            before = page.get("next_before")
            if not page.get("has_more") or not before:
                break
        return Earlier(0)

    async def _submit(self, scope: Scope, text: str, message_id: str, key: str) -> str:
        """What the server says it does with the message: ``started`` (now, or some time before if
        it knew its id) or ``queued``.

        Raises:
            Unavailable: it does not take it now (its queue is full, its disk slow).
        """
        message = {"role": "user", "content": text, "client_message_id": message_id}
        payload = {
            "kind": "create_message",
            "messages": [message],
            "client_tool_allowlist": [],
            "exclude_interactive_tools": True,
        }
        async with self._pace:
            answer = await self._link.request(
                "input",
                key=key,
                runtime=_runtime(scope),
                payload=payload,
            )
        return str(answer.get("disposition") or "")

    async def _follow(self, scope: Scope, events: asyncio.Queue[Json], run: Run, key: str) -> bool:
        """Waits for the end of a run, refusing whatever it asks approval for. False if the server
        swallowed the message, because it knew its id.

        Raises:
            Uncertain: the connection was lost, or the agent fell silent.
            Unavailable: an event of the conversation cannot be read, so nobody knows what it said.
        """
        loop = asyncio.get_running_loop()
        heard_s = loop.time()
        while not run.ended:
            patience_s = self._silence_s if run.begun else _FIRST_SIGN_S
            if run.aborted:
                patience_s = min(patience_s, _WIND_DOWN_S)
            try:
                async with asyncio.timeout_at(heard_s + patience_s):
                    raw = await events.get()
            except TimeoutError:
                if run.aborted:
                    run.ended = "cancelled"
                    return True
                if run.begun:
                    reason = f"the agent was silent for {self._silence_s:.0f} s"
                    raise Uncertain("letta", key, reason) from None
                state = await self._join(scope, events, run)
                if not (state.busy or run.begun or run.ended):
                    return False
                run.begun = True
                continue
            if raw["type"] == LOST:
                raise Uncertain("letta", key, "the connection was lost")
            event = _read(raw)
            if raw["type"] in _LIFE:
                heard_s = loop.time()
            await self._refuse(scope, event)
            run.see(event)
        return True

    async def _refuse(self, scope: Scope, event: Event | None) -> None:
        if isinstance(event, Approval):
            decision = {"behavior": "deny", "message": _DENIAL}
            payload = {
                "kind": "approval_response",
                "request_id": event.request_id,
                "decision": decision,
            }
            await self._link.send("input", runtime=_runtime(scope), payload=payload)

    # --- Memory ------------------------------------------------------------------------------

    async def list_blocks(self, agent_id: AgentId) -> list[Block]:
        return await app_memory.list_blocks(self._link, agent_id)

    async def write_block(self, agent_id: AgentId, label: str, value: str) -> Block:
        return await app_memory.write_block(self._link, agent_id, label, value)

    async def search_passages(self, agent_id: AgentId, query: str, limit: int) -> Recall:
        """Always empty: all that an agent remembers here are its memory files."""
        await self.get_agent(agent_id)
        return Recall("text")

    async def list_history(self, agent_id: AgentId, limit: int) -> list[Exchange]:
        return await app_reading.list_history(self._link, agent_id, limit)


def _read(raw: Json) -> Event | None:
    """``read_event``, with a word in the log about what could not be read: its kind, not itself."""
    try:
        return read_event(raw)
    except Unavailable:
        log.warning("letta_event_unreadable", extra={"event": raw["type"]})
        raise


def _runtime(scope: Scope) -> Json:
    return {"agent_id": scope[0], "conversation_id": scope[1]}
