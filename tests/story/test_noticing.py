"""A change in the App Server shows in Matrix at once, however long the interval is. All real."""

from __future__ import annotations

from support.home import Home
from support.person import Event, Person
from support.rooms import is_called
from support.talk import REPLY_S, ask

RARELY = {"HOMEROOM_SYNC_INTERVAL_S": "86400"}


async def wait_name(person: Person, room: str, name: str) -> Event:
    return await person.wait_event(is_called(room, f"{name} - Letta Agent Chat"), REPLY_S)


async def test_an_agent_that_comes_or_changes_is_in_matrix_hours_before_the_interval_is_over(
    home: Home,
) -> None:
    ada = await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service(**RARELY) as service:
            room = await alice.join(await alice.wait_invite())
            # The folder is watched a moment after the first sync has begun.
            await service.wait_log("agents_watched")
            await home.letta.rename_agent(ada.id, "Bea")
            await wait_name(alice, room, "Bea")
            await home.letta.create_agent("Cleo")
            other = await alice.join(await alice.wait_invite(REPLY_S))
            assert await alice.room_name(other) == "Cleo - Letta Agent Chat"
            assert (await ask(alice, other, "!say hello"))["content"]["body"] == "hello"


async def test_a_change_is_noticed_after_the_app_server_was_restarted_and_while_it_was(
    home: Home,
) -> None:
    ada = await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service(**RARELY) as service:
            room = await alice.join(await alice.wait_invite())
            await service.wait_log("agents_watched")
            home.letta.crash()
            home.letta.start()
            await home.letta.rename_agent(ada.id, "Bea")
            await wait_name(alice, room, "Bea")
            await service.wait_log("agents_watched", times=2)
            await home.letta.rename_agent(ada.id, "Cea")
            await wait_name(alice, room, "Cea")
