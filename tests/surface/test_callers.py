"""Several tokens at one server: who is let in, what each may do, and who a tool takes it for."""

from __future__ import annotations

import http.client
import json
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError
from mcp_types import ResourceTemplateReference

from homeroom.errors import ConfigError
from homeroom.reading import AgentPage
from homeroom_tools import gate
from homeroom_tools.caller import SCOPES, current_caller
from homeroom_tools.gate import MAX_BODY_BYTES
from homeroom_tools.scopes import INSUFFICIENT_SCOPE
from homeroom_tools.serve import Site, Tokens, build_server, run_http
from homeroom_tools.tokens import new_token, revoke_token
from support.client import connect
from support.fake_app import FakeApp
from support.fake_http import ACCEPT, INITIALIZE, ask, serve
from support.fake_process import START_LIMIT_S

URL = "http://127.0.0.1:{}"
SHARED = "the-token-in-the-settings"
ERAS = ["legacy", "2026-07-28"]
WAYS = ["http", "sse"]
MODERN = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
}


class Attentive(FakeApp):
    """Notes whom it works for."""

    def __init__(self) -> None:
        super().__init__()
        self.callers: list[str] = []
        self.senders: list[str] = []

    async def list_agents(self, *args: Any, **kwargs: Any) -> AgentPage:
        self.callers.append(current_caller())
        return await super().list_agents(*args, **kwargs)

    async def chat(self, *args: Any, **kwargs: Any) -> str:
        self.senders.append(kwargs["from_agent"])
        return await super().chat(*args, **kwargs)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


@asynccontextmanager
async def serving(tokens: Tokens, rate_per_s: float = 0.0) -> AsyncIterator[tuple[Attentive, int]]:
    """The app and its port, in this process."""
    app, stop, ready = Attentive(), anyio.Event(), anyio.Event()
    ports: list[int] = []

    def on_ready(port: int) -> None:
        ports.append(port)
        ready.set()

    async def run() -> None:
        site = Site(tokens=tokens, rate_per_s=rate_per_s)
        await run_http(build_server(app), site, health=app.health, stop=stop, on_ready=on_ready)  # type: ignore[arg-type]

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        with anyio.fail_after(START_LIMIT_S):
            await ready.wait()
        try:
            yield app, ports[0]
        finally:
            stop.set()


# --- who a tool works for ------------------------------------------------------------------------


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("way", WAYS)
async def test_a_tool_knows_whose_call_it_is(way: str, era: str, file: Path) -> None:
    phone, desk = new_token(file, "phone", ["read"]), new_token(file, "desk", ["read"])
    async with (
        serving(Tokens(file, SHARED)) as (app, port),
        connect(URL.format(port), phone, way, era) as one,
        connect(URL.format(port), desk, way, era) as two,
        connect(URL.format(port), SHARED, way, era) as three,
    ):
        for client in (one, two, one, three, two):
            await client.call_tool("list_agents", {})
    assert app.callers == ["phone", "desk", "phone", "http-token", "desk"]


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("way", WAYS)
async def test_without_tokens_everybody_on_the_machine_is_one_caller(way: str, era: str) -> None:
    async with serving(Tokens()) as (app, port), connect(URL.format(port), "", way, era) as client:
        await client.call_tool("list_agents", {})
    assert app.callers == ["local"]


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("way", WAYS)
async def test_a_chat_is_an_agents_by_its_token_and_not_by_what_the_client_says(
    way: str, era: str, file: Path
) -> None:
    agents, persons = new_token(file, "ada", ["chat"], "agent-1"), new_token(file, "me", ["chat"])
    said = {"agent": "Ada", "message": "Hi", "wait_s": 0}
    async with (
        serving(Tokens(file)) as (app, port),
        connect(URL.format(port), agents, way, era) as ada,
        connect(URL.format(port), persons, way, era) as me,
    ):
        for client in (ada, me, ada):
            assert not (await client.call_tool("chat_with_agent", said)).is_error
        forged = await me.call_tool("chat_with_agent", {**said, "from_agent": "agent-1"})
    assert forged.is_error
    assert app.senders == ["agent-1", "", "agent-1"]


async def test_in_memory_the_caller_is_local() -> None:
    app = Attentive()
    async with Client(build_server(app)) as client:  # type: ignore[arg-type]
        await client.call_tool("list_agents", {})
    assert app.callers == ["local"]


# --- scopes --------------------------------------------------------------------------------------

