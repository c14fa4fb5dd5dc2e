"""All rooms hang in one space, whatever happens to it. All real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio

from support.admin import admin_of
from support.home import Home, on_both_back_ends
from support.matrix import as_ghost
from support.person import Event, Person
from support.rooms import HUB, is_called
from support.synapse import PASSWORD
from support.talk import REPLY_S

OFTEN = {"HOMEROOM_SYNC_INTERVAL_S": "1"}
HIERARCHY_S = 0.5
"""Synapse lets a person list a space 5 times a second, whatever its settings say.

Source: https://github.com/element-hq/synapse/blob/develop/synapse/handlers/room_summary.py
"""


async def wait_hung(person: Person, space: str, *names: str) -> dict[str, str]:
    """Room name -> room of what hangs in the space, once it is these."""
    hung: dict[str, str] = {}
    with anyio.fail_after(REPLY_S):
        while sorted(hung) != sorted(f"{name} - Letta Agent Chat" for name in names):
            found = await person.hierarchy(space)
            hung = {str(room["name"]): room_id for room_id, room in found.items()}
            await anyio.sleep(HIERARCHY_S)
    return hung


async def join_space(person: Person, *names: str, besides: str = "") -> tuple[str, dict[str, str]]:
    """The space that the person is invited to, and its rooms by name, once they are these."""
    space = await person.join(await person.wait_space_invite(besides=besides))
    return space, await wait_hung(person, space, *names)


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Waits, within bounds, for what no sync tells a person in one event."""
    async with asyncio.timeout(REPLY_S):
        while not await holds():
            await breath()


async def breath() -> None:
    await anyio.sleep(0.1)


async def wait_parents(person: Person, room: str, *spaces: str) -> None:
    """Waits until these, and no others, are the spaces the room says it is in."""

    async def named() -> bool:
        return await parents(person, room) == set(spaces)

    await until(named)


async def parents(person: Person, room: str) -> set[str]:
    """The spaces that the room says it is in."""
    state: list[Event] = await person.whole_state(room)
    return {e["state_key"] for e in state if e["type"] == "m.space.parent" and e["content"]}


async def test_every_room_hangs_in_one_space_that_says_so_as_the_rooms_do(own_home: Home) -> None:
    home = own_home
    for name in ("Ada", "Brook"):
        await home.letta.create_agent(name)
    async with home.login() as alice:
        with home.service(**OFTEN):
            space, hung = await join_space(alice, "Ada", "Brook")
            for room in hung.values():
                await alice.join(room)
            assert (await alice.state(space, "m.room.create"))["type"] == "m.space"
            assert await alice.room_name(space) == "Letta Agents"
            assert (await alice.state(space, "m.room.join_rules"))["join_rule"] == "invite"
            for room in hung.values():
                child = await alice.state(space, "m.space.child", room)
                assert child == {"via": ["hs.test"]}
                parent = await alice.state(room, "m.space.parent", space)
                assert parent == {"via": ["hs.test"], "canonical": True}
            await home.letta.create_agent("Cleo")
            await wait_hung(alice, space, "Ada", "Brook", "Cleo")
            assert alice.space_invites() == [], "there is one, and people are asked once"


@on_both_back_ends
async def test_a_space_that_was_deleted_is_made_again_once_and_every_room_hangs_in_it(
    own_home: Home,
) -> None:
    home = own_home
    for name in ("Ada", "Brook"):
        await home.letta.create_agent(name)
    async with home.login() as alice, admin_of(home.homeserver, "root") as admin:
        with home.service(**OFTEN):
            old, rooms = await join_space(alice, "Ada", "Brook")
            for room in rooms.values():
                await alice.join(room)
        await admin.delete_room(old)  # purged: nobody's sync ever tells of it
        done = home.run("sync", "--audit")
        assert done.returncode == 0, done.stdout + done.stderr
        new, hung = await join_space(alice, "Ada", "Brook", besides=old)
        assert hung == rooms
        for room in rooms.values():
            await wait_parents(alice, room, new)
        assert await alice.resolve("#agent_space:hs.test") == new
        again = home.run("sync", "--audit")
        assert "0 actions planned" in again.stdout, again.stdout
        joined = as_ghost(home.homeserver, HUB, "GET", "/_matrix/client/v3/joined_rooms")
        assert set(joined["joined_rooms"]) == {new, *rooms.values()}, "and no third space"


async def test_a_hub_put_out_of_a_space_while_nothing_ran_makes_another_and_takes_the_alias_back(
    own_home: Home,
) -> None:
    home = own_home
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service(**OFTEN) as service:
            old, rooms = await join_space(alice, "Ada")
            room = await alice.join(next(iter(rooms.values())))
            service.stop()
            # A hub that leaves by itself looks the same to everybody as one that was put out.
            as_ghost(home.homeserver, HUB, "POST", f"/_matrix/client/v3/rooms/{old}/leave")
            assert await alice.resolve("#agent_space:hs.test") == old
            service.start()
            new, hung = await join_space(alice, "Ada", besides=old)
            assert hung == rooms
            await wait_parents(alice, room, new)
            assert await alice.resolve("#agent_space:hs.test") == new


