"""``homeroom serve`` with the things that the official conformance suite asks a server for.

conformance.py serve --http PORT      as ``homeroom serve --http PORT``, with the fixtures

The suite brings no server of its own: it calls tools, resources and prompts by fixed names and
expects fixed behaviour. Here they are added to the server that Homeroom itself builds, so all of
its own process is under test: command line, gate, sessions, middleware and eras.

Source: https://github.com/modelcontextprotocol/conformance
"""

from __future__ import annotations

import base64
import json
import struct
import warnings
import zlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.prompts.base import UserMessage
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError
from mcp_types import (
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    AudioContent,
    CallToolResult,
    ClientCapabilities,
    Completion,
    ElicitRequest,
    ElicitRequestFormParams,
    EmbeddedResource,
    EmptyResult,
    ImageContent,
    JSONRPCMessage,
    SamplingCapability,
    SamplingMessage,
    SetLevelRequestParams,
    SubscribeRequestParams,
    TextContent,
    TextResourceContents,
    ToolAnnotations,
    UnsubscribeRequestParams,
)

from support import conformance_input

Ctx = Context[Any, Any]
PAUSE_S = 0.05
RETRY_MS = 100
"""What the suite's client is told to wait before it comes back for the rest of a stream."""
READ_ONLY = ToolAnnotations(read_only_hint=True)
"""Gives the fixtures the scope that asks for least."""