CALLS: list[tuple[str, str, dict[str, Any]]] = [
    ("read", "list_agents", {}),
    ("read", "get_agent", {"agent": "Ada", "detail": "full"}),
    ("operate", "sync_agents", {"dry_run": True}),
    ("read", "get_sync_status", {}),
    ("chat", "chat_with_agent", {"agent": "Ada", "message": "Hi"}),
    ("chat", "get_reply", {"reply_id": "reply-1"}),
    ("read", "read_room", {"room": "Ada"}),
    ("read", "list_rooms", {}),
    ("read", "get_agent_memory", {"agent": "Ada"}),
    ("memory", "update_agent_memory", {"agent": "Ada", "label": "persona", "value": "x"}),
    ("read", "search_agent_memory", {"agent": "Ada", "query": "x"}),
    ("read", "explain_delivery", {"id": "$asked"}),
    ("operate", "diagnose_rooms", {}),
    ("operate", "diagnose_rooms", {"fix": True}),
    ("read", "list_parked", {}),
    ("operate", "replay_parked", {"id": "item-1"}),
]


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("way", WAYS)
async def test_each_scope_opens_its_own_tools_and_all_are_listed(
    way: str, era: str, file: Path
) -> None:
    holders = {scope: new_token(file, scope, [scope]) for scope in SCOPES}
    async with serving(Tokens(file)) as (_, port):
        lists = []
        for held, token in holders.items():
            async with connect(URL.format(port), token, way, era) as client:
                lists.append([tool.name for tool in (await client.list_tools()).tools])
                for needed, tool, arguments in CALLS:
                    if needed == held:
                        assert not (await client.call_tool(tool, arguments)).is_error
                        continue
                    with pytest.raises(MCPError) as caught:
                        await client.call_tool(tool, arguments)
                    assert caught.value.code == INSUFFICIENT_SCOPE
                    assert f"lacks the scope '{needed}'" in str(caught.value)
    assert all(names == lists[0] for names in lists)
    assert {tool for _, tool, _ in CALLS} == set(lists[0])


READS: list[tuple[str, Callable[[Client], Awaitable[Any]]]] = [
    ("resource", lambda client: client.read_resource("agent://agent-0001")),
    ("memory", lambda client: client.read_resource("agent://agent-0001/memory/persona")),
    ("room", lambda client: client.read_resource("room://agent-0001/messages")),
    ("prompt", lambda client: client.get_prompt("brief_me_on_agent", {"agent": "Ada"})),
    (
        "completion",
        lambda client: client.complete(
            ResourceTemplateReference(uri="agent://{id}"), {"name": "id", "value": ""}
        ),
    ),
]


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("way", WAYS)
async def test_resources_prompts_and_completions_are_for_those_who_may_read(
    way: str, era: str, file: Path
) -> None:
    holders = {scope: new_token(file, scope, [scope]) for scope in SCOPES}
    async with serving(Tokens(file)) as (_, port):
        for held, token in holders.items():
            async with connect(URL.format(port), token, way, era) as client:
                for name, read in READS:
                    if held == "read":
                        assert await read(client), name
                        continue
                    with pytest.raises(MCPError) as caught:
                        await read(client)
                    assert caught.value.code == INSUFFICIENT_SCOPE, name
                if held != "read":
                    with pytest.raises(MCPError) as caught:
                        await watch(client, era)
                    assert caught.value.code == INSUFFICIENT_SCOPE


async def watch(client: Client, era: str) -> None:
    uri = "agent://agent-0001/memory/persona"
    if era == "legacy":
        with warnings.catch_warnings(action="ignore"):  # the SDK's words on the old era
            await client.subscribe_resource(uri)
        return
    async with client.listen(resource_subscriptions=[uri]):
        pass


@pytest.mark.parametrize("way", WAYS)
async def test_a_reply_is_fetched_by_whoever_asked_and_by_nobody_else(way: str, file: Path) -> None:
    one, two = new_token(file, "one", ["chat"]), new_token(file, "two", SCOPES)
    asked = {"agent": "Slow Sam", "message": "Hi", "wait_s": 0}
    async with (
        serving(Tokens(file)) as (app, port),
        connect(URL.format(port), one, way, "legacy") as asking,
        connect(URL.format(port), one, way, "2026-07-28") as again,
        connect(URL.format(port), two, way, "2026-07-28") as other,
    ):
        pending = await asking.call_tool("chat_with_agent", asked)
        assert pending.structured_content is not None
        reply_id = pending.structured_content["reply_id"]
        app.answer(reply_id, "for one alone")
        refused = await other.call_tool("get_reply", {"reply_id": reply_id})
        assert refused.is_error and "for one alone" not in str(refused.content)
        got = await again.call_tool("get_reply", {"reply_id": reply_id})
    assert got.structured_content is not None
    assert got.structured_content["reply"] == "for one alone"


