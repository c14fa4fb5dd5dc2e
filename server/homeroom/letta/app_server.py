"""Letta's App Server (WebSocket) behind the ``Letta`` protocol.

Owns what an agent, a turn and a memory file are on this back end; ``link`` owns the connection and
``memfs`` the files. Invariant: no turn offers its model a tool, and every approval is refused.

What Letta Code 0.34.12 does with a ``client_message_id`` (measured, kill -9 included):

* it takes each id once, whatever became of it: sent again after the turn ended, failed or was
  cancelled, or while it runs, it is accepted and nothing happens. Remembered on disk for an hour;
* the user message carries it as ``otid`` in the conversation's history, for good;
* a server that was killed runs the message again by itself, as soon as somebody opens the
  conversation, and the history then has the user message twice;
* a turn whose last subscriber goes away is cut off. What it had said so far stays in the history
  as if it were whole, and the conversation takes no turn any more ("already has an active run").
  A fork of it does.

So an answer counts if we saw its turn end, and not because the history has a text. A key that was
sent and has no such answer is sent again with a new id (``key``, ``key#2``, ...), if need be in a
fork: the agent may then have been asked twice, but nobody is answered twice or with half a text.
"""

from __future__ import annotations

import asyncio
import difflib
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

from homeroom.config import Config
from homeroom.errors import LimitExceeded, NotFound, Rejected, Unavailable, Uncertain
from homeroom.letta import OnDelta, memfs
from homeroom.letta.link import LOST, Link, Scope
from homeroom.letta.run import (
    Earlier,
    LoopState,
    Run,
    attempt_of,
    consumer_id,
    joined,
    message_id_of,
    text_of,
)
from homeroom.letta.wire import agent_of
from homeroom.model import (
    Agent,
    AgentId,
    Block,
    Capabilities,
    ConversationId,
    Json,
    Turn,
)

