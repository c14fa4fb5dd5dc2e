"""The tools that talk with agents: ``chat_with_agent`` and ``get_reply``.

Owns the bounded wait: clients give up on a call after 60 s, an agent may take minutes, so an answer
that is not there in time becomes a reply id. Invariant: a cancelled call stops waiting and nothing
else; the message is on its lane before the wait begins.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Literal

import anyio
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.tools import Tool
from pydantic import Field

from homeroom.background import background
from homeroom.items import Priority, ReplyView
from homeroom_tools import views
from homeroom_tools.agents import AgentRef
from homeroom_tools.caller import current_caller, current_principal
from homeroom_tools.text import NAME_CHARS, clean_line
from homeroom_tools.toolkit import make_reader, make_tool

if TYPE_CHECKING:
    from homeroom.app import App

HEARTBEAT_S = 5.0
"""Longest silence towards a waiting client, in seconds; some count 10 s of it as a lost call."""
FIND_S = 10.0
"""How long an agent that only Letta can know is looked for at least, in seconds, however short the
wait for its answer."""
DELTA_INTERVAL_S = 0.5
"""Least time between two progress notifications with pieces of the answer, in seconds."""
DELTA_CHARS = 200
"""Longest piece of the answer in one progress notification, in characters."""
AGENT_SAYS = "the agent says: "
"""Begins a progress message that is not ours."""
UNNAMED_CLIENT = "an MCP client"

Message = Annotated[str, Field(min_length=1, description="Passed on as is.")]
Wait = Annotated[
    float,
    Field(ge=0, le=50, allow_inf_nan=False, description="Seconds to wait."),
]
Mirror = Annotated[bool, Field(description="Show it in the agent's room.")]
IdempotencyKey = Annotated[
    str,
    Field(max_length=200, description="Same key: same message."),
]
PriorityName = Annotated[
    Literal["low", "normal", "high", "urgent"], Field(description="Among waiting ones.")
]
ExpiresAfter = Annotated[
    float, Field(allow_inf_nan=False, description="Not sent if it waits longer. 0: it may.")
]
Offset = Annotated[int, Field(ge=0, description="Characters to skip.")]
ReplyId = Annotated[str, Field(min_length=1, description="From chat_with_agent.")]


class Waiting:
    """The progress of one wait: strictly increasing, never silent for long, never a flood."""

    def __init__(self, ctx: Context[Any, Any], clock: Callable[[], float] = monotonic) -> None:
        self._ctx, self._clock = ctx, clock
        self._count = 0
        self._unsent = ""
        self._last_sent = clock()

    async def on_delta(self, piece: str) -> None:
        """Takes the next piece of the answer; what has gathered is sent twice a second at most."""
        self._unsent = (self._unsent + piece)[-10 * DELTA_CHARS :]
        if self._clock() - self._last_sent >= DELTA_INTERVAL_S:
            await self._send(_quoted(self._unsent))

    async def heartbeat(self, view: ReplyView) -> None:
        """Says where the answer stands, unless pieces of it just said so."""
        if self._unsent:
            await self._send(_quoted(self._unsent))
        elif view.place_in_lane:
            await self._send(f"waiting: {view.place_in_lane} earlier messages to the agent")
        else:
            await self._send("waiting: the agent is at work")

    @asynccontextmanager
    async def beating(self, text: str) -> AsyncIterator[None]:
        """Says ``text`` every few seconds while the body runs."""

        async def beat() -> None:
            while True:
                await anyio.sleep(HEARTBEAT_S)
                await self._send(text)

        async with background(beat):
            yield

    async def _send(self, text: str) -> None:
        self._count += 1
        self._unsent = ""
        self._last_sent = self._clock()
        await self._ctx.report_progress(self._count, message=text)


def _quoted(said: str) -> str:
    """The end of what the agent said, which is what is new, marked as the agent's words."""
    return AGENT_SAYS + clean_line(said[-DELTA_CHARS:], DELTA_CHARS)


def chat_tools(app: App) -> list[Tool]:
    """The tools of this module, bound to ``app``."""

    async def wait(
        progress: Waiting, reply_id: str, deadline: float, offset: int = 0
    ) -> views.Reply:
        caller = current_caller()
        while True:
            left_s = max(0.0, deadline - monotonic())
            view = await app.wait_reply(
                reply_id, min(left_s, HEARTBEAT_S), progress.on_delta, caller=caller
            )
            if view.status != "pending" or left_s <= HEARTBEAT_S:
                return views.reply(view, offset)
            await progress.heartbeat(view)

    async def chat_with_agent(
        ctx: Context[Any, Any],
        agent: AgentRef,
        message: Message,
        wait_s: Wait = 45,
        mirror: Mirror = True,
        idempotency_key: IdempotencyKey = "",
        priority: PriorityName = "normal",
        expires_after_s: ExpiresAfter = 0,
    ) -> views.Reply:
        """Sends a message (at most 100000 characters) to a Letta agent and returns its answer. It
        remembers: say only what is new. After wait_s status is pending: call get_reply, never
        resend. The same text within 10 s is one message.
        """
        progress, deadline = Waiting(ctx), monotonic() + wait_s
        async with progress.beating("looking for the agent"):
            reply_id = await app.chat(
                agent, message, client=_client_of(ctx), mirror=mirror, caller=current_caller(),
                from_agent=current_principal().agent, idempotency_key=idempotency_key,
                priority=Priority[priority.upper()], expires_after_s=expires_after_s,
                find_s=max(wait_s, FIND_S),
            )  # fmt: skip
        return await wait(progress, reply_id, deadline)

    async def get_reply(
        ctx: Context[Any, Any], reply_id: ReplyId, wait_s: Wait = 45, offset: Offset = 0
    ) -> views.Reply:
        """Returns the answer to a pending chat_with_agent, or with offset the rest of a long one.
        Repeat as needed, also after a restart.
        """
        return await wait(Waiting(ctx), reply_id, monotonic() + wait_s, offset)

    return [
        make_tool(
            chat_with_agent,
            title="Chat",
            read_only=False,
            destructive=False,
            idempotent=False,
            open_world=True,  # the agent has tools of its own
        ),
        make_reader(get_reply, title="Get a reply"),
    ]


def _client_of(ctx: Context[Any, Any]) -> str:
    """The name the client gave itself, as a label for people; it proves nothing."""
    params = ctx.session.client_params
    if params is None:
        return UNNAMED_CLIENT
    info = params.client_info
    return clean_line(info.title or info.name, NAME_CHARS) or UNNAMED_CLIENT
