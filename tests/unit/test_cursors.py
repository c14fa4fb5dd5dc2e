"""Cursors come back from clients, who may hand back anything."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeroom.cursors import read_cursor, write_cursor
from homeroom.errors import Misuse


@given(st.integers(), st.text())
def test_a_cursor_gives_back_what_it_was_made_of(number: int, text: str) -> None:
    cursor = write_cursor(number, text)
    assert read_cursor(cursor, int, str, tool="a_tool") == [number, text]
    assert cursor.isascii() and not set(cursor) & set("=+/&?# ")


@pytest.mark.parametrize(
    "cursor",
    [
        "x", "=", "ä", "%%%", base64.urlsafe_b64encode(b"[" * 100_000).decode(),
        base64.urlsafe_b64encode(b"\xff").decode(), write_cursor("1", "a"), write_cursor(1),
        write_cursor(1, "a", "b"), write_cursor(True, "a"),
    ],
)  # fmt: skip
def test_what_is_no_cursor_of_ours_is_refused_in_a_sentence(cursor: str) -> None:
    with pytest.raises(Misuse, match=r"a_tool gave\. Begin without one\."):
        read_cursor(cursor, int, str, tool="a_tool")