async def test_over_http_a_lacking_scope_is_403_with_the_challenge_of_rfc_6750(file: Path) -> None:
    """Source: https://www.rfc-editor.org/rfc/rfc6750#section-3.1"""
    phone = new_token(file, "phone", ["read"])
    params = {"name": "sync_agents", "arguments": {}, "_meta": MODERN}
    request = {"jsonrpc": "2.0", "id": "seven", "method": "tools/call", "params": params}
    headers = ACCEPT | {
        "Authorization": f"Bearer {phone}",
        "MCP-Protocol-Version": "2026-07-28",
        "Mcp-Method": "tools/call",
        "Mcp-Name": "sync_agents",
    }
    async with serving(Tokens(file)) as (_, port), httpx2.AsyncClient() as client:
        url = f"http://127.0.0.1:{port}"
        answer = await client.post(f"{url}/mcp", headers=headers, json=request)
        assert answer.status_code == 403
        assert answer.headers["www-authenticate"] == (
            'Bearer realm="homeroom", error="insufficient_scope", scope="operate"'
        )
        assert answer.json()["id"] == "seven"
        assert answer.json()["error"]["code"] == INSUFFICIENT_SCOPE
        # A request that the gate reads in one way and the SDK in another gains nothing.
        twice = json.dumps(request).replace(
            '"method": "tools/call"', '"method": "tools/call", "method": "ping"'
        )
        answer = await client.post(f"{url}/mcp", headers=headers, content=twice)
        assert answer.status_code >= 400 or "error" in answer.json()


async def test_metrics_need_the_scope_read(file: Path) -> None:
    read, chat = new_token(file, "prometheus", ["read"]), new_token(file, "phone", ["chat"])
    async with serving(Tokens(file)) as (_, port), httpx2.AsyncClient() as client:
        url = f"http://127.0.0.1:{port}/metrics"
        answers = [
            await client.get(url, headers=headers)
            for headers in (
                {},
                {"Authorization": f"Bearer {chat}"},
                {"Authorization": f"Bearer {read}"},
            )
        ]
    assert [answer.status_code for answer in answers] == [401, 403, 200]
    assert answers[2].headers["content-type"].startswith("text/plain; version=")
    assert "homeroom_ok 1.0\n" in answers[2].text


async def test_health_tells_details_to_whoever_may_read_and_the_status_to_the_others(
    file: Path,
) -> None:
    read, chat = new_token(file, "prometheus", ["read"]), new_token(file, "phone", ["chat"])
    async with serving(Tokens(file)) as (_, port), httpx2.AsyncClient() as client:
        url = f"http://127.0.0.1:{port}/health"
        told = [
            (await client.get(url, headers={"Authorization": f"Bearer {token}"})).json()
            for token in (read, chat)
        ]
    assert told == [{"status": "ok", "agents": 2}, {"status": "ok"}]


# --- sessions, rates, revocation -----------------------------------------------------------------


def open_session(port: int, token: str) -> str:
    answer = ask(port, "POST", "/mcp", authorized(token), json.dumps(INITIALIZE))
    assert answer.status == 200
    return str(answer.headers["mcp-session-id"])


def authorized(token: str, **headers: str) -> dict[str, str]:
    return ACCEPT | {"Authorization": f"Bearer {token}"} | headers


PING = json.dumps({"jsonrpc": "2.0", "id": 2, "method": "ping"})


Guarded = tuple[int, str, str]


def guard(directory: Path, file: Path) -> Iterator[Guarded]:
    one, two = new_token(file, "one", ["read"]), new_token(file, "two", SCOPES)
    for port in serve(directory, "0.0.0.0", "", str(file)):
        yield port, one, two


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """The port of a server open to others, and two tokens for it."""
    directory = tmp_path_factory.mktemp("guarded")
    yield from guard(directory, directory / "tokens.json")


@pytest.fixture
def own_guarded(file: Path, tmp_path: Path) -> Iterator[Guarded]:
    """The same, and nobody else uses it: its tokens are in ``file``."""
    yield from guard(tmp_path, file)


def test_a_session_answers_to_the_caller_that_opened_it_alone(
    guarded: Guarded,
) -> None:
    port, one, two = guarded
    session = {"Mcp-Session-Id": open_session(port, one)}
    assert ask(port, "POST", "/mcp", authorized(one) | session, PING).status == 200
    for method in ("POST", "GET", "DELETE"):
        assert ask(port, method, "/mcp", authorized(two) | session, PING).status == 404
    assert ask(port, "POST", "/mcp", authorized(one) | session, PING).status == 200


