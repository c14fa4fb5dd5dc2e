"""The tools that Homeroom hands to any LLM client over MCP, and the server that serves them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from homeroom_tools.agents import agent_tools
from homeroom_tools.chat import chat_tools
from homeroom_tools.deliveries import delivery_tools
from homeroom_tools.memory import memory_tools

if TYPE_CHECKING:
    from mcp.server.mcpserver.tools import Tool

    from homeroom.app import App


def register(app: App) -> list[Tool]:
    """Every tool once, in the order a model sees them: find, talk, remember, keep house."""
    list_agents, *keep_house = agent_tools(app)
    return [
        list_agents, *chat_tools(app), *memory_tools(app), *keep_house, *delivery_tools(app)
    ]  # fmt: skip
