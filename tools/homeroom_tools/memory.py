"""The tools about an agent's memory: ``get_agent_memory`` and ``update_agent_memory``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from mcp.server.mcpserver.tools import Tool
from pydantic import Field

from homeroom_tools import views
from homeroom_tools.toolkit import make_tool

if TYPE_CHECKING:
    from homeroom.app import App

AgentRef = Annotated[str, Field(min_length=1, description="The agent's id or its exact name.")]
AnyLabel = Annotated[str, Field(description="Label of the one block to read; empty: all blocks.")]
Label = Annotated[str, Field(min_length=1, description="Label of the block to change.")]
Value = Annotated[
    str, Field(description="The new text: of the whole block, or of the part replace_text names.")
]
ReplaceText = Annotated[
    str,
    Field(
        description="Replace only this text, which must occur exactly once in the block; "
        "empty: the whole block."
    ),
]
ExpectedRevision = Annotated[
    str,
    Field(
        description="revision of the block as you read it; if it has changed since, nothing is "
        "written. Empty: not checked."
    ),
]
Force = Annotated[bool, Field(description="Write even if the block is read-only.")]


def memory_tools(app: App) -> list[Tool]:
    """The tools of this module, bound to ``app``."""

    async def get_agent_memory(agent: AgentRef, label: AnyLabel = "") -> views.AgentMemory:
        """Reads an agent's memory blocks: what it knows about itself, its people and its work, as
        it stands in every one of its prompts. Give a label to get one block only, which also helps
        if a value came back truncated.
        """
        found, blocks = await app.get_memory(agent, label)
        return views.agent_memory(found, blocks)

    async def update_agent_memory(
        agent: AgentRef,
        label: Label,
        value: Value,
        replace_text: ReplaceText = "",
        expected_revision: ExpectedRevision = "",
        force: Force = False,
    ) -> views.UpdatedMemory:
        """Changes one memory block of an agent, from its next turn on. Read the block first and
        hand its revision back as expected_revision, so that nobody's change is lost; prefer
        replace_text to rewriting a long block. A text over the block's limit, or a read-only block
        without force, is refused and nothing is written. Returns the block as it is now.
        """
        found, block = await app.update_memory(
            agent,
            label,
            value,
            replace_text=replace_text,
            expected_revision=expected_revision,
            force=force,
        )
        return views.updated_memory(found, block)

    return [
        make_tool(
            get_agent_memory,
            title="Read an agent's memory",
            read_only=True,
            destructive=False,
            idempotent=True,
            open_world=False,
        ),
        make_tool(
            update_agent_memory,
            title="Change an agent's memory",
            read_only=False,
            destructive=True,
            idempotent=False,  # a second replace_text finds the new text, or nothing
            open_world=False,
        ),
    ]
