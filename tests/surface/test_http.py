"""A real server on a loopback port: who is let in, and both transports and eras behind the gate."""

from __future__ import annotations

import http.client
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp.client import Client

from homeroom.errors import ConfigError
from homeroom_tools.gate import MAX_BODY_BYTES
from homeroom_tools.serve import Site, Tokens, build_server, http_app, run_http
from support.client import connect
from support.fake_app import FakeApp
from support.fake_http import ACCEPT, INITIALIZE, ask, serve
from support.fake_process import START_LIMIT_S

TOKEN = "a-token-of-the-tests"


@pytest.fixture(scope="module")
def open_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Loopback, no token."""
    yield from serve(tmp_path_factory.mktemp("open"))


@pytest.fixture(scope="module")
def closed_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Bound to every interface, with a token."""
    yield from serve(tmp_path_factory.mktemp("closed"), "0.0.0.0", TOKEN)


ROUTES = [
    ("POST", "/mcp"),
    ("GET", "/mcp"),
    ("GET", "/sse"),
    ("POST", "/messages/?session_id=1"),
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/no-such-path"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("Host", "evil.example", 421),
        ("Host", "evil.example:80", 421),
        ("Host", "127.0.0.1.evil.example", 421),
        ("Host", "localhost@evil.example", 421),
        ("Host", "192.0.2.7:8017", 421),
        ("Host", "", 421),
        ("Origin", "http://evil.example", 403),
        ("Origin", "http://localhost.evil.example", 403),
        ("Origin", "null", 403),
        ("Origin", "", 403),
        ("Origin", "file://localhost", 403),
    ],
)
def test_a_foreign_host_or_origin_gets_nowhere(
    open_port: int, method: str, path: str, header: str, value: str, status: int
) -> None:
    response = ask(open_port, method, path, ACCEPT | {header: value}, json.dumps(INITIALIZE))
    assert response.status == status


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Host": "localhost"},
        {"Host": "LOCALHOST:1234"},
        {"Host": "[::1]:8017"},
        {"Host": "127.0.0.1", "Origin": "http://localhost:6274"},
        {"Origin": "https://127.0.0.1"},
    ],
)
def test_loopback_under_any_of_its_names_is_let_in(open_port: int, headers: dict[str, str]) -> None:
    response = ask(open_port, "POST", "/mcp", ACCEPT | headers, json.dumps(INITIALIZE))
    assert response.status == 200
    assert ask(open_port, "GET", "/health", headers).status == 200


@pytest.mark.parametrize(("method", "path"), [r for r in ROUTES if r[1] != "/health"])
@pytest.mark.parametrize(
    ("authorization", "challenge"),
    [
        (None, 'Bearer realm="homeroom"'),
        ("Bearer wrong", 'Bearer realm="homeroom", error="invalid_token"'),
        (f"Basic {TOKEN}", 'Bearer realm="homeroom", error="invalid_token"'),
        ("Bearer", 'Bearer realm="homeroom", error="invalid_token"'),
        (f"Bearer {TOKEN}x", 'Bearer realm="homeroom", error="invalid_token"'),
    ],
)
def test_without_the_token_every_route_answers_401(
    closed_port: int, method: str, path: str, authorization: str | None, challenge: str
) -> None:
    headers = dict(ACCEPT)
    if authorization is not None:
        headers["Authorization"] = authorization
    response = ask(closed_port, method, path, headers, json.dumps(INITIALIZE))
    assert (response.status, response.headers["www-authenticate"]) == (401, challenge)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "192.0.2.7:8017"}, 200),
        ({"Host": "[2001:db8::1]:8017"}, 200),
        ({"Host": "192.0.2.7", "Origin": "http://192.0.2.7:8017"}, 200),
        ({"Host": "192.0.2.7", "Origin": "http://192.0.2.8"}, 403),
        ({"Host": "rebound.example"}, 421),
    ],
)
def test_a_server_open_to_others_answers_to_addresses_but_not_to_foreign_names(
    closed_port: int, headers: dict[str, str], status: int
) -> None:
    headers = ACCEPT | {"Authorization": f"bearer {TOKEN}"} | headers
    assert ask(closed_port, "POST", "/mcp", headers, json.dumps(INITIALIZE)).status == status


def health(port: int, headers: dict[str, str]) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_LIMIT_S)
    try:
        connection.request("GET", "/health", headers=headers)
        return json.load(connection.getresponse())
    finally:
        connection.close()