def _png() -> str:
    """One red pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0\xff\0\0"))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + head + pixels + chunk(b"IEND", b"")).decode()


def _wav() -> str:
    """A tenth of a second of silence."""
    data = bytes(800)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 8000, 8000, 1, 8)
    riff = struct.pack("<4sI4s", b"RIFF", 36 + len(data), b"WAVE")
    return base64.b64encode(riff + form + struct.pack("<4sI", b"data", len(data)) + data).decode()


PIXEL, SILENCE = _png(), _wav()


def with_fixtures(server: MCPServer[Any]) -> MCPServer[Any]:
    """``server`` with everything that the suite calls by name."""
    _add_contents(server)
    _add_talk(server)
    _add_diagnostics(server)
    _add_resources(server)
    _add_prompts(server)
    _add_schema(server)
    conformance_input.add(server, READ_ONLY)
    server.streamable_http_app = partial(  # type: ignore[method-assign]
        server.streamable_http_app, event_store=_Events(), retry_interval=RETRY_MS
    )
    return server


def _text(text: str) -> TextContent:
    return TextContent(type="text", text=text)


def _embedded(uri: str, kind: str, text: str) -> EmbeddedResource:
    contents = TextResourceContents(uri=uri, mime_type=kind, text=text)
    return EmbeddedResource(type="resource", resource=contents)


def _image() -> ImageContent:
    return ImageContent(type="image", data=PIXEL, mime_type="image/png")


def _add_contents(server: MCPServer[Any]) -> None:
    contents: dict[str, list[Any]] = {
        "test_simple_text": [_text("This is a simple text response for testing.")],
        "test_image_content": [_image()],
        "test_audio_content": [AudioContent(type="audio", data=SILENCE, mime_type="audio/wav")],
        "test_embedded_resource": [
            _embedded("test://embedded-resource", "text/plain", "An embedded resource.")
        ],
        "test_multiple_content_types": [
            _text("Several kinds at once:"),
            _image(),
            _embedded("test://mixed-content-resource", "application/json", '{"test":"data"}'),
        ],
    }

    def returning(content: list[Any]) -> Callable[[], Awaitable[CallToolResult]]:
        async def fixture() -> CallToolResult:
            return CallToolResult(content=content)

        return fixture

    for name, content in contents.items():
        server.add_tool(
            returning(content), name=name, description="A fixture.", annotations=READ_ONLY
        )


def _add_talk(server: MCPServer[Any]) -> None:
    tool = partial(server.tool, description="A fixture.", annotations=READ_ONLY)

    async def say(ctx: Ctx, text: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MCPDeprecationWarning)
            await ctx.log("info", text)

    @tool()
    async def test_tool_with_logging(ctx: Ctx) -> str:
        for text in ("Tool execution started", "Tool processing data", "Tool execution completed"):
            await say(ctx, text)
            await anyio.sleep(PAUSE_S)
        return "logged"

    @tool()
    async def test_logging_tool(ctx: Ctx) -> str:
        await say(ctx, "only for whoever asked for it")
        return "logged"

    @tool()
    async def test_error_handling() -> str:
        raise ToolError("This tool intentionally returns an error for testing")

    @tool()
    async def test_tool_with_progress(ctx: Ctx) -> str:
        for progress in (0, 50, 100):
            await ctx.report_progress(progress, 100)
            await anyio.sleep(PAUSE_S)
        return "done"

    @tool()
    async def test_sampling(ctx: Ctx, prompt: str) -> str:
        asked = SamplingMessage(role="user", content=_text(prompt))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MCPDeprecationWarning)
            answer = await ctx.session.create_message(
                [asked], max_tokens=100, related_request_id=ctx.request_id
            )
        return f"LLM response: {answer.content}"

    async def elicit(ctx: Ctx, message: str, properties: dict[str, Any], *required: str) -> str:
        schema = {"type": "object", "properties": properties, "required": list(required)}
        answer = await ctx.session.elicit_form(message, schema, ctx.request_id)
        return f"action={answer.action}, content={json.dumps(answer.content)}"

    @tool()
    async def test_elicitation(ctx: Ctx, message: str) -> str:
        about = {
            "username": {"type": "string", "description": "User's response"},
            "email": {"type": "string", "description": "User's email address"},
        }
        return "User response: " + await elicit(ctx, message, about, *about)

    @tool()
    async def test_elicitation_sep1034_defaults(ctx: Ctx) -> str:
        return await elicit(ctx, "Defaults of every type", DEFAULTS)

    @tool()
    async def test_elicitation_sep1330_enums(ctx: Ctx) -> str:
        return await elicit(ctx, "Every kind of choice", ENUMS)

    @tool()
    async def test_reconnection(ctx: Ctx) -> str:
        await ctx.close_sse_stream()
        await anyio.sleep(2 * RETRY_MS / 1000)
        return "The stream was closed and the answer came all the same."


DEFAULTS: dict[str, Any] = {
    "name": {"type": "string", "default": "John Doe"},
    "age": {"type": "integer", "default": 30},
    "score": {"type": "number", "default": 95.5},
    "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
    "verified": {"type": "boolean", "default": True},
}
_PLAIN = ["option1", "option2", "option3"]
_TITLED = [
    {"const": f"value{number}", "title": title}
    for number, title in enumerate(("First Option", "Second Option", "Third Option"), 1)
]
ENUMS: dict[str, Any] = {
    "untitledSingle": {"type": "string", "enum": _PLAIN},
    "titledSingle": {"type": "string", "oneOf": _TITLED},
    "legacyEnum": {
        "type": "string",
        "enum": ["opt1", "opt2", "opt3"],
        "enumNames": ["Option One", "Option Two", "Option Three"],
    },
    "untitledMulti": {"type": "array", "items": {"type": "string", "enum": _PLAIN}},
    "titledMulti": {"type": "array", "items": {"anyOf": _TITLED}},
}


def _add_diagnostics(server: MCPServer[Any]) -> None:
    tool = partial(server.tool, description="A fixture.", annotations=READ_ONLY)

    @tool()
    async def test_missing_capability(ctx: Ctx) -> str:
        needed = ClientCapabilities(sampling=SamplingCapability())
        if not ctx.session.check_client_capability(needed):
            raise MCPError(
                MISSING_REQUIRED_CLIENT_CAPABILITY,
                "This needs a client that can sample.",
                {"requiredCapabilities": {"sampling": {}}},
            )
        return "sampling is there"

    @tool()
    async def test_streaming_elicitation(ctx: Ctx) -> Any:
        await ctx.report_progress(1, 2)
        if ctx.input_responses:
            return "answered"
        return conformance_input.asks(
            name=ElicitRequest(
                params=ElicitRequestFormParams(
                    message="Who?", requested_schema={"type": "object", "properties": {}}
                )
            )
        )

    @tool()
    async def test_trigger_tool_change(ctx: Ctx) -> str:
        await ctx.notify_tools_changed()
        return "told"

    @tool()
    async def test_trigger_prompt_change(ctx: Ctx) -> str:
        await ctx.notify_prompts_changed()
        return "told"


def _add_resources(server: MCPServer[Any]) -> None:
    @server.resource("test://static-text", name="static-text", mime_type="text/plain")
    async def static_text() -> str:
        return "This is the content of the static text resource."

    @server.resource("test://static-binary", name="static-binary", mime_type="image/png")
    async def static_binary() -> bytes:
        return base64.b64decode(PIXEL)

    @server.resource("test://watched-resource", name="watched", mime_type="text/plain")
    async def watched() -> str:
        return "Nothing changes here."

    @server.resource("test://template/{id}/data", name="template", mime_type="application/json")
    async def template(id: str) -> str:  # noqa: A002
        data = {"id": id, "templateTest": True, "data": f"Data for ID: {id}"}
        return json.dumps(data)

    low = server._lowlevel_server

    def accepting(method: str) -> Callable[[Any, Any], Awaitable[Any]]:
        """Takes what is about a fixture; the server's own handler has the rest."""
        own = low.get_request_handler(method)

        async def accept(ctx: Any, params: Any) -> Any:
            if own is None or str(getattr(params, "uri", "")).startswith("test://"):
                return EmptyResult()
            return await own.handler(ctx, params)

        return accept

    for method, params in (
        ("resources/subscribe", SubscribeRequestParams),
        ("resources/unsubscribe", UnsubscribeRequestParams),
        ("logging/setLevel", SetLevelRequestParams),
    ):
        low.add_request_handler(method, params, accepting(method))


