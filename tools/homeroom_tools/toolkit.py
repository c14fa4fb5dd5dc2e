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
from itertools import accumulate
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Literal,
    Self,
    get_args,
    get_origin,
    get_type_hints,
)

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, CallToolResult, TextContent, ToolAnnotations
from pydantic import BaseModel, Field, PrivateAttr, ValidationError

from homeroom.errors import HomeroomError
from homeroom_tools.caller import Scope
from homeroom_tools.text import ERROR_CHARS, NAME_CHARS, clean_line

if TYPE_CHECKING:
    from mcp.server.context import CallNext, HandlerResult, ServerRequestContext

MAX_RESULT_CHARS = 80_000
"""Longest result, in characters: some 20,000 tokens, below the 25,000 at which clients cut."""
MAX_DESCRIPTION_BYTES = 600
"""Longest tool description: every model reads all of them before its first word."""
UNTRUSTED = "Untrusted: "
"""How the description of every field with foreign text begins; the server's instructions say what
it means."""
_PAGE_CHARS = 500
"""Room for the marker and the cursor of a page that was cut."""
_BUG = (
    "This is a bug in Homeroom, incident {}: its log says more under that number. The call may have"
    " had an effect."
)
_SCALARS = (str, int, float, bool)

log = logging.getLogger(__name__)


class Result(BaseModel):
    """Base of what a tool gives back. Fields that are None are left out of the result."""


class LongText(Result):
    """A result, or a part of one, with a text that may be too long for a model's context."""

    long_field: ClassVar[str]
    """Name of the field that holds the text."""

    truncated: bool | None = Field(default=None, description="cut, use offset")

    @property
    def long_text(self) -> str:
        """The text; empty where the field is None."""
        return getattr(self, self.long_field) or ""

    @property
    def cut_chars(self) -> int:
        """By how much a cut makes the rest of it longer at most, in characters."""
        return len(',"truncated":true')

    def cut(self, keep_chars: int) -> None:
        """Keeps the first ``keep_chars`` characters of the text and says so."""
        setattr(self, self.long_field, self.long_text[: max(0, keep_chars)])
        self.truncated = True


class Row(Result):
    """One entry of a page."""

    _cursor: str = PrivateAttr("")

    def leading_to(self, cursor: str) -> Self:
        """The row, knowing where a page goes on that ends with it."""
        self._cursor = cursor
        return self


class Page(Result):
    """Some of the entries of a list. One that is too long for a result ends sooner."""

    rows_field: ClassVar[str]
    """Name of the field that holds the rows."""

    next_cursor: str | None = Field(default=None, description="to go on")
    truncated: bool | None = Field(default=None, description="cut")

    @property
    def rows(self) -> list[Row]:
        return list(getattr(self, self.rows_field))

    def cut(self, keep: int) -> None:
        """Keeps the first ``keep`` rows, one at least, and says so."""
        rows = self.rows[: max(1, keep)]
        setattr(self, self.rows_field, rows)
        self.next_cursor = rows[-1]._cursor or self.next_cursor
        self.truncated = True


class ListPage(Page):
    """A page of a list whose length is known."""

    total: int = Field(description="in all")


class HomeroomTool(Tool):
    """A tool whose failures are written by us; made by ``make_tool``."""

    scope: str = ""
    """The scope that a caller needs; empty: what its name and its hints say (``scopes``)."""

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
            # What others wrote stays out: whoever reads an error takes it for our words.
            if str(error) != error.own_words:
                reason = clean_line(str(error), ERROR_CHARS)
                log.warning("tool_refused", extra={"tool": self.name, "reason": reason})
            raise ToolError(clean_line(error.own_words, ERROR_CHARS)) from error
        except MCPError:
            raise
        except Exception:
            incident = secrets.token_hex(4)
            log.exception("tool_crashed", extra={"tool": self.name, "incident": incident})
            raise ToolError(_BUG.format(incident)) from None

    def _checked(self, arguments: dict[str, Any]) -> dict[str, Any]:
        known = self.parameters["properties"]
        usage = usage_of(self.parameters)
        problems = [_unknown(name, known) for name in arguments if name not in known]
        try:
            values = self.fn_metadata.validate_arguments(arguments)
        except ValidationError as error:
            problems += [_wrong(problem) for problem in error.errors(include_url=False)]
        if problems:
            raise ToolError(f"{self.name} was not called. {' '.join(problems[:5])} {usage}")
        return values


