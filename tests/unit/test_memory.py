"""What is kept of a memory block's past, how it is taken back, and how memory is searched."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeroom import memory
from homeroom.config import Config
from homeroom.directory import Directory
from homeroom.edits import (
    DIFF_LINES,
    SNIPPET_CHARS,
    block_after_edit,
    block_hits,
    diff_of,
    undoing,
    with_diffs,
)
from homeroom.errors import Conflict, Misuse, NotFound, Unavailable
from homeroom.memory import Memory, memory_notice
from homeroom.model import Agent, AgentId, Block, GhostId, Mapping, RoomId
from homeroom.reading import Edit
from homeroom.store import Store, open_store
from homeroom.store.surface import VERSIONS_KEPT

ADA = AgentId("agent-1")
HOME = Mapping(agent_id=ADA, ghost=GhostId("@agent_1:h"), room_id=RoomId("!r:h"))


def block(value: str, label: str = "human") -> Block:
    return Block(label, value)


async def change(store: Store, before: Block, after: Block, caller: str = "token-1") -> None:
    await store.note_block(ADA, before)
    await store.note_block(ADA, after, replaced=before.revision, caller=caller)


async def test_a_change_keeps_what_was_there_before_and_who_made_it(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db", now_ms=lambda: 5000) as store:
        await change(store, block("one"), block("two"))
        new, old = with_diffs(await store.list_block_versions(ADA, "human"))
    assert (new.value, new.caller, new.at_ms) == ("two", "token-1", 5000)
    assert (old.value, old.caller, old.replaced) == ("one", "", "")
    assert new.replaced == old.revision == block("one").revision
    assert new.diff == "@@ -1 +1 @@\n-one\n+two" and old.diff == ""


async def test_a_change_made_elsewhere_becomes_a_version_when_it_is_seen(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        await change(store, block("one"), block("two"))
        await change(store, block("two and a half"), block("three"))
        versions = await store.list_block_versions(ADA, "human")
    assert [v.value for v in versions] == ["three", "two and a half", "two", "one"]
    assert [v.caller for v in versions] == ["token-1", "", "token-1", ""]
    assert versions[1].replaced == versions[2].revision


async def test_the_last_twenty_versions_of_each_block_are_kept(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        await change(store, block("a", "other"), block("b", "other"))
        for number in range(30):
            await change(store, block(f"{number}"), block(f"{number + 1}"))
        versions = await store.list_block_versions(ADA, "human")
        assert len(await store.list_block_versions(ADA)) == VERSIONS_KEPT + 2
    assert [v.value for v in versions] == [str(n) for n in range(30, 30 - VERSIONS_KEPT, -1)]


async def test_undoing_goes_back_and_undoing_that_goes_forward_again(tmp_path: Path) -> None:
    one, two = block("one"), block("two")
    async with open_store(tmp_path / "s.db") as store:
        await change(store, one, two)
        versions = await store.list_block_versions(ADA, "human")
        back = block_after_edit(two, undoing(two, versions, Edit(undo_of=two.revision)))
        assert back == "one"
        await change(store, two, one)
        versions = await store.list_block_versions(ADA, "human")
        forth = block_after_edit(one, undoing(one, versions, Edit(undo_of=one.revision)))
        assert forth == "two"


async def test_an_old_change_is_undone_only_by_who_knows_what_comes_after(tmp_path: Path) -> None:
    one, two, three = block("one"), block("two"), block("three")
    async with open_store(tmp_path / "s.db") as store:
        await change(store, one, two)
        await change(store, two, three)
        versions = await store.list_block_versions(ADA, "human")
    present = f"1 later change of .* expected_revision={three.revision} "
    with pytest.raises(Misuse, match=present):
        undoing(three, versions, Edit(undo_of=two.revision))
    elsewhere = block("four, not seen yet")
    with pytest.raises(Misuse, match=f"2 later changes .*={elsewhere.revision} "):
        undoing(elsewhere, versions, Edit(undo_of=two.revision))
    edit = Edit(undo_of=two.revision, expected_revision=three.revision)
    assert block_after_edit(three, undoing(three, versions, edit)) == "one"
    with pytest.raises(NotFound, match="history=true") as caught:
        undoing(three, versions, Edit(undo_of=one.revision))
    assert caught.value.candidates == (three.revision, two.revision)


async def test_what_can_be_undone_is_named_once_and_nothing_else_is(tmp_path: Path) -> None:
    values = [block(f"value {number}") for number in range(VERSIONS_KEPT + 3)]
    async with open_store(tmp_path / "s.db") as store:
        for before, after in pairwise([*values, values[-2], values[-1]]):
            await change(store, before, after)
        versions = await store.list_block_versions(ADA, "human")
    with pytest.raises(NotFound) as caught:
        undoing(values[-1], versions, Edit(undo_of="0"))
    newest = [one.revision for one in (values[-1], values[-2], *values[-3:-6:-1])]
    assert caught.value.candidates == tuple(newest)
    with pytest.raises(NotFound):  # what was there before it is not kept any more
        undoing(values[-1], versions, Edit(undo_of=versions[-1].revision))


async def test_undoing_goes_alone(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="goes without value"):
        undoing(block("two"), [], Edit("new", undo_of=block("two").revision))


async def test_undoing_gives_an_empty_block_back_its_emptiness(tmp_path: Path) -> None:
    empty, full = block(""), block("full")
    async with open_store(tmp_path / "s.db") as store:
        await change(store, empty, full)
        versions = await store.list_block_versions(ADA, "human")
    assert block_after_edit(full, undoing(full, versions, Edit(undo_of=full.revision))) == ""


# --- notices -------------------------------------------------------------------------------------


def test_a_room_is_told_who_changed_which_block_and_not_what_stands_in_it() -> None:
    (notice,) = memory_notice(HOME, block("secret one"), block("secret two!"), "cursor")
    content = notice.payload["content"]
    assert content["msgtype"] == "m.notice" and notice.lane == "room:!r:h"
    assert "human" in content["body"] and "cursor" in content["body"]
    assert "secret" not in str(content)
    assert "10 characters before, 11 now" in content["body"]


def test_a_room_that_does_not_exist_is_told_nothing() -> None:
    assert memory_notice(replace(HOME, room_id=None), block("a"), block("b"), "x") == ()


# --- diffs ---------------------------------------------------------------------------------------


def test_a_diff_shows_what_changed_with_the_line_numbers_of_the_whole_text() -> None:
    before = "\n".join(f"line {number}" for number in range(1, 101))
    after = before.replace("line 50\n", "line fifty\n")
    assert diff_of(before, after) == (
        "@@ -49,3 +49,3 @@\n line 49\n-line 50\n+line fifty\n line 51"
    )


@given(st.lists(st.sampled_from("abc")), st.lists(st.sampled_from("abc")))
def test_a_diff_tells_how_many_lines_came_and_went(old: list[str], new: list[str]) -> None:
    lines = diff_of("\n".join(old), "\n".join(new)).split("\n")
    came = sum(line.startswith("+") for line in lines)
    went = sum(line.startswith("-") for line in lines)
    assert len(old) - went + came == len(new) or not (old and new)
    assert (came or went) or old == new or not (old and new)


MANY = [str(number) for number in range(DIFF_LINES + 10)]
OTHERS = [f"other {line}" for line in MANY]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (MANY, OTHERS),
        ([], MANY),
        (MANY, []),
        (MANY, ["only one"]),
        (["head", *MANY, "tail"], ["head", *OTHERS, "tail"]),
        (["head", "more", *MANY], ["head", "more"]),
        (["y" * 300_000], ["z" * 300_000]),
        (["a", "b"], ["a", "b"]),
        (["a", "b", "c"], ["a", "x", "c"]),
    ],
)
def test_a_diff_holds_the_whole_change_however_long(old: list[str], new: list[str]) -> None:
    assert patched(old, diff_of("\n".join(old), "\n".join(new))) == new


LINES = st.lists(st.sampled_from(["", "a", "b", "-c", "+d", "@@ -1 +1 @@"]), max_size=8)


@given(LINES, LINES)
def test_a_diff_turns_the_old_lines_into_the_new(old: list[str], new: list[str]) -> None:
    before, after = ("".join(f"{line}\n" for line in lines) for lines in (old, new))
    assert patched(old, diff_of(before, after)) == new


def patched(old: list[str], diff: str) -> list[str]:
    """What ``patch`` makes of the old lines. Source: POSIX, diff -u."""
    new, at, rest = list[str](), 0, diff.split("\n") if diff else []
    while rest:
        head = re.fullmatch(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@", rest.pop(0))
        assert head is not None
        start, old_left, new_left = int(head[1]), int(head[2] or 1), int(head[4] or 1)
        upto = start - 1 if old_left else start
        new += old[at:upto]
        at = upto
        assert len(new) == int(head[3]) - (1 if new_left else 0)
        while old_left or new_left:
            sign, line = rest[0][:1], rest.pop(0)[1:]
            if sign in " -":
                assert old[at] == line
                at, old_left = at + 1, old_left - 1
            if sign in " +":
                new.append(line)
                new_left -= 1
    return new + old[at:]


# --- search --------------------------------------------------------------------------------------


def test_all_words_have_to_stand_in_a_paragraph_and_the_very_words_come_first() -> None:
    blocks = [
        block("Likes green tea.\n\nThe tea is green.", "one"),
        block("GREEN\n  tea again", "two"),
        block("green only", "three"),
    ]
    hits = block_hits(blocks, "green  Tea")
    assert [(hit.name, hit.text) for hit in hits] == [
        ("one", "Likes green tea."),
        ("two", "GREEN\n  tea again"),
        ("one", "The tea is green."),
    ]


def test_of_a_long_paragraph_the_place_is_shown() -> None:
    (hit,) = block_hits([block("x " * 5000 + "needle" + " y" * 5000)], "needle")
    assert "needle" in hit.text and len(hit.text) <= SNIPPET_CHARS + 2
    assert hit.text.startswith("…") and hit.text.endswith("…")


# --- one at a time -------------------------------------------------------------------------------


class SlowLetta:
    """One agent with one block. A write waits for the test."""

    def __init__(self) -> None:
        self.value = "one"
        self.writing, self.may_write = anyio.Event(), anyio.Event()

    async def list_agents(self) -> list[Agent]:
        return [Agent(ADA, "Ada")]

    async def list_blocks(self, agent_id: AgentId) -> list[Block]:
        return [block(self.value)]

    async def write_block(self, agent_id: AgentId, label: str, value: str) -> Block:
        self.writing.set()
        await self.may_write.wait()
        self.value = value
        return block(value)


def window(letta: SlowLetta, store: Store) -> Memory:
    """What another process, or window, on the same store works with."""

    async def get() -> SlowLetta:
        return letta

    config = Config(letta_url="http://127.0.0.1:9")
    directory = Directory(get, store, config)  # type: ignore[arg-type]
    return Memory(get, store, directory, notices=False)  # type: ignore[arg-type]


async def test_of_two_windows_one_alone_succeeds_with_the_same_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    letta, ends = SlowLetta(), list[str]()
    async with open_store(tmp_path / "s.db") as one, open_store(tmp_path / "s.db") as other:

        async def write(store: Store, value: str) -> None:
            edit = Edit(value, expected_revision=block("one").revision)
            try:
                await window(letta, store).update("Ada", "human", edit, "c")
                ends.append(value)
            except Conflict:
                ends.append("conflict")

        turned_away, take_edit = anyio.Event(), other.take_edit

        async def watch(agent_id: AgentId, label: str, owner: str, ttl_ms: int) -> bool:
            taken = await take_edit(agent_id, label, owner, ttl_ms)
            if not taken:
                turned_away.set()
            return taken

        monkeypatch.setattr(other, "take_edit", watch)
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(write, one, "two")
                await letta.writing.wait()
                group.start_soon(write, other, "three")
                await turned_away.wait()
                letta.may_write.set()
    assert ends == ["two", "conflict"] and letta.value == "two"


class ReadBetween(SlowLetta):
    """One whose block somebody reads after it was written and before the writer hears of it."""

    def __init__(self) -> None:
        super().__init__()
        self.read: Callable[[], Awaitable[object]] = anyio.lowlevel.checkpoint

    async def write_block(self, agent_id: AgentId, label: str, value: str) -> Block:
        self.value = value
        await self.read()
        return block(value)


async def test_a_change_is_its_callers_also_if_somebody_read_it_before_that_was_noted(
    tmp_path: Path,
) -> None:
    letta = ReadBetween()
    async with open_store(tmp_path / "s.db") as store, open_store(tmp_path / "s.db") as other:
        reader = window(letta, other)
        letta.read = partial(reader.get, "Ada", "human")
        await letta.read()
        await window(letta, store).update("Ada", "human", Edit("two"), "token-1")
        versions = await store.list_block_versions(ADA, "human")
    assert [(one.value, one.caller) for one in versions] == [("two", "token-1"), ("one", "")]


async def test_watchers_are_told_of_the_first_change_of_a_block_when_it_is_made(
    tmp_path: Path,
) -> None:
    letta, stamps = ReadBetween(), list[dict[tuple[str, str], str]]()
    async with open_store(tmp_path / "s.db") as store:

        async def note_stamps() -> None:
            stamps.append(await store.memory_stamps([ADA]))

        letta.read = note_stamps
        await note_stamps()
        await window(letta, store).update("Ada", "human", Edit("two"), "c")
        await note_stamps()
    before, meanwhile, after = stamps
    assert before == meanwhile != after


async def test_watchers_hear_of_a_change_elsewhere_that_a_failed_one_came_upon(
    tmp_path: Path,
) -> None:
    letta, seen = ReadBetween(), list[str]()

    async def fail() -> None:
        letta.value = "changed elsewhere"
        raise Unavailable("letta")

    letta.read = fail
    async with open_store(tmp_path / "s.db") as store, open_store(tmp_path / "s.db") as other:
        mine, theirs = window(letta, store), window(letta, other)
        for one, name in ((mine, "mine"), (theirs, "theirs")):
            one.on_seen = lambda agent_id, label, name=name: seen.append(name)  # type: ignore[misc]
            await one.get("Ada", "human")
        letta.value = "changed elsewhere"
        with pytest.raises(Unavailable):
            await mine.update("Ada", "human", Edit("two"), "c")
        assert seen == ["mine"]
        await theirs.get("Ada", "human")
    assert seen == ["mine", "theirs"]


async def test_who_waits_too_long_for_another_window_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "EDIT_WAIT_S", 0.05)
    letta = SlowLetta()
    letta.may_write.set()
    async with open_store(tmp_path / "s.db") as store:
        assert await store.take_edit(ADA, "human", "other", 60_000)
        with pytest.raises(Unavailable, match="nothing was written"):
            await window(letta, store).update("Ada", "human", Edit("two"), "c")
        assert letta.value == "one"
        await store.end_edit(ADA, "human", "somebody")
        assert not await store.take_edit(ADA, "human", "me", 1), "it is not theirs to give up"
        await store.end_edit(ADA, "human", "other")
        await window(letta, store).update("Ada", "human", Edit("two"), "c")
        assert letta.value == "two"
        assert await store.take_edit(ADA, "human", "me", 1), "it was given up at the end"


async def test_the_right_to_change_a_block_lapses_and_is_one_blocks_alone(tmp_path: Path) -> None:
    now = [1_000]
    async with open_store(tmp_path / "s.db", now_ms=lambda: now[0]) as store:
        assert await store.take_edit(ADA, "human", "dead", 100)
        assert await store.take_edit(ADA, "persona", "me", 100)
        assert await store.take_edit(AgentId("agent-2"), "human", "me", 100)
        now[0] += 99
        assert not await store.take_edit(ADA, "human", "me", 100)
        now[0] += 1
        assert await store.take_edit(ADA, "human", "me", 100)
        assert not await store.take_edit(ADA, "human", "dead", 100)
