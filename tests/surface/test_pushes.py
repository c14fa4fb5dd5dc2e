"""The homeserver's door: its own guard, under any name, and nothing behind it but an answer.

Source: https://spec.matrix.org/v1.16/application-service-api/
"""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from homeroom_tools.pushes import MAX_PUSH_BYTES
from homeroom_tools.serve import build_server, http_app
from support.fake_app import FakeApp

HS_TOKEN, CLIENT_TOKEN = "token-of-the-homeserver", "token-of-the-clients"
TRANSACTION = "/_matrix/app/v1/transactions/7"
ALL = [
    ("PUT", TRANSACTION),
    ("POST", "/_matrix/app/v1/ping"),
    ("GET", "/_matrix/app/v1/users/@agent_1:hs.test"),
    ("GET", "/_matrix/app/v1/rooms/%23agent_1:hs.test"),
    ("GET", "/_matrix/app/v1/thirdparty/protocol/irc"),
]


def client(hs_token: str = HS_TOKEN) -> TestClient:
    """Under a name that the gate before the other routes does not know."""
    app = FakeApp()
    asgi = http_app(build_server(app), "0.0.0.0", 8017, CLIENT_TOKEN, app.health, hs_token=hs_token)
    return TestClient(asgi, base_url="http://bridge.internal:8017")


@pytest.mark.parametrize(("method", "path"), ALL)
@pytest.mark.parametrize(
    ("headers", "query", "status", "code"),
    [
        ({}, "", 401, "M_MISSING_TOKEN"),
        ({"Authorization": "Bearer "}, "", 401, "M_MISSING_TOKEN"),
        ({"Authorization": f"Basic {HS_TOKEN}"}, "", 401, "M_MISSING_TOKEN"),
        ({"Authorization": "Bearer wrong"}, "", 403, "M_FORBIDDEN"),
        ({"Authorization": f"Bearer {CLIENT_TOKEN}"}, "", 403, "M_FORBIDDEN"),
        ({"Authorization": f"Bearer {HS_TOKEN}x"}, "", 403, "M_FORBIDDEN"),
        ({"Authorization": "Bearer wrong"}, f"?access_token={HS_TOKEN}", 403, "M_FORBIDDEN"),
        ({}, "?access_token=wrong", 403, "M_FORBIDDEN"),
    ],
)
def test_whoever_lacks_the_hs_token_gets_nowhere(
    method: str, path: str, headers: dict[str, str], query: str, status: int, code: str
) -> None:
    answer = client().request(method, path + query, headers=headers)
    assert (answer.status_code, answer.json()["errcode"]) == (status, code)
    assert HS_TOKEN not in answer.text


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({"Authorization": f"Bearer {HS_TOKEN}"}, ""),
        ({"Authorization": f"bearer {HS_TOKEN}", "Origin": "http://evil.example"}, ""),
        ({}, f"?access_token={HS_TOKEN}"),
    ],
)
@pytest.mark.parametrize("body", [b"", b'{"events": []}', b"no json"])
def test_a_push_is_taken_whatever_it_says(headers: dict[str, str], query: str, body: bytes) -> None:
    for method, path in ALL[:2]:
        answer = client().request(method, path + query, headers=headers, content=body)
        assert (answer.status_code, answer.json()) == (200, {})


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        *((method, path, "M_NOT_FOUND") for method, path in ALL[2:4]),
        (*ALL[4], "M_UNRECOGNIZED"),
        ("GET", TRANSACTION, "M_UNRECOGNIZED"),
    ],
)
def test_there_is_nobody_to_ask_for_and_nothing_else_to_call(
    method: str, path: str, code: str
) -> None:
    answer = client().request(method, path, headers={"Authorization": f"Bearer {HS_TOKEN}"})
    assert (answer.status_code, answer.json()["errcode"]) == (404, code)


def test_a_push_without_end_is_cut_off() -> None:
    piece = b"x" * (1024 * 1024)
    pieces = (piece for _ in range(MAX_PUSH_BYTES // len(piece) + 1))
    headers = {"Authorization": f"Bearer {HS_TOKEN}"}
    answer = client().request("PUT", TRANSACTION, headers=headers, content=pieces)
    assert (answer.status_code, answer.json()["errcode"]) == (413, "M_TOO_LARGE")


def test_the_hs_token_opens_no_other_door() -> None:
    headers = {"Authorization": f"Bearer {HS_TOKEN}"}
    assert client().get("/health", headers=headers).status_code == 421
    headers["Host"] = "127.0.0.1"
    assert client().get("/health", headers=headers).status_code == 401
    path = "/_matrix/app/../../health"
    assert client().get(path, headers=headers).status_code == 401


def test_without_a_homeserver_there_is_no_such_door() -> None:
    headers = {"Authorization": f"Bearer {HS_TOKEN}"}
    assert client("").put(TRANSACTION, headers=headers).status_code == 421
    headers = {"Authorization": f"Bearer {CLIENT_TOKEN}", "Host": "127.0.0.1"}
    assert client("").put(TRANSACTION, headers=headers).status_code == 404
