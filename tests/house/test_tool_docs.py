"""The README's table of tools is the one that the tools themselves give."""

from __future__ import annotations

from pathlib import Path

import pytest

from homeroom_tools import register
from homeroom_tools.table import BEGIN, END, tool_table, with_table
from support.fake_app import FakeApp

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_has_the_present_table_of_tools() -> None:
    text = README.read_text(encoding="utf-8")
    assert text == with_table(text), "run: python -m homeroom_tools.table README.md"


def test_the_table_has_one_row_per_tool_in_the_models_order() -> None:
    rows = tool_table().splitlines()[2:]
    names = [tool.name for tool in register(FakeApp())]  # type: ignore[arg-type]
    assert [row.split("`")[1] for row in rows] == names


def test_rewriting_leaves_the_rest_of_the_file_alone() -> None:
    text = f"above\n{BEGIN}\nold\n{END}\nbelow\n"
    once = with_table(text)
    assert once.startswith(f"above\n{BEGIN}\n| tool |")
    assert once.endswith(f"|\n{END}\nbelow\n")
    assert with_table(once) == once


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{END}{END}"])
def test_missing_or_repeated_markers_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="there must be one"):
        with_table(text)
