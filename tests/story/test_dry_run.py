"""A dry run says what would be done, does nothing of it, and waits for nobody. All real."""

from __future__ import annotations

import anyio
import httpx
from mcp import Client

from support.breaking import MATRIX, before
from support.fault_proxy import hang, path
from support.home import Home
from support.old_bridge import old_entry, write
from support.rooms import HUB


def hub_exists(home: Home) -> bool:
    url = f"{home.homeserver.url}/_matrix/client/v3/profile/{HUB}"
    return httpx.get(url, trust_env=False).is_success


async def test_a_dry_run_on_a_bare_homeserver_prints_the_plan_and_sends_nothing_but_questions(
    own_home: Home,
) -> None:
    ada = await own_home.letta.create_agent("Ada")
    with before(own_home, MATRIX) as (home, proxy):
        done = home.run("sync", "--dry-run")
        assert done.returncode == 2, done.stdout + done.stderr
        assert "create_room" in done.stdout and "make_space" in done.stdout
        entry = old_entry(ada.id, "@agent_old:hs.test", "!old:hs.test")
        told = home.run("import-mappings", str(write(home, entry)), "--dry-run")
        assert "there is no user @agent_old:hs.test" in told.stdout, told.stdout + told.stderr
        assert not hub_exists(home)
        assert {asked.method for asked in proxy.requests} == {"GET"}

        assert home.run("sync").returncode == 0 and hub_exists(home)
        start = len(proxy.requests)
        done = home.run("sync", "--dry-run", "--audit")
        assert done.returncode == 0 and "0 actions planned" in done.stdout, done.stdout
        assert {asked.method for asked in proxy.requests[start:]} == {"GET"}


async def test_a_dry_run_sees_what_the_sync_after_it_does_though_nobody_has_read_the_rooms(
    own_home: Home,
) -> None:
    home = own_home
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        assert home.run("sync").returncode == 0
        room = await alice.join(await alice.wait_invite())
        await alice.send_state(room, "m.room.name", {"name": "Theirs"})
        planned = home.run("sync", "--dry-run")
        assert planned.returncode == 2 and "1 action planned, 0 done" in planned.stdout
        assert await alice.room_name(room) == "Theirs"
        done = home.run("sync")
        assert done.returncode == 0 and "1 action planned, 1 done" in done.stdout, done.stdout
        assert await alice.room_name(room) == "Ada - Letta Agent Chat"


async def test_a_dry_run_by_a_tool_waits_for_no_sync_that_hangs(own_home: Home) -> None:
    with before(own_home, MATRIX) as (home, proxy):
        for number in range(3):
            await home.letta.create_agent(f"Agent {number}")
        rooms = path("/createRoom$")
        proxy.on(rooms, hang())
        with home.service(HOMEROOM_SYNC_INTERVAL_S="1") as service:
            await proxy.wait_count(rooms, 1)
            with anyio.fail_after(30):  # the sync under way waits for a minute
                async with Client(f"{service.url}/mcp") as client:
                    told = await client.call_tool("sync_agents", {"dry_run": True})
            assert not told.is_error and told.structured_content
            assert told.structured_content["dry_run"] and told.structured_content["planned"] > 3
