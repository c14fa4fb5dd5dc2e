"""The relay without Homeroom: one room, one agent, the same calls with nothing in between.

No store, no lanes, no retries, no second room. It reads the room with a hub user's /sync, hands
the message to the App Server and posts the answer. With ``full`` it also makes the calls that
Homeroom makes for the person's sake: it shows the ghost typing, and looks in the conversation's
history whether the message is there already.

Reads its settings as JSON from stdin, prints one line when it listens, and runs until it is killed.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import uuid
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
from websockets.asyncio.client import ClientConnection, connect

DEVICE_ID = "HOMEROOM"
FILTER = json.dumps(
    {
        "presence": {"types": []},
        "account_data": {"types": []},
        "room": {
            "timeline": {"types": ["m.room.message", "m.room.member"], "limit": 100},
            "state": {"types": ["m.room.member"]},
            "ephemeral": {"types": []},
            "account_data": {"types": []},
        },
    }
)


@dataclass(frozen=True)
class Settings:
    matrix_url: str
    as_token: str
    hub: str
    ghost: str
    person: str
    room_id: str
    letta_url: str
    letta_token: str
    agent_id: str
    full: bool


class BareRelay:
    def __init__(self, s: Settings, http: aiohttp.ClientSession, letta: ClientConnection) -> None:
        self._s, self._http, self._letta = s, http, letta
        self._numbers = itertools.count(1)
        self._room = f"/rooms/{quote(s.room_id, safe='')}"
        self._tasks: set[asyncio.Task[Any]] = set()
        self._conversation = ""

    async def run(self) -> None:
        answer = await self._ask(
            "conversation_create", body={"agent_id": self._s.agent_id, "summary": "bare"}
        )
        self._conversation = answer["conversation"]["id"]
        await self._join()
        since = (await self._matrix("GET", "/sync", self._s.hub, filter=FILTER))["next_batch"]
        print("listening", flush=True)
        while True:
            batch = await self._matrix(
                "GET", "/sync", self._s.hub,
                filter=FILTER, since=since, timeout="30000", set_presence="offline",
            )  # fmt: skip
            since = batch["next_batch"]
            room = batch.get("rooms", {}).get("join", {}).get(self._s.room_id, {})
            for event in room.get("timeline", {}).get("events", []):
                if event["sender"] == self._s.person and event["type"] == "m.room.message":
                    self._soon(self._answer(event))

    async def _answer(self, event: dict[str, Any]) -> None:
        if self._s.full:
            self._soon(self._typing(True))
            await self._join()
            query = {"agent_id": self._s.agent_id, "limit": 50, "order": "desc"}
            await self._ask(
                "conversation_messages_list", conversation_id=self._conversation, query=query
            )
        text = await self._turn(event["content"]["body"])
        if self._s.full:
            self._soon(self._typing(False))
        content = {
            "msgtype": "m.text",
            "body": text,
            "m.relates_to": {"m.in_reply_to": {"event_id": event["event_id"]}},
        }
        path = f"{self._room}/send/m.room.message/{uuid.uuid4().hex}"
        await self._matrix("PUT", path, self._s.ghost, content)

    async def _turn(self, text: str) -> str:
        message_id = uuid.uuid4().hex
        message = {"role": "user", "content": text, "client_message_id": message_id}
        await self._send(
            "input",
            runtime=self._runtime(),
            payload={
                "kind": "create_message",
                "messages": [message],
                "client_tool_allowlist": [],
                "exclude_interactive_tools": True,
            },
        )
        said = ""
        async for raw in self._letta:
            event = json.loads(raw)
            if event["type"] == "stream_delta":
                delta = event["delta"]
                if delta.get("message_type") == "assistant_message":
                    content = delta.get("content") or ""
                    parts = content if isinstance(content, list) else [{"text": content}]
                    said += "".join(part.get("text", "") for part in parts)
            if event["type"] == "turn_finished":
                return said
        raise ConnectionError("the App Server hung up")

    async def _join(self) -> None:
        await self._ask(
            "runtime_start",
            agent_id=self._s.agent_id,
            conversation_id=self._conversation,
            mode="strict",
            skill_sources=[],
            wait_for_replay=True,
            force_device_status=False,
        )

    def _runtime(self) -> dict[str, str]:
        return {"agent_id": self._s.agent_id, "conversation_id": self._conversation}

    async def _ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        request_id = await self._send(kind, **fields)
        async for raw in self._letta:
            answer: dict[str, Any] = json.loads(raw)
            if answer.get("request_id") == request_id and answer.get("done", True):
                return answer
        raise ConnectionError("the App Server hung up")

    async def _send(self, kind: str, **fields: Any) -> str:
        request_id = f"bare-{next(self._numbers)}"
        await self._letta.send(json.dumps({"type": kind, "request_id": request_id, **fields}))
        return request_id

    async def _typing(self, on: bool) -> None:
        path = f"{self._room}/typing/{quote(self._s.ghost, safe='')}"
        body = {"typing": True, "timeout": 30_000} if on else {"typing": False}
        await self._matrix("PUT", path, self._s.ghost, body)

    async def _matrix(
        self, method: str, path: str, user_id: str, body: Any = None, **query: str
    ) -> dict[str, Any]:
        masked = urlencode({**query, "user_id": user_id, "device_id": DEVICE_ID})
        url = f"{self._s.matrix_url}/_matrix/client/v3{path}?{masked}"
        headers = {"Authorization": f"Bearer {self._s.as_token}"}
        data = None if body is None else json.dumps(body)
        async with self._http.request(method, url, data=data, headers=headers) as response:
            answer: dict[str, Any] = json.loads(await response.read())
            assert response.status == 200, answer
            return answer

    def _soon(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(_fail_loudly)
        task.add_done_callback(self._tasks.discard)


def _fail_loudly(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        sys.exit(f"the bare relay failed: {error!r}")


async def main() -> None:
    settings = Settings(**json.loads(sys.stdin.readline()))
    headers = {"Authorization": f"Bearer {settings.letta_token}"}
    async with (
        aiohttp.ClientSession() as http,
        connect(settings.letta_url, additional_headers=headers, max_size=None) as letta,
    ):
        await BareRelay(settings, http, letta).run()


if __name__ == "__main__":
    asyncio.run(main())
