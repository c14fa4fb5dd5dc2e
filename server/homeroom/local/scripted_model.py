"""A language model that follows a script: an OpenAI-compatible server on loopback.

Owns what the tests, the demo and ``homeroom up`` without a key use as a model. What it says is
decided by the pure ``decide``, from the request alone; the same messages get the same answer.

With directives the last user message is the script, one directive per line: ``!say TEXT``,
``!tool NAME {json}`` (repeated: one step each, then "done: <result>"), ``!words N``,
``!think TEXT``, ``!empty``, ``!sys``, ``!ctx``, ``!delay S``, ``!chunkdelay S``,
``!status N MESSAGE``, ``!hang``, ``!die``.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import http.client
import itertools
import json
import math
import os
import re
import struct
import sys
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from homeroom.local.child import Child, free_port
from homeroom.model import Json

MODELS = ("scripted", "gpt-4o-mini")  # of the second every Letta knows the context window
CONTEXT_TOKENS, EMBEDDING_DIMENSIONS = 128_000, 1536
_KEPT_BODIES, _START_TIMEOUT_S = 6, 30.0
_ARGUMENT_PIECE = 8
"""Characters of a tool call's arguments per streamed chunk."""

GREETING = (
    "Hello! No language model is configured, so a script answers in my place. I can repeat what "
    'you say, and I know what my memory says: ask me "What is my ...?".'
)


# --- What it answers -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ToolCall:
    name: str
    arguments: str
    """Compact JSON, as real models write it: Letta's parser of partial JSON counts on that."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of the model. ``status`` other than 200 is an HTTP error with ``text``."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    thinking: str = ""
    delay_s: float = 0.0
    chunk_delay_s: float = 0.0
    status: int = 200
    fate: Literal["complete", "hang", "die"] = "complete"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request, read the way the script needs it."""

    question: str = ""
    """The last thing a person said, without what the harness wrapped around it."""
    tool_results: tuple[str, ...] = ()
    """What tools returned since then: the number of steps already made."""
    memory: tuple[str, ...] = ()
    """System prompts and system reminders, newest first."""
    said: tuple[str, ...] = ()
    """What people said before the question, newest first."""
    answered: tuple[str, ...] = ()
    """What the model answered so far."""
    roles: tuple[tuple[str, str], ...] = ()


_REMINDER = re.compile(r"<system-reminder>(.*?)</system-reminder>", re.DOTALL)
_QUESTION = re.compile(r"\bwhat(?:'s|’s| is| are) my ([\w' -]+?)\s*\?", re.IGNORECASE)


def read_prompt(messages: Sequence[Json]) -> Prompt:
    """The prompt in a list of chat messages; knows the wrappings of both Letta servers."""
    asked, memory, answered, roles = [], [], [], []
    results: list[str] = []
    for message in messages:
        role, text = str(message.get("role", "")), text_of(message.get("content"))
        roles.append((role, text[:80]))
        if role in ("system", "developer"):
            memory.append(text)
        elif role == "assistant":
            answered.append(text)
        elif role == "tool":
            results.append(text)
        elif role == "user":
            memory.extend(_REMINDER.findall(text))
            person = _unwrap(_REMINDER.sub("", text)).strip()
            if person:
                asked.append(person)
                results = []
    return Prompt(
        question=asked[-1] if asked else "",
        tool_results=tuple(results),
        memory=tuple(reversed(memory)),
        said=tuple(reversed(asked[:-1])),
        answered=tuple(answered),
        roles=tuple(roles),
    )


def text_of(content: object) -> str:
    """The text of a message's content: a string, or the text parts of a list."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = (part if isinstance(part, str) else part.get("text", "") for part in content)
    return "\n".join(part for part in parts if part)


def _unwrap(text: str) -> str:
    """Letta V1 wraps user text of its older agents in JSON; its heartbeats are nobody's words."""
    if text.lstrip().startswith("{"):
        try:
            envelope = json.loads(text)
        except ValueError:
            return text
        if isinstance(envelope, dict) and "message" in envelope:
            return str(envelope["message"]) if envelope.get("type") == "user_message" else ""
    return text