def test_health_tells_details_to_whoever_has_the_token(closed_port: int, open_port: int) -> None:
    full = {"status": "ok", "agents": 2}
    assert health(closed_port, {"Authorization": f"Bearer {TOKEN}"}) == full
    assert health(closed_port, {}) == {"status": "ok"}
    assert health(open_port, {}) == full


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({}, b"x" * (MAX_BODY_BYTES + 1), 413),
        ({}, b"{", 400),
        ({}, json.dumps([INITIALIZE]).encode(), 400),
        ({"MCP-Protocol-Version": "1999-01-01"}, json.dumps(INITIALIZE).encode(), 400),
        ({"Mcp-Session-Id": "nobodys"}, json.dumps(INITIALIZE).encode(), 404),
        ({"Accept": "text/html"}, json.dumps(INITIALIZE).encode(), 406),
        ({"Content-Type": "text/plain"}, json.dumps(INITIALIZE).encode(), 400),
    ],
)
def test_a_bad_request_gets_the_right_status_and_the_server_lives(
    open_port: int, headers: dict[str, str], body: bytes, status: int
) -> None:
    assert ask(open_port, "POST", "/mcp", ACCEPT | headers, body).status == status
    assert ask(open_port, "GET", "/health").status == 200


def test_a_body_that_is_too_large_is_refused_on_the_sse_side_as_well(open_port: int) -> None:
    body = b"x" * (MAX_BODY_BYTES + 1)
    assert ask(open_port, "POST", "/messages/?session_id=1", ACCEPT, body).status == 413


@pytest.mark.parametrize("era", ["legacy", "auto", "2026-07-28"])
async def test_the_official_client_talks_streamable_http(closed_port: int, era: str) -> None:
    async with connect(f"http://127.0.0.1:{closed_port}", TOKEN, "http", era) as client:
        await chat(client)


@pytest.mark.parametrize("era", ["legacy", "auto", "2026-07-28"])
async def test_the_official_client_talks_sse(closed_port: int, era: str) -> None:
    async with connect(f"http://127.0.0.1:{closed_port}", TOKEN, "sse", era) as client:
        await chat(client)


async def chat(client: Client) -> None:
    result = await client.call_tool("chat_with_agent", {"agent": "Ada", "message": "Hi"})
    assert result.structured_content is not None
    assert result.structured_content["reply"] == "Hi"
    arguments = {"agent": "Slow Sam", "message": "Hi", "wait_s": 0}
    pending = await client.call_tool("chat_with_agent", arguments)
    assert pending.structured_content is not None
    assert pending.structured_content["status"] == "pending"


def test_it_stops_with_streams_open(tmp_path: Path) -> None:
    server = serve(tmp_path)
    connection = http.client.HTTPConnection("127.0.0.1", next(server), timeout=START_LIMIT_S)
    connection.request("GET", "/sse")
    response = connection.getresponse()
    assert response.readline().startswith(b"event: endpoint")
    assert list(server) == []
    connection.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "homeroom.example"])
async def test_it_is_not_opened_to_others_without_a_token(host: str) -> None:
    app = FakeApp()
    with pytest.raises(ConfigError) as caught:
        await run_http(build_server(app), Site(host), health=app.health, stop=anyio.Event())
    assert caught.value.variable == "HOMEROOM_HTTP_TOKEN"


async def test_a_port_that_is_taken_is_a_configuration_error(open_port: int) -> None:
    app = FakeApp()
    with pytest.raises(ConfigError, match=f"127.0.0.1:{open_port}"):
        await run_http(
            build_server(app),
            Site(port=open_port),
            health=app.health,
            stop=anyio.Event(),
        )


async def test_stopping_leaves_the_callers_signal_handlers_alone() -> None:
    app, stop = FakeApp(), anyio.Event()
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    during: list[Any] = []

    def on_ready(port: int) -> None:
        during.extend(signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT))
        stop.set()

    with anyio.fail_after(START_LIMIT_S):
        await run_http(
            build_server(app),
            Site("localhost"),
            health=app.health,
            stop=stop,
            on_ready=on_ready,
        )
    assert during == before


def test_more_names_can_be_allowed() -> None:
    from starlette.testclient import TestClient

    app = FakeApp()
    site = Site("0.0.0.0", 8017, Tokens(None, TOKEN), ["homeroom.example.org"])
    asgi = http_app(build_server(app), site, app.health)
    # No client is entered, so no session manager runs; the gate and /health need none.
    client = TestClient(asgi, base_url="https://homeroom.example.org")
    assert client.get("/health").status_code == 401
    headers = {"Authorization": f"Bearer {TOKEN}", "Origin": "https://homeroom.example.org"}
    assert client.get("/health", headers=headers).json() == {"status": "ok", "agents": 2}
