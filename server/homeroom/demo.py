"""``homeroom demo``: the main job once, against real servers, printed and timed.

Owns the transcript. Everything it shows goes through the doors that users have: the service is a
child process, the person a Matrix client with a password, the LLM clients the official MCP client.
"""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import anyio
import click
import httpx
from rich.console import Console

from homeroom.errors import HomeroomError, Rejected
from homeroom.local.child import Child, free_port
from homeroom.local.stack import LocalStack

T = TypeVar("T")

REPLY_S = 180.0
"""How long a reply may take: a real model on a small machine is slow."""
QUESTION = "What is my favourite colour?"
COLOURS = {"stdio": "teal", "Streamable HTTP": "amber"}
QUIET = {"HOMEROOM_LOG_LEVEL": "ERROR"}
"""Laid over the settings of the processes shown, so that the transcript is theirs alone."""
INDENT = " " * 4
LINE_CHARS = 100
"""What a line may have; rich must not fold lines where the output is a file or a pipe."""


class Transcript:
    """Prints one line per step with the time it took, and a spinner while it lasts."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._started_s = time.monotonic()

    @contextmanager
    def step(self, title: str) -> Iterator[list[str]]:
        """A step; lines appended to what it yields are printed under it when it succeeds."""
        began_s, lines = time.monotonic(), list[str]()
        try:
            with self._console.status(f"{title} …"):
                yield lines
        except BaseException:
            self._line("✗", title, began_s)
            raise
        self._line("✓", title, began_s)
        for line in lines:
            self._print(_flat(INDENT + line, LINE_CHARS), style="dim")

    def _line(self, mark: str, title: str, began_s: float) -> None:
        took_s = time.monotonic() - began_s
        self._print(f"{mark} {took_s:7.2f} s  {title}")

    def end(self, text: str) -> None:
        total_s = time.monotonic() - self._started_s
        self._print(f"\n{text} {total_s:.1f} s in all.")

    def _print(self, line: str, style: str = "") -> None:
        self._console.print(line, markup=False, style=style, soft_wrap=True)


class Person:
    """A person's own Matrix client, as small as it can be: password, rooms, messages."""

    def __init__(self, http: httpx.AsyncClient, user_id: str) -> None:
        self._http, self.user_id = http, user_id
        self._since = ""

    async def login(self, password: str) -> None:
        answer = await self._call(
            "POST", "login",
            {"type": "m.login.password", "password": password,
             "identifier": {"type": "m.id.user", "user": self.user_id}},
        )  # fmt: skip
        self._http.headers["Authorization"] = f"Bearer {answer['access_token']}"

    async def sync(self) -> dict[str, Any]:
        query = "timeout=10000" + (f"&since={self._since}" if self._since else "")
        answer = await self._call("GET", f"sync?{query}")
        self._since = answer["next_batch"]
        return dict(answer.get("rooms", {}))

    async def invitations(self, count: int) -> dict[str, tuple[str, str]]:
        """Waits for so many rooms; room id -> (name of the room, who invites)."""
        found: dict[str, tuple[str, str]] = {}
        while len(found) < count:
            for room_id, room in (await self.sync()).get("invite", {}).items():
                events = room["invite_state"]["events"]
                if any(event["content"].get("type") == "m.space" for event in events):
                    continue  # what the rooms hang in
                name = next(e["content"]["name"] for e in events if e["type"] == "m.room.name")
                host = next(e["sender"] for e in events if e.get("state_key") == self.user_id)
                found[room_id] = (name, host)
        return found

    async def join(self, room_id: str) -> None:
        await self._call("POST", f"join/{room_id}", {})

    async def say(self, room_id: str, text: str) -> str:
        content = {"msgtype": "m.text", "body": text}
        path = f"rooms/{room_id}/send/m.room.message/{time.time_ns()}"
        return str((await self._call("PUT", path, content))["event_id"])

    async def reply_to(self, event_id: str) -> dict[str, Any]:
        """Waits for the message that answers the event."""
        while True:
            for room in (await self.sync()).get("join", {}).values():
                for event in room["timeline"]["events"]:
                    relation = event["content"].get("m.relates_to") or {}
                    if (relation.get("m.in_reply_to") or {}).get("event_id") == event_id:
                        return dict(event)

    async def _call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        answer = await self._http.request(method, f"/_matrix/client/v3/{path}", json=body)
        if answer.is_error:
            raise Rejected("matrix", f"{method} {path.partition('?')[0]}", str(answer.status_code))
        return dict(answer.json())


def run_demo(keep: bool) -> int:
    """Runs it in a directory of its own and stops everything. 0 if every step succeeded, else 1."""
    transcript = Transcript()
    holder = (
        nullcontext(tempfile.mkdtemp(prefix="homeroom-demo-"))
        if keep
        else tempfile.TemporaryDirectory(prefix="homeroom-demo-")
    )
    with holder as directory:
        stack = LocalStack(Path(directory).resolve(), os.environ)
        service: Child | None = None
        try:
            with transcript.step("real servers started: Letta App Server, Synapse") as lines:
                stack.start(lambda step: None)
                lines.append(f"model: {stack.model_name}")
            with transcript.step("three agents made in Letta") as lines:
                lines += [f"{agent.name}  {agent.id}" for agent in anyio.run(stack.seed)]
            with transcript.step("homeroom serve --http started"):
                service, url = _start_service(stack)
            anyio.run(_main_job, stack, url, transcript)
            code, verdict = 0, "It works."
        except (HomeroomError, TimeoutError, AssertionError) as error:
            click.echo(f"\nThe demo failed: {error or type(error).__name__}", err=True)
            if service is not None:
                click.echo(service.log_tail(30), err=True)
            code, verdict = 1, "It does not work."
        finally:
            with transcript.step("everything stopped"):
                if service is not None:
                    service.stop()
                stack.stop()
    transcript.end(verdict + (f" Kept in {directory}." if keep else ""))
    return code


