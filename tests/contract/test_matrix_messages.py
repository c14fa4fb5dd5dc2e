"""What was said in a room, read back from a real Synapse."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from homeroom.errors import Rejected
from homeroom.model import RoomId
from support.matrix import connect, move_in, text
from support.synapse import Homeserver

pytest_plugins = ("support.fixtures_matrix",)

Unique = Callable[[str], str]


async def test_messages_come_newest_first_page_by_page_to_the_beginning(
    synapse: Homeserver, unique: Unique
) -> None:
    async with connect(synapse) as matrix:
        ghost, room = await move_in(matrix, f"agent_{unique('said')}")
        for number in range(7):
            await matrix.post(ghost, room, text(f"message {number}"), f"txn{number}")
        found: list[str] = []
        start, pages = "", 0
        while True:
            page = await matrix.messages(room, start, 3)
            pages += 1
            assert len(page.messages) <= 3
            found += [message.text for message in page.messages]
            start = page.end
            if not start:
                break
    assert found == [f"message {number}" for number in range(6, -1, -1)]
    assert 3 <= pages <= 4
    (one, *_) = page.messages or ([None])
    assert one is None or (one.sender, one.kind) == (ghost, "text")


async def test_a_page_is_the_same_when_there_are_newer_messages(
    synapse: Homeserver, unique: Unique
) -> None:
    """Who reads the rest of a long message finds it in its place."""
    async with connect(synapse) as matrix:
        ghost, room = await move_in(matrix, f"agent_{unique('still')}")
        for number in range(3):
            await matrix.post(ghost, room, text(f"message {number}"), f"txn{number}")
        first = await matrix.messages(room, "", 2)
        await matrix.post(ghost, room, text("a newer one"), "newer")
        again = await matrix.messages(room, first.start, 2)
        back = await matrix.messages(room, first.end, 1)
    assert [message.text for message in first.messages] == ["message 2", "message 1"]
    assert again.messages == first.messages and again.start == first.start
    assert [message.text for message in back.messages] == ["message 0"]


async def test_an_edited_message_has_its_newest_text_and_a_deleted_one_is_gone(
    synapse: Homeserver, unique: Unique
) -> None:
    async with connect(synapse) as matrix:
        ghost, room = await move_in(matrix, f"agent_{unique('edited')}")
        first = await matrix.post(ghost, room, text("frist"), "t1")
        await matrix.post(ghost, room, text("kept"), "t2")
        gone = await matrix.post(ghost, room, text("never mind"), "t3")
        edit = {
            **text("* first"),
            "m.new_content": text("first"),
            "m.relates_to": {"rel_type": "m.replace", "event_id": first},
        }
        await matrix.post(ghost, room, edit, "t4")
        path = ("_matrix", "client", "v3", "rooms", room, "redact", gone, "t5")
        await matrix._wire.ask("PUT", path, ghost=ghost, body={})
        page = await matrix.messages(room, "", 10)
    assert [message.text for message in page.messages] == ["kept", "first"]
    assert page.messages[-1].id == first and page.messages[-1].sent_ms > 0


async def test_a_room_the_hub_is_not_in_cannot_be_read(synapse: Homeserver) -> None:
    async with connect(synapse) as matrix:
        await matrix.check()
        with pytest.raises(Rejected) as caught:
            await matrix.messages(RoomId("!nowhere:hs.test"), "", 10)
    assert caught.value.code == "M_FORBIDDEN"
