"""Whatever time a homeserver gives an event, it can be read, stored and shown."""

from __future__ import annotations

from typing import Any

import pytest
from mcp.client import Client

from homeroom.deliveries import tell
from homeroom.items import Delivery, HeardEvent
from homeroom.matrix._messages import read_messages
from homeroom.matrix._sync import _read_events
from homeroom.model import EventId, GhostId, RoomId
from homeroom.reading import RoomMessage
from homeroom.times import point_in_time_ms, utc_iso, utc_text
from homeroom_tools.serve import build_server
from support.fake_app import FakeApp

ABSURD_MS = 2**53 - 1
"""The largest number that a homeserver may send.

Source: https://spec.matrix.org/v1.16/appendices/#canonical-json
"""


def event(sent_ms: object) -> dict[str, Any]:
    return {
        "event_id": "$1", "sender": "@you:evil.example", "type": "m.room.message",
        "origin_server_ts": sent_ms, "content": {"msgtype": "m.text", "body": "hello"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (ABSURD_MS, "9999-12-31T23:59:59+00:00"),
        (10**400, "9999-12-31T23:59:59+00:00"),
        (-ABSURD_MS, None),
        ("soon", None),
        (None, None),
        (1_000, "1970-01-01T00:00:01+00:00"),
    ],
)
async def test_an_absurd_time_in_an_event_is_the_nearest_that_can_be_shown(
    given: object, shown: str | None
) -> None:
    async def answer(*args: object, **more: object) -> dict[str, Any]:
        return {"chunk": [event(given)], "end": ""}

    page = await read_messages(answer, GhostId("@hub:h"), RoomId("!r:h"), "", 1)
    assert utc_iso(page.messages[0].sent_ms) == shown
    (heard,) = _read_events("!r:h", [event(given)])
    assert heard.origin_server_ts_ms == page.messages[0].sent_ms == point_in_time_ms(given)


async def test_a_story_and_a_page_of_a_room_show_an_absurd_time() -> None:
    assert utc_text(ABSURD_MS) == "9999-12-31 23:59:59 UTC"
    assert utc_text(-ABSURD_MS) == "1970-01-01 00:00:00 UTC"
    # What an older version stored was not kept within bounds.
    heard = HeardEvent(EventId("$1"), RoomId("!r:h"), "@you:evil.example", ABSURD_MS, 1_000, "")
    assert "sent 9999-12-31 23:59:59 UTC" in tell(Delivery(heard, None)).steps[0].text
    app = FakeApp()
    said = RoomMessage(EventId("$1"), "@you:evil.example", ABSURD_MS, "hello", "text")
    app.messages[app._view(app.agents[0]).room_id] = [said]
    async with Client(build_server(app), mode="2026-07-28") as client:
        result = await client.call_tool("read_room", {"room": "Ada"})
        assert not result.is_error, result.content
        assert result.structured_content is not None
        (message,) = result.structured_content["messages"]
        assert message["time"].startswith("9999-12-31")
        (content,) = (await client.read_resource("room://agent-0001/messages")).contents
        assert "9999-12-31" in content.text  # type: ignore[union-attr]
