"""What the homeserver says, or fails to say, as errors named by the caller's next move."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import aiohttp
import nio
import pytest

from homeroom.errors import HomeroomError, Rejected, Unavailable, Uncertain, was_answered
from homeroom.matrix._answers import clip, read_answer, read_failure
from homeroom.matrix._client import open_wire
from homeroom.model import GhostId

KEY = "agent_x-1"


def answer(
    status: int, body: object, headers: dict[str, str] | None = None, key: str = ""
) -> HomeroomError:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(HomeroomError) as raised:
        read_answer(status, headers or {}, raw, key)
    return raised.value


def subclasses(base: Any) -> Iterator[Any]:
    for cls in base.__subclasses__():
        yield cls
        yield from subclasses(cls)


def matrix_error(code: str, message: str = "no", **rest: Any) -> dict[str, object]:
    return {"errcode": code, "error": message, **rest}


def test_a_good_answer_is_its_json_object() -> None:
    assert read_answer(200, {}, b'{"event_id": "$1"}') == {"event_id": "$1"}
    assert read_answer(201, {}, b"{}") == {}


@pytest.mark.parametrize("code", ["M_UNKNOWN_TOKEN", "M_MISSING_TOKEN"])
@pytest.mark.parametrize("soft_logout", [True, False])
def test_a_dead_token_is_for_a_person(code: str, soft_logout: bool) -> None:
    error = answer(401, matrix_error(code, soft_logout=soft_logout))
    assert isinstance(error, Rejected)
    assert error.code == code
    assert "as_token" in str(error)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "M_BAD_JSON"),
        (400, "M_EXCLUSIVE"),
        (403, "M_FORBIDDEN"),
        (404, "M_NOT_FOUND"),
        (404, "M_UNRECOGNIZED"),
        (409, "M_ROOM_IN_USE"),
        (413, "M_TOO_LARGE"),
    ],
)
def test_a_refusal_keeps_the_homeservers_code_and_reason(status: int, code: str) -> None:
    error = answer(status, matrix_error(code, "because so"))
    assert isinstance(error, Rejected)
    assert (error.code, error.reason) == (code, "because so")


@pytest.mark.parametrize("status", [200, 301, 400, 401, 403, 404, 429, 500, 502, 503, 504, 520])
def test_a_page_is_never_a_refusal_whatever_its_text(status: int) -> None:
    error = answer(status, b"<html>403 Forbidden M_FORBIDDEN M_UNKNOWN_TOKEN <svg d='401'/></html>")
    assert isinstance(error, Unavailable)
    assert "M_FORBIDDEN" not in str(error)


def test_a_page_that_says_the_request_is_too_large_is_final() -> None:
    # Source: https://nginx.org/en/docs/http/ngx_http_core_module.html#client_max_body_size
    assert isinstance(answer(413, b"<html>Request Entity Too Large</html>"), Rejected)


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_failing_homeserver_is_tried_again_even_with_a_matrix_body(status: int) -> None:
    error = answer(status, matrix_error("M_FORBIDDEN", "Internal server error"), key=KEY)
    assert isinstance(error, Unavailable)
    assert str(status) in str(error)


def test_it_is_told_apart_whether_the_homeserver_itself_or_something_before_it_failed() -> None:
    page = answer(502, b"<html>502 Bad Gateway</html>")
    assert isinstance(page, Unavailable) and not was_answered(page)
    own = answer(502, matrix_error("M_UNKNOWN", "Can't connect to server x"))
    assert isinstance(own, Unavailable) and own.code == "M_UNKNOWN" and was_answered(own)


def test_a_gateway_that_gave_up_waiting_leaves_a_post_uncertain() -> None:
    error = answer(504, b"<html>Gateway Time-out</html>", key=KEY)
    assert isinstance(error, Uncertain)
    assert error.key == KEY
    assert isinstance(answer(504, b""), Unavailable)


@pytest.mark.parametrize(
    ("headers", "body", "wait_s"),
    [
        ({"Retry-After": "7"}, {"retry_after_ms": 1000}, 7.0),
        ({}, {"retry_after_ms": 1500}, 1.5),
        ({}, {}, None),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, {}, None),
        ({"Retry-After": "9" * 4000}, {}, 86400.0),
        ({}, {"retry_after_ms": -5}, None),
        ({}, {"retry_after_ms": "soon"}, None),
        ({}, {"retry_after_ms": 1e300}, 86400.0),
    ],
)
def test_a_limit_says_when_to_come_back(
    headers: dict[str, str], body: dict[str, Any], wait_s: float | None
) -> None:
    error = answer(429, matrix_error("M_LIMIT_EXCEEDED", **body), headers, KEY)
    assert isinstance(error, Unavailable)
    assert error.retry_after_s == wait_s


def test_texts_from_outside_are_short_and_on_one_line() -> None:
    error = answer(403, matrix_error("M_FORBIDDEN", "\x1b[31m" + "a\nb\0" * 10_000))
    assert str(error).isprintable()
    assert len(str(error)) < 300
    assert isinstance(answer(403, matrix_error("x" * 10_000)), Unavailable)
    assert clip(["not", "text"]) == ""


@pytest.mark.parametrize("cls", sorted(subclasses(nio.ErrorResponse), key=str))
async def test_every_error_of_nio_is_one_of_ours(cls: Any) -> None:
    cases = [
        (403, matrix_error("M_FORBIDDEN"), Rejected),
        (401, matrix_error("M_UNKNOWN_TOKEN"), Rejected),
        (429, matrix_error("M_LIMIT_EXCEEDED", retry_after_ms=1000), Unavailable),
        (502, matrix_error("M_UNKNOWN"), Unavailable),
        (504, matrix_error("M_UNKNOWN"), Uncertain),
    ]
    async with open_wire("http://127.0.0.1:9", "token") as wire:
        for status, body, expected in cases:
            response = cls.__new__(cls)
            response.transport_response = Transport(status, body)

            async def make(_: Any, response: Any = response) -> Any:
                return response

            with pytest.raises(expected):
                await wire.call(GhostId("@agent_x:hs.test"), make, key=KEY)


async def test_what_nios_schemas_refuse_is_still_an_answer() -> None:
    response = nio.RoomCreateError("unknown error")
    response.transport_response = Transport(200, {"room_id": "!v12hashWithoutAServer"})

    async def make(_: Any) -> Any:
        return response

    async with open_wire("http://127.0.0.1:9", "token") as wire:
        found = await wire.call(GhostId("@agent_x:hs.test"), make)
    assert found == {"room_id": "!v12hashWithoutAServer"}


@pytest.mark.parametrize(
    "cls",
    [*sorted(set(subclasses(aiohttp.ClientError)), key=str), TimeoutError],
)
def test_every_failure_of_the_connection_is_one_of_ours(cls: type[BaseException]) -> None:
    error = cls.__new__(cls)
    assert isinstance(read_failure(error), Unavailable)
    sent = not issubclass(
        cls, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL)
    ) and not issubclass(cls, aiohttp.ClientConnectorCertificateError)
    assert isinstance(read_failure(error, KEY), Uncertain if sent else Unavailable)


def test_importing_the_matrix_side_does_not_load_nio() -> None:
    code = "import sys, homeroom.matrix; sys.exit('nio' in sys.modules or 'aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


class Transport:
    """As much of aiohttp's response as is read."""

    def __init__(self, status: int, body: object) -> None:
        self.status, self.headers = status, dict[str, str]()
        self._raw = json.dumps(body).encode()

    async def read(self) -> bytes:
        return self._raw
