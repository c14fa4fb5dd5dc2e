"""What an agent says while it speaks reaches those who wait for it in other processes."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from homeroom import speaking as speaking_module
from homeroom.background import background
from homeroom.errors import LeaseLost
from homeroom.items import Item, ItemKind, ItemState, NewItem, Spoken
from homeroom.model import ItemId
from homeroom.speaking import TAIL_CHARS, Speaking
from homeroom.store import Store, open_store

CHAT = {"agent_id": "agent-1", "client": "a test"}
LIMIT_S = 10.0


async def lease(store: Store, owner: str) -> int:
    return (await store.take_lease(owner, rank=1, ttl_ms=60_000, is_gone=lambda _: True)).fence


async def begun(store: Store, fence: int, **payload: str) -> Item:
    """A turn that is being delivered."""
    await store.put([NewItem("agent:agent-1:x", ItemKind.TURN, payload or CHAT, "chat:1")])
    item, _ = await store.claim([ItemKind.TURN], fence)
    assert item is not None
    await store.begin(item, fence)
    return item


async def count_rows(store: Store) -> int:
    return len(await store._run(lambda: store._rows("SELECT * FROM spoken")))


async def wait_told(store: Store, item_id: ItemId, wanted: Spoken | None) -> None:
    async def find() -> bool | None:
        return True if await store.find_spoken(item_id) == wanted else None

    assert await store.wait_for(find, LIMIT_S), await store.find_spoken(item_id)


async def test_another_process_reads_how_far_it_has_got_and_is_not_written_to_for_every_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speaking_module, "WRITE_EVERY_S", 0.05)
    async with open_store(tmp_path / "s.db") as ours, open_store(tmp_path / "s.db") as theirs:
        fence = await lease(ours, "us")
        item, here, there = await begun(ours, fence), Speaking(ours), Speaking(theirs)
        writes: list[int] = []
        save = ours.save_spoken

        async def counted(said: dict[ItemId, Spoken], fence: int) -> None:
            writes.extend(one.count for one in said.values())
            await save(said, fence)

        monkeypatch.setattr(ours, "save_spoken", counted)
        async with background(lambda: here.run(fence)):
            for number in range(500):
                here.note(item, f"{number:03} ")
            tail = "".join(f"{number:03} " for number in range(400, 500))
            assert len(tail) == TAIL_CHARS
            await wait_told(theirs, item.id, Spoken(2000, tail))
            assert await here.find(item.id) == Spoken(2000, tail)
            assert await there.find(item.id) == Spoken(2000, tail) and writes == [2000]
            here.note(item, "more")
            await wait_told(theirs, item.id, Spoken(2004, tail[4:] + "more"))
        await ours.finish(item, ItemState.DONE, fence=fence, result={})
        assert await there.find(item.id) is None
        assert await here.find(item.id) is None, "it runs no turns any more"
        await save({item.id: Spoken(3, "late")}, fence)
        assert await count_rows(ours) == 0


async def test_what_was_said_before_a_process_died_is_not_shown_after_it(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as dead, open_store(tmp_path / "s.db") as next_one:
        fence = await lease(dead, "dead")
        item = await begun(dead, fence)
        await dead.save_spoken({item.id: Spoken(4, "half")}, fence)
        assert await next_one.find_spoken(item.id) == Spoken(4, "half")
        await lease(next_one, "next")
        assert await next_one.find_spoken(item.id) is None
        with pytest.raises(LeaseLost):
            await dead.save_spoken({item.id: Spoken(9, "half dead")}, fence)
        assert await count_rows(next_one) == 0


async def test_a_turn_that_is_put_off_has_said_nothing(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        fence = await lease(store, "us")
        item = await begun(store, fence)
        await store.save_spoken({item.id: Spoken(4, "half")}, fence)
        await store.retry(item, fence=fence, delay_ms=0, reason="lost", delivered=True)
        assert await count_rows(store) == 0


async def test_of_what_is_said_in_rooms_nothing_is_kept(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        fence = await lease(store, "us")
        item = await begun(store, fence, agent_id="agent-1", sender="@you:h", event_id="$1")
        here = Speaking(store)
        wrote = anyio.Event()

        async def save(said: object, fence: int) -> None:
            wrote.set()

        store.save_spoken = save  # type: ignore[method-assign]
        async with background(lambda: here.run(fence)):
            here.note(item, "hello")
            await anyio.wait_all_tasks_blocked()
            assert await here.find(item.id) is None and not wrote.is_set()


async def test_whoever_runs_no_turns_forgets_what_it_once_heard(tmp_path: Path) -> None:
    """The turn may be another process's by now, which says where it stands."""
    async with open_store(tmp_path / "s.db") as ours, open_store(tmp_path / "s.db") as theirs:
        fence = await lease(ours, "us")
        item, here = await begun(ours, fence), Speaking(ours)
        async with background(lambda: here.run(fence)):
            here.note(item, "a long beginning")
            await wait_told(theirs, item.id, Spoken(16, "a long beginning"))
        fence = await lease(theirs, "them")
        again, _ = await theirs.claim([ItemKind.TURN], fence)
        assert again is not None and again.id == item.id
        await theirs.begin(again, fence)
        await theirs.save_spoken({item.id: Spoken(3, "anew")}, fence)
        assert await here.find(item.id) == Spoken(3, "anew")
