"""Where nothing is wrong nothing is planned, whatever the homes have been through. All real."""

from __future__ import annotations

import re
from collections.abc import Callable

from homeroom.model import Agent
from support.home import Home
from support.matrix import as_ghost
from support.old_bridge import old_entry, old_home, write
from support.person import Person
from support.rooms import ghost_of, new_room, wait_membership
from support.talk import ask

SETTINGS = {"HOMEROOM_RETIRE_AFTER_S": "1", "HOMEROOM_HISTORY_COUNT": "1"}
OFF = ("spaces", "avatars", "spaces,avatars,invites,rename,retire,accept_invites")


def planned(home: Home, *how: str, **environ: str) -> int:
    done = home.run("sync", *how, **SETTINGS, **environ)
    assert done.returncode == 0, done.stdout + done.stderr
    count = re.search(r"(\d+) actions? planned", done.stdout)
    assert count, done.stdout
    return int(count[1])


async def settle(home: Home) -> None:
    """One sync and what it found out; a third would be one too many."""
    planned(home)
    planned(home, "--audit")


async def rooms_by_agent(alice: Person, *agents: Agent) -> dict[str, str]:
    rooms: dict[str, str] = {}
    while not {agent.name for agent in agents} <= rooms.keys():
        room = await alice.join(await alice.wait_invite())
        rooms[(await alice.room_name(room)).partition(" ")[0]] = room
    return rooms


async def test_homes_of_every_history_are_in_step_after_one_sync_and_stay_so(
    own_home: Home, unique: Callable[[str], str]
) -> None:
    home = own_home
    home.environ["HOMEROOM_MATRIX_ROOM_VERSION"] = "12"  # most other stories are of 11
    names = ("Ada", "Brook", "Cleo", "Dot", "Eve")
    agents = {name: await home.letta.create_agent(name) for name in names}
    async with home.login() as alice:
        user, room = await old_home(home, unique("agent_of_old_brook"), alice)
        entry = old_entry(agents["Brook"].id, user, room, "Brook")
        assert home.run("import-mappings", str(write(home, entry))).returncode == 0
        await settle(home)
        assert planned(home, "--audit") == 0, "new and imported homes"
        others = [agent for name, agent in agents.items() if name != "Brook"]
        rooms = await rooms_by_agent(alice, *others)

        # One upgrades its room, one is invited elsewhere, one goes from Letta, one is not chosen.
        ghost = ghost_of(agents["Eve"])
        path = f"/_matrix/client/v3/rooms/{rooms['Eve']}/upgrade"
        as_ghost(home.homeserver, ghost, "POST", path, {"new_version": "12"})
        direct = await new_room(alice, ghost_of(agents["Ada"]), direct=True)
        await home.letta.delete_agent(agents["Cleo"].id)
        home.environ["HOMEROOM_SELECT_NAMES"] = "Ada,Brook,Cleo,Eve"
        with home.service(HOMEROOM_SYNC_INTERVAL_S="1", **SETTINGS):
            await wait_membership(alice, direct, "@agent_hub:hs.test", "join")
            assert (await ask(alice, direct, "!say hi"))["content"]["body"] == "hi"
        await settle(home)
        assert planned(home, "--audit") == 0, "followed, further, retired and unselected ones"
        invite_again = {"HOMEROOM_INVITE": ""}
        planned(home, **invite_again)
        planned(home)
        assert planned(home, "--audit") == 0, "and one that left the list and came back"
        for off in OFF:
            assert planned(home, "--audit", HOMEROOM_SWITCH_OFF=off) == 0, off
        home.environ["HOMEROOM_DATA_DIR"] = str(home.directory / "lost")
        await settle(home)
        assert planned(home, "--audit") == 0, "found again"
        # The space and the room that follows Eve's are the only ones she has not answered yet.
        assert (len(alice.space_invites()), len(alice.invites())) == (1, 1), "and no second room"