async def test_with_an_empty_database_the_space_is_found_again_by_alias_or_by_its_marker(
    own_home: Home,
) -> None:
    home = own_home
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service(**OFTEN):
            space, rooms = await join_space(alice, "Ada")
        for number in range(2):
            await home.letta.create_agent(f"New {number}")
            lost = {"HOMEROOM_DATA_DIR": str(home.directory / f"lost{number}")}
            with home.service(**OFTEN, **lost) as service:
                names = ["Ada", *(f"New {n}" for n in range(number + 1))]
                hung = await wait_hung(alice, space, *names)
                assert rooms.items() <= hung.items()
                await service.wait_in_step()
            assert alice.space_invites() == []
            alias = "/_matrix/client/v3/directory/room/%23agent_space:hs.test"
            as_ghost(
                home.homeserver, HUB, "DELETE", alias
            )  # the second time only the marker is left


async def test_an_upgraded_space_is_followed_where_the_hub_may_run_the_new_one(
    own_home: Home,
) -> None:
    home = own_home
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service(**OFTEN):
            old, rooms = await join_space(alice, "Ada")
            room = await alice.join(next(iter(rooms.values())))
            new = await alice.create_room(
                creation_content={"type": "m.space"}, invite=[HUB], name="Upgraded",
                power_level_content_override={"users": {alice.id: 100, HUB: 100}},
                room_version="11",
            )  # fmt: skip
            await alice.send_state(old, "m.room.tombstone", {"body": "x", "replacement_room": new})
            assert await wait_hung(alice, new, "Ada") == rooms
            await wait_parents(alice, room, new)
            await alice.wait_event(is_called(new, "Letta Agents"), REPLY_S)
            assert alice.space_invites() == []


async def test_what_people_do_to_the_space_is_undone_and_what_they_add_stays(
    own_home: Home,
) -> None:
    home = own_home
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service(**OFTEN) as service:
            space, rooms = await join_space(alice, "Ada")
            room = await alice.join(next(iter(rooms.values())))
            mine = await alice.create_room(name="Mine")
            await alice.send_state(space, "m.space.child", {"via": ["hs.test"]}, mine)
            # Taken out again and again, it comes back three times and is then left to people.
            for _ in range(2):
                await alice.send_state(space, "m.space.child", {}, room)
                await wait_child(alice, space, room)
            await alice.send_state(space, "m.space.child", {}, room)
            await service.wait_sync(lambda sync: "undone each time" in str(sync))
            assert await alice.state(space, "m.space.child", room) == {}
            assert mine in {e["state_key"] for e in await alice.whole_state(space)}
        assert home.run("sync").returncode == 0, "a person's word puts it back"
        await wait_child(alice, space, room)
        assert await alice.state(space, "m.space.child", mine) == {"via": ["hs.test"]}


async def wait_child(person: Person, space: str, room: str) -> None:
    async def hangs() -> bool:
        return bool(await person.state(space, "m.space.child", room))

    await until(hangs)


async def test_the_space_follows_the_settings_and_may_be_left_to_people(own_home: Home) -> None:
    home = own_home
    home.environ["HOMEROOM_MATRIX_ROOM_VERSION"] = "12"  # the stories above are those of 11
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        off = {"HOMEROOM_SWITCH_OFF": "spaces,avatars"}
        assert home.run("sync", **off).returncode == 0
        room = await alice.join(await alice.wait_invite())
        assert alice.space_invites() == [] and await parents(alice, room) == set()
        assert not [e for e in await alice.whole_state(room) if e["type"] == "m.room.avatar"]
        done = home.run("sync", HOMEROOM_SPACE_NAME="The  Crew")
        assert done.returncode == 0, done.stdout + done.stderr
        space = await alice.join(await alice.wait_space_invite())
        assert await alice.room_name(space) == "The Crew"
        await wait_hung(alice, space, "Ada")
        again = home.run("sync", HOMEROOM_SPACE_NAME="The Crew")
        assert "0 actions planned" in again.stdout
        assert home.run("sync", HOMEROOM_SPACE_NAME="Friends").returncode == 0
        assert await alice.room_name(space) == "Friends"


async def test_a_purged_space_is_made_again_as_soon_as_a_new_agent_needs_it(
    own_home: Home,
) -> None:
    home = own_home
    await home.letta.create_agent("Ada")
    async with home.login() as alice, admin_of(home.homeserver, "root") as admin:
        with home.service(**OFTEN):
            old = await alice.join(await alice.wait_space_invite())
            await wait_hung(alice, old, "Ada")
        await admin.delete_room(old)
        with home.service(**OFTEN):
            await home.letta.create_agent("Brook")
            new = await alice.join(await alice.wait_space_invite(besides=old))
            await wait_hung(alice, new, "Ada", "Brook")


