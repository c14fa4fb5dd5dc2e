"""The tools about agents and their homes: list, show, sync, and how the last sync ended."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.tools import Tool
from pydantic import Field

from homeroom.errors import HomeroomError, is_handle
from homeroom_tools import views
from homeroom_tools.toolkit import make_reader, make_tool

if TYPE_CHECKING:
    from homeroom.app import App
    from homeroom.model import SyncProgress

HAIR = 0.01
"""MCP demands that the number grows with every notification, also when nothing was done since."""

AgentRef = Annotated[str, Field(min_length=1, description="Id or exact name.")]
OptionalAgent = Annotated[str, Field(description="Only of this one.")]
Detail = Annotated[Literal["concise", "full"], Field(description="full: more.")]
Query = Annotated[str, Field(description="In name, description, tags or id.")]
Limit = Annotated[int, Field(ge=1, le=100, description="Page size.")]
Cursor = Annotated[str, Field(description="From next_cursor.")]
ConfirmRemovals = Annotated[
    bool,
    Field(description="Retire many: only if a person says so."),
]
Audit = Annotated[bool, Field(description="Look at the rooms first.")]
Invite = Annotated[str, Field(description="Invite this Matrix id again.")]
DryRun = Annotated[bool, Field(description="Only show the plan.")]


class SyncWaiting:
    """The progress of one wait for a sync: actions of actions, strictly increasing."""

    def __init__(self, ctx: Context[Any, Any]) -> None:
        self._ctx, self._value = ctx, 0.0

    async def on_progress(self, progress: SyncProgress | None) -> None:
        """Says how far the sync has got; what did not get further moves on a hair's breadth."""
        if progress is None:
            self._value += HAIR
            await self._ctx.report_progress(self._value, message="waiting for the sync to begin")
            return
        self._value = max(self._value + HAIR, float(progress.done))
        total = max(progress.total, math.ceil(self._value))
        text = f"{progress.done} of {progress.total} actions"
        if is_handle(progress.agent_name):  # a name that could be a sentence would speak for us
            text += f", last: {progress.agent_name}"
        await self._ctx.report_progress(self._value, total, text)


def agent_tools(app: App) -> list[Tool]:
    """The tools of this module, bound to ``app``."""

    async def list_agents(
        query: Query = "", detail: Detail = "concise", limit: Limit = 50, cursor: Cursor = ""
    ) -> views.AgentList:
        """Lists Letta agents by name. Use it first, to find whom a task needs. full adds tags and
        problem.
        """
        page = await app.list_agents(query, limit, cursor)
        return views.agent_list(page, full=detail == "full")

    async def get_agent(agent: AgentRef, detail: Detail = "concise") -> views.AgentDetail:
        """Shows one agent: purpose, Matrix home. full adds tags, block labels and problem."""
        view = await app.get_agent(agent)
        if detail == "concise":
            return views.agent_detail(view, full=False)
        try:
            memory = await app.get_memory(view.agent.id)
        except HomeroomError:
            return views.agent_detail(view, full=True)  # of no use here, but no reason to fail
        return views.agent_detail(view, full=True, blocks=memory.blocks)

    async def sync_agents(
        ctx: Context[Any, Any], dry_run: DryRun = False,
        confirm_removals: ConfirmRemovals = False, audit: Audit = False, invite: Invite = "",
    ) -> views.SyncResult:  # fmt: skip
        """Brings Matrix into step with Letta: users, rooms, names, invitations. Runs by itself; use
        it when an agent is new or renamed. Deletes nothing, takes 45 s at most.
        """
        report = await app.sync(
            dry_run=dry_run, confirm_removals=confirm_removals, audit=audit,
            invite=invite.strip(), on_progress=SyncWaiting(ctx).on_progress,
        )  # fmt: skip
        return views.sync_result(report)

    async def get_sync_status() -> views.SyncState:
        """Tells how the last sync ended and which agents fail. Use it if an agent has no room or
        an old name.
        """
        return views.sync_state(await app.sync_status())

    return [
        make_reader(list_agents, title="List agents"),
        make_reader(get_agent, title="Show an agent"),
        make_tool(
            sync_agents,
            title="Sync agents",
            read_only=False,
            destructive=False,
            idempotent=True,
            open_world=True,  # people on other servers may be invited
        ),
        make_reader(get_sync_status, title="Sync status"),
    ]