def decide(
    messages: Sequence[Json],
    tools: Sequence[Json] = (),
    *,
    directives: bool = True,
    persona: bool = False,
) -> Answer:
    """What the script answers to ``messages`` when it is offered ``tools``."""
    prompt = read_prompt(messages)
    script = _script(prompt.question) if directives else []
    answer = _follow(script, prompt) if script else Answer(text=_reply(prompt, persona))
    return _through_tools(answer, tools)


def _script(text: str) -> list[tuple[str, str]]:
    lines = (line.strip() for line in text.splitlines())
    parted = (line[1:].partition(" ") for line in lines if line.startswith("!"))
    return [(word, rest.strip()) for word, _, rest in parted]


def _follow(script: Iterable[tuple[str, str]], prompt: Prompt) -> Answer:
    steps: list[ToolCall] = []
    text: str | None = None
    answer = Answer()
    for word, rest in script:
        match word:
            case "say":
                text = rest
            case "tool":
                name, _, arguments = rest.partition(" ")
                steps.append(ToolCall(name, _compact(arguments or "{}")))
            case "words":
                text = " ".join(f"word{n}" for n in range(int(rest)))
            case "empty":
                text = ""
            case "sys":
                text = "\n".join(reversed(prompt.memory))
            case "ctx":
                text = json.dumps(prompt.roles)
            case "think":
                answer = replace(answer, thinking=rest)
            case "delay":
                answer = replace(answer, delay_s=float(rest))
            case "chunkdelay":
                answer = replace(answer, chunk_delay_s=float(rest))
            case "status":
                code, _, reason = rest.partition(" ")
                return replace(answer, status=int(code), text=reason or "scripted error")
            case "hang":
                answer = replace(answer, fate="hang")
            case "die":
                answer = replace(answer, fate="die")
    done = len(prompt.tool_results)
    if done < len(steps):
        return replace(answer, calls=(steps[done],))
    if text is None:
        text = f"done: {prompt.tool_results[-1][:400]}" if done else f"echo: {prompt.question}"
    return replace(answer, text=text)


def _reply(prompt: Prompt, persona: bool) -> str:
    asked = _QUESTION.search(prompt.question)
    if asked:
        return recall(asked[1], prompt)
    if not persona:
        return f"echo: {prompt.question}"
    return f"You said: {prompt.question}" if GREETING in prompt.answered else GREETING


def recall(thing: str, prompt: Prompt) -> str:
    """``Your <thing> is <value>.``, from memory before talk and from new before old."""
    stated = re.compile(
        rf"\b{re.escape(thing)}\s*(?:\bis\b|\bare\b|[:=])\s*"
        r"([^\s.,;!?<].*?)(?=\.\s|\.?$|[;!?<])",
        re.IGNORECASE | re.MULTILINE,
    )
    for source in (*prompt.memory, *prompt.said):
        found = stated.findall(source)
        if found:
            return f"Your {thing} is {found[-1].strip()}."
    return f"I do not know your {thing}."


def _through_tools(answer: Answer, tools: Sequence[Json]) -> Answer:
    """The answer as MemGPT-style agents need it: they speak through ``send_message``, and their
    tools demand a thought and a heartbeat that no script spells out."""
    schemas = {
        str(function.get("name")): function.get("parameters") or {}
        for function in (tool.get("function") or tool for tool in tools)
    }
    calls = answer.calls
    if not calls and answer.status == 200 and "send_message" in schemas:
        calls = (ToolCall("send_message", _compact(json.dumps({"message": answer.text}))),)
        answer = replace(answer, text="")
    thought = answer.thinking or "scripted thought"
    completed = tuple(_complete(call, schemas.get(call.name, {}), thought) for call in calls)
    return replace(answer, calls=completed)


def _complete(call: ToolCall, schema: Json, thought: str) -> ToolCall:
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        return call
    for name in schema.get("required", ()):
        if name in ("thinking", "inner_thoughts"):
            arguments = {name: thought, **arguments}
        elif name == "request_heartbeat":
            arguments.setdefault(name, call.name != "send_message")
    return ToolCall(call.name, _compact(json.dumps(arguments)))


def _compact(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments), separators=(",", ":"))
    except ValueError:
        return arguments