def test_an_sse_session_of_another_caller_is_not_there(guarded: Guarded) -> None:
    port, one, two = guarded
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_LIMIT_S)
    try:
        connection.request("GET", "/sse", headers=authorized(one))
        stream = connection.getresponse()
        assert stream.readline().startswith(b"event: endpoint")
        path = stream.readline().decode().removeprefix("data: ").strip()
        assert ask(port, "POST", path, authorized(two), json.dumps(INITIALIZE)).status == 404
        assert ask(port, "POST", path, authorized(one), json.dumps(INITIALIZE)).status == 202
    finally:
        connection.close()


def test_a_revoked_token_is_refused_in_the_middle_of_its_session(
    own_guarded: Guarded, file: Path
) -> None:
    port, one, two = own_guarded
    session = {"Mcp-Session-Id": open_session(port, one)}
    revoke_token(file, "one")
    assert ask(port, "POST", "/mcp", authorized(one) | session, PING).status == 401
    revoke_token(file, "two")
    file.unlink()  # a server that others reach does not open because its file is gone
    assert ask(port, "POST", "/mcp", authorized(two), json.dumps(INITIALIZE)).status == 401
    assert ask(port, "POST", "/mcp", ACCEPT, json.dumps(INITIALIZE)).status == 401


def test_a_damaged_file_closes_the_door_and_the_server_lives(
    own_guarded: Guarded, file: Path
) -> None:
    port, one, _ = own_guarded
    whole = file.read_text()
    file.write_text(whole[:-20])
    assert ask(port, "POST", "/mcp", authorized(one), json.dumps(INITIALIZE)).status == 503
    file.write_text(whole)
    assert ask(port, "POST", "/mcp", authorized(one), json.dumps(INITIALIZE)).status == 200


def test_a_caller_that_asks_too_often_is_told_when_to_come_back_and_others_are_not(
    file: Path, tmp_path: Path
) -> None:
    one, two = new_token(file, "one", ["read"]), new_token(file, "two", ["read"])
    for port in serve(tmp_path, "127.0.0.1", "", str(file), "0.01"):
        answers = [ask(port, "GET", "/health", authorized(one)) for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 429, 429]
        assert 0 < int(answers[-1].headers["retry-after"]) <= 100
        assert ask(port, "GET", "/health", authorized(two)).status == 200


async def test_what_others_do_without_a_right_token_slows_nobody_down_who_has_one(
    file: Path,
) -> None:
    """A token may be called what the gate once called those who probe without any."""
    rights = [new_token(file, name, ["read"]) for name in ("probe", "one")]
    async with serving(Tokens(file), 0.01) as (_, port), httpx2.AsyncClient() as client:

        async def ask_as(token: str, path: str) -> int:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            answer = await client.get(f"http://127.0.0.1:{port}{path}", headers=headers)
            return answer.status_code

        assert [await ask_as("", "/health") for _ in range(2)] == [200, 429]
        assert {await ask_as(f"wrong{n}", "/metrics") for n in range(50)} == {401}
        assert [await ask_as(right, "/metrics") for right in rights] == [200, 200]
        assert [await ask_as(right, "/metrics") for right in rights] == [429, 429]


