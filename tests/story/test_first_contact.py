"""A person and an agent meet in a room. All real: Synapse, App Server, Homeroom as a process."""

from __future__ import annotations

from collections.abc import Callable

from mcp import Client

from support.home import Home, on_both_back_ends
from support.person import Event, Person
from support.synapse import PASSWORD
from support.talk import REPLY_S, answers, ask


@on_both_back_ends
async def test_an_agent_gets_a_ghost_and_a_room_and_answers_in_it(home: Home) -> None:
    agent = await home.letta.create_agent("Ada", "Keeps notes")
    async with home.login() as alice:
        with home.service():
            room = await alice.join(await alice.wait_invite())
            ghost = "@agent_" + agent.id.removeprefix("agent-").replace("-", "_") + ":hs.test"
            assert await alice.room_name(room) == "Ada - Letta Agent Chat"
            topic = await alice.state(room, "m.room.topic")
            assert topic["topic"] == "Chat with Ada (Letta Agent): Keeps notes"
            create = next(e for e in await alice.messages(room, ("m.room.create",)))
            assert create["sender"] == ghost, "the ghost made the room itself"
            assert create["content"]["room_version"] == "11"
            levels = await alice.state(room, "m.room.power_levels")
            assert levels["users"][alice.id] == 100
            assert (await alice.state(room, "m.room.join_rules"))["join_rule"] == "invite"
            assert (await alice.members(room))[ghost] == "Ada"
            assert "@agent_hub:hs.test" in await alice.members(room)

            answer = await ask(alice, room, "hello\n!say **Hi** there")
            assert answer["sender"] == ghost
            assert answer["content"]["msgtype"] == "m.text"
            assert answer["content"]["body"] == "**Hi** there"
            assert answer["content"]["formatted_body"] == "<p><strong>Hi</strong> there</p>"


async def test_a_message_is_marked_as_read_by_the_ghost_once_it_is_accepted(home: Home) -> None:
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service():
            room = await alice.join(await alice.wait_invite())
            event_id = await alice.say(room, "!delay 3\n!say done")
            receipt = await alice.wait_event(
                lambda e: e["type"] == "m.receipt" and event_id in e["content"]
            )
            answer = await alice.wait_event(answers(event_id), REPLY_S)
            assert set(receipt["content"][event_id]["m.read"]) == {answer["sender"]}
            assert alice.events.index(receipt) < alice.events.index(answer)


async def test_whoever_sends_too_much_is_told_at_once_in_the_room_and_over_mcp(home: Home) -> None:
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service(HOMEROOM_MAX_WAITING="1") as service:
            room = await alice.join(await alice.wait_invite())
            first = await alice.say(room, "!delay 4\n!say first")
            second = await alice.say(room, "!say second")
            notice = await alice.wait_event(answers(second), REPLY_S)
            assert "Too many messages are waiting" in notice["content"]["body"]
            async with Client(f"{service.url}/mcp") as client:
                refused = await client.call_tool(
                    "chat_with_agent", {"agent": "Ada", "message": "x", "wait_s": 0}
                )
            assert refused.is_error and "at most 1 messages waiting" in str(refused.content)
            answer = await alice.wait_event(answers(first), REPLY_S)
            assert alice.events.index(notice) < alice.events.index(answer)


async def test_the_ghost_is_seen_typing_while_the_agent_works(home: Home) -> None:
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service():
            room = await alice.join(await alice.wait_invite())
            event_id = await alice.say(room, "!delay 2\n!say done")
            typing = await alice.wait_event(
                lambda e: e["type"] == "m.typing" and bool(e["content"]["user_ids"])
            )
            await alice.wait_event(answers(event_id), REPLY_S)
            seen = alice.events.index(typing)
            await alice.wait_event(
                lambda e: (
                    e["type"] == "m.typing"
                    and not e["content"]["user_ids"]
                    and alice.events.index(e) > seen
                )
            )


async def test_two_people_share_an_agent_and_each_is_answered_in_order(
    home: Home, unique: Callable[[str], str]
) -> None:
    await home.letta.create_agent("Ada")
    other = unique("bob")
    invite = f"{home.environ['HOMEROOM_INVITE']},{home.homeserver.person(other)}"
    url = home.homeserver.url
    async with (
        home.login() as alice,
        Person.login(url, other, PASSWORD) as bob,
    ):
        with home.service(HOMEROOM_INVITE=invite):
            room = await alice.join(await alice.wait_invite())
            await bob.join(await bob.wait_invite())
            await ask(alice, room, "we are two")  # by now the bridge has seen both
            asked = [await (alice, bob)[n % 2].say(room, f"number {n}") for n in range(6)]
            for event_id in asked:
                await alice.wait_event(answers(event_id), REPLY_S)
            messages = await alice.messages(room)
            order = [
                e["content"]["m.relates_to"]["m.in_reply_to"]["event_id"]
                for e in messages
                if "m.relates_to" in e["content"]
            ]
            assert order[-6:] == asked, "answered once each, in the order they were asked"
            answer = next(e for e in messages if answers(asked[1])(e))
            assert bob.id in answer["content"]["body"], "the agent is told who speaks"


async def test_two_rooms_are_two_conversations_and_run_side_by_side(home: Home) -> None:
    for name in ("Ada", "Brook"):
        await home.letta.create_agent(name)
    async with home.login() as alice:
        with home.service():
            rooms: dict[str, str] = {}
            while len(rooms) < 2:
                room = await alice.join(await alice.wait_invite())
                rooms[await alice.room_name(room)] = room
            await alice.say(rooms["Ada - Letta Agent Chat"], "!hang")
            await alice.wait_event(
                lambda e: (
                    (e["type"], e["room_id"]) == ("m.typing", rooms["Ada - Letta Agent Chat"])
                    and bool(e["content"]["user_ids"])
                )
            )
            quick = await ask(alice, rooms["Brook - Letta Agent Chat"], "!say quick")
            assert quick["content"]["body"] == "quick"


