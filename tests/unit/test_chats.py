"""Whose a chat is, and when two chats are one."""

from __future__ import annotations

from pathlib import Path

import pytest

from homeroom.chats import SAME_WITHIN_MS, chat_key, is_chat_of, signed
from homeroom.decide import chat_items
from homeroom.errors import LimitExceeded, Misuse
from homeroom.items import ItemKind, ItemState, NewItem
from homeroom.model import AgentId, GhostId, ItemId, Mapping, RoomId
from homeroom.store import Store, open_store

ADA, BOB = AgentId("agent-1"), AgentId("agent-2")


def chat(
    text: str = "Hello", caller: str = "local", agent: AgentId = ADA, key: str = "",
    mapping: Mapping | None = None,
) -> list[NewItem]:  # fmt: skip
    chat.count += 1  # type: ignore[attr-defined]
    name = chat_key(caller, key, f"unique {chat.count}")  # type: ignore[attr-defined]
    items = chat_items(agent, mapping, text, client="a test", mirror=True, key=name)
    return [signed(items[0], caller, text), *items[1:]]


chat.count = 0  # type: ignore[attr-defined]


async def put(store: Store, items: list[NewItem], same_within_ms: int = SAME_WITHIN_MS) -> ItemId:
    return await store.put_chat(items, same_within_ms=same_within_ms)


async def test_the_same_text_to_the_same_agent_by_the_same_caller_is_one_message_for_ten_seconds(
    tmp_path: Path,
) -> None:
    now = [1_000_000]
    async with open_store(tmp_path / "s.db", now_ms=lambda: now[0]) as store:
        first = await put(store, chat())
        now[0] += 9_999
        assert await put(store, chat()) == first
        others = [
            await put(store, chat("Hello!")),
            await put(store, chat(caller="token-1")),
            await put(store, chat(agent=BOB)),
        ]
        now[0] += 1
        others.append(await put(store, chat()))
        assert len({first, *others}) == 5
        assert (await store.count_items())["waiting"] == 5


@pytest.mark.parametrize("state", [ItemState.CANCELLED, ItemState.EXPIRED, ItemState.PARKED])
@pytest.mark.parametrize("has_begun", [False, True])
async def test_one_that_ended_and_was_never_delivered_is_not_the_same_message(
    state: ItemState, has_begun: bool, tmp_path: Path
) -> None:
    now = [1_000_000]
    async with open_store(tmp_path / "s.db", now_ms=lambda: now[0]) as store:
        fence = (await store.take_lease("me", rank=1, ttl_ms=60_000)).fence
        first = await put(store, chat())
        item, _ = await store.claim([ItemKind.TURN], fence)
        assert item is not None
        if has_begun:
            await store.begin(item, fence)
        await store.finish(item, state, fence=fence, reason="why", delivered=has_begun)
        again = await put(store, chat())
        assert (again == first) is has_begun
        assert await put(store, chat()) == again


async def test_it_is_one_message_also_for_another_process_on_the_same_store(
    tmp_path: Path,
) -> None:
    async with open_store(tmp_path / "s.db") as one, open_store(tmp_path / "s.db") as other:
        assert await put(one, chat(caller="stdio")) == await put(other, chat(caller="local"))


async def test_a_message_that_is_known_already_is_not_shown_in_the_room_again(
    tmp_path: Path,
) -> None:
    home = Mapping(agent_id=ADA, ghost=GhostId("@agent_1:h"), room_id=RoomId("!r:h"))
    async with open_store(tmp_path / "s.db") as store:
        await put(store, chat(mapping=home))
        await put(store, chat(mapping=home))
        assert (await store.count_items())["waiting"] == 2, "the turn and what the room sees of it"


async def test_a_clock_that_was_set_back_makes_no_message_the_same_for_ever(
    tmp_path: Path,
) -> None:
    now = [10_000_000]
    async with open_store(tmp_path / "s.db", now_ms=lambda: now[0]) as store:
        first = await put(store, chat())
        now[0] -= 3_600_000
        assert await put(store, chat()) != first


async def test_a_key_makes_a_message_the_same_however_late_and_only_for_its_caller(
    tmp_path: Path,
) -> None:
    now = [1_000_000]
    async with open_store(tmp_path / "s.db", now_ms=lambda: now[0]) as store:
        first = await put(store, chat(key="k"), 0)
        now[0] += 3_600_000
        assert await put(store, chat(key="k"), 0) == first
        assert await put(store, chat(key="k", caller="token-1"), 0) != first
        assert await put(store, chat(key="other"), 0) != first
        with pytest.raises(Misuse, match="another message"):
            await put(store, chat("Something else", key="k"), 0)


async def test_a_message_sent_again_finds_itself_also_where_its_lane_is_full(
    tmp_path: Path,
) -> None:
    async with open_store(tmp_path / "s.db", max_waiting=1) as store:
        first = await put(store, chat())
        assert await put(store, chat()) == first
        with pytest.raises(LimitExceeded):
            await put(store, chat("One more"))


async def test_a_reply_belongs_to_its_caller_and_all_that_is_local_is_one(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        mine = await store.get_item(await put(store, chat(caller="stdio")))
        theirs = await store.get_item(await put(store, chat(caller="token-1")))
    assert is_chat_of(mine, "local") and is_chat_of(mine, "stdio") and is_chat_of(mine, "")
    assert not is_chat_of(mine, "token-1")
    assert is_chat_of(theirs, "token-1")
    assert not is_chat_of(theirs, "token-2") and not is_chat_of(theirs, "local")


async def test_an_id_tells_eighty_bits_that_nobody_can_guess(tmp_path: Path) -> None:
    async with open_store(tmp_path / "s.db") as store:
        ids = [await put(store, chat(str(number))) for number in range(50)]
    random = {int(item_id[13:], 16) for item_id in ids}
    assert all(len(item_id) == 13 + 20 for item_id in ids) and len(random) == 50
    seen = 0
    for number in random:
        seen |= number
    assert seen.bit_length() == 80, "every bit of it varies"
    assert ids == sorted(ids)
