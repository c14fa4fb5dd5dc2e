"""The README's table of tools, written from the tools themselves.

``python -m homeroom_tools.table README.md`` rewrites what stands between the two markers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_type_hints

from homeroom_tools import register
from homeroom_tools.selection import TOOLSETS
from homeroom_tools.toolkit import defaults_of

if TYPE_CHECKING:
    from mcp.server.mcpserver.tools import Tool

    from homeroom.app import App

BEGIN = "<!-- tools:begin -->"
END = "<!-- tools:end -->"


def tool_table() -> str:
    """A markdown table: each tool's name, its toolset, its arguments with their defaults, and what
    it gives."""
    # Building the tools asks nothing of the app; only calling them does.
    tools = register(cast("App", None))
    toolset = {name: toolset for toolset, names in TOOLSETS.items() for name in names}
    rows = [
        f"| `{tool.name}` | {toolset[tool.name]} | {_arguments(tool)} | {_gives(tool)} |"
        for tool in tools
    ]
    return "\n".join(["| tool | toolset | arguments | gives |", "|---|---|---|---|", *rows])


def with_table(text: str) -> str:
    """``text`` with the present table between its markers.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in after:
        raise ValueError(f"there must be one {BEGIN} and, after it, one {END}")
    return f"{before}{BEGIN}\n{tool_table()}\n{END}{after}"


def _arguments(tool: Tool) -> str:
    return ", ".join(
        f"`{name}`" if default is ... else f"`{name}={json.dumps(default)}`"
        for name, default in defaults_of(tool.parameters).items()
    )


def _gives(tool: Tool) -> str:
    fields = get_type_hints(tool.fn)["return"].model_fields
    sentence = tool.description.split(". ")[0].rstrip(".")
    return f"{sentence}. Fields: {', '.join(f'`{name}`' for name in fields)}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")