_PAGE = 500
_THREAD = "Homeroom: main thread"
"""Title of the conversation that stands for "no conversation in particular"."""
_HISTORY_PAGE = 50
_HISTORY_MESSAGES = 1000
"""How far back a key is looked for; a lane has one message under way, so it is among the last."""
_SEEN_TURNS = 200
_FIRST_SIGN_S = 3.0
"""An input that starts a turn shows within milliseconds; one that is swallowed never does."""
_WIND_DOWN_S = 5.0
"""How long a cancelled turn may take to end before it counts as ended."""
_DENIAL = "Refused: tools that need approval cannot be used from a chat room. Answer without them."
_LIFE = ("stream_delta", "update_loop_status", "control_request", "abort_message_response")
"""Events that show that the agent is alive; device status is the server's small talk."""
_TOO_LONG = re.compile(r"(\d+) characters exceeds (\d+)")


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
        self._capabilities = Capabilities(
            backend="app-server",
            version=version,
            conversations=True,
            memory=True,
            cancel=True,
            finds_turns=True,
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
        found: dict[str, Agent] = {}
        after: str | None = None
        while True:
            query = {"limit": _PAGE, **({"after": after} if after else {})}
            page = (await self._link.request("agent_list", query=query))["agents"]
            fresh = [agent for agent in map(agent_of, page) if agent.id not in found]
            found.update((agent.id, agent) for agent in fresh)
            if len(page) < _PAGE:
                return list(found.values())
            if not fresh:
                raise Unavailable("letta", "the list of agents changed while it was read", 1.0)
            after = page[-1]["id"]

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

    async def rename_agent(self, agent_id: AgentId, name: str) -> Agent:
        body = {"name": name}
        answer = await self._link.request("agent_update", key=name, agent_id=agent_id, body=body)
        return agent_of(answer["agent"])

    async def delete_agent(self, agent_id: AgentId) -> None:
        await self._link.request("agent_delete", key=agent_id, agent_id=agent_id)

    async def open_conversation(
        self, agent_id: AgentId, title: str, like: ConversationId | None = None
    ) -> ConversationId | None:
        if like is not None:
            with suppress(NotFound, Rejected):
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
            for _ in range(2):
                self._tried[key] = self._tried.get(key, 0) + 1
                run = Run(message_id_of(key, self._tried[key]), on_delta)
                await self._submit(scope, text, run.id, key)
                if await self._follow(scope, events, run, key):
                    if run.refused:
                        raise NotFound("conversation", scope[1])
                    return self._note(key, run.result())
                # Taken once before, and it failed without leaving a trace in the history.
        raise Uncertain("letta", key, "it took the message and shows nothing for it")

    async def find_turn(
        self, agent_id: AgentId, *, conversation: ConversationId | None, key: str, text: str
    ) -> Turn | None:
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
        answers, and ``run`` sees that too."""
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
            event = events.get_nowait()
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

    async def _submit(self, scope: Scope, text: str, message_id: str, key: str) -> None:
        message = {"role": "user", "content": text, "client_message_id": message_id}
        payload = {
            "kind": "create_message",
            "messages": [message],
            "client_tool_allowlist": [],
            "exclude_interactive_tools": True,
        }
        await self._link.request(
            "input",
            key=key,
            runtime=_runtime(scope),
            terminal_consumer_id=consumer_id(message_id),
            payload=payload,
        )

    async def _follow(self, scope: Scope, events: asyncio.Queue[Json], run: Run, key: str) -> bool:
        """Waits for the end of a run, refusing whatever it asks approval for. False if the server
        swallowed the message, because it knew its id."""
        loop = asyncio.get_running_loop()
        heard_s = loop.time()
        while not run.ended:
            patience_s = self._silence_s if run.begun else _FIRST_SIGN_S
            if run.aborted:
                patience_s = min(patience_s, _WIND_DOWN_S)
            try:
                async with asyncio.timeout_at(heard_s + patience_s):
                    event = await events.get()
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
            if event["type"] == LOST:
                raise Uncertain("letta", key, "the connection was lost")
            if event["type"] in _LIFE:
                heard_s = loop.time()
            await self._refuse(scope, event)
            run.see(event)
        return True

    async def _refuse(self, scope: Scope, event: Json) -> None:
        if event["type"] == "control_request":
            decision = {"behavior": "deny", "message": _DENIAL}
            request_id = event["request_id"]
            payload = {
                "kind": "approval_response",
                "request_id": request_id,
                "decision": decision,
            }
            await self._link.send("input", runtime=_runtime(scope), payload=payload)

    # --- Memory ------------------------------------------------------------------------------

    async def list_blocks(self, agent_id: AgentId) -> list[Block]:
        await self.get_agent(agent_id)  # the server knows an empty memory for any id
        limit = await self._file_characters(agent_id)
        blocks = []
        for label in await self._labels(agent_id):
            text = await self._read(agent_id, memfs.path_of(label))
            if text is not None:
                block = memfs.parse(label, text, limit).block
                if not memfs.is_bare_index(label, block.value):
                    blocks.append(block)
        return blocks

    async def write_block(self, agent_id: AgentId, label: str, value: str) -> Block:
        await self.get_agent(agent_id)  # the server would create a memory for any id
        path = memfs.path_of(label)
        before = await self._read(agent_id, path)
        if before is None:
            labels = await self._labels(agent_id)
            near = difflib.get_close_matches(label, labels, len(labels) or 1, 0.0)
            raise NotFound("memory block", label, near)
        limit = await self._file_characters(agent_id)
        file = memfs.parse(label, before, limit)
        if file.block.limit and len(value) > file.block.limit:
            raise LimitExceeded(
                f"Memory block {label!r}", file.block.limit, len(value), "characters"
            )
        try:
            await self._write(agent_id, path, file.with_value(value))
        except Rejected as refusal:
            # A refused commit leaves the new text in the working tree and staged.
            with suppress(Rejected):
                await self._write(agent_id, path, before)
            too_long = _TOO_LONG.search(refusal.reason)
            if too_long:
                what = f"The memory of this agent, with block {label!r},"
                raise LimitExceeded(
                    what, int(too_long[2]), int(too_long[1]), "characters"
                ) from None
            raise
        await self._recompile(agent_id)
        after = await self._read(agent_id, path)
        return memfs.parse(label, after or "", limit).block

    async def _recompile(self, agent_id: AgentId) -> None:
        """Has every conversation of the agent know its memory as it is now.

        By itself a running conversation is told of a change in its next turn and forgets it in the
        one after that (0.34.12).
        """
        query = {"agent_id": agent_id, "limit": _PAGE}
        listed = await self._link.request("conversation_list", query=query)
        for conversation in listed["conversations"]:
            await self._link.request(
                "conversation_recompile", agent_id=agent_id, conversation_id=conversation["id"]
            )

    async def _labels(self, agent_id: AgentId) -> list[str]:
        listed = await self._link.request("list_memory", agent_id=agent_id)
        paths = (str(entry["relative_path"]) for entry in listed["entries"])
        return [label for label in map(memfs.label_of, paths) if label is not None]

    async def _read(self, agent_id: AgentId, path: str) -> str | None:
        try:
            answer = await self._link.request("read_memory_file", agent_id=agent_id, path=path)
        except Rejected as refusal:
            # A path out of the memory, or one whose folder is a file, is no block either.
            if re.search("ENOENT|ENOTDIR|EISDIR|inside the memory root", refusal.reason):
                return None
            raise Rejected("letta", f"the memory file {path} cannot be read") from None
        content: str | None = answer.get("content")
        return content

    async def _write(self, agent_id: AgentId, path: str, text: str) -> None:
        message = f"Update {path} from Homeroom"
        await self._link.request(
            "write_memory_file",
            key=path,
            agent_id=agent_id,
            path=path,
            content=text,
            commit_message=message,
        )

    async def _file_characters(self, agent_id: AgentId) -> int:
        return memfs.file_characters(await self._read(agent_id, memfs.POLICY_PATH))


def _runtime(scope: Scope) -> Json:
    return {"agent_id": scope[0], "conversation_id": scope[1]}