async def guard_crashes(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
    """Middleware of the SDK: the same boundary for whatever is not a tool. In the handshake era the
    SDK would hand the text of any exception to the client."""
    try:
        return await call_next(ctx)
    except (MCPError, ValidationError):
        raise  # the first is meant for the client; the second the SDK tells without its text
    except HomeroomError as error:
        raise MCPError(INTERNAL_ERROR, clean_line(error.own_words, ERROR_CHARS)) from error
    except Exception:
        incident = secrets.token_hex(4)
        log.exception("request_crashed", extra={"request": ctx.method, "incident": incident})
        raise MCPError(INTERNAL_ERROR, _BUG.format(incident)) from None


def make_tool(
    fn: Callable[..., Awaitable[Result]],
    *,
    title: str,
    read_only: bool,
    destructive: bool,
    idempotent: bool,
    open_world: bool,
    scope: Scope | None = None,
) -> Tool:
    """The tool that calls ``fn``; its name, arguments and description are the function's own.

    Args:
        fn: Its docstring is the description, its return annotation the output schema. Arguments
            are plain scalars or literals, never optional types: a client's JSON would be parsed
            out of a message, and some clients reject such schemas. "Not given" is "" or a default.
        read_only, destructive, idempotent, open_world: The four hints, all of them explicit.
        scope: What a caller's token must have, where ``scopes.scope_of`` cannot tell.

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
    )
    assert isinstance(tool, HomeroomTool)
    tool.scope = scope or ""
    tool.parameters = _tidy(tool.parameters) | {"additionalProperties": False}
    for argument in tool.parameters["properties"].values():
        argument.pop("minLength", None)  # said by its being required; checked all the same
    returned = tool.fn_metadata.output_schema or {}
    for schema in (tool.parameters, returned):
        if missing := list(_undescribed(schema)):
            raise TypeError(f"{fn.__name__} has fields without a description: {missing}")
    tool.fn_metadata.output_schema = compact_schema(returned)
    return tool


def make_reader(fn: Callable[..., Awaitable[Result]], *, title: str) -> Tool:
    """The same for a function that only looks, as often as one likes, at what is ours."""
    return make_tool(
        fn, title=title, read_only=True, destructive=False, idempotent=True, open_world=False
    )


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


def usage_of(parameters: dict[str, Any]) -> str:
    """One sentence with all arguments and their defaults."""
    arguments = [
        name if default is ... else f"{name}={json.dumps(default)}"
        for name, default in defaults_of(parameters).items()
    ]
    return f"Its arguments: {', '.join(arguments)}." if arguments else "It takes no arguments."


def defaults_of(parameters: dict[str, Any]) -> dict[str, Any]:
    """What each argument is if it is left out; ``...`` for one that is required.

    A default that is empty or false is not written down in a schema.
    """
    empty = {"boolean": False, "string": "", "integer": 0, "number": 0}
    required = parameters.get("required", ())
    return {
        name: ... if name in required else schema.get("default", empty[schema["type"]])
        for name, schema in parameters["properties"].items()
    }


# --- Results -------------------------------------------------------------------------------------


def _written(result: Result) -> CallToolResult:
    """The result as structured content and as the same JSON in text, cut down to the cap."""
    text, data = _dump(result)
    if len(text) > MAX_RESULT_CHARS:
        _shorten(result, len(text))
        text, data = _dump(result)
    if len(text) > MAX_RESULT_CHARS and isinstance(result, Page):
        sizes = [len(_dump(row)[0]) + 1 for row in result.rows]
        room = MAX_RESULT_CHARS - (len(text) - sum(sizes)) - _PAGE_CHARS
        result.cut(bisect_right(list(accumulate(sizes)), room))
        text, data = _dump(result)
    return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=data)


def written_text(result: Result) -> str:
    """The text alone of what a tool with this result gives."""
    (content,) = _written(result).content
    assert isinstance(content, TextContent)
    return content.text


def _shorten(result: Result, size_chars: int) -> None:
    """Cuts the longest texts down to one common level, so that the short ones stay whole."""
    sizes = [(part, _json_chars(part.long_text)) for part in _long_texts(result)]
    frame = size_chars - sum(size - part.cut_chars for part, size in sizes)
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
    """``schema`` without pydantic's titles and docstrings, and without null: it is never sent. A
    description of a field ends without a full stop: there are a hundred of them."""
    tidy: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "$defs"):
            tidy[key] = {name: _tidy(inner) for name, inner in value.items()}
        elif key == "anyOf":
            options = [_tidy(option) for option in value if option.get("type") != "null"]
            tidy |= options[0] if len(options) == 1 else {"anyOf": options}
        elif isinstance(value, dict):
            tidy[key] = _tidy(value)
        elif key == "description":
            tidy[key] = value.removesuffix(".")
        elif key != "title" and not (key == "default" and not value):
            tidy[key] = value
    if "properties" in tidy:
        tidy.pop("description", None)
    return tidy


def compact_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """An output schema in a quarter of its bytes, because every model pays for all of them.

    Definitions stand where they are used. Nothing is required: what there is nothing to say of is
    left out of a result. Fields of one value are described with the object they stand in, as
    ``name type: what it is; ...``, and after ``Untrusted:`` those that others wrote.
    """
    tidy = _tidy(schema)
    definitions = tidy.get("$defs", {})

    def inline(part: dict[str, Any]) -> dict[str, Any]:
        if name := part.get("$ref", "").removeprefix("#/$defs/"):
            part = definitions[name] | {k: v for k, v in part.items() if k != "$ref"}
        short = {key: value for key, value in part.items() if key not in ("required", "$defs")}
        if "items" in short:
            short["items"] = inline(short["items"])
        if "properties" in short:
            fields = {name: inline(field) for name, field in short.pop("properties").items()}
            short |= _folded({name: f for name, f in fields.items() if _is_plain(f)})
            if kept := {name: field for name, field in fields.items() if not _is_plain(field)}:
                short["properties"] = kept
        return short

    return inline(tidy)


def _is_plain(field: dict[str, Any]) -> bool:
    """Whether a field holds one value, or a list of such."""
    return bool(field.get("items", field)["type"] not in ("object", "array"))


_TYPES = {"boolean": " bool", "integer": " int", "number": " float", "array": " list"}


def _folded(fields: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The description of an object that has these fields."""
    ours: list[str] = []
    theirs: list[str] = []
    for name, field in fields.items():
        text = field["description"]
        values = "|".join(field.get("enum", ()))
        kind = f" {values}" if values else _TYPES.get(field["type"], "")
        told = theirs if text.startswith(UNTRUSTED) else ours
        told.append(f"{name}{kind}: {text.removeprefix(UNTRUSTED)}")
    parts = ["; ".join(ours)] if ours else []
    parts += [UNTRUSTED + "; ".join(theirs)] if theirs else []
    return {"description": ". ".join(parts)} if parts else {}


def _undescribed(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, field in schema.get("properties", {}).items():
        if "description" not in field:
            yield path + name
        yield from _undescribed(field, f"{path}{name}.")
    for name, definition in schema.get("$defs", {}).items():
        yield from _undescribed(definition, f"{name}.")
