"""The tools about an agent's memory: read, change, take back, search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from mcp.server.mcpserver.tools import Tool
from pydantic import Field

from homeroom.reading import Edit
from homeroom_tools import memory_views as views
from homeroom_tools.agents import AgentRef, Cursor, Limit
from homeroom_tools.caller import current_caller
from homeroom_tools.long_rows import Place
from homeroom_tools.toolkit import make_reader, make_tool

if TYPE_CHECKING:
    from homeroom.app import App

AnyLabel = Annotated[str, Field(description="Only this block.")]
History = Annotated[bool, Field(description="Also 20 versions changed here.")]
Rest = Annotated[str, Field(description="From rest.")]
Label = Annotated[str, Field(min_length=1, description="Of the block.")]
Value = Annotated[str, Field(description="New text.")]
Mode = Annotated[
    Literal["replace", "replace_text", "append"],
    Field(description="replace: the whole block."),
]
OldText = Annotated[str, Field(description="For replace_text; occurs once.")]
ExpectedRevision = Annotated[str, Field(description="revision you read.")]
UndoOf = Annotated[
    str,
    Field(description="revision whose change to take back; no value."),
]
Force = Annotated[bool, Field(description="Even if read-only.")]
Query = Annotated[str, Field(min_length=1, description="Words.")]


def memory_tools(app: App) -> list[Tool]:
    """The tools of this module, bound to ``app``."""

    async def get_agent_memory(
        agent: AgentRef, label: AnyLabel = "", history: History = False, cursor: Rest = ""
    ) -> views.AgentMemory:
        """Reads an agent's memory blocks, which are in all its prompts. Use it before a change."""
        place = Place.of(cursor)
        history = history or place.cursor == views.IN_HISTORY
        view = await app.get_memory(agent, label, history=history)
        return views.agent_memory(view, label, place, history=history)

    async def update_agent_memory(
        agent: AgentRef,
        label: Label,
        value: Value = "",
        mode: Mode = "replace",
        old_text: OldText = "",
        expected_revision: ExpectedRevision = "",
        undo_of: UndoOf = "",
        force: Force = False,
    ) -> views.UpdatedMemory:
        """Changes a memory block from the agent's next turn on. Read it first and pass its
        revision: if it changed since, or its limit is exceeded, nothing is written. Prefer
        replace_text or append (a new line). 20 versions are kept for undo_of.
        """
        edit = Edit(
            value=value,
            mode=mode,
            old_text=old_text,
            expected_revision=expected_revision,
            force=force,
            undo_of=undo_of,
        )
        change = await app.update_memory(agent, label, edit, caller=current_caller())
        return views.updated_memory(change)

    async def search_agent_memory(
        agent: AgentRef, query: Query, limit: Limit = 10, cursor: Cursor = ""
    ) -> views.Hits:
        """Searches an agent's blocks by text, then at most 100 archival passages. Use it for what
        is too long to read.
        """
        place = Place.of(cursor)
        found = await app.search_memory(agent, query, place.count(limit), place.cursor)
        return views.memory_hits(found, limit, place)

    return [
        make_reader(get_agent_memory, title="Read memory"),
        make_tool(
            update_agent_memory,
            title="Change memory",
            read_only=False,
            destructive=True,
            idempotent=False,  # a second append appends twice
            open_world=False,
        ),
        make_reader(search_agent_memory, title="Search memory"),
    ]