async def test_a_space_whose_alias_was_taken_away_gets_it_back_and_a_persons_name_stays(
    own_home: Home,
) -> None:
    home = own_home
    home.environ["HOMEROOM_KEEP_EDITS"] = "name"
    await home.letta.create_agent("Ada")
    alias = "#agent_space:hs.test"
    async with home.login() as alice:
        assert home.run("sync").returncode == 0
        space = await alice.join(await alice.wait_space_invite())
        await alice.send_state(space, "m.room.name", {"name": "Our crew"})
        path = "/_matrix/client/v3/directory/room/%23agent_space:hs.test"
        as_ghost(home.homeserver, HUB, "DELETE", path)
        done = home.run("sync", "--audit")
        assert done.returncode == 0 and done.stdout.count("set_space_alias") == 1, done.stdout
        assert await alice.resolve(alias) == space
        assert "0 actions planned" in home.run("sync", "--audit").stdout
        lost = {"HOMEROOM_DATA_DIR": str(home.directory / "lost")}
        done = home.run("sync", **lost)
        assert done.returncode == 0, done.stdout + done.stderr
        assert await alice.room_name(space) == "Our crew"
        assert "0 actions planned" in home.run("sync", "--audit", **lost).stdout


@asynccontextmanager
async def with_bob(home: Home) -> AsyncIterator[tuple[Person, Person]]:
    """Alice and Bob, both of whom are wanted in every room."""
    home.environ["HOMEROOM_INVITE"] += f",{home.homeserver.person('bob')}"
    async with home.login() as alice, Person.login(home.homeserver.url, "bob", PASSWORD) as bob:
        yield alice, bob


async def test_who_declined_the_space_is_not_asked_again_by_a_store_that_was_lost(
    own_home: Home,
) -> None:
    home = own_home
    await home.letta.create_agent("Ada")
    async with with_bob(home) as (alice, bob):
        assert home.run("sync").returncode == 0
        space = await alice.join(await alice.wait_space_invite())
        await bob.leave(await bob.wait_space_invite())
        lost = {"HOMEROOM_DATA_DIR": str(home.directory / "lost")}
        done = home.run("sync", **lost)
        assert done.returncode == 0 and "invite_to_space" not in done.stdout, done.stdout
        assert (await alice.state(space, "m.room.member", bob.id))["membership"] == "leave"
        again = home.run("sync", "--invite", bob.id, **lost)
        assert again.returncode == 0, again.stdout
        assert await bob.wait_space_invite() == space, "but who asks is"


async def test_who_declined_the_space_is_not_asked_into_the_one_it_was_upgraded_to(
    own_home: Home,
) -> None:
    home = own_home
    await home.letta.create_agent("Ada")
    async with with_bob(home) as (alice, bob):
        with home.service(**OFTEN) as service:
            old, _ = await join_space(alice, "Ada")
            await bob.leave(await bob.wait_space_invite())
            await service.wait_in_step()
            new = await alice.create_room(
                creation_content={"type": "m.space"}, invite=[HUB], name="Upgraded",
                power_level_content_override={"users": {alice.id: 100, HUB: 100}},
                room_version="11",
            )  # fmt: skip
            await alice.send_state(old, "m.room.tombstone", {"body": "x", "replacement_room": new})
            await wait_hung(alice, new, "Ada")
            await service.wait_syncs(2)
            await service.wait_in_step()
        members = {e["state_key"] for e in await alice.whole_state(new) if is_member(e)}
        assert bob.id not in members and alice.id in members


async def test_who_declined_the_space_is_not_asked_into_the_one_that_takes_its_place(
    own_home: Home,
) -> None:
    home = own_home
    await home.letta.create_agent("Ada")
    async with with_bob(home) as (alice, bob), admin_of(home.homeserver, "root") as admin:
        with home.service(**OFTEN) as service:
            space, _ = await join_space(alice, "Ada")
            await bob.leave(await bob.wait_space_invite())
            for _ in range(2):  # it is deleted twice: what is known outlives the first
                await service.wait_syncs(3)
                await service.wait_in_step()
                await admin.delete_room(space, block=True)
                space, _ = await join_space(alice, "Ada", besides=space)
                await service.wait_in_step()
                members = {e["state_key"] for e in await alice.whole_state(space) if is_member(e)}
                assert bob.id not in members and alice.id in members
        assert home.run("sync", "--invite", bob.id).returncode == 0
        assert await bob.wait_space_invite() == space


def is_member(event: Event) -> bool:
    return bool(event["type"] == "m.room.member")
