"""Which tools a process has: fixed when it starts, in one stable order.

Owns the toolsets and the names in them, without loading a tool, so that a wrong setting is refused
before anything is. Read-only wins over everything; then what is excluded; then the toolsets.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from homeroom.errors import ConfigError

TOOLSETS: Mapping[str, tuple[str, ...]] = {
    "agents": ("list_agents", "get_agent", "sync_agents", "get_sync_status"),
    "chat": ("chat_with_agent", "get_reply", "read_room", "list_rooms"),
    "memory": ("get_agent_memory", "update_agent_memory", "search_agent_memory"),
    "operate": ("explain_delivery", "diagnose_rooms", "list_parked", "replay_parked"),
}
"""Names of tools by toolset, in the order a model sees them."""
TOOL_NAMES = tuple(name for names in TOOLSETS.values() for name in names)


@dataclass(frozen=True, slots=True)
class Selection:
    """What is left of all tools. The default is all of them."""

    read_only: bool = False
    toolsets: frozenset[str] = frozenset(TOOLSETS)
    excluded: frozenset[str] = field(default_factory=frozenset)

    def has(self, name: str, *, writes: bool) -> bool:
        """Whether the tool is among them; ``writes``: it may change something."""
        if self.read_only and writes:
            return False
        return name not in self.excluded and any(name in TOOLSETS[s] for s in self.toolsets)


def select(
    *, read_only: bool = False, toolsets: Iterable[str] = TOOLSETS, exclude: Iterable[str] = ()
) -> Selection:
    """The selection that settings ask for.

    Raises:
        ConfigError: a toolset or a tool that there is not, with the nearest that there is.
    """
    return Selection(
        read_only=read_only,
        toolsets=_known(toolsets, TOOLSETS, "HOMEROOM_TOOLSETS", "toolset"),
        excluded=_known(exclude, TOOL_NAMES, "HOMEROOM_EXCLUDE_TOOLS", "tool"),
    )


def _known(
    names: Iterable[str], known: Collection[str], variable: str, kind: str
) -> frozenset[str]:
    found = frozenset(names)
    for name in sorted(found - set(known)):
        (nearest,) = difflib.get_close_matches(name, known, 1, 0.0)
        problem = f"names {name!r}, which is no {kind}; perhaps {nearest} is meant"
        raise ConfigError(variable, problem, nearest)
    return found
