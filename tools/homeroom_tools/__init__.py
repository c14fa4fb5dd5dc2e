"""The tools that Homeroom hands to any LLM client over MCP, and the server that serves them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from homeroom_tools.selection import TOOL_NAMES, Selection

if TYPE_CHECKING:
    from mcp.server.mcpserver.tools import Tool

    from homeroom.app import App


def register(app: App, selection: Selection | None = None) -> list[Tool]:
    """The selected tools (all of them if none are), once each, in the order a model sees them."""
    # Not before: a command that shows a text with care has no use for the whole of MCP.
    from homeroom_tools.agents import agent_tools
    from homeroom_tools.chat import chat_tools
    from homeroom_tools.deliveries import delivery_tools
    from homeroom_tools.memory import memory_tools
    from homeroom_tools.rooms import room_tools
    from homeroom_tools.rooms_admin import diagnosis_tools

    selection = selection or Selection()
    made = [
        *agent_tools(app), *chat_tools(app), *room_tools(app), *memory_tools(app),
        *delivery_tools(app), *diagnosis_tools(app),
    ]  # fmt: skip
    tools = {tool.name: tool for tool in made}
    if unknown := set(tools) ^ set(TOOL_NAMES):
        raise TypeError(f"selection.TOOLSETS and the tools disagree about {sorted(unknown)}")
    return [
        tools[name]
        for name in TOOL_NAMES
        if selection.has(name, writes=not _only_reads(tools[name]))
    ]


def _only_reads(tool: Tool) -> bool:
    return tool.annotations is not None and tool.annotations.read_only_hint is True
