"""Several processes, one store: one runs the bridge, the others serve tools and wait."""

from __future__ import annotations

import shutil
import sqlite3
import time
from contextlib import closing
from typing import Any

import anyio
from mcp import Client

from support.home import Home
from support.talk import REPLY_S, answers, answers_in, ask


def runs_here(health: dict[str, Any]) -> bool:
    return bool(health["bridge"]["runs_here"])


async def test_a_second_process_takes_over_within_ten_seconds_of_the_firsts_death(
    home: Home,
) -> None:
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service() as first, home.service() as second:
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say one")
            assert (await first.health())["bridge"]["runs_here"]
            assert not (await second.health())["bridge"]["runs_here"]
            first.kill()
            await second.wait_health(runs_here, 10)
            assert (await ask(alice, room, "!say two"))["content"]["body"] == "two"


async def test_the_next_process_goes_on_within_ten_seconds_of_a_kill(home: Home) -> None:
    """It finds a live note in the homeserver, with a mark that any copy of its store would know."""
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service() as service:
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say one")
            service.kill()
            service.start(wait_ok=False)
            event_id = await alice.say(room, "!say two")
            await alice.wait_event(answers(event_id), 10)


async def test_a_copy_takes_over_from_a_killed_one_when_it_knows_that_it_is_dead(
    home: Home,
) -> None:
    """A data directory moves to another machine: nothing tells it from a copy but the silence."""
    await home.letta.create_agent("Ada")
    elsewhere = {"HOMEROOM_DATA_DIR": str(home.directory / "moved")}
    async with home.login() as alice:
        with home.service() as first, home.service(start=False, **elsewhere) as second:
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say one")
            first.kill()
            (home.directory / "moved").mkdir()
            for path in (home.directory / "data").iterdir():
                shutil.copy(path, home.directory / "moved")
            second.start(wait_ok=False)
            event_id = await alice.say(room, "!say two")
            await alice.wait_event(answers(event_id), 10)
            assert answers_in(await alice.messages(room))[event_id] == ["two"]


async def test_a_stopped_process_hands_over_at_once(home: Home) -> None:
    await home.letta.create_agent("Ada")
    with home.service() as first, home.service() as second:
        first.stop()
        with sqlite3.connect(home.directory / "data" / "homeroom.db") as store:
            ((owner, until_ms),) = store.execute("SELECT owner, until_ms FROM lease").fetchall()
        assert second.child
        released = until_ms <= time.time() * 1000 or owner.endswith(f"/{second.child.pid}")
        assert released, "nobody waits for its time to run out"
        await second.wait_health(runs_here)


async def test_a_client_on_stdio_beside_the_service_chats_through_the_services_bridge(
    home: Home,
) -> None:
    await home.letta.create_agent("Ada")
    with home.service() as service:
        async with Client(home.stdio()) as client:
            result = await client.call_tool(
                "chat_with_agent", {"agent": "Ada", "message": "!say hi"}
            )
            assert result.structured_content and result.structured_content["reply"] == "hi"
        assert (await service.health())["bridge"]["runs_here"]


async def test_a_bridge_replaces_a_tools_only_process_at_once(home: Home) -> None:
    await home.letta.create_agent("Ada")
    blank = dict.fromkeys([k for k in home.environ if "MATRIX" in k or "INVITE" in k], "")
    async with home.login() as alice:
        with home.service(**blank) as tools_only, home.service() as bridge:
            room = await alice.join(await alice.wait_invite())
            assert (await ask(alice, room, "!say here"))["content"]["body"] == "here"
            assert (await bridge.health())["bridge"]["runs_here"]
            assert not (await tools_only.health())["bridge"]["runs_here"]


async def test_a_second_store_on_the_same_homeserver_stands_back_and_names_the_first(
    home: Home,
) -> None:
    """Both would answer everything; it happens where one set-up forgets the data directory."""
    await home.letta.create_agent("Ada")
    elsewhere = {"HOMEROOM_DATA_DIR": str(home.directory / "other")}
    async with home.login() as alice:
        with home.service() as first, home.service(start=False, **elsewhere) as second:
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say one")
            second.start(wait_ok=False)
            health = await second.wait_health(lambda health: "Another Homeroom" in health["matrix"])
            assert str(first.child.pid if first.child else "") in health["matrix"]
            event_id = await alice.say(room, "!say two")
            await alice.wait_event(answers(event_id), REPLY_S)
            await ask(alice, room, "!say three")
            assert answers_in(await alice.messages(room))[event_id] == ["two"]
            first.stop()
            late = await alice.say(room, "!say four")
            answer = await alice.wait_event(answers(late), REPLY_S)
            assert answer["content"]["body"] == "four"


async def test_of_two_copies_of_a_data_directory_one_answers_and_the_other_says_why_it_does_not(
    home: Home,
) -> None:
    """A backup is restored on another machine while the first one runs: neither messages nor what
    waited when the copy was made are answered twice."""
    await home.letta.create_agent("Ada")
    copy = home.directory / "copy"
    copy.mkdir()
    async with home.login() as alice:
        elsewhere = {"HOMEROOM_DATA_DIR": str(copy)}
        with home.service() as first, home.service(start=False, **elsewhere) as second:
            room = await alice.join(await alice.wait_invite())
            said = {await alice.say(room, f"!say {n}"): str(n) for n in range(4)}
            path = home.directory / "data" / "homeroom.db"
            with closing(sqlite3.connect(path)) as store:
                store.execute("VACUUM INTO ?", (str(copy / "homeroom.db"),))
            for event_id in said:
                await alice.wait_event(answers(event_id), REPLY_S)
            second.start(wait_ok=False)
            with anyio.fail_after(REPLY_S):
                while "a copy of this data directory" not in (await second.health())["matrix"]:
                    await second.changed()
            assert str(first.child.pid if first.child else "") in (await second.health())["matrix"]
            said |= {await alice.say(room, f"!say {n}"): str(n) for n in range(4, 8)}
            for event_id in said:
                await alice.wait_event(answers(event_id), REPLY_S)
            await ask(alice, room, "!say end")
            told = answers_in(await alice.messages(room))
            assert {event_id: told[event_id] for event_id in said} == {
                event_id: [text] for event_id, text in said.items()
            }
            assert (await first.health())["status"] == "ok"
            assert (await second.health())["status"] == "degraded"
