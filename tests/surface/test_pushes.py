"""The homeserver's door: its own guard, under any name, and nothing behind it but an answer.

Source: https://spec.matrix.org/v1.16/application-service-api/
"""

from __future__ import annotations

import json
from collections.abc import Collection

import pytest
from starlette.testclient import TestClient

from homeroom_tools.pushes import (
    FAILED_PUSHES,
    MAX_INVITED,
    MAX_PUSH_BYTES,
    MAX_READ_BYTES,
    invited_users,
)
from homeroom_tools.serve import Site, Tokens, build_server, http_app
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
    site = Site("0.0.0.0", 8017, Tokens(None, CLIENT_TOKEN), hs_token=hs_token)
    asgi = http_app(build_server(app), site, app.health)
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
        ({"Authorization": f"bearer {HS_TOKEN}"}, ""),
        ({}, f"?access_token={HS_TOKEN}"),
    ],
)
@pytest.mark.parametrize("body", [b"", b'{"events": []}', b"no json"])
def test_a_push_is_taken_whatever_it_says(headers: dict[str, str], query: str, body: bytes) -> None:
    for method, path in ALL[:2]:
        answer = client().request(method, path + query, headers=headers, content=body)
        assert (answer.status_code, answer.json()) == (200, {})


@pytest.mark.parametrize("origin", ["http://evil.example", "http://bridge.internal:8017", "null"])
def test_no_browser_pushes_not_even_with_the_token(origin: str) -> None:
    headers = {"Authorization": f"Bearer {HS_TOKEN}", "Origin": origin}
    for method, path in ALL:
        answer = client().request(method, path, headers=headers)
        assert (answer.status_code, answer.json()) == (403, {"error": "A browser may not push."})


def test_who_fails_too_often_is_slowed_down_and_whoever_has_the_token_never_is() -> None:
    door, right = client(), {"Authorization": f"Bearer {HS_TOKEN}"}
    for _ in range(3 * FAILED_PUSHES):
        assert door.put(TRANSACTION, headers=right).status_code == 200
    wrong = [door.put(TRANSACTION, headers={"Authorization": "Bearer x"}) for _ in range(25)]
    assert [answer.status_code for answer in wrong] == [403] * FAILED_PUSHES + [429] * 5
    assert 0 < int(wrong[-1].headers["retry-after"]) <= 5
    assert wrong[-1].json()["errcode"] == "M_LIMIT_EXCEEDED"
    # The homeserver and whoever guesses may come from one address: that of a proxy before both.
    for method, path in ALL:
        assert door.request(method, path, headers=right).status_code in (200, 404)
    assert door.put(TRANSACTION).status_code == 429, "a push that was taken forgives nothing"


def member(user: object = "@agent_1:hs.test", membership: object = "invite") -> dict[str, object]:
    return {
        "type": "m.room.member",
        "state_key": user,
        "sender": "@you:hs.test",
        "content": {"membership": membership},
    }


@pytest.mark.parametrize(
    ("body", "users"),
    [
        ({"events": [member(), member("@agent_2:hs.test"), member()]}, 2),
        ({"events": [member(membership="join"), member(membership=["invite"])]}, 0),
        ({"events": [member(7), member("@" + "x" * 255), member(None)]}, 0),
        ({"events": [member() | {"type": "m.room.message"}, member() | {"content": "invite"}]}, 0),
        ({"events": [None, 7, "x", [member()]]}, 0),
        ({"events": {"0": member()}}, 0),
        ({"events": [member(f"@agent_{n}:hs.test") for n in range(500)]}, MAX_INVITED),
        ([member()], 0),
        ("[" * 100_000, 0),
        ("no json", 0),
        ("", 0),
    ],
)
def test_a_push_hints_at_who_was_invited_and_at_nothing_else(body: object, users: int) -> None:
    raw = body if isinstance(body, str) else json.dumps(body)
    assert len(invited_users(raw.encode())) == users


def test_the_hint_is_handed_on_when_the_push_was_taken_and_only_with_the_token() -> None:
    app, heard = FakeApp(), list[list[str]]()

    async def on_push(users: Collection[str]) -> None:
        heard.append(list(users))

    tokens = Tokens(None, CLIENT_TOKEN)
    site = Site("0.0.0.0", 8017, tokens, hs_token=HS_TOKEN, on_push=on_push)
    asgi = http_app(build_server(app), site, app.health)
    door = TestClient(asgi, base_url="http://bridge.internal:8017")
    right = {"Authorization": f"Bearer {HS_TOKEN}"}
    push = {"events": [member()]}
    door.put(TRANSACTION, headers={"Authorization": "Bearer wrong"}, json=push)
    door.post("/_matrix/app/v1/ping", headers=right, json=push)
    assert heard == []
    assert door.put(TRANSACTION, headers=right, json=push).json() == {}
    assert door.put(TRANSACTION, headers=right, json={"events": []}).json() == {}
    assert heard == [["@agent_1:hs.test"], []]
    large = push | {"padding": "x" * MAX_READ_BYTES}
    assert door.put(TRANSACTION, headers=right, json=large).status_code == 200
    assert heard[2:] == [[]], "a push that large is taken and not looked into"


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
