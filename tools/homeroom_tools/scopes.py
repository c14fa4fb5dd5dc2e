"""Which scope a call needs, and the guard that asks for it.

Owns the rule by which a tool has a scope: the one that it was registered with, else what its hints
and its name say. Invariant: every tool has one, or the server does not start; and the guard stands
where the SDK dispatches, so no transport and no spelling of a request gets around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mcp.shared.exceptions import MCPError

from homeroom_tools.caller import SCOPES, Caller, Scope, current_principal

if TYPE_CHECKING:
    from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
    from mcp.server.mcpserver.tools import Tool

INSUFFICIENT_SCOPE = -32003
"""JSON-RPC error code of a refusal; in the range that is the server's own."""
_BY_NAME: tuple[tuple[str, Scope], ...] = (
    ("chat_", "chat"),
    ("get_reply", "chat"),  # an answer is the other half of a chat
    ("update_", "memory"),
    ("sync_", "operate"),
    ("replay_", "operate"),
    ("diagnose_", "operate"),
)
"""What a tool's name begins with, and its scope."""
_READING = (
    "resources/read", "resources/subscribe", "subscriptions/listen",
    "completion/complete", "prompts/get",
)  # fmt: skip
"""Methods other than tools/call that show what agents and people wrote."""

Needs = Callable[[str, Mapping[str, Any]], Scope | None]
"""The scope that a request of this method with these params needs; None: any token will do."""


def scope_of(tool: Tool) -> Scope:
    """The scope that a call of ``tool`` needs.

    Raises:
        TypeError: nobody said, and neither its name nor its hints do.
    """
    given = getattr(tool, "scope", "")
    if given in SCOPES:
        return given
    if given:
        raise TypeError(f"{tool.name} has the unknown scope {given!r}")
    for beginning, scope in _BY_NAME:
        if tool.name.startswith(beginning):
            return scope
    if tool.annotations is not None and tool.annotations.read_only_hint:
        return "read"
    raise TypeError(f"{tool.name} changes something and has no scope: register it with one")


def needs_of(tools: Iterable[Tool]) -> Needs:
    """The rule for a server with these tools. Raises TypeError if one has no scope."""
    scopes = {tool.name: scope_of(tool) for tool in tools}

    def needs(method: str, params: Mapping[str, Any]) -> Scope | None:
        if method == "tools/call":
            name = params.get("name")
            return scopes.get(name) if isinstance(name, str) else None
        return "read" if method in _READING else None

    return needs


def refusal(caller: Caller, scope: Scope) -> str:
    """What is said to a caller whose token lacks ``scope``."""
    return (
        f"The token '{caller.name}' lacks the scope '{scope}', which this needs. Whoever runs"
        " Homeroom can make one that has it: homeroom token new NAME --scope ..."
    )


class ScopeGuard:
    """Middleware of the SDK: refuses what the caller's token does not cover."""

    def __init__(self, needs: Needs) -> None:
        self._needs = needs

    async def __call__(
        self, ctx: ServerRequestContext[Any, Any], call_next: CallNext
    ) -> HandlerResult:
        scope = self._needs(ctx.method, ctx.params or {})
        caller = current_principal()
        if scope is not None and scope not in caller.scopes:
            raise MCPError(INSUFFICIENT_SCOPE, refusal(caller, scope))
        return await call_next(ctx)
