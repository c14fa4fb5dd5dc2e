"""What is raised when there is no homeserver, or something else in its place."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import pytest

from homeroom.errors import HomeroomError, Unavailable
from homeroom.local.child import free_port
from homeroom.matrix import Matrix
from homeroom.model import EventId, RoomId
from support.matrix import (
    answering,
    connect,
    http_answer,
    room_spec,
    text,
)
from support.synapse import Homeserver

pytest_plugins = ("support.fixtures_matrix",)


async def test_a_homeserver_that_is_down_is_unavailable(synapse: Homeserver) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    async with connect(synapse, matrix_url=url) as matrix:
        for attempt in every_request(matrix):
            with pytest.raises(Unavailable, match="nothing accepts connections"):
                await attempt()


async def test_an_error_page_of_a_proxy_is_unavailable_whatever_it_says(
    synapse: Homeserver,
) -> None:
    page = b"<html><svg d='M_FORBIDDEN 403 401 M_UNKNOWN_TOKEN 429'/>" + b"x" * 5000
    for status in (502, 503, 500, 404, 403, 401, 302, 200):
        async with (
            answering(None, http_answer(status, page, "text/html")) as url,
            connect(synapse, matrix_url=url) as matrix,
        ):
            for attempt in every_request(matrix):
                with pytest.raises(Unavailable) as failed:
                    await attempt()
                assert "M_FORBIDDEN" not in str(failed.value)
                assert len(str(failed.value)) < 300


async def test_too_many_requests_say_when_to_come_back(synapse: Homeserver) -> None:
    body = json.dumps(
        {"errcode": "M_LIMIT_EXCEEDED", "error": "Too Many Requests", "retry_after_ms": 2500}
    ).encode()
    async with (
        answering(None, http_answer(429, body)) as url,
        connect(synapse, matrix_url=url) as matrix,
    ):
        for attempt in every_request(matrix):
            with pytest.raises(Unavailable) as limited:
                await attempt()
            assert limited.value.retry_after_s == 2.5


async def test_an_empty_object_is_no_sync(synapse: Homeserver) -> None:
    async with (
        answering(None, http_answer(200, b"{}")) as url,
        connect(synapse, matrix_url=url) as matrix,
    ):
        for attempt in (lambda: matrix.sync("s1", 0), matrix.check):
            with pytest.raises(Unavailable):
                await attempt()


@pytest.mark.parametrize("status", [200, 400, 403])
async def test_no_answer_is_so_strange_that_it_raises_anything_but_our_errors(
    synapse: Homeserver, status: int
) -> None:
    for body in (
        b"",
        b"{}",
        b"[]",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"joined": 5, "room_id": 5, "event_id": null, "user_id": [], "versions": 5}',
        b'{"joined": {"@a:b": 5}, "next_batch": "s1", "rooms": {"join": {"!r": 5}}}',
        b'{"next_batch": "s1", "rooms": {"join": {"!r": {"timeline": {"events": [5, {}]}}}}}',
        b'{"errcode": 5, "error": {"a": 1}, "retry_after_ms": "soon"}',
        b'{"errcode": "M_\\u0000 EVIL", "error": "\\u001b[31m\\n"}',
    ):
        async with (
            answering(None, http_answer(status, body)) as url,
            connect(synapse, matrix_url=url) as matrix,
        ):
            for attempt in every_request(matrix):
                try:
                    await attempt()
                except HomeroomError as error:
                    assert str(error).isprintable()


def every_request(matrix: Matrix) -> list[Callable[[], Awaitable[object]]]:
    """One call of every method that talks to the homeserver."""
    ghost, room = matrix.hub, RoomId("!room")
    return [
        matrix.check,
        matrix.ping,
        lambda: matrix.ensure_ghost("agent_x"),
        lambda: matrix.set_display_name(ghost, "x"),
        lambda: matrix.get_display_name(ghost),
        lambda: matrix.find_room("#agent_x:hs.test"),
        lambda: matrix.create_room(ghost, room_spec("agent_x")),
        lambda: matrix.ensure_joined(ghost, room),
        lambda: matrix.invite(ghost, room, "@ann:hs.test"),
        lambda: matrix.set_name(ghost, room, "x"),
        lambda: matrix.set_topic(ghost, room, "x"),
        lambda: matrix.get_state(ghost, room, "m.room.name"),
        lambda: matrix.joined_members(ghost, room),
        lambda: matrix.post(ghost, room, text("x"), "1"),
        lambda: matrix.set_typing(ghost, room, True),
        lambda: matrix.read_receipt(ghost, room, EventId("$event")),
        lambda: matrix.sync("s1", 0),
    ]
