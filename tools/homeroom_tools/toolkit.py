"""How a tool is made: one factory, so that all tools behave alike.

Owns the boundary between MCP and the functions behind it: which arguments are let in, how a
result is written down, how large it may be, and what an error says. Knows nothing of agents.
Invariant: an error carries no structured content (clients validate it against the output schema),
and the text of an unexpected exception never leaves the process.
"""

from __future__ import annotations

import difflib
import inspect
import json
import logging
import secrets
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, TextContent, ToolAnnotations
from pydantic import BaseModel, Field, ValidationError

from homeroom.errors import HomeroomError
from homeroom_tools.text import ERROR_CHARS, NAME_CHARS, clean_line

MAX_RESULT_CHARS = 80_000
"""Longest result, in characters: some 20,000 tokens, below the 25,000 at which clients cut."""
MAX_DESCRIPTION_BYTES = 600
"""Longest tool description: every model reads all of them before its first word."""
_MARKER_CHARS = len(',"truncated":true')
_SCALARS = (str, int, float, bool)

log = logging.getLogger(__name__)


class Result(BaseModel):
    """Base of what a tool gives back. Fields that are None are left out of the result."""


class LongText(Result):
    """A result, or a part of one, with a text that may be too long for a model's context."""

    long_field: ClassVar[str]
    """Name of the field that holds the text."""

    truncated: bool | None = Field(
        default=None,
        description="True if the text was too long for one result and only its beginning is here.",
    )

    @property
    def long_text(self) -> str:
        """The text; empty where the field is None."""
        return getattr(self, self.long_field) or ""

    def cut(self, keep_chars: int) -> None:
        """Keeps the first ``keep_chars`` characters of the text and says so."""
        setattr(self, self.long_field, self.long_text[: max(0, keep_chars)])
        self.truncated = True


class HomeroomTool(Tool):
    """A tool whose failures are written by us; made by ``make_tool``."""

    async def run(
        self, arguments: dict[str, Any], context: Context[Any, Any], convert_result: bool = False
    ) -> Any:
        """The finished ``CallToolResult``, whatever ``convert_result`` asks for.

        Cancelling it cancels the function behind it and nothing else.

        Raises:
            ToolError: with the text that the model shall read.
        """
        values = self._checked(arguments)
        if self.context_kwarg is not None:
            values[self.context_kwarg] = context
        try:
            result: Result = await self.fn(**values)
            return _written(result)
        except HomeroomError as error:
            raise ToolError(clean_line(str(error), ERROR_CHARS)) from error
        except MCPError:
            raise
        except Exception:
            incident = secrets.token_hex(4)
            log.exception("tool_crashed", extra={"tool": self.name, "incident": incident})
            raise ToolError(
                f"This is a bug in Homeroom, incident {incident}: its log says more under that "
                "number. The call may have had an effect."
            ) from None

    def _checked(self, arguments: dict[str, Any]) -> dict[str, Any]:
        known = self.parameters["properties"]
        problems = [_unknown(name, known) for name in arguments if name not in known]
        try:
            values = self.fn_metadata.validate_arguments(arguments)
        except ValidationError as error:
            problems += [_wrong(problem) for problem in error.errors(include_url=False)]
        if problems:
            raise ToolError(f"{self.name} was not called. {' '.join(problems[:5])} {_usage(known)}")
        return values


def make_tool(
    fn: Callable[..., Awaitable[Result]],
    *,
    title: str,
    read_only: bool,
    destructive: bool,
    idempotent: bool,
    open_world: bool,
) -> Tool:
    """The tool that calls ``fn``; its name, arguments and description are the function's own.

    Args:
        fn: Its docstring is the description, its return annotation the output schema. Arguments
            are plain scalars or literals, never optional types: a client's JSON would be parsed
            out of a message, and some clients reject such schemas. "Not given" is "" or a default.
        read_only, destructive, idempotent, open_world: The four hints, all of them explicit.

    Raises:
        TypeError: ``fn`` breaks one of these rules.
    """
    _demand_plain_arguments(fn)
    description = " ".join(inspect.cleandoc(fn.__doc__ or "").split())
    if not 0 < len(description.encode()) <= MAX_DESCRIPTION_BYTES:
        raise TypeError(f"{fn.__name__} needs a description of 1-{MAX_DESCRIPTION_BYTES} bytes")
    tool = HomeroomTool.from_function(
        fn,
        title=title,
        description=description,
        annotations=ToolAnnotations(
            read_only_hint=read_only,
            destructive_hint=destructive,
            idempotent_hint=idempotent,
            open_world_hint=open_world,
        ),
        meta={"anthropic/maxResultSizeChars": MAX_RESULT_CHARS},
    )
    tool.parameters = _tidy(tool.parameters) | {"additionalProperties": False}
    tool.fn_metadata.output_schema = _tidy(tool.fn_metadata.output_schema or {})
    for schema in (tool.parameters, tool.fn_metadata.output_schema):
        if missing := list(_undescribed(schema)):
            raise TypeError(f"{fn.__name__} has fields without a description: {missing}")
    return tool


