"""The MCP server and the ways to reach it: stdio, Streamable HTTP and SSE.

Owns what the server says of itself. Building it does no I/O; configure logging first, because the
SDK configures the root logger where nobody has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mcp.server import MCPServer
from mcp.server.caching import CacheHint
from mcp.server.subscriptions import InMemorySubscriptionBus
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, GetPromptResult, InputRequiredResult, ServerCapabilities

from homeroom import __version__
from homeroom_tools import register
from homeroom_tools.completion import add_completion
from homeroom_tools.instructions import instructions_for
from homeroom_tools.prompts import add_prompts
from homeroom_tools.resources import add_resources, kinds_of
from homeroom_tools.scopes import ScopeGuard, needs_of
from homeroom_tools.selection import Selection, select
from homeroom_tools.stdio import run_stdio
from homeroom_tools.text import NAME_CHARS, clean_line
from homeroom_tools.tokens import Tokens
from homeroom_tools.toolkit import guard_crashes
from homeroom_tools.updates import add_updates
from homeroom_tools.web import Site, http_app, run_http

if TYPE_CHECKING:
    from mcp.server.mcpserver import Context

    from homeroom.app import App

__all__ = ["Site", "Tokens", "build_server", "http_app", "run_http", "run_stdio", "select"]

_LIST_TTL_MS = 3_600_000
"""How long a client may keep the tool list, in milliseconds; it never changes in one process."""


class HomeroomServer(MCPServer[Any]):
    """The SDK's server, with what it says of itself true in both eras of the protocol.

    The lists of tools, prompts and resources are fixed for a process, so nobody is promised word of
    a change, though the SDK would promise it to everybody once resources can be watched. And a
    prompt that is unknown, lacks an argument or has none of that name is the client's mistake and
    not a crash.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        low = self._lowlevel_server
        derived = low.get_capabilities

        def get_capabilities(*args: Any, **kwargs: Any) -> ServerCapabilities:
            found = derived(*args, **kwargs)
            for part in (found.tools, found.prompts, found.resources):
                if part is not None:
                    part.list_changed = False
            return found

        low.get_capabilities = get_capabilities  # type: ignore[method-assign]

    async def get_prompt(
        self,
        name: str,
        arguments: dict[str, Any] | None = None,
        context: Context[Any, Any] | None = None,
    ) -> GetPromptResult | InputRequiredResult:
        """The rendered prompt.

        Raises:
            MCPError: there is no such prompt, it needs an argument more, or it has none of a name
                that was given (-32602).
        """
        known = {prompt.name: prompt.arguments or [] for prompt in await self.list_prompts()}
        if name not in known:
            raise MCPError(INVALID_PARAMS, "Unknown prompt")
        given = arguments or {}
        missing = [one.name for one in known[name] if one.required and one.name not in given]
        if missing:
            raise MCPError(INVALID_PARAMS, f"Missing prompt arguments: {', '.join(missing)}")
        names = [one.name for one in known[name]]
        if unknown := [clean_line(one, NAME_CHARS) for one in given if one not in names]:
            told = (
                f"Unknown prompt arguments: {', '.join(unknown[:5])}. There are: {', '.join(names)}"
            )
            raise MCPError(INVALID_PARAMS, told)
        return await super().get_prompt(name, arguments, context)


def build_server(app: App, selection: Selection | None = None) -> MCPServer[Any]:
    """A server with the selected tools (all, if none are) bound to ``app``, and with the resources
    and prompts that go with them, ready for any number of transports at once."""
    tools = register(app, selection)
    names = {tool.name for tool in tools}
    kinds = kinds_of(names)
    bus = InMemorySubscriptionBus()
    server = HomeroomServer(
        "homeroom",
        title="Homeroom",
        description="Letta agents, at home in Matrix.",
        instructions=instructions_for(names),
        version=__version__,
        tools=tools,
        middleware=[guard_crashes, ScopeGuard(needs_of(tools))],
        cache_hints={"tools/list": CacheHint(ttl_ms=_LIST_TTL_MS, scope="public")},
        subscriptions=bus,
    )
    add_resources(server, app, kinds)
    add_prompts(server, names)
    add_completion(server, app, kinds)
    add_updates(server, app, bus, kinds)
    return server
