"""What a person sees of how a message fares, and what they write in one go."""

from __future__ import annotations

import anyio

from support.home import Home
from support.person import Event, Person
from support.talk import REPLY_S, answers, answers_in, ask

STATUS_TYPE = "com.beeper.message_send_status"


async def statuses(person: Person, event_id: str, last: str) -> list[Event]:
    """The statuses of an event up to the one with that word, in order."""

    def is_of(event: Event) -> bool:
        relation = event["content"].get("m.relates_to") or {}
        reference = {"rel_type": "m.reference", "event_id": event_id}
        return bool(event["type"] == STATUS_TYPE and relation == reference)

    await person.wait_event(lambda e: is_of(e) and e["content"]["status"] == last, REPLY_S)
    return [event for event in person.events if is_of(event)]


async def test_where_it_is_wanted_each_message_has_its_status_in_the_words_of_bridges(
    home: Home,
) -> None:
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service(HOMEROOM_STATUS_EVENTS="true"):
            room = await alice.join(await alice.wait_invite())
            asked = await alice.say(room, "!say hello")
            answer = await alice.wait_event(answers(asked), REPLY_S)
            said = await statuses(alice, asked, "SUCCESS")
            assert [event["content"]["status"] for event in said] == ["PENDING", "SUCCESS"]
            assert {event["sender"] for event in said} == {answer["sender"]}
            assert all(event["content"]["network"] == "letta" for event in said)

            refused = await alice.say(room, "!status 401 bad key")
            notice = await alice.wait_event(answers(refused), REPLY_S)
            (_, failed) = await statuses(alice, refused, "FAIL_RETRIABLE")
            assert failed["content"]["reason"] == "m.foreign_network_error"
            assert failed["content"]["message"] in notice["content"]["body"]

            picture = await alice.say(room, "cat.png", msgtype="m.image", url="mxc://hs.test/x")
            (declined,) = await statuses(alice, picture, "FAIL_PERMANENT")
            assert declined["content"]["reason"] == "com.beeper.unsupported_event"
            assert (await ask(alice, room, "!say still here"))["content"]["body"] == "still here"


async def test_without_the_setting_a_room_sees_messages_alone(home: Home) -> None:
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service():
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say hello")
            assert STATUS_TYPE not in {e["type"] for e in await alice.messages(room, types=())}


async def test_what_a_person_writes_in_one_go_is_one_turn_and_each_message_leads_to_it(
    home: Home,
) -> None:
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service(HOMEROOM_QUIET_S="1.5"):
            room = await alice.join(await alice.wait_invite())
            first = await alice.say(room, "A thought.")
            second = await alice.say(room, "Another one.")
            last = await alice.say(room, "!say to all of it")
            answer = await alice.wait_event(answers(last), REPLY_S)
            assert answer["content"]["body"] == "to all of it"
            receipts = await alice.wait_event(
                lambda e: e["type"] == "m.receipt" and last in e["content"]
            )
            assert answer["sender"] in str(receipts["content"][last])
            found = answers_in(await alice.messages(room))
            assert first not in found and second not in found and found[last] == ["to all of it"]
        stories = [home.run("explain", event_id).stdout for event_id in (first, second, last)]
        for story in stories:
            assert "answered" in story and answer["event_id"] in story and last in story
            assert "attempt 1" in story and "attempt 2" not in story


async def test_a_message_that_waits_is_cancelled_its_room_told_and_the_lane_goes_on(
    home: Home,
) -> None:
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service():
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say warm")
            slow = await alice.say(room, "!delay 6\n!say slow")
            unwanted = await alice.say(room, "!say unwanted")
            after = await alice.say(room, "!say after")
            await alice.wait_event(  # all three are in the store
                lambda e: e["type"] == "m.receipt" and after in e["content"]
            )
            done = await anyio.to_thread.run_sync(home.run, "cancel", unwanted)
            assert done.returncode == 0, done.stderr
            notice = await alice.wait_event(answers(unwanted), REPLY_S)
            assert "was cancelled" in notice["content"]["body"]
            assert notice["content"]["msgtype"] == "m.notice"
            await alice.wait_event(answers(after), REPLY_S)
            found = answers_in(await alice.messages(room))
            assert (found[slow], found[after]) == (["slow"], ["after"])
            assert len(found[unwanted]) == 1, "the notice alone"
        shown = home.run("explain", unwanted).stdout
        assert "cancelled" in shown and "Dropped: a person cancelled it" in shown