def embed(text: str) -> list[float]:
    """A unit vector of hashed words: equal texts are equal, texts that share words are near."""
    vector = [0.0] * EMBEDDING_DIMENSIONS
    for word in re.findall(r"\w+", text.lower()) or [""]:
        digest = hashlib.sha256(word.encode()).digest()
        vector[int.from_bytes(digest[:4], "big") % EMBEDDING_DIMENSIONS] += 1.0
    length = math.sqrt(sum(x * x for x in vector))
    return [x / length for x in vector]


# --- How it says it ------------------------------------------------------------------------------


class _Cut(Response):
    """A streamed response whose connection is cut before its end."""

    def __init__(self, pieces: AsyncIterator[str], media_type: str) -> None:
        super().__init__(media_type=media_type)
        del self.headers["content-length"]
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = "http.response."
        await send({"type": kind + "start", "status": 200, "headers": self.raw_headers})
        async for piece in self._pieces:
            await send({"type": kind + "body", "body": piece.encode(), "more_body": True})


class _Server:
    def __init__(self, *, directives: bool, persona: bool) -> None:
        self._manner = {"directives": directives, "persona": persona}
        self._count = itertools.count(1)
        self._stats = {"requests": 0, "chat": 0, "embeddings": 0, "in_flight": 0, "most": 0}
        self._bodies: list[Json] = []
        self._streamed: dict[str, int] = {}

    def app(self) -> Starlette:
        routes = [
            Route("/v1/models", self._models),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/embeddings", self._embeddings, methods=["POST"]),
        ]
        if self._manner["directives"]:  # what people say is for tests to see, and for nobody else
            routes.append(Route("/stats", self._show_stats))
        return Starlette(routes=routes)

    def _count_request(self, kind: str) -> None:
        self._stats["requests"] += 1
        self._stats[kind] += 1

    async def _show_stats(self, _: Request) -> Response:
        return JSONResponse({**self._stats, "bodies": self._bodies, "streamed": self._streamed})

    async def _models(self, _: Request) -> Response:
        about = {"object": "model", "max_model_len": CONTEXT_TOKENS, "owned_by": "homeroom"}
        data = [{"id": name, **about} for name in MODELS]
        return JSONResponse({"object": "list", "data": data})

    async def _embeddings(self, request: Request) -> Response:
        body = await request.json()
        self._count_request("embeddings")
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        data = []
        for index, text in enumerate(texts):
            vector: object = embed(str(text))
            if body.get("encoding_format") == "base64":
                packed = struct.pack(f"<{EMBEDDING_DIMENSIONS}f", *embed(str(text)))
                vector = base64.b64encode(packed).decode()
            data.append({"object": "embedding", "index": index, "embedding": vector})
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        return JSONResponse(
            {"object": "list", "data": data, "model": body.get("model"), "usage": usage}
        )

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        self._bodies = [*self._bodies, body][-_KEPT_BODIES:]
        self._count_request("chat")
        self._stats["in_flight"] += 1
        self._stats["most"] = max(self._stats["most"], self._stats["in_flight"])
        try:
            answer = decide(body["messages"], body.get("tools") or (), **self._manner)
            await asyncio.sleep(answer.delay_s)
            if answer.fate == "hang":
                while (await request.receive())["type"] != "http.disconnect":
                    pass
            return self._render(body, answer)
        finally:
            self._stats["in_flight"] -= 1

    def _render(self, body: Json, answer: Answer) -> Response:
        if answer.status != 200:
            code = f"scripted_{answer.status}"
            error = {"message": answer.text, "type": "scripted", "code": code}
            headers = {"retry-after": "1"} if answer.status == 429 else None
            return JSONResponse({"error": error}, answer.status, headers)
        number = next(self._count)
        head = {"id": f"chatcmpl-{number}", "created": int(time.time()), "model": body.get("model")}
        prompt_tokens = max(1, len(json.dumps(body["messages"])) // 4)
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 10}
        usage["total_tokens"] = sum(usage.values())
        if body.get("stream"):
            told = usage if (body.get("stream_options") or {}).get("include_usage") else None
            pieces = _stream(head, answer, number, told, self._streamed)
            if answer.fate == "die":
                return _Cut(pieces, "text/event-stream")
            return StreamingResponse(pieces, media_type="text/event-stream")
        message: dict[str, Any] = {"role": "assistant", "content": answer.text or None}
        if answer.thinking:
            message["reasoning_content"] = answer.thinking
        if answer.calls:
            message["tool_calls"] = [_call(c, number, i) for i, c in enumerate(answer.calls)]
        choice = {"index": 0, "message": message, "finish_reason": _finish(answer)}
        reply = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
        if answer.fate == "die":
            return _Cut(_half(json.dumps(reply)), "application/json")
        return JSONResponse(reply)


