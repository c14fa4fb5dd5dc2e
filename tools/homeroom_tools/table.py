"""The README's table of tools, written from the tools themselves.

``python -m homeroom_tools.table README.md`` rewrites what stands between the two markers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

from homeroom_tools import register

if TYPE_CHECKING:
    from mcp.server.mcpserver.tools import Tool

    from homeroom.app import App

BEGIN = "<!-- tools:begin -->"
END = "<!-- tools:end -->"


def tool_table() -> str:
    """A markdown table: each tool's name, its arguments with their defaults, and what it gives."""
    # Building the tools asks nothing of the app; only calling them does.
    tools = register(cast("App", None))
    rows = [f"| `{tool.name}` | {_arguments(tool)} | {_gives(tool)} |" for tool in tools]
    return "\n".join(["| tool | arguments | gives |", "|---|---|---|", *rows])


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
    properties = tool.parameters["properties"]
    return ", ".join(
        f"`{name}={json.dumps(schema['default'])}`" if "default" in schema else f"`{name}`"
        for name, schema in properties.items()
    )


def _gives(tool: Tool) -> str:
    fields = (tool.output_schema or {})["properties"]
    sentence = tool.description.split(". ")[0].rstrip(".")
    return f"{sentence}. Fields: {', '.join(f'`{name}`' for name in fields)}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")