# --- Arguments -----------------------------------------------------------------------------------


def _demand_plain_arguments(fn: Callable[..., Any]) -> None:
    # The SDK parses the JSON inside a string argument unless its annotation is exactly ``str``.
    hints = get_type_hints(fn)
    returned = hints.pop("return", None)
    if not (isinstance(returned, type) and issubclass(returned, Result)):
        raise TypeError(f"{fn.__name__} must return a Result")
    for name, hint in hints.items():
        is_context = inspect.isclass(hint) and issubclass(hint, Context)
        is_literal = get_origin(hint) is Literal and all(type(v) is str for v in get_args(hint))
        if not (hint in _SCALARS or is_literal or is_context):
            raise TypeError(f"{fn.__name__}: {name} must be a plain scalar or a literal")


def _unknown(name: str, known: dict[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, 1, 0.4)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    return f"It has no argument '{clean_line(name, NAME_CHARS)}'{hint}"


def _wrong(problem: Any) -> str:
    name = str(problem["loc"][0]) if problem["loc"] else "arguments"
    if problem["type"] == "missing":
        return f"'{name}' is missing."
    # pydantic's own words for type and range; the rejected value is not repeated.
    detail = problem["msg"][:1].lower() + problem["msg"][1:]
    return f"'{name}' is wrong: {detail}."


def _usage(known: dict[str, Any]) -> str:
    arguments = [
        f"{name}={json.dumps(schema['default'])}" if "default" in schema else name
        for name, schema in known.items()
    ]
    return f"Its arguments: {', '.join(arguments)}." if arguments else "It takes no arguments."


# --- Results -------------------------------------------------------------------------------------


def _written(result: Result) -> CallToolResult:
    """The result as structured content and as the same JSON in text, cut down to the cap."""
    text, data = _dump(result)
    if len(text) > MAX_RESULT_CHARS:
        _shorten(result, len(text))
        text, data = _dump(result)
    return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=data)


def _shorten(result: Result, size_chars: int) -> None:
    """Cuts the longest texts down to one common level, so that the short ones stay whole."""
    sizes = [(part, _json_chars(part.long_text)) for part in _long_texts(result)]
    frame = size_chars - sum(size for _, size in sizes) + _MARKER_CHARS * len(sizes)
    room = MAX_RESULT_CHARS - frame
    levels = range(max((size for _, size in sizes), default=0) + 1)
    level = bisect_right(levels, room, key=lambda top: sum(min(s, top) for _, s in sizes)) - 1
    for part, size in sizes:
        if size > level:
            text = part.long_text
            prefixes = range(len(text) + 1)
            part.cut(bisect_right(prefixes, level, key=lambda n: _json_chars(text[:n])) - 1)


def _dump(result: Result) -> tuple[str, dict[str, Any]]:
    data = result.model_dump(mode="json", by_alias=True, exclude_none=True)
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")), data


def _long_texts(value: Any) -> Iterator[LongText]:
    if isinstance(value, LongText):
        yield value
    if isinstance(value, BaseModel):
        for _, inner in value:
            yield from _long_texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _long_texts(inner)


def _json_chars(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False)) - 2


# --- Schemas -------------------------------------------------------------------------------------


def _tidy(schema: dict[str, Any]) -> dict[str, Any]:
    """``schema`` without pydantic's titles and docstrings, and without null: it is never sent."""
    tidy: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "$defs"):
            tidy[key] = {name: _tidy(inner) for name, inner in value.items()}
        elif key == "anyOf":
            options = [_tidy(option) for option in value if option.get("type") != "null"]
            tidy |= options[0] if len(options) == 1 else {"anyOf": options}
        elif isinstance(value, dict):
            tidy[key] = _tidy(value)
        elif key != "title" and not (key == "default" and value is None):
            tidy[key] = value
    if "properties" in tidy:
        tidy.pop("description", None)
    return tidy


def _undescribed(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, field in schema.get("properties", {}).items():
        if "description" not in field:
            yield path + name
        yield from _undescribed(field, f"{path}{name}.")
    for name, definition in schema.get("$defs", {}).items():
        yield from _undescribed(definition, f"{name}.")
