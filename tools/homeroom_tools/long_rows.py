"""Entries of a list with a text that may be longer than a result, and the way to the rest of it.

Owns the cursors that lead to an entry in the middle of a page, or into its text: they name the
page, the entry on it, how much of its text was shown, and what that text was. Invariant: whoever
follows ``rest`` until there is none has read the text whole, each character once; if it has
changed meanwhile the cursor is refused, so that nobody joins pieces of two texts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self, TypeVar

from pydantic import Field, PrivateAttr

from homeroom.cursors import refused_cursor
from homeroom_tools.toolkit import LongText, Page, Row

_WRITTEN = re.compile(r"([0-9]{1,4})\.([0-9]{1,9})\.([0-9a-f]{12}|)\.(.*)", re.DOTALL)
_FARTHEST = 999_999_999


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page begins: with an entry of a list, or within the text of one."""

    cursor: str = ""
    """The list's own, of the page that the entry was on."""
    index: int = 0
    """Of the entry on that page."""
    offset: int = 0
    """Characters of its text to skip."""
    mark: str = ""
    """What its text was, if the rest of that is meant; empty: the entry and those after it."""

    @classmethod
    def of(cls, cursor: str) -> Place:
        """What the cursor of a call means."""
        if found := _WRITTEN.fullmatch(cursor):
            return cls(found[4], int(found[1]), int(found[2]), found[3])
        return cls(cursor)

    def count(self, limit: int) -> int:
        """How many entries to ask the list for, if ``limit`` are wanted."""
        return self.index + (1 if self.mark else limit)

    def __str__(self) -> str:
        """The cursor that means it."""
        return f"{self.index}.{self.offset}.{self.mark}.{self.cursor}"


BEGINNING = Place()
"""Of a list."""


class LongRow(LongText, Row):
    """An entry with a text; where that is cut, ``rest`` leads to what follows."""

    truncated: bool | None = Field(default=None, description="see rest")
    rest: str | None = Field(default=None, description="cursor for it")
    _begins: Place = PrivateAttr(BEGINNING)

    def stand_at(self, place: Place) -> None:
        """Has its text begin at ``place``, and a page that ends with it go on behind it."""
        setattr(self, self.long_field, self.long_text[place.offset :])
        self._begins = place
        self.leading_to(str(Place(place.cursor, place.index + 1)))

    @property
    def cut_chars(self) -> int:
        farthest = replace(self._begins, offset=_FARTHEST)
        return super().cut_chars + len(f',"rest":"{farthest}"')

    def cut(self, keep_chars: int) -> None:
        super().cut(keep_chars)
        begins = self._begins
        self.rest = str(replace(begins, offset=begins.offset + len(self.long_text)))


LongRowT = TypeVar("LongRowT", bound=LongRow)


class LongPage(Page):
    """A page of such entries."""

    most_chars: ClassVar[int]
    """Longest text of an entry among others, in characters; alone it is as long as may be."""

    def opened(self, place: Place, limit: int) -> Self:
        """The page of ``limit`` entries that begins at ``place``, texts cut where they are long.

        Its rows are what the list gave for ``place.cursor`` and ``place.count(limit)``.

        Raises:
            Misuse: the text in which it should begin has changed, or is not there any more.
        """
        rows = [row for row in self.rows if isinstance(row, LongRow)]
        opened = opened_rows(rows, place, self.most_chars if limit > 1 else None)
        setattr(self, self.rows_field, opened)
        return self


def opened_rows(
    rows: Sequence[LongRowT], place: Place, most_chars: int | None = None
) -> list[LongRowT]:
    """Those of a list that ``place`` means: all from its entry on, each cut at ``most_chars``; or,
    if it lies within a text, that entry with the rest of it.

    Raises:
        Misuse: the text within which it lies has changed, or is not there any more.
    """
    left = list(rows[place.index :])
    if place.mark:
        if not left or _mark_of(left[0]) != place.mark or place.offset >= len(left[0].long_text):
            raise refused_cursor("of a text that has changed")
        left[0].stand_at(place)
        return left[:1]
    for index, row in enumerate(left, place.index):
        row.stand_at(replace(place, index=index, mark=_mark_of(row)))
        if most_chars is not None and len(row.long_text) > most_chars:
            row.cut(most_chars)
    return left


def _mark_of(row: LongRow) -> str:
    # Salted: it must not be the revision of a block, which proves that one has read all of it.
    return hashlib.sha256(b"rest\0" + row.long_text.encode()).hexdigest()[:12]
