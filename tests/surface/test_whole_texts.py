"""However long a text is, a client gets it whole, character for character, by doing what the
result says: ``rest``, or an ``offset`` for a reply; and never two texts for one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.client import Client
from mcp_types import TextContent, TextResourceContents

from homeroom.cursors import write_cursor
from homeroom.edits import diff_of
from homeroom.model import Block, EventId, RoomId
from homeroom.reading import Passage
from homeroom_tools.long_rows import Place
from homeroom_tools.serve import build_server
from homeroom_tools.toolkit import MAX_RESULT_CHARS
from support.fake_app import FakeApp, sample_parked

CHARS = 300_000


def long_text(name: str) -> str:
    """A text of which no two places are alike, with what JSON writes in more than one character."""
    return "".join(f'{name} "{n}" \\ ä€😀\tneedle\n' for n in range(CHARS // 20))[:CHARS]


TEXT, OTHER = long_text("one"), long_text("two")
assert len(TEXT) == len(OTHER) == CHARS


@pytest.fixture
def app() -> FakeApp:
    app = FakeApp()
    app.add("Long", "echo", "", Block("notes", TEXT), Block("short", "words"))
    return app


@asynccontextmanager
async def calling(app: FakeApp) -> AsyncIterator[Any]:
    """Calls a tool: the structured content, which is within the cap in any case."""
    async with Client(build_server(app), mode="2026-07-28") as client:

        async def call(tool: str, **arguments: Any) -> Any:
            result = await client.call_tool(tool, arguments)
            (content,) = result.content
            assert isinstance(content, TextContent)
            assert not result.is_error, content.text
            assert len(content.text) <= MAX_RESULT_CHARS
            return result.structured_content

        yield call


@pytest.mark.parametrize("label", ["notes", ""])
async def test_a_block_is_read_whole_with_its_rest(app: FakeApp, label: str) -> None:
    revision = Block("notes", TEXT).revision
    async with calling(app) as call:
        read, calls, cursor = "", 0, ""
        while True:
            got = await call("get_agent_memory", agent="Long", label=label, cursor=cursor)
            block = got["blocks"][0]
            read, calls = read + block["value"], calls + 1
            if "truncated" not in block:
                break
            cursor = block["rest"]
            assert "revision" not in block and revision not in cursor
            assert len(got["blocks"]) == (1 if label or calls > 1 else 2)
    assert read == TEXT and calls < 8 and block["revision"] == revision and "rest" not in block


async def refusal(app: FakeApp, tool: str, **arguments: Any) -> str:
    """What a call that is refused is told."""
    async with Client(build_server(app), mode="2026-07-28") as client:
        result = await client.call_tool(tool, arguments)
    (content,) = result.content
    assert result.is_error and isinstance(content, TextContent), result
    return content.text


@pytest.mark.parametrize("history", [False, True])
async def test_no_revision_is_had_for_a_block_that_changed_while_it_was_read(
    app: FakeApp, history: bool
) -> None:
    asked = {"agent": "Long", "label": "notes", "history": history}
    async with calling(app) as call:
        cursor = (await call("get_agent_memory", **asked))["blocks"][0]["rest"]
        await call("update_agent_memory", agent="Long", label="notes", value=OTHER)
        told = await refusal(app, "get_agent_memory", **asked, cursor=cursor)
    assert told == "This cursor is of a text that has changed. Begin without one."


async def test_no_revision_is_had_for_what_lies_beyond_the_end_of_a_block(app: FakeApp) -> None:
    async with calling(app) as call:
        rest = (await call("get_agent_memory", agent="Long", label="notes"))["blocks"][0]["rest"]
    _, _, mark, _ = rest.split(".")
    for cursor in (f"0.{CHARS}.{mark}.", f"1.0.{mark}.", f"0.9.{mark[::-1]}.", "0.99999..",
                   "99999", "history", "0.0..history", f"0.9.{mark}.history"):  # fmt: skip
        told = await refusal(app, "get_agent_memory", agent="Long", label="notes", cursor=cursor)
        assert told.startswith("This cursor is "), cursor


async def test_a_reply_is_read_whole_with_an_offset(app: FakeApp) -> None:
    async with calling(app) as call:
        got = await call("chat_with_agent", agent="Long", message=TEXT)
        read = got["reply"]
        while "truncated" in got:
            got = await call("get_reply", reply_id=got["reply_id"], offset=len(read))
            read += got["reply"]
    assert read == TEXT


@pytest.mark.parametrize("label", ["notes", ""])
async def test_a_diff_is_read_whole_in_the_history(app: FakeApp, label: str) -> None:
    async with calling(app) as call:
        done = await call("update_agent_memory", agent="Long", label="notes", value=OTHER)
        assert done["truncated"] and TEXT.startswith(done["diff"].split("\n-")[1])
        asked = {"agent": "Long", "label": label}
        got = await call("get_agent_memory", **asked, history=True)
        (made,) = [one for one in got["history"] if one["revision"] == done["revision"]]
        read = made["diff"]
        while "truncated" in made:
            got = await call("get_agent_memory", **asked, cursor=made["rest"])
            assert got["blocks"] == []
            (made,) = got["history"]
            assert made["revision"] == done["revision"]
            read += made["diff"]
    assert read == diff_of(TEXT, OTHER) and len(read) > 2 * CHARS


async def test_a_short_diff_is_whole_at_once(app: FakeApp) -> None:
    async with calling(app) as call:
        done = await call("update_agent_memory", agent="Long", label="short", value="other words")
    assert done["diff"] == "@@ -1 +1 @@\n-words\n+other words" and "truncated" not in done


@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_a_passage_is_read_whole_with_its_rest(app: FakeApp, limit: int) -> None:
    app.passages[app.agents[-1].id] = [
        Passage("p1", "small"), Passage("p2", TEXT), Passage("p3", OTHER), Passage("p4", "last"),
    ]  # fmt: skip
    async with calling(app) as call:
        asked = {"agent": "Long", "query": "nowhere in a block", "limit": limit}
        found = await read_pages(call, "search_agent_memory", "hits", "name", asked)
    assert found == {"p1": "small", "p2": TEXT, "p3": OTHER, "p4": "last"}


@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_a_message_is_read_whole_with_its_rest_while_others_are_written(
    app: FakeApp, limit: int
) -> None:
    said = ["first", TEXT, "between", OTHER, "last"]
    for text in said:
        app.say(app.agents[0], text)
    async with calling(app) as call:

        async def call_and_say(tool: str, **arguments: Any) -> Any:
            got = await call(tool, **arguments)
            app.say(app.agents[0], "a newer one")
            return got

        found = await read_pages(
            call_and_say, "read_room", "messages", "id", {"room": "Ada", "limit": limit}
        )
    assert list(found.values()) == said[::-1]


async def read_pages(
    call: Any, tool: str, rows: str, key: str, asked: dict[str, Any]
) -> dict[str, str]:
    """The text of every entry of a list, each read to its end before the next page."""
    found: dict[str, str] = {}
    cursor = ""
    while True:
        page = await call(tool, **asked, cursor=cursor)
        for row in page[rows]:
            found[row[key]] = row["text"]
            piece = row
            while "truncated" in piece:
                (piece,) = (await call(tool, **asked, cursor=piece["rest"]))[rows]
                found[piece[key]] += piece["text"]
            assert "rest" not in piece
        if "next_cursor" not in page:
            return found
        cursor = page["next_cursor"]


async def test_after_the_rest_of_one_entry_the_list_goes_on(app: FakeApp) -> None:
    for text in ("first", TEXT, "last"):
        app.say(app.agents[0], text)
    async with calling(app) as call:
        page = await call("read_room", room="Ada", limit=2)
        rest = await call("read_room", room="Ada", limit=2, cursor=page["messages"][1]["rest"])
        after = await call("read_room", room="Ada", limit=2, cursor=rest["next_cursor"])
    assert page["messages"][1]["id"] == rest["messages"][0]["id"]
    assert [message["text"] for message in after["messages"]] == ["first"]


async def test_of_a_text_that_has_changed_no_rest_is_given(app: FakeApp) -> None:
    app.say(app.agents[0], TEXT)
    (room,) = app.messages
    async with Client(build_server(app), mode="2026-07-28") as client:
        got = await client.call_tool("read_room", {"room": "Ada"})
        assert got.structured_content is not None
        (row,) = got.structured_content["messages"]
        for texts in ([OTHER], []):
            app.messages[room] = [replace(app.messages[room][0], text=text) for text in texts]
            refused = await client.call_tool("read_room", {"room": "Ada", "cursor": row["rest"]})
            assert refused.is_error
            assert "of a text that has changed" in refused.content[0].text  # type: ignore[union-attr]


async def test_a_page_that_is_too_long_without_its_texts_loses_nothing(app: FakeApp) -> None:
    """Ids may be long where a homeserver makes them so; the page ends sooner and goes on there."""
    for number in range(150):
        app.say(app.agents[0], f"{number} {TEXT[:20_000]}")
    (room,) = app.messages
    app.messages[room] = [
        replace(message, id=EventId(f"${number:03}" + '"' * 250), sender="@" + '"' * 90)
        for number, message in enumerate(app.messages[room])
    ]
    texts = {message.id: message.text for message in app.messages[room]}
    async with calling(app) as call:
        page = await call("read_room", room="Ada", limit=100)
        assert page["truncated"] and len(page["messages"]) < 100
        found = await read_pages(call, "read_room", "messages", "id", {"room": "Ada", "limit": 100})
    assert found == texts


async def test_a_piece_of_a_block_says_that_it_is_one(app: FakeApp) -> None:
    async with calling(app) as call:
        got = await call("search_agent_memory", agent="Long", query="needle")
        whole = await call("search_agent_memory", agent="Long", query="words")
    (hit,) = got["hits"]
    assert hit["truncated"] and (hit["source"], hit["name"]) == ("block", "notes")
    assert whole["hits"] == [{"source": "block", "name": "short", "text": "words"}]


@pytest.mark.parametrize("limit", [1, 7, 100])
async def test_all_rooms_with_late_messages_and_all_parked_items_are_listed(
    app: FakeApp, limit: int
) -> None:
    rooms = {f"!{number:03}{'x' * 200}:example.org": number + 1 for number in range(130)}
    app.held = {RoomId(room): count for room, count in reversed(rooms.items())}
    one = sample_parked()
    app.parked = [
        replace(one, item=replace(one.item, id=f"{n:02}", reason='"' * 400)) for n in range(20)
    ]
    items: list[str] = []
    late: dict[str, int] = {}
    arguments: dict[str, Any] = {"limit": limit, "detail": "full"}
    async with calling(app) as call:
        while True:
            page = await call("list_parked", **arguments)
            assert (page["total"], page["late_total"]) == (20, 130)
            items += [item["id"] for item in page["items"]]
            late |= {room["room"]: room["messages"] for room in page.get("late", ())}
            if "next_cursor" not in page:
                break
            arguments["cursor"] = page["next_cursor"]
    assert items == [f"{n:02}" for n in range(20)]
    assert late == rooms


@given(st.builds(Place, st.text(), st.integers(0, 9999), st.integers(0, 999_999_999),
                 st.just("") | st.text("0123456789abcdef", min_size=12, max_size=12)))  # fmt: skip
def test_a_cursor_into_a_page_is_read_as_it_was_written(place: Place) -> None:
    assert Place.of(str(place)) == place


@given(st.lists(st.integers() | st.text()))
def test_a_cursor_of_the_list_stays_its_own(parts: list[int | str]) -> None:
    assert Place.of(write_cursor(*parts)) == Place(write_cursor(*parts))


async def test_what_a_resource_cuts_its_tool_goes_on_with(app: FakeApp) -> None:
    app.say(app.agents[0], TEXT)
    async with Client(build_server(app), mode="2026-07-28") as client:

        async def held(uri: str) -> Any:
            (content,) = (await client.read_resource(uri)).contents
            assert isinstance(content, TextResourceContents)
            assert len(content.text) <= MAX_RESULT_CHARS
            return json.loads(content.text)

        (block,) = (await held("agent://Long/memory/notes"))["blocks"]
        (message,) = (await held("room://Ada/messages"))["messages"]
    assert block["truncated"] and message["truncated"]
    read = block["value"], message["text"]
    async with calling(app) as call:
        got = await call("get_agent_memory", agent="Long", label="notes", cursor=block["rest"])
        assert TEXT.startswith(read[0] + got["blocks"][0]["value"])
        got = await call("read_room", room="Ada", cursor=message["rest"])
        assert TEXT.startswith(read[1] + got["messages"][0]["text"])