def _environ(stack: LocalStack) -> dict[str, str]:
    """The environment of what the demo starts: nobody's settings but the stack's."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("HOMEROOM_")}
    return own | stack.environ | QUIET


def _start_service(stack: LocalStack) -> tuple[Child, str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}/health"
    service = Child(
        "homeroom",
        [sys.executable, "-m", "homeroom", "serve", "--http", str(port)],
        cwd=stack.directory,
        log=stack.directory / "homeroom.log",
        env=_environ(stack),
    )
    service.start()

    def is_ready() -> bool:
        try:
            return httpx.get(url, timeout=5, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    service.wait_ready(is_ready, 60)
    return service, f"http://127.0.0.1:{port}/mcp"


async def _main_job(stack: LocalStack, url: str, transcript: Transcript) -> None:
    from mcp import Client, StdioServerParameters

    async with httpx.AsyncClient(
        base_url=stack.homeserver_url, timeout=60, trust_env=False
    ) as http:
        person = Person(http, stack.person_id)
        await person.login(stack.password)
        with transcript.step("a ghost and a room for each, and the person invited") as lines:
            rooms = await _within(60, person.invitations(3))
            lines += [f"{host}  {name}" for name, host in rooms.values()]
        room_id, (room_name, ghost) = next(
            (room, about) for room, about in rooms.items() if about[0].startswith("Ada ")
        )
        with transcript.step(f"a person writes in “{room_name}” and the agent answers") as lines:
            await person.join(room_id)
            question = "Hello! Who are you?"
            event_id = await person.say(room_id, question)
            reply = await _within(REPLY_S, person.reply_to(event_id))
            assert reply["sender"] == ghost, f"{reply['sender']} answered, not {ghost}"
            assert reply["content"]["msgtype"] == "m.text", reply["content"]["body"]
            lines += [f"you: {question}", f"Ada: {reply['content']['body']}"]

    stdio = StdioServerParameters(
        command=sys.executable,
        args=["-m", "homeroom", "serve"],
        env=_environ(stack),
    )
    for way, target in (("stdio", stdio), ("Streamable HTTP", url)):
        async with Client(target) as client:
            await _use_tools(client, way, COLOURS[way], transcript)


async def _use_tools(client: Any, way: str, colour: str, transcript: Transcript) -> None:
    """List, chat, read memory, change it, read it again, and have the agent use it."""

    async def call(tool: str, **arguments: Any) -> dict[str, Any]:
        result = await client.call_tool(tool, arguments)
        assert not result.is_error, f"{tool}: {result.content[0].text}"
        return dict(result.structured_content)

    async def chat(message: str) -> str:
        # A key of its own: the same question a moment later is meant to be asked again.
        key = secrets.token_hex(8)
        answer = await call("chat_with_agent", agent="Ada", message=message, idempotency_key=key)
        while answer["status"] == "pending":
            answer = await call("get_reply", reply_id=answer["reply_id"])
        assert answer["status"] == "complete", answer
        return str(answer.get("reply", ""))

    with transcript.step(f"MCP over {way}: list_agents") as lines:
        listed = await call("list_agents")
        lines.append(", ".join(agent["name"] for agent in listed["agents"]))
    with transcript.step(f"MCP over {way}: chat_with_agent") as lines:
        lines.append(await _within(REPLY_S, chat(f"A greeting over {way}.")))
    with transcript.step(f"MCP over {way}: get_agent_memory, update_agent_memory, read again"):
        before = (await call("get_agent_memory", agent="Ada", label="human"))["blocks"][0]
        value = f"What I know about the person I talk to:\nTheir favourite colour is {colour}."
        await call(
            "update_agent_memory", agent="Ada", label="human", value=value,
            expected_revision=before["revision"],
        )  # fmt: skip
        after = (await call("get_agent_memory", agent="Ada", label="human"))["blocks"][0]
        assert after["value"].strip() == value, after["value"]
    with transcript.step(f"MCP over {way}: the agent knows the new memory, and keeps it") as lines:
        # Twice, with other talk between: what an agent is told for one turn is not its memory.
        for message in (QUESTION, f"Thank you, over {way}.", QUESTION):
            reply = await _within(REPLY_S, chat(message))
            lines += [f"you: {message}", f"Ada: {reply}"]
            if message == QUESTION:
                assert colour in reply.lower(), f"the agent answered {reply!r}, not {colour}"


async def _within(limit_s: float, awaitable: Awaitable[T]) -> T:
    with anyio.fail_after(limit_s):
        return await awaitable


def _flat(text: str, limit: int) -> str:
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= limit else line[: limit - 1] + "…"