async def _stream(
    head: Json, answer: Answer, number: int, usage: Json | None, streamed: dict[str, int]
) -> AsyncIterator[str]:
    """Server-sent events of one answer; one that dies ends after its second word."""

    def event(delta: Json, finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return _event({**head, "object": "chat.completion.chunk", "choices": [choice]})

    yield event({"role": "assistant", "content": ""})
    for word in re.findall(r"\S+\s*", answer.thinking):
        yield event({"reasoning_content": word})
    for count, word in enumerate(re.findall(r"\S+\s*|\s+", answer.text)):
        if answer.fate == "die" and count == 2:
            return
        await asyncio.sleep(answer.chunk_delay_s if count else 0)
        yield event({"content": word})
        streamed |= {answer.text: streamed.get(answer.text, 0) + 1} if answer.chunk_delay_s else {}
    if answer.fate == "die":
        return
    for index, call in enumerate(answer.calls):
        whole = _call(call, number, index)
        name = {"name": call.name, "arguments": ""}
        yield event({"tool_calls": [{**whole, "index": index, "function": name}]})
        for start in range(0, len(call.arguments), _ARGUMENT_PIECE):
            piece = {"arguments": call.arguments[start : start + _ARGUMENT_PIECE]}
            yield event({"tool_calls": [{"index": index, "function": piece}]})
    yield event({}, _finish(answer))
    if usage is not None:
        yield _event({**head, "object": "chat.completion.chunk", "choices": [], "usage": usage})
    yield "data: [DONE]\n\n"


async def _half(text: str) -> AsyncIterator[str]:
    yield text[: len(text) // 2]


def _event(data: Json) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _call(call: ToolCall, number: int, index: int) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{number}_{index}", "type": "function", "function": function}


def _finish(answer: Answer) -> str:
    return "tool_calls" if answer.calls else "stop"


# --- As a child process --------------------------------------------------------------------------


class ScriptedModel:
    """The scripted model as a child process on a free port of the loopback interface."""

    def __init__(self, directory: Path, directives: bool = True, persona: bool = False) -> None:
        """``directory`` gets its log. ``persona``: say once that it is scripted, then be brief."""
        self.port = free_port()
        flags = ["--directives" if directives else "--no-directives"]
        flags += ["--persona"] if persona else []
        argv = [sys.executable, "-m", "homeroom.local.scripted_model", "--port", str(self.port)]
        directory.mkdir(parents=True, exist_ok=True)
        # Found by the child wherever the parent found it, relative entries included.
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(p) for p in sys.path)}
        log = directory / "scripted-model.log"
        self._child = Child("the scripted model", [*argv, *flags], cwd=directory, log=log, env=env)

    @property
    def base_url(self) -> str:
        """The base URL that an OpenAI client wants."""
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> ScriptedModel:
        """Returns itself, ready to answer. Raises ChildFailed with the end of its log."""
        self._child.start()
        self._child.wait_ready(lambda: bool(self._get("/v1/models")), _START_TIMEOUT_S)
        return self

    def stats(self) -> Json:
        """Counters ``requests``, ``chat``, ``embeddings``, ``in_flight``, ``most`` (at once),
        ``bodies`` (the last requests) and ``streamed`` (slow answer -> words sent)."""
        stats: Json = json.loads(self._get("/stats"))
        return stats

    def stop(self) -> None:
        self._child.stop()

    def check(self) -> None:
        """Raises ChildFailed if it has ended by itself."""
        self._child.check()

    def _get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5.0)
        try:
            connection.request("GET", path)
            return connection.getresponse().read()
        finally:
            connection.close()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m homeroom.local.scripted_model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--directives", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--persona", action="store_true", help="say that it is scripted, kindly")
    options = parser.parse_args(arguments)
    app = _Server(directives=options.directives, persona=options.persona).app()
    grace_s = 1  # an answer that hangs on purpose must not keep the process from stopping
    uvicorn.run(app, port=options.port, log_level="warning", timeout_graceful_shutdown=grace_s)


if __name__ == "__main__":
    main()