async def test_reading_a_resource_counts_against_the_rate_as_a_call_does(file: Path) -> None:
    one = new_token(file, "one", ["read"])
    params = {"uri": "agent://agent-0001", "_meta": MODERN}
    request = {"jsonrpc": "2.0", "id": 1, "method": "resources/read", "params": params}
    headers = authorized(one) | {
        "MCP-Protocol-Version": "2026-07-28",
        "Mcp-Method": "resources/read",
        "Mcp-Name": "agent://agent-0001",
    }
    async with serving(Tokens(file), 0.5) as (_, port), httpx2.AsyncClient() as client:
        url = f"http://127.0.0.1:{port}/mcp"
        answers = [await client.post(url, headers=headers, json=request) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert "Ada" in answers[0].text and "Ada" not in answers[2].text


async def test_one_caller_cannot_take_all_sessions_or_all_streams(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "MAX_SESSIONS_EACH", 2)
    monkeypatch.setattr(gate, "MAX_AT_ONCE", 2)
    one, two = new_token(file, "one", ["read"]), new_token(file, "two", ["read"])
    async with serving(Tokens(file)) as (_, port), httpx2.AsyncClient() as client:
        url = f"http://127.0.0.1:{port}"

        async def begin(token: str) -> httpx2.Response:
            return await client.post(f"{url}/mcp", headers=authorized(token), json=INITIALIZE)

        opened = [await begin(one) for _ in range(3)]
        assert [answer.status_code for answer in opened] == [200, 200, 429]
        assert (await begin(two)).status_code == 200
        session = {"Mcp-Session-Id": opened[0].headers["mcp-session-id"]}
        await client.delete(f"{url}/mcp", headers=authorized(one) | session)
        assert (await begin(one)).status_code == 200

        async def knock(token: str) -> int:
            return (await client.get(f"{url}/none", headers=authorized(token))).status_code

        async with (
            client.stream("GET", f"{url}/sse", headers=authorized(one)),
            client.stream("GET", f"{url}/sse", headers=authorized(one)),
        ):
            assert (await knock(one), await knock(two)) == (429, 404)
        with anyio.fail_after(START_LIMIT_S):
            while await knock(one) != 404:
                pass


@pytest.mark.parametrize("era", ERAS)
async def test_sixteen_clients_at_once_are_each_taken_for_who_they_are(
    era: str, file: Path
) -> None:
    tokens = {name: new_token(file, name, ["read", "chat"]) for name in ("phone", "desk")}

    async def use(port: int, name: str, number: int) -> None:
        async with connect(URL.format(port), tokens[name], "http", era) as client:
            for _ in range(3):
                assert not (await client.call_tool("list_agents", {})).is_error
            said = {"agent": "Ada", "message": f"I am {name} {number}"}
            answer = await client.call_tool("chat_with_agent", said)
            assert answer.structured_content is not None
            assert answer.structured_content["reply"] == said["message"]

    async with serving(Tokens(file)) as (app, port), anyio.create_task_group() as group:
        for number in range(16):
            group.start_soon(use, port, ("phone", "desk")[number % 2], number)
    assert {name: app.callers.count(name) for name in tokens} == {"phone": 24, "desk": 24}
    assert all(chat.message.startswith(f"I am {chat.caller} ") for chat in app.chats.values())
    assert len(app.chats) == 16


# --- the rest of the table -----------------------------------------------------------------------

POST = json.dumps(INITIALIZE).encode()
TABLE: list[tuple[str, dict[str, str], bytes, int]] = [
    ("wrong Host", {"Host": "evil.example"}, POST, 421),
    ("wrong Origin", {"Origin": "http://evil.example"}, POST, 403),
    ("no token", {"Authorization": ""}, POST, 401),
    ("wrong token", {"Authorization": "Bearer hr_wrong"}, POST, 401),
    ("oversized body", {}, b"x" * (MAX_BODY_BYTES + 1), 413),
    ("batch", {}, json.dumps([INITIALIZE, INITIALIZE]).encode(), 400),
    ("unknown version", {"MCP-Protocol-Version": "1999-01-01"}, POST, 400),
    ("deeply nested", {}, b'{"method":' + b"[" * 100_000, 400),
    ("no JSON", {}, b"{", 400),
    ("not even text", {}, b"\xff\x00", 400),
    ("fine", {}, POST, 200),
]


@pytest.mark.parametrize(
    ("headers", "body", "status"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_each_wrong_request_gets_the_right_status_and_the_server_lives(
    guarded: Guarded, headers: dict[str, str], body: bytes, status: int
) -> None:
    port, one, _ = guarded
    assert ask(port, "POST", "/mcp", authorized(one) | headers, body).status == status
    assert ask(port, "GET", "/health", authorized(one)).status == 200


def test_a_body_in_pieces_without_a_length_is_cut_off_as_well(
    guarded: Guarded,
) -> None:
    port, one, _ = guarded
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_LIMIT_S)
    pieces = (b"x" * 65_536 for _ in range(MAX_BODY_BYTES // 65_536 + 1))
    try:
        connection.request("POST", "/mcp", pieces, authorized(one), encode_chunked=True)
        assert connection.getresponse().status == 413
    finally:
        connection.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "homeroom.example"])
async def test_a_file_whose_tokens_are_all_revoked_opens_no_server_to_others(
    host: str, file: Path
) -> None:
    new_token(file, "one", ["read"])
    revoke_token(file, "one")
    app = FakeApp()
    with pytest.raises(ConfigError, match="homeroom token new") as caught:
        await run_http(
            build_server(app),  # type: ignore[arg-type]
            Site(host, tokens=Tokens(file)),
            health=app.health,
            stop=anyio.Event(),
        )
    assert caught.value.variable == "HOMEROOM_HTTP_TOKEN"
