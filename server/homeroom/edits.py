"""What a memory block becomes when it is edited, how a change is told, and how text is found. Pure.

Owns the rules of editing and of taking a change back. Knows no store, no clock and no wire.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

from homeroom.errors import Conflict, LimitExceeded, Misuse, NotFound
from homeroom.model import Block
from homeroom.reading import BlockVersion, Edit, MemoryHit

SNIPPET_CHARS = 600
"""Longest piece of a block that a hit shows, in characters."""
DIFF_LINES = 2000
"""More lines on a side are not compared: that takes time in the square of them."""


# --- changing ------------------------------------------------------------------------------------


def block_after_edit(block: Block, edit: Edit) -> str:
    """The new value of ``block``; pure. ``limit`` is checked here because Letta does not.

    Raises Conflict, LimitExceeded, Misuse.
    """
    what = f"The memory block {block.label!r}"
    if block.read_only and not edit.force:
        raise Misuse(
            f"{what} is read-only. Nothing was written; pass force=true if it shall be changed all"
            " the same."
        )
    if edit.expected_revision and edit.expected_revision != block.revision:
        raise Conflict(what, edit.expected_revision, block.revision)
    value = edit.value
    if edit.mode == "append":
        value = f"{block.value}\n{value}" if block.value and value else block.value + value
    elif edit.mode == "replace_text":
        count = block.value.count(edit.old_text) if edit.old_text else 0
        if count != 1:
            raise Misuse(
                f"old_text occurs {count} times in the memory block {block.label!r}; it must"
                " occur exactly once. Nothing was written; read the block and quote more of it."
            )
        value = block.value.replace(edit.old_text, value)
    elif edit.old_text:
        raise Misuse("old_text goes with mode=replace_text only. Nothing was written.")
    elif block.value and not value and not (edit.expected_revision or edit.restores):
        raise Misuse(
            f"This would empty the memory block {block.label!r}. Nothing was written; pass its"
            " revision as expected_revision if that is meant."
        )
    if block.limit and len(value) > block.limit:
        raise LimitExceeded(what, block.limit, len(value), "characters")
    return value


def undoing(block: Block, versions: Sequence[BlockVersion], edit: Edit) -> Edit:
    """The edit that takes the change back which made the revision ``edit.undo_of``. Pure.

    ``versions`` are what is kept of the block, newest first. Later changes are undone with it, so
    if there are any ``expected_revision`` has to say that the present one is known.

    Raises Misuse, NotFound (with the revisions whose changes can be undone).
    """
    if edit.value or edit.old_text or edit.mode != "replace":
        raise Misuse("undo_of goes without value, mode and old_text. Nothing was written.")
    values = {version.revision: version.value for version in versions}
    kept = [(later, made) for later, made in enumerate(versions) if made.replaced in values]
    found = next((one for one in kept if one[1].revision == edit.undo_of), None)
    if found is None:
        advice = "get_agent_memory with history=true lists what can be undone."
        known = [*dict.fromkeys(made.revision for _, made in kept)][:5]
        raise NotFound("kept change with the revision", edit.undo_of, known, advice)
    later, change = found
    if not edit.expected_revision and edit.undo_of != block.revision:
        # What was changed elsewhere and not seen since is no version yet.
        later += versions[0].revision != block.revision
        raise Misuse(
            f"{later} later change{'s' if later > 1 else ''} of the memory block {block.label!r}"
            " would be undone with it. Nothing was written; pass"
            f" expected_revision={block.revision} if that is meant."
        )
    value = values[change.replaced]
    return replace(edit, mode="replace", value=value, undo_of="", restores=True)


def diff_of(before: str, after: str) -> str:
    """A unified diff of two values without file names. Pure.

    Where more than ``DIFF_LINES`` lie between the first and the last that changed, all of these go
    and come: that is true as well, and told in time.
    """
    old, new = before.splitlines(), after.splitlines()
    # What both begin and end with need not be compared; it is most of a long block.
    head = sum(1 for _ in takewhile(_is_same, zip(old, new, strict=False)))
    tails = zip(reversed(old[head:]), reversed(new[head:]), strict=False)
    tail = sum(1 for _ in takewhile(_is_same, tails))
    context_from, old_to, new_to = max(0, head - 1), len(old) - tail, len(new) - tail
    if max(old_to, new_to) - head > DIFF_LINES:
        before_it, after_it = old[context_from:head], old[old_to : old_to + 1]
        around = len(before_it) + len(after_it)
        spans = (old_to - head + around, new_to - head + around)
        old_at, new_at = (f"{context_from + bool(span)},{span}" for span in spans)
        return "\n".join(
            [
                f"@@ -{old_at} +{new_at} @@",
                *(f" {line}" for line in before_it),
                *(f"-{line}" for line in old[head:old_to]),
                *(f"+{line}" for line in new[head:new_to]),
                *(f" {line}" for line in after_it),
            ]
        )
    # One line of context on either side.
    lines = difflib.unified_diff(
        old[context_from : old_to + 1], new[context_from : new_to + 1], lineterm="", n=1
    )
    text = "\n".join(line for line in lines if not line.startswith(("--- ", "+++ ")))
    return _shift(text, context_from)


def with_diffs(versions: Sequence[BlockVersion]) -> tuple[BlockVersion, ...]:
    """``versions`` (newest first), each with what it changed against the one before it. Pure."""
    by_revision = {(v.label, v.revision): v for v in versions}

    def diff(version: BlockVersion) -> str:
        before = by_revision.get((version.label, version.replaced))
        return diff_of(before.value, version.value) if before else ""

    return tuple(replace(version, diff=diff(version)) for version in versions)


def _is_same(pair: tuple[str, str]) -> bool:
    return pair[0] == pair[1]


def _shift(diff: str, by: int) -> str:
    """Line numbers of the whole text in the place of those of the part that was compared."""

    def moved(match: re.Match[str]) -> str:
        return f"@@ -{int(match[1]) + by}{match[2]} +{int(match[3]) + by}{match[4]} @@"

    return re.sub(r"(?m)^@@ -(\d+)(\S*) \+(\d+)(\S*) @@$", moved, diff)


# --- searching -----------------------------------------------------------------------------------


def block_hits(blocks: Sequence[Block], query: str) -> list[MemoryHit]:
    """Paragraphs of blocks with all words of ``query`` in them, those with the very words first.

    Pure. Case and the number of spaces do not count.
    """
    words = query.casefold().split()
    phrase = " ".join(words)
    exact: list[MemoryHit] = []
    other: list[MemoryHit] = []
    for block in blocks:
        for paragraph in re.split(r"\n\s*\n", block.value):
            folded = " ".join(paragraph.casefold().split())
            if all(word in folded for word in words):
                whole = paragraph.strip()
                shown = _snippet(whole, words)
                hit = MemoryHit("block", block.label, shown, is_excerpt=shown != whole)
                (exact if phrase in folded else other).append(hit)
    return exact + other


def _snippet(paragraph: str, words: Sequence[str]) -> str:
    """As much of a paragraph around the first of the words as a hit may show."""
    if len(paragraph) <= SNIPPET_CHARS:
        return paragraph
    at = min(max(0, paragraph.casefold().find(word)) for word in words)
    begin = max(0, min(at - SNIPPET_CHARS // 3, len(paragraph) - SNIPPET_CHARS))
    end = begin + SNIPPET_CHARS
    before, after = "…" if begin else "", "…" if end < len(paragraph) else ""
    return before + paragraph[begin:end] + after
