"""Rooms follow their agents, on either real back end. All real."""

from __future__ import annotations

import shutil

from support.census import Census, assert_one_of_each
from support.home import Home, on_both_back_ends
from support.person import Person
from support.talk import ask

LONG_S = 600.0
"""A hundred agents take a quiet machine half a minute, and a busy one several."""
SCRIPTS = (
    "Zoë Ünïcode", "李雷 的 助手", "Ольга", "مساعد", "देवनागरी", "🙂 robot 👩‍💻",
    r"a/b\c:d*e", "<b>&amp;", "  spaced   out ", "x" * 300,
)  # fmt: skip
"""Names of every kind; the room shows them in one line of at most 120 characters."""


async def join_all(person: Person, count: int) -> dict[str, str]:
    """Room -> its name, of all rooms the person is invited to."""
    rooms: dict[str, str] = {}
    while len(rooms) < count:
        room = await person.join(await person.wait_invite())
        rooms[room] = await person.room_name(room)
    return rooms


@on_both_back_ends
async def test_a_room_follows_its_agents_name_and_description_and_a_lost_store(
    home: Home,
) -> None:
    ada = await home.letta.create_agent("Ada", "counts")
    twins = [await home.letta.create_agent("Twin") for _ in range(2)]
    async with home.login() as alice:
        first = home.run("sync")
        assert first.returncode == 0, first.stdout + first.stderr
        rooms = await join_all(alice, 3)
        assert sorted(rooms.values()) == [
            "Ada - Letta Agent Chat", "Twin - Letta Agent Chat", "Twin - Letta Agent Chat"
        ]  # fmt: skip
        room = next(room for room, name in rooms.items() if name.startswith("Ada"))
        topic = (await alice.state(room, "m.room.topic"))["topic"]
        assert topic == "Chat with Ada (Letta Agent): counts"
        again = home.run("sync")
        assert again.returncode == 0 and "0 actions planned" in again.stdout

        await home.letta.rename_agent(ada.id, "Ada / Lovelace")
        await home.letta.describe_agent(ada.id, "programs")
        await home.letta.rename_agent(twins[0].id, "Ada / Lovelace")
        assert home.run("sync").returncode == 0
        names = [await alice.room_name(one) for one in rooms]
        assert sorted(names) == [
            "Ada / Lovelace - Letta Agent Chat",
            "Ada / Lovelace - Letta Agent Chat",
            "Twin - Letta Agent Chat",
        ]
        topic = (await alice.state(room, "m.room.topic"))["topic"]
        assert topic == "Chat with Ada / Lovelace (Letta Agent): programs"

        shutil.rmtree(home.directory / "data")
        assert home.run("sync").returncode == 0
        with home.service():
            answer = await ask(alice, room, "!say found again")
            assert answer["content"]["body"] == "found again"
            assert (await alice.members(room))[answer["sender"]] == "Ada / Lovelace"
            assert alice.invites() == [], "no second room"


@on_both_back_ends
async def test_names_of_every_kind_are_shown_and_answer(home: Home) -> None:
    for name in SCRIPTS:
        await home.letta.create_agent(name)
    async with home.login() as alice:
        with home.service() as service:
            rooms = await join_all(alice, len(SCRIPTS))
            shown = {name.removesuffix(" - Letta Agent Chat") for name in rooms.values()}
            flat = {" ".join(name.split()) for name in SCRIPTS}
            assert shown == {name if len(name) <= 120 else name[:119] + "…" for name in flat}
            odd = next(room for room, name in rooms.items() if name.startswith("a/b"))
            assert (await ask(alice, odd, "!say hi"))["content"]["body"] == "hi"
            assert service.log().count("action_failed") == 0


@on_both_back_ends
async def test_a_hundred_agents_move_in_and_each_has_one_room_in_the_space(
    own_home: Home,
) -> None:
    home = own_home
    await home.letta.create_many(100)
    done = home.run("sync", timeout_s=LONG_S)
    assert done.returncode == 0, done.stdout + done.stderr
    with Census(home.homeserver) as census:
        assert_one_of_each(census, 100, home.homeserver.person(home.person))
    again = home.run("sync")
    assert again.returncode == 0 and "100 agents, 0 actions planned" in again.stdout
