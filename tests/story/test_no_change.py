"""A sync that finds nothing to do asks the homeserver nothing, and an audit asks it a little."""

from __future__ import annotations

import re
from urllib.parse import unquote

from support.breaking import MATRIX, before
from support.fault_proxy import FaultProxy
from support.home import Home
from support.rooms import join_rooms
from support.talk import ask

_LOOPS = re.compile(r"/sync$|/account_data/|/versions$|/whoami$")
"""The hub's long poll, and the note that this Homeroom is the one of its homeserver."""


def asked(proxy: FaultProxy, since: int) -> list[str]:
    """The last part of each path that was asked for after the first ``since`` requests."""
    paths = [unquote(request.path) for request in proxy.requests[since:]]
    return [path.rpartition("/")[2] for path in paths if not _LOOPS.search(path)]


async def test_a_sync_that_finds_nothing_to_do_makes_no_call_to_the_homeserver(home: Home) -> None:
    await home.letta.create_agent("Ada")
    await home.letta.create_agent("Brook")
    with before(home, MATRIX) as (behind, proxy):
        async with home.login() as alice:
            with behind.service(HOMEROOM_SYNC_INTERVAL_S="1") as service:
                rooms = (await join_rooms(alice, 2)).values()
                for room in rooms:
                    await ask(alice, room, "!say hello")
                await service.wait_syncs(2)
                quiet_from = len(proxy.requests)
                await service.wait_syncs(4)
                assert asked(proxy, quiet_from) == []

                service.stop()
                start = len(proxy.requests)
                service.start()
                await service.wait_syncs(3)
                opening = asked(proxy, start)
                hubs = ["register", "HOMEROOM", "displayname", "joined_rooms"]
                assert opening == hubs, "the hub's own, at the start"

                start = len(proxy.requests)
                command = home.run("sync", "--audit")  # past the proxy: only the service counts
                assert command.returncode == 0, command.stdout + command.stderr
                found = asked(proxy, start)
                assert sorted(set(found)) == sorted(
                    {"joined_rooms", "displayname", "state", *(p for p in found if p[0] == "#")}
                )
                # Twice, the space's state and alias, and of each home the state, alias and name.
                assert (found.count("joined_rooms"), len(found)) == (2, 4 + 3 * len(rooms)), found
