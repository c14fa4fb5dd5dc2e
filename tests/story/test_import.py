"""An older bridge's users and rooms become Homeroom's, with everything in them. All real."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import httpx

from homeroom.model import AgentId, ghost_localpart
from support.home import Home, on_both_back_ends
from support.matrix import as_ghost
from support.old_bridge import SECRET, old_entry, old_home, write
from support.rooms import new_room
from support.talk import answers_in, ask


def exists(home: Home, localpart: str) -> bool:
    user = f"@{localpart}:{home.homeserver.server_name}"
    return httpx.get(
        f"{home.homeserver.url}/_matrix/client/v3/profile/{user}", trust_env=False
    ).is_success


@on_both_back_ends
async def test_old_rooms_go_on_as_homerooms_and_survive_the_loss_of_the_store(
    home: Home, unique: Callable[[str], str]
) -> None:
    ada = await home.letta.create_agent("Ada")
    await home.letta.create_agent("Brook")
    async with home.login() as alice:
        user, room = await old_home(home, unique("agent_of_old_ada"), alice)
        past = await alice.say(room, "!say said long ago")
        entries = [
            old_entry(ada.id, user, room),
            old_entry("agent-that-is-gone", "@agent_x:hs.test", "!gone:hs.test", "Gone"),
        ]
        path = write(home, *entries)
        wished = home.run("import-mappings", str(path), "--dry-run")
        assert wished.returncode == 2, wished.stderr
        assert f"would adopt entry 1 Ada {ada.id}: {user} in {room}" in wished.stdout
        done = home.run("import-mappings", str(path))
        assert done.returncode == 2, done.stderr
        assert "NOT adopted entry 2 Gone agent-that-is-gone: Letta has no such agent" in done.stdout
        assert "2 entries: 1 adopted, 0 adopted before, 1 not adopted" in done.stdout
        again = home.run("import-mappings", str(write(home, entries[0])))
        assert again.returncode == 0, again.stderr
        assert "1 entry: 0 adopted, 1 adopted before, 0 not adopted" in again.stdout
        for run in (wished, done, again):
            assert SECRET not in run.stdout + run.stderr

        synced = home.run("sync")
        assert synced.returncode == 0, synced.stdout + synced.stderr
        assert await alice.room_name(room) == "Ada - Letta Agent Chat"
        assert {user, alice.id, "@agent_hub:hs.test"} == set(await alice.members(room))
        alias = f"#{ghost_localpart(AgentId(ada.id))}:hs.test"
        found = await alice._ask("GET", ("directory", "room", alias))
        assert found["room_id"] == room
        brooks = await alice.join(await alice.wait_invite())
        assert await alice.room_name(brooks) == "Brook - Letta Agent Chat"

        shutil.rmtree(home.directory / "data")
        assert home.run("sync").returncode == 0
        with home.service():
            answer = await ask(alice, room, "!say here as before")
            assert alice.invites() == [], "no second room"
            assert (answer["sender"], answer["content"]["body"]) == (user, "here as before")
            assert past not in answers_in(await alice.messages(room))
        assert not exists(home, ghost_localpart(AgentId(ada.id))), "no second user"
        for kept in (home.directory / "data").rglob("*"):
            assert not kept.is_file() or SECRET.encode() not in kept.read_bytes()


async def test_an_import_beside_a_running_bridge_is_done_by_the_bridge(
    home: Home, unique: Callable[[str], str]
) -> None:
    async with home.login() as alice:
        with home.service(HOMEROOM_SYNC_INTERVAL_S="3600") as service:
            assert home.run("sync").returncode == 0
            ada = await home.letta.create_agent("Ada")
            user, room = await old_home(home, unique("agent_of_old_ada"), alice)
            past = await alice.say(room, "!say said long ago")
            done = home.run("import-mappings", str(write(home, old_entry(ada.id, user, room))))
            assert done.returncode == 0, done.stdout + done.stderr
            await alice.wait_event(
                lambda e: (
                    e["type"] == "m.room.member"
                    and (e["room_id"], e["content"]["membership"]) == (room, "join")
                    and e["state_key"] == "@agent_hub:hs.test"
                )
            )
            assert (await ask(alice, room, "!say now"))["sender"] == user
            assert past not in answers_in(await alice.messages(room))
            assert alice.invites() == []
            assert (await service.health())["bridge"]["runs_here"]


async def test_an_old_room_in_which_the_user_may_change_nothing_hangs_in_the_space_all_the_same(
    own_home: Home,
) -> None:
    home = own_home
    ada = await home.letta.create_agent("Ada")
    async with home.login() as alice:
        user, _ = await old_home(home, "agent_of_old_ada", alice)
        room = await new_room(alice, user, name="what it was called")
        as_ghost(home.homeserver, user, "POST", f"/_matrix/client/v3/join/{room}")
        levels = await alice.state(room, "m.room.power_levels")
        await alice.send_state(room, "m.room.power_levels", levels | {"invite": 0})
        done = home.run("import-mappings", str(write(home, old_entry(ada.id, user, room))))
        assert done.returncode == 0, done.stdout + done.stderr
        done = home.run("sync")
        assert done.returncode == 2 and "may not change the name" in done.stdout, done.stdout
        space = await alice.join(await alice.wait_space_invite())
        assert room in await alice.hierarchy(space)
        assert await alice.room_name(room) == "what it was called"


async def test_what_is_no_mapping_file_is_refused_in_a_sentence(home: Home) -> None:
    path = home.directory / "mappings.json"
    for raw, words in ((b"", "is empty"), (b"{", "no JSON"), (b"\0", "NUL"), (b"7", "else")):
        path.write_bytes(raw)
        done = home.run("import-mappings", str(path))
        assert (done.returncode, done.stdout) == (1, "")
        assert words in done.stderr and "Traceback" not in done.stderr
    done = home.run("import-mappings", str(home.directory / "nothing.json"))
    assert done.returncode == 1 and "cannot be read: No such file" in done.stderr
    home.environ.pop("HOMEROOM_MATRIX_URL")
    path.write_text("[]")
    assert home.run("import-mappings", str(path)).returncode == 78
