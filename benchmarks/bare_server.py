"""The least that the SDK can serve over stdio: what every Python MCP server pays."""

from __future__ import annotations

from mcp.server import MCPServer

server = MCPServer("bare")


@server.tool()
def nothing() -> str:
    """Does nothing."""
    return ""


if __name__ == "__main__":
    server.run("stdio")
