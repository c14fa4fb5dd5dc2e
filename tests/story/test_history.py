"""A new room may begin with what was said before it. All real."""

from __future__ import annotations

import sqlite3

from homeroom.history import HISTORY_KEY
from homeroom.letta import open_letta
from homeroom.model import AgentId, Exchange
from support.admin import admin_of
from support.home import Home, on_both_back_ends
from support.person import Event, Person
from support.talk import ask


async def talk(home: Home, agent_id: AgentId, count: int, newest: int) -> list[Exchange]:
    """Has somebody talk to the agent elsewhere; the newest exchanges as Letta tells them."""
    async with open_letta(home.letta.config()) as letta:
        conversation = await letta.open_conversation(agent_id, "elsewhere")
        for number in range(count):
            text = f"!say number {number}"
            await letta.turn(agent_id, text, conversation=conversation, key=f"elsewhere-{number}")
        return await letta.list_history(agent_id, newest)


async def past(person: Person, room: str) -> list[Event]:
    return [e for e in await person.messages(room) if HISTORY_KEY in e["content"]]


@on_both_back_ends
async def test_a_new_room_begins_with_the_last_exchanges_once(home: Home) -> None:
    ada = await home.letta.create_agent("Ada")
    await home.letta.create_agent("Brook")
    known = await talk(home, ada.id, 3, 2)
    home.environ["HOMEROOM_HISTORY_COUNT"] = "2"
    async with home.login() as alice:
        with home.service() as service:
            names: dict[str, str] = {}
            while len(names) < 2:
                joined = await alice.join(await alice.wait_invite())
                names[await alice.room_name(joined)] = joined
            room = names["Ada - Letta Agent Chat"]
            await alice.wait_event(
                lambda e: e["room_id"] == room and "number 2" in str(e["content"].get("body"))
                and e["content"].get(HISTORY_KEY, {}).get("what") == "answered"
            )  # fmt: skip
            answer = await ask(alice, room, "!ctx")
            assert "What was said before" not in answer["content"]["body"]
            posts = await past(alice, room)
            assert [post["content"][HISTORY_KEY]["what"] for post in posts] == [
                "heading", "asked", "answered", "asked", "answered"
            ]  # fmt: skip
            times = [ms for one in known for ms in (one.asked_ms, one.answered_ms)]
            assert [post["origin_server_ts"] for post in posts] == [times[0], *times]
            assert {post["content"]["msgtype"] for post in posts} == {"m.notice"}
            assert {post["sender"] for post in posts} == {answer["sender"]}
            assert "number 1" in posts[1]["content"]["body"]
            assert await past(alice, names["Brook - Letta Agent Chat"]) == []
            assert service.log().count("action_failed") == 0
        # As after a crash just before the row was written: but somebody has spoken there by now.
        with sqlite3.connect(home.directory / "data" / "homeroom.db") as store:
            store.execute("UPDATE mapping SET history_due = 1")
        done = home.run("sync")
        assert done.returncode == 0 and "write_history" in done.stdout
        with home.service():
            await ask(alice, room, "!say still here")
            again = [event["event_id"] for event in await past(alice, room)]
            assert again == [event["event_id"] for event in posts]


async def test_kill_9_between_the_posts_of_the_past_loses_none_and_doubles_none(
    home: Home,
) -> None:
    ada = await home.letta.create_agent("Ada")
    await talk(home, ada.id, 12, 1)
    home.environ["HOMEROOM_HISTORY_COUNT"] = "12"
    async with home.login() as alice:
        with home.service() as service:
            room = await alice.join(await alice.wait_invite())
            for seen in range(0, 11, 2):
                await alice.wait_event(
                    lambda e, seen=seen: e["room_id"] == room and HISTORY_KEY in e["content"]
                    and f"number {seen}" in e["content"]["body"]
                )  # fmt: skip
                service.kill()
                service.start()
            await alice.wait_event(
                lambda e: (
                    e["room_id"] == room
                    and e["content"].get(HISTORY_KEY, {}).get("what") == "answered"
                    and "number 11" in e["content"]["body"]
                )
            )
            await ask(alice, room, "!say done")
        bodies = [post["content"]["body"].rpartition("\n")[2] for post in await past(alice, room)]
        told = [side + str(n) for n in range(12) for side in ("!say number ", "number ")]
        assert bodies[1:] == told


async def test_a_room_that_is_made_anew_does_not_tell_the_past_again(own_home: Home) -> None:
    home = own_home
    ada = await home.letta.create_agent("Ada")
    await talk(home, ada.id, 1, 1)
    home.environ["HOMEROOM_HISTORY_COUNT"] = "1"
    async with home.login() as alice, admin_of(home.homeserver, "root") as admin:
        with home.service():
            old = await alice.join(await alice.wait_invite())
            await alice.wait_event(
                lambda e: e["room_id"] == old and e["content"].get(HISTORY_KEY, {}).get("what")
                == "answered"
            )  # fmt: skip
        await admin.delete_room(old)
        done = home.run("sync", "--audit")
        assert "create_room" in done.stdout and "write_history" not in done.stdout
        with home.service():
            new = await alice.join(await alice.wait_invite())
            await ask(alice, new, "!say here")
            assert await past(alice, new) == []
