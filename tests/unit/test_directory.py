"""The rules of editing a memory block."""

from __future__ import annotations

from dataclasses import replace as changed
from typing import Any

import pytest

from homeroom.directory import _matches
from homeroom.edits import block_after_edit
from homeroom.errors import Conflict, LimitExceeded, Misuse
from homeroom.model import Agent, AgentId, Block
from homeroom.reading import Edit

BLOCK = Block("human", "likes tea, tea and cake", limit=30)


def edit(value: str = "", **changes: Any) -> str:
    block = changed(BLOCK, **{k: changes.pop(k) for k in ("read_only", "limit") if k in changes})
    return block_after_edit(block, Edit(value, **changes))


def test_a_value_replaces_the_whole_block() -> None:
    assert edit("new") == "new"


def test_one_exact_piece_of_text_is_replaced() -> None:
    assert edit("pie", mode="replace_text", old_text="cake") == "likes tea, tea and pie"


@pytest.mark.parametrize(("piece", "count"), [("tea", 2), ("beer", 0), ("", 0)])
def test_a_piece_that_is_not_there_exactly_once_is_refused(piece: str, count: int) -> None:
    with pytest.raises(Misuse, match=f"occurs {count} times"):
        edit("x", mode="replace_text", old_text=piece)


def test_a_piece_without_the_mode_that_it_belongs_to_is_refused() -> None:
    with pytest.raises(Misuse, match="mode=replace_text"):
        edit("x", old_text="cake")


def test_what_is_appended_stands_on_a_line_of_its_own() -> None:
    assert edit("and pie", mode="append", limit=0) == "likes tea, tea and cake\nand pie"
    assert block_after_edit(Block("human", ""), Edit("pie", mode="append")) == "pie"
    assert edit("", mode="append") == BLOCK.value


def test_a_block_is_not_emptied_by_leaving_the_value_out() -> None:
    with pytest.raises(Misuse, match="would empty"):
        edit("")
    assert edit("", expected_revision=BLOCK.revision) == ""


def test_a_lost_update_is_refused_and_the_right_revision_is_taken() -> None:
    assert edit("new", expected_revision=BLOCK.revision) == "new"
    with pytest.raises(Conflict, match=BLOCK.revision):
        edit("new", expected_revision=Block("human", "older").revision)


def test_the_limit_is_ours_to_check() -> None:
    with pytest.raises(LimitExceeded, match="at most 30 characters and this has 31"):
        edit("x" * 31)
    assert edit("x" * 31, limit=0)


def test_a_read_only_block_needs_force() -> None:
    with pytest.raises(Misuse, match="read-only"):
        edit("new", read_only=True)
    assert edit("new", read_only=True, force=True) == "new"


def test_a_short_word_is_not_looked_for_in_ids_and_a_piece_of_an_id_is_found() -> None:
    agent = Agent(AgentId("agent-54e0ada1245f"), "Brook")
    assert not _matches(agent, "ada")
    assert _matches(agent, "54e0ada1") and _matches(agent, "roo")
