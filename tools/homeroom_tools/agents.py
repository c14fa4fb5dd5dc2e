"""The tools about agents and their homes: list, sync, and how the last sync ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from mcp.server.mcpserver.tools import Tool
from pydantic import Field

from homeroom_tools import views
from homeroom_tools.toolkit import make_tool

if TYPE_CHECKING:
    from homeroom.app import App

Query = Annotated[
    str, Field(description="Only agents with this text in name, description, tags or id.")
]
Limit = Annotated[int, Field(ge=1, le=100, description="Most agents on one page.")]
Cursor = Annotated[str, Field(description="next_cursor of the page before, with the same query.")]
ConfirmRemovals = Annotated[
    bool,
    Field(
        description="Retire agents however many are gone from Letta at once. Only when a person has"
        " said that they are meant to be gone."
    ),
]
DryRun = Annotated[bool, Field(description="Only say what would be done.")]


def agent_tools(app: App) -> list[Tool]:
    """The tools of this module, bound to ``app``."""

    async def list_agents(
        query: Query = "", limit: Limit = 50, cursor: Cursor = ""
    ) -> views.AgentList:
        """Lists the Letta agents with id, name, description and the Matrix room each one lives in.
        Use it first, to find the agent that a task needs: the other tools take its id or its name.
        """
        return views.agent_list(await app.list_agents(query, limit, cursor))

    async def sync_agents(
        dry_run: DryRun = False, confirm_removals: ConfirmRemovals = False
    ) -> views.SyncResult:
        """Brings Matrix into step with Letta now: every agent gets its own Matrix user and room,
        names and topics follow, the configured people are invited, and rooms of agents that are
        long gone from Letta are marked as retired. Safe to repeat; it also runs by itself, so use
        it when an agent has just been made or renamed. Never deletes anything.
        """
        report = await app.sync(dry_run=dry_run, confirm_removals=confirm_removals)
        return views.sync_result(report)

    async def get_sync_status() -> views.SyncState:
        """Says how the last sync of Letta to Matrix ended: when, what it did, which agents fail and
        why, and what is left. Asks neither Letta nor Matrix, so use it first when an agent has no
        room or an old name, or does not answer in Matrix.
        """
        return views.sync_state(await app.sync_status())

    return [
        make_tool(
            list_agents,
            title="List agents",
            read_only=True,
            destructive=False,
            idempotent=True,
            open_world=False,
        ),
        make_tool(
            sync_agents,
            title="Sync agents to Matrix",
            read_only=False,
            destructive=False,
            idempotent=True,
            open_world=True,  # people on other servers may be invited
        ),
        make_tool(
            get_sync_status,
            title="Get sync status",
            read_only=True,
            destructive=False,
            idempotent=True,
            open_world=False,
        ),
    ]