async def test_what_is_not_for_the_agent_is_left_alone_and_what_cannot_be_read_is_said(
    home: Home,
) -> None:
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service():
            room = await alice.join(await alice.wait_invite())
            await alice.send(room, {"msgtype": "m.notice", "body": "I am a program"})
            image = await alice.send(
                room, {"msgtype": "m.image", "body": "cat.png", "url": "mxc://x/y"}
            )
            told = await alice.wait_event(answers(image))
            assert told["content"]["msgtype"] == "m.notice"
            assert "not delivered" in told["content"]["body"]
            await ask(alice, room, "!say only this")
            bodies = await alice.bodies(room)
            assert bodies[-1] == "only this"
            assert not any("I am a program" in body for body in bodies[1:])


async def test_a_turn_that_fails_is_explained_in_the_room(home: Home) -> None:
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service():
            room = await alice.join(await alice.wait_invite())
            refused = await ask(alice, room, "!status 401 bad key")
            assert refused["content"]["msgtype"] == "m.notice"
            assert "was not delivered" in refused["content"]["body"]
            silent = await ask(alice, room, "!empty")
            assert silent["content"]["msgtype"] == "m.notice"
            assert "without an answer" in silent["content"]["body"]
            assert (await ask(alice, room, "!say still here"))["content"]["body"] == "still here"


@on_both_back_ends
async def test_a_renamed_agent_keeps_its_room_and_its_ghost_takes_the_name(home: Home) -> None:
    agent = await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service(HOMEROOM_SYNC_INTERVAL_S="1"):
            room = await alice.join(await alice.wait_invite())
            await home.letta.rename_agent(agent.id, "Adele")
            await alice.wait_event(
                lambda e: (
                    e["type"] == "m.room.member" and e["content"].get("displayname") == "Adele"
                )
            )
            assert alice.invites() == []
            assert (await ask(alice, room, "!say same room"))["content"]["body"] == "same room"
            await alice.wait_event(is_state("m.room.name", "Adele - Letta Agent Chat"))
            await alice.wait_event(is_state("m.room.topic", "Chat with Adele (Letta Agent)"))


async def test_an_agent_with_a_name_no_database_takes_harms_nobody(home: Home) -> None:
    await home.letta.create_agent("bad \ud83d name")
    await home.letta.create_agent("Good")
    async with home.login() as alice:
        with home.service():
            rooms: set[str] = set()
            while len(rooms) < 2:
                rooms.add(await alice.join(await alice.wait_invite()))
            names = {await alice.room_name(room) for room in rooms}
            assert names == {"Good - Letta Agent Chat", "bad \ufffd name - Letta Agent Chat"}
            for room in rooms:
                assert (await ask(alice, room, "!say here"))["content"]["body"] == "here"


async def test_a_long_answer_in_chinese_arrives_whole(home: Home) -> None:
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service():
            room = await alice.join(await alice.wait_invite())
            text = "答" * 13_000
            await alice.say(room, f"!say {text} **end**")
            await alice.wait_event(
                lambda e: (
                    e.get("sender") != alice.id and "**end**" in str(e["content"].get("body"))
                ),
                REPLY_S,
            )
            bodies = await alice.bodies(room)
            assert "".join(bodies[1:]).replace(" ", "") == f"{text}**end**"


@on_both_back_ends
async def test_a_changed_description_is_shown_in_the_topic_until_a_person_writes_their_own(
    home: Home,
) -> None:
    agent = await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service(HOMEROOM_SYNC_INTERVAL_S="1"):
            room = await alice.join(await alice.wait_invite())
            await home.letta.describe_agent(agent.id, "Keeps notes")
            topic = "Chat with Ada (Letta Agent): Keeps notes"
            await alice.wait_event(is_state("m.room.topic", topic))

            await alice.send_state(room, "m.room.topic", {"topic": "Ours"})
            await alice.send_state(room, "m.room.name", {"name": "Our Ada"})
            await home.letta.rename_agent(agent.id, "Adele")
            await alice.wait_event(is_state("m.room.name", "Adele - Letta Agent Chat"))
            await home.letta.rename_agent(agent.id, "Agnes")
            await alice.wait_event(is_state("m.room.name", "Agnes - Letta Agent Chat"))
            assert (await alice.state(room, "m.room.topic"))["topic"] == "Ours"


async def test_a_name_that_a_person_gave_a_room_stays_if_the_settings_say_so(home: Home) -> None:
    agent = await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service(HOMEROOM_SYNC_INTERVAL_S="1", HOMEROOM_KEEP_EDITS="name"):
            room = await alice.join(await alice.wait_invite())
            await alice.send_state(room, "m.room.topic", {"topic": "Ours"})
            await alice.send_state(room, "m.room.name", {"name": "Our Ada"})
            await home.letta.rename_agent(agent.id, "Adele")
            await alice.wait_event(is_state("m.room.topic", "Chat with Adele (Letta Agent)"))
            assert await alice.room_name(room) == "Our Ada"


def is_state(event_type: str, value: str) -> Callable[[Event], bool]:
    """Whether an event gives a room that name or topic."""
    field = event_type.rpartition(".")[2]
    return lambda e: e["type"] == event_type and e["content"].get(field) == value
