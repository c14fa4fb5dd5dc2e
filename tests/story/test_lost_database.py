"""The store is lost or old and the homeserver is not: agents find their rooms again. All real."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import anyio

from support.home import Home, on_both_back_ends
from support.lost import (
    CLIENT,
    NAME,
    OFTEN,
    alias_of,
    leads_to,
    new_agent,
    rooms_of,
)
from support.matrix import as_ghost
from support.rooms import HUB
from support.talk import REPLY_S, answers, answers_in, ask


def data_of(home: Home) -> Path:
    return Path(home.environ["HOMEROOM_DATA_DIR"])


def remove_alias(home: Home, ghost: str) -> None:
    path = f"{CLIENT}/directory/room/{alias_of(ghost).replace('#', '%23')}"
    as_ghost(home.homeserver, ghost, "DELETE", path)


@on_both_back_ends
async def test_with_an_empty_database_the_room_is_found_by_its_alias_and_nothing_is_repeated(
    home: Home,
) -> None:
    ghost = await new_agent(home)
    async with home.login() as alice:
        with home.service(**OFTEN) as service:
            room = await alice.join(await alice.wait_invite())
            first = await alice.say(room, "!say before")
            await alice.wait_event(answers(first), REPLY_S)
            service.stop()
            shutil.rmtree(data_of(home))
            service.start()
            await service.wait_in_step()
            assert (await ask(alice, room, "!say after"))["content"]["body"] == "after"
            assert answers_in(await alice.messages(room))[first] == ["before"]
            assert rooms_of(home.homeserver, ghost) == {room} and alice.invites() == []


async def test_with_database_and_alias_gone_the_room_is_found_by_what_is_written_in_it(
    home: Home,
) -> None:
    ghost = await new_agent(home)
    async with home.login() as alice:
        with home.service(**OFTEN) as service:
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say before")
            marker = await alice.state(room, "org.homeroom.room")
            service.stop()
            shutil.rmtree(data_of(home))
            remove_alias(home, ghost)
            # Rooms of that person's own making, which say that they are the agent's home.
            for _ in range(5):
                made = await alice._ask("POST", ("createRoom",), body={"invite": [ghost]})
                forged = made["room_id"]
                await alice.send_state(forged, "org.homeroom.room", marker)
                as_ghost(home.homeserver, ghost, "POST", f"{CLIENT}/join/{forged}")
            before = rooms_of(home.homeserver, ghost)
            service.start()
            assert (await ask(alice, room, "!say after"))["content"]["body"] == "after"
            with anyio.fail_after(REPLY_S):
                while leads_to(home.homeserver, ghost) != room:
                    await service.changed()
            await service.wait_in_step()
            assert rooms_of(home.homeserver, ghost) == before and alice.invites() == []


async def test_a_store_from_before_the_state_of_rooms_was_kept_is_filled_by_its_first_sync(
    home: Home,
) -> None:
    ghost = await new_agent(home)
    async with home.login() as alice:
        with home.service(**OFTEN) as service:
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say before")
            await service.wait_in_step()
            service.stop()
            await alice.send_state(room, "m.room.name", {"name": "Our corner"})
            db = sqlite3.connect(data_of(home) / "homeroom.db")
            db.execute("DELETE FROM room_state")
            # The hub has been past the change already: it is never told again.
            cursor = as_ghost(home.homeserver, HUB, "GET", f"{CLIENT}/sync")
            db.execute(
                "UPDATE meta SET value = ? WHERE key = 'hub_cursor'", (cursor["next_batch"],)
            )
            db.commit()
            db.close()
            service.start()
            await alice.wait_event(
                lambda e: e["type"] == "m.room.name" and e["content"]["name"] == NAME
                and e["sender"] == ghost and "Our corner" in str(e.get("unsigned")), REPLY_S
            )  # fmt: skip
            assert (await ask(alice, room, "!say after"))["content"]["body"] == "after"
