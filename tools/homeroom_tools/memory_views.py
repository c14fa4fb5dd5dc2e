"""What a model reads back of an agent's memory. The rules of ``views`` hold."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from homeroom.cursors import refused_cursor
from homeroom.model import Block, encodable
from homeroom.reading import BlockVersion, MemoryChange, MemoryHit, MemoryHits, MemoryView
from homeroom.times import utc_iso
from homeroom_tools.long_rows import BEGINNING, LongPage, LongRow, Place, opened_rows
from homeroom_tools.text import LINE_CHARS, NAME_CHARS, clean, clean_line
from homeroom_tools.toolkit import UNTRUSTED, ListPage, LongText, Result

HIT_CHARS = 4_000
"""Longest passage that a search shows, in characters; one alone is whole."""
DIFF_CHARS = 4_000
"""Longest diff that a change is answered with, in characters; it is whole in the history."""
VERSION_DIFF_CHARS = 600
"""Longest diff of one old version, in characters; of one block alone they are as long as may be."""
IN_HISTORY = "history"
"""Is in the cursors that lead into the diff of a version, and in no other."""
VERSIONS = 100
"""Most versions in one result, of all blocks together."""


class BlockEntry(LongRow):
    long_field: ClassVar[str] = "value"

    label: str = Field(description=UNTRUSTED + "its handle")
    value: str = Field(description=UNTRUSTED + "as stored")
    limit: int | None = Field(default=None, description="characters")
    read_only: bool = Field(description="for agents")
    description: str | None = Field(default=None, description=UNTRUSTED + "purpose")
    revision: str | None = Field(
        default=None,
        description="if read to its end",
    )

    def cut(self, keep_chars: int) -> None:
        # Whoever has not seen the end must not prove having read it all and overwrite it. Who reads
        # the end at a cursor has read what comes before it, of this very text.
        super().cut(keep_chars)
        self.revision = None


class Version(LongRow):
    long_field: ClassVar[str] = "diff"

    label: str = Field(description=UNTRUSTED + "block")
    revision: str = Field(description="for undo_of")
    at: str | None = Field(description="UTC")
    by: str = Field(description="caller, or elsewhere")
    diff: str | None = Field(default=None, description=UNTRUSTED + "the change")


class AgentMemory(Result):
    blocks: list[BlockEntry] = Field(description="Its memory.")
    history: list[Version] | None = Field(default=None, description="Newest first.")
    truncated: bool | None = Field(default=None, description="give label")


class UpdatedMemory(LongText):
    long_field: ClassVar[str] = "diff"

    truncated: bool | None = Field(default=None, description="whole in history")
    old_revision: str = Field(description="before")
    revision: str = Field(description="now, for undo_of")
    size: int = Field(description="characters")
    diff: str | None = Field(default=None, description=UNTRUSTED + "unified")


class Hit(LongRow):
    long_field: ClassVar[str] = "text"

    truncated: bool | None = Field(default=None, description="see rest, or read the block")
    source: Literal["block", "passage"] = Field(description="where")
    name: str = Field(description=UNTRUSTED + "label or id")
    text: str = Field(description=UNTRUSTED + "what it says")


class Hits(LongPage, ListPage):
    rows_field: ClassVar[str] = "hits"
    most_chars: ClassVar[int] = HIT_CHARS

    method: Literal["semantic", "text"] = Field(description="for passages")
    hits: list[Hit] = Field(description="Best first.")


def agent_memory(
    view: MemoryView, label: str = "", place: Place = BEGINNING, *, history: bool = False
) -> AgentMemory:
    """The blocks of an agent (that one alone, with a label), with their past if it is asked for; or
    the rest of one text among them, at ``place``. Raises Misuse if that has changed, or is none."""
    if place != BEGINNING and not (place.mark and place.cursor in ("", IN_HISTORY)):
        raise refused_cursor("not one that get_agent_memory gave")
    shown = view.versions[:VERSIONS]
    blocks, versions = [_block(one) for one in view.blocks], [_version(one) for one in shown]
    if place.cursor == IN_HISTORY:
        return AgentMemory(blocks=[], history=opened_rows(versions, place))
    blocks = opened_rows(blocks, place)
    if place.mark:
        return AgentMemory(blocks=blocks)
    most_chars = None if label else VERSION_DIFF_CHARS
    return AgentMemory(
        blocks=blocks,
        history=opened_rows(versions, Place(IN_HISTORY), most_chars) if history else None,
        truncated=len(shown) < len(view.versions) or None,
    )


def updated_memory(change: MemoryChange) -> UpdatedMemory:
    updated = UpdatedMemory(
        old_revision=change.old_revision,
        revision=change.block.revision,
        size=len(change.block.value),
        diff=clean(change.diff) or None,
    )
    if len(updated.long_text) > DIFF_CHARS:
        updated.cut(DIFF_CHARS)
    return updated


def memory_hits(found: MemoryHits, limit: int, place: Place = BEGINNING) -> Hits:
    """The page of ``limit`` hits at ``place``. Raises Misuse if that is gone."""
    shown = Hits(
        total=found.total,
        next_cursor=found.next_cursor or None,
        method=found.method,
        hits=[_hit(hit) for hit in found.hits],
    )
    return shown.opened(place, limit)


def _block(block: Block) -> BlockEntry:
    return BlockEntry(
        label=clean_line(block.label, LINE_CHARS),
        value=encodable(block.value),  # no more: an editor has to get back what is stored
        limit=block.limit or None,
        read_only=block.read_only,
        description=clean_line(block.description, LINE_CHARS) or None,
        revision=block.revision,
    )


def _version(version: BlockVersion) -> Version:
    return Version(
        label=clean_line(version.label, NAME_CHARS),
        revision=version.revision,
        at=utc_iso(version.at_ms),
        by=clean_line(version.caller, NAME_CHARS) or "elsewhere",
        diff=clean(version.diff) or None,
    )


def _hit(hit: MemoryHit) -> Hit:
    return Hit(
        source=hit.source,
        name=clean_line(hit.name, NAME_CHARS),
        text=clean(hit.text),
        truncated=hit.is_excerpt or None,
    )
