"""The conformance suite's fixtures that ask the client for something and are called again.

Source: https://github.com/modelcontextprotocol/modelcontextprotocol/pull/2322
"""

from __future__ import annotations

from functools import partial
from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp_types import (
    CreateMessageRequest,
    CreateMessageRequestParams,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    InputRequest,
    InputRequiredResult,
    ListRootsRequest,
    SamplingMessage,
    TextContent,
    ToolAnnotations,
)

Ctx = Context[Any, Any]


def asks(state: str | None = None, **requests: InputRequest) -> InputRequiredResult:
    """The result that asks for ``requests``."""
    return InputRequiredResult(input_requests=requests, request_state=state)


def _form(message: str, field: str, kind: str = "string") -> ElicitRequest:
    schema = {"type": "object", "properties": {field: {"type": kind}}, "required": [field]}
    params = ElicitRequestFormParams(message=message, requested_schema=schema)
    return ElicitRequest(params=params)


def _sample(text: str, max_tokens: int) -> CreateMessageRequest:
    message = SamplingMessage(role="user", content=TextContent(type="text", text=text))
    params = CreateMessageRequestParams(messages=[message], max_tokens=max_tokens)
    return CreateMessageRequest(params=params)


def _answer(ctx: Ctx, key: str) -> Any:
    """The client's answer to ``key``; None if there is none that fits."""
    return (ctx.input_responses or {}).get(key)


def _field(ctx: Ctx, key: str, field: str) -> str:
    answer = _answer(ctx, key)
    content = answer.content if isinstance(answer, ElicitResult) else None
    return str((content or {}).get(field, ""))


def add(server: MCPServer[Any], hints: ToolAnnotations) -> None:
    """Adds them to ``server``."""
    tool = partial(server.tool, description="A fixture.", annotations=hints)
    name = _form("What is your name?", "name")

    @tool()
    async def test_input_required_result_elicitation(ctx: Ctx) -> Any:
        given = _field(ctx, "user_name", "name")
        return f"Hello, {given}!" if given else asks(user_name=name)

    @tool()
    async def test_input_required_result_sampling(ctx: Ctx) -> Any:
        if answer := _answer(ctx, "capital_question"):
            return f"The model said: {answer.content}"
        return asks(capital_question=_sample("What is the capital of France?", 100))

    @tool()
    async def test_input_required_result_list_roots(ctx: Ctx) -> Any:
        if answer := _answer(ctx, "client_roots"):
            return f"Roots: {', '.join(str(root.uri) for root in answer.roots)}"
        return asks(client_roots=ListRootsRequest())

    @tool()
    async def test_input_required_result_request_state(ctx: Ctx) -> Any:
        if ctx.request_state == "first" and _answer(ctx, "confirm"):
            return "state-ok"
        return asks("first", confirm=_form("Please confirm", "ok", "boolean"))

    @tool()
    async def test_input_required_result_tampered_state(ctx: Ctx) -> Any:
        if ctx.request_state == "sealed" and _answer(ctx, "confirm"):
            return "state-ok"
        return asks("sealed", confirm=_form("Please confirm", "ok", "boolean"))

    @tool()
    async def test_input_required_result_multiple_inputs(ctx: Ctx) -> Any:
        wanted = ("user_name", "greeting", "client_roots")
        if all(_answer(ctx, key) for key in wanted):
            return "all there"
        return asks(
            "several",
            user_name=name,
            greeting=_sample("Generate a greeting", 50),
            client_roots=ListRootsRequest(),
        )

    @tool()
    async def test_input_required_result_multi_round(ctx: Ctx) -> Any:
        if ctx.request_state == "two" and (color := _field(ctx, "step2", "color")):
            return f"You like {color}."
        if ctx.request_state == "one" and _field(ctx, "step1", "name"):
            return asks("two", step2=_form("Step 2: What is your favorite color?", "color"))
        return asks("one", step1=_form("Step 1: What is your name?", "name"))

    @tool()
    async def test_input_required_result_capabilities(ctx: Ctx) -> Any:
        can = ctx.client_capabilities
        requests: dict[str, InputRequest] = {}
        if can is not None and can.elicitation is not None:
            requests["user_name"] = name
        if can is not None and can.sampling is not None:
            requests["greeting"] = _sample("Generate a greeting", 50)
        if not requests or any(_answer(ctx, key) for key in requests):
            return "asked for no more than the client can do"
        return asks(**requests)

    @server.prompt()
    async def test_input_required_result_prompt(ctx: Ctx) -> Any:
        """A fixture."""
        if given := _field(ctx, "user_context", "context"):
            return f"Use this context: {given}"
        return asks(user_context=_form("What context should the prompt use?", "context"))
