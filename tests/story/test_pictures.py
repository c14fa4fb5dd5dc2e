"""Every agent has a picture of its own, and people may give a room another. All real."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from homeroom.avatar import avatar_png
from homeroom.plan_space import HUB_SEED
from support.app_server import AppServerHarness
from support.home import Home, make_home
from support.matrix import connect
from support.person import Event, Person
from support.rooms import HUB, ghost_of
from support.synapse import prepare_homeserver


async def joined(alice: Person) -> dict[str, str]:
    """Name -> room of everything that alice is invited to, joined now."""
    rooms = [*alice.invites(), *alice.space_invites()]
    for room in rooms:
        await alice.join(room)
    return {await alice.room_name(room): room for room in rooms}


async def avatar(person: Person, room: str) -> Event:
    return await person.state(room, "m.room.avatar")


async def test_ghost_and_room_show_the_same_stable_picture_which_is_uploaded_once(
    home: Home,
) -> None:
    ada, brook = [await home.letta.create_agent(name) for name in ("Ada", "Brook")]
    async with home.login() as alice:
        done = home.run("sync")
        assert done.returncode == 0, done.stdout + done.stderr
        await alice.wait_space_invite()
        await alice.wait_invite()
        shown: dict[str, str] = {}
        for agent in (ada, brook):
            mxc = (await alice.profile(ghost_of(agent)))["avatar_url"]
            assert await alice.fetch_media(mxc) == avatar_png(agent.id)
            shown[agent.id] = mxc
        again = home.run("sync", "--audit")
        assert "0 actions planned" in again.stdout, again.stdout
        rooms = await joined(alice)
        for agent, name in ((ada, "Ada"), (brook, "Brook")):
            content = await avatar(alice, rooms[f"{name} - Letta Agent Chat"])
            assert content["url"] == shown[agent.id]
            assert content["info"]["mimetype"] == "image/png" and content["info"]["w"] == 140
        hub = (await alice.profile(HUB))["avatar_url"]
        assert await alice.fetch_media(hub) == avatar_png(HUB_SEED)
        assert (await avatar(alice, rooms["Letta Agents"]))["url"]


async def test_a_picture_that_a_person_gives_a_room_stays_also_when_the_database_is_lost(
    home: Home,
) -> None:
    ada = await home.letta.create_agent("Ada")
    async with home.login() as alice:
        assert home.run("sync").returncode == 0
        room = await alice.join(await alice.wait_invite())
        theirs = {"url": "mxc://hs.test/theirs"}
        await alice.send_state(room, "m.room.avatar", theirs)
        await home.letta.rename_agent(ada.id, "Ada Two")
        assert home.run("sync").returncode == 0
        lost = {"HOMEROOM_DATA_DIR": str(home.directory / "lost")}
        assert home.run("sync", **lost).returncode == 0
        assert await avatar(alice, room) == theirs
        await alice.send_state(room, "m.room.avatar", {})
        more = {"HOMEROOM_DATA_DIR": str(home.directory / "lost2")}
        assert home.run("sync", **more).returncode == 0
        assert await avatar(alice, room) == {}, "nor does it come back when they take it away"
        mxc = (await alice.profile(ghost_of(ada)))["avatar_url"]
        assert await alice.fetch_media(mxc) == avatar_png(ada.id)


@pytest.fixture
def stingy_home(own_app_server: AppServerHarness, tmp_path: Path) -> Iterator[Home]:
    """A home on a homeserver that takes no file of more than a kilobyte."""
    homeserver = prepare_homeserver(tmp_path / "homeserver", extra={"max_upload_size": "1K"})
    homeserver.synapse.start()
    try:
        yield make_home(homeserver, own_app_server, tmp_path / "homeroom", "alice")
    finally:
        homeserver.synapse.stop()


async def test_a_refused_upload_is_shown_and_keeps_no_agent_from_its_room_or_its_new_name(
    stingy_home: Home,
) -> None:
    home = stingy_home
    ada = await home.letta.create_agent("Ada")
    async with home.login() as alice:
        done = home.run("sync")
        assert done.returncode == 2 and "failed: The Matrix homeserver refused" in done.stdout
        space = await alice.join(await alice.wait_space_invite())
        room = await alice.join(await alice.wait_invite())
        assert set(await alice.hierarchy(space)) == {room}
        assert HUB in await alice.members(room)
        state = {event["type"] for event in await alice.whole_state(room)}
        assert "m.room.avatar" not in state

        await home.letta.rename_agent(ada.id, "Ada Two")
        with home.service(start=False) as service:
            service.start()
            event = await alice.wait_event(
                lambda e: e["type"] == "m.room.name" and "Ada Two" in e["content"]["name"]
            )
            assert event["room_id"] == room
            await service.wait_log("sync_finished")  # the new name was only a part of it
            said = str((await service.health())["last_sync"])
            assert "refused" in said and "HOMEROOM_SWITCH_OFF" in said
        off = home.run("sync", HOMEROOM_SWITCH_OFF="avatars")
        assert off.returncode == 0 and "0 left" in off.stdout


async def test_an_upload_whose_answer_was_lost_is_taken_up_where_it_was(home: Home) -> None:
    async with connect(home.homeserver) as matrix:
        await matrix.check()
        data = avatar_png("agent-x")
        mxc = await matrix.reserve_media(matrix.hub)
        assert await matrix.put_media(matrix.hub, mxc, data, "image/png")
        assert await matrix.put_media(matrix.hub, mxc, b"another", "image/png"), "it stays"
        assert not await matrix.put_media(matrix.hub, "mxc://hs.test/nothing", data, "image/png")
        assert (await matrix.upload_media(matrix.hub, data, "image/png")).startswith("mxc://")
        async with home.login() as alice:
            assert await alice.fetch_media(mxc) == data
