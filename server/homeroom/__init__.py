"""Homeroom: a home in Matrix for every Letta agent, and all of them in any LLM client over MCP."""

__version__ = "0.1.0"
