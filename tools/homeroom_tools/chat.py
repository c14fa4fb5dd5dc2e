"""The tools that talk with agents: ``chat_with_agent`` and ``get_reply``.

Owns the bounded wait: clients give up on a call after 60 s, an agent may take minutes, so an answer
that is not there in time becomes a reply id. Invariant: a cancelled call stops waiting and nothing
else; the message is on its lane before the wait begins.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.tools import Tool
from pydantic import Field

from homeroom.model import ReplyView
from homeroom_tools import views
from homeroom_tools.text import NAME_CHARS, clean_line
from homeroom_tools.toolkit import make_tool

if TYPE_CHECKING:
    from homeroom.app import App

HEARTBEAT_S = 5.0
"""Longest silence towards a waiting client, in seconds; some count 10 s of it as a lost call."""
DELTA_INTERVAL_S = 0.5
"""Least time between two progress notifications with pieces of the answer, in seconds."""
DELTA_CHARS = 200
"""Longest piece of the answer in one progress notification, in characters."""
UNNAMED_CLIENT = "an MCP client"

AgentRef = Annotated[str, Field(min_length=1, description="The agent's id or its exact name.")]
Message = Annotated[
    str, Field(min_length=1, description="What to say to the agent; passed on as it is.")
]
Wait = Annotated[
    float,
    Field(ge=0, le=50, allow_inf_nan=False, description="Longest wait for the answer, in seconds."),
]
Mirror = Annotated[
    bool,
    Field(description="Show the message and the answer in the agent's Matrix room, as a notice."),
]
ReplyId = Annotated[
    str, Field(min_length=1, description="reply_id that chat_with_agent gave back.")
]


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
            await self._send(self._unsent)

    async def heartbeat(self, view: ReplyView) -> None:
        """Says where the answer stands, unless pieces of it just said so."""
        if self._unsent:
            await self._send(self._unsent)
        elif view.place_in_lane:
            await self._send(f"waiting: {view.place_in_lane} earlier messages to the agent")
        else:
            await self._send("waiting: the agent is at work")

    async def _send(self, text: str) -> None:
        self._count += 1
        self._unsent = ""
        self._last_sent = self._clock()
        # The end of a long piece is what is new.
        await self._ctx.report_progress(
            self._count, message=clean_line(text[-DELTA_CHARS:], DELTA_CHARS)
        )


def chat_tools(app: App) -> list[Tool]:
    """The tools of this module, bound to ``app``."""

    async def wait(ctx: Context[Any, Any], reply_id: str, wait_s: float) -> views.Reply:
        progress = Waiting(ctx)
        deadline = monotonic() + wait_s
        while True:
            left_s = max(0.0, deadline - monotonic())
            view = await app.wait_reply(reply_id, min(left_s, HEARTBEAT_S), progress.on_delta)
            if view.status != "pending" or left_s <= HEARTBEAT_S:
                return views.reply(view)
            await progress.heartbeat(view)

    async def chat_with_agent(
        ctx: Context[Any, Any],
        agent: AgentRef,
        message: Message,
        wait_s: Wait = 45,
        mirror: Mirror = True,
    ) -> views.Reply:
        """Sends a message to a Letta agent and gives back its answer. The agent remembers earlier
        conversations, so say only what is new. An answer that takes longer than wait_s comes back
        as pending with a reply_id: the message has been delivered, so call get_reply and never
        send it again. Messages to one agent are answered one after the other.
        """
        reply_id = await app.chat(agent, message, client=_client_of(ctx), mirror=mirror)
        return await wait(ctx, reply_id, wait_s)

    async def get_reply(
        ctx: Context[Any, Any], reply_id: ReplyId, wait_s: Wait = 45
    ) -> views.Reply:
        """Gives back the answer to an earlier chat_with_agent that came back as pending, waiting
        up to wait_s for it. May be repeated as often as needed, also after a restart of the
        server.
        """
        return await wait(ctx, reply_id, wait_s)

    return [
        make_tool(
            chat_with_agent,
            title="Chat with an agent",
            read_only=False,
            destructive=False,
            idempotent=False,
            open_world=True,  # the agent has tools of its own
        ),
        make_tool(
            get_reply,
            title="Get an agent's reply",
            read_only=True,
            destructive=False,
            idempotent=True,
            open_world=False,
        ),
    ]


def _client_of(ctx: Context[Any, Any]) -> str:
    """The name the client gave itself, as a label for people; it proves nothing."""
    params = ctx.session.client_params
    if params is None:
        return UNNAMED_CLIENT
    info = params.client_info
    return clean_line(info.title or info.name, NAME_CHARS) or UNNAMED_CLIENT