def _add_prompts(server: MCPServer[Any]) -> None:
    @server.prompt()
    async def test_simple_prompt() -> str:
        """A fixture."""
        return "This is a simple prompt for testing."

    @server.prompt()
    async def test_prompt_with_arguments(arg1: str, arg2: str) -> str:
        """A fixture."""
        return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"

    @server.prompt()
    async def test_prompt_with_embedded_resource(resourceUri: str) -> list[Any]:
        """A fixture."""
        return [
            UserMessage(_embedded(resourceUri, "text/plain", "Embedded for testing.")),
            UserMessage("Please process the embedded resource above."),
        ]

    @server.prompt()
    async def test_prompt_with_image() -> list[Any]:
        """A fixture."""
        return [UserMessage(_image()), UserMessage("Please analyze the image above.")]

    if server._lowlevel_server.get_request_handler("completion/complete") is None:

        @server.completion()
        async def complete(ref: Any, argument: Any, context: Any) -> Completion:
            values = [
                word for word in ("paris", "park", "party") if word.startswith(argument.value)
            ]
            return Completion(values=values, total=len(values), has_more=False)


def _add_schema(server: MCPServer[Any]) -> None:
    async def fixture() -> str:
        return ""

    for name, schema in SCHEMAS.items():
        server.add_tool(fixture, name=name, description="A fixture.", annotations=READ_ONLY)
        tool = server._tool_manager.get_tool(name)
        assert tool is not None
        tool.parameters = schema  # no public way to give a tool a schema of one's own


SCHEMAS: dict[str, dict[str, Any]] = {
    "json_schema_2020_12_tool": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "$defs": {
            "address": {
                "$anchor": "addressDef",
                "type": "object",
                "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
            }
        },
        "properties": {
            "name": {"type": "string"},
            "address": {"$ref": "#/$defs/address"},
            "contactMethod": {"type": "string", "enum": ["phone", "email"]},
            "phone": {"type": "string"},
            "email": {"type": "string"},
        },
        "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
        "if": {
            "properties": {"contactMethod": {"const": "phone"}},
            "required": ["contactMethod"],
        },
        "then": {"required": ["phone"]},
        "else": {"required": ["email"]},
        "additionalProperties": False,
    },
    "test_x_mcp_header": {
        "type": "object",
        "properties": {"region": {"type": "string", "x-mcp-header": "Region"}},
        "additionalProperties": False,
    },
}


class _Events(EventStore):
    """What was sent on each stream, for clients that come back for the rest."""

    def __init__(self) -> None:
        self._events: list[tuple[str, JSONRPCMessage | None]] = []

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        self._events.append((stream_id, message))
        return str(len(self._events))

    async def replay_events_after(
        self, last_event_id: str, send_callback: EventCallback
    ) -> str | None:
        number = int(last_event_id) if last_event_id.isdecimal() else 0
        if not 0 < number <= len(self._events):
            return None
        stream = self._events[number - 1][0]
        for at, (stream_id, message) in enumerate(self._events[number:], number + 1):
            if stream_id == stream and message is not None:
                await send_callback(EventMessage(message, str(at)))
        return stream


if __name__ == "__main__":
    from homeroom.main import main
    from homeroom_tools import serve

    build = serve.build_server
    serve.build_server = lambda *args, **kwargs: with_fixtures(build(*args, **kwargs))
    main()
