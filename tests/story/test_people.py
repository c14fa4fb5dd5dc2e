"""Who belongs in a room is invited once, and again only when they ask. All real."""

from __future__ import annotations

from collections.abc import Callable

from mcp import Client

from support.home import Home, on_both_back_ends
from support.person import Person
from support.rooms import join_rooms
from support.synapse import PASSWORD
from support.talk import REPLY_S, answers

OFTEN = {"HOMEROOM_SYNC_INTERVAL_S": "1"}


async def invitations(person: Person, room: str, who: str) -> int:
    """How often somebody was invited into the room, as ``person`` finds in its history."""
    return sum(
        event["state_key"] == who and event["content"]["membership"] == "invite"
        for event in await person.messages(room, ("m.room.member",))
    )


@on_both_back_ends
async def test_who_declines_or_leaves_is_invited_again_only_when_they_ask(
    home: Home, unique: Callable[[str], str]
) -> None:
    await home.letta.create_agent("Ada")
    await home.letta.create_agent("Brook")
    bob = home.homeserver.person(unique("bob"))
    listed = f"{home.environ['HOMEROOM_INVITE']},{bob}"
    async with (
        home.login() as alice,
        Person.login(home.homeserver.url, unique("bob"), PASSWORD) as b,
    ):
        with home.service(HOMEROOM_INVITE=listed, **OFTEN) as service:
            names = await join_rooms(b, 2)
            for room in names.values():
                await alice.join(room)
            ada, brook = names["Ada"], names["Brook"]
            await b.leave(ada)
            runs = service.log().count("sync_finished")
            await service.wait_log("sync_finished", times=runs + 3)
            assert b.invites() == []

            # A command, in a room that they are still in.
            asked = await b.say(brook, "!invite me")
            said = await b.wait_event(answers(asked), REPLY_S)
            assert "You are invited again" in said["content"]["body"]
            assert await b.wait_invite(REPLY_S, ada) == ada
            await b.leave(ada)
            await service.wait_log("sync_finished", times=runs + 6)
            assert b.invites() == []

            # A tool, and the command line beside the service.
            async with Client(f"{service.url}/mcp") as client:
                refused = await client.call_tool("sync_agents", {"invite": "@stranger:hs.test"})
                assert refused.is_error and "not in HOMEROOM_INVITE" in str(refused.content)
                done = await client.call_tool("sync_agents", {"invite": bob})
                assert done.structured_content
            assert await b.wait_invite(REPLY_S, ada) == ada
            await b.leave(ada)
            shown = home.run("sync", "--dry-run", "--invite", bob, HOMEROOM_INVITE=listed)
            assert "invite_person" in shown.stdout, "which is counted below: nothing was done"
            over = home.run("sync", "--invite", "@stranger:hs.test", HOMEROOM_INVITE=listed)
            assert over.returncode == 1 and "not in HOMEROOM_INVITE" in over.stderr
            done_too = home.run("sync", "--invite", bob, HOMEROOM_INVITE=listed)
            assert done_too.returncode == 0, done_too.stderr
            assert await b.wait_invite(REPLY_S, ada) == ada
            await b.join(ada)
            assert await invitations(b, ada, bob) == 4, "once at first, and once for each asking"
            assert await invitations(b, brook, bob) == 1, "who is in the room is left alone"
            assert await invitations(b, ada, alice.id) == 1


async def test_who_is_taken_off_the_list_and_put_on_it_again_is_invited_again(
    home: Home,
) -> None:
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        assert home.run("sync").returncode == 0
        room = await alice.wait_invite()
        await alice.leave(room)
        again = home.run("sync")
        assert "0 actions planned" in again.stdout
        without = home.run("sync", HOMEROOM_INVITE="")
        assert without.returncode == 0, without.stdout
        put_back = home.run("sync")
        assert "invite_person" in put_back.stdout, put_back.stdout
        await alice.join(await alice.wait_invite(REPLY_S, room))
        assert await invitations(alice, room, alice.id) == 2


async def test_one_person_out_of_reach_keeps_no_agent_from_its_room_and_nobody_else_out(
    own_home: Home,
) -> None:
    home = own_home
    far = "@far:nowhere.invalid"  # this homeserver speaks to no other
    home.environ["HOMEROOM_INVITE"] = f"{far},{home.environ['HOMEROOM_INVITE']}"
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        done = home.run("sync")
        room = await alice.join(await alice.wait_invite(REPLY_S))
        space = await alice.join(await alice.wait_space_invite())
        assert "create_room" in done.stdout and done.stdout.count("Federation denied") == 2
        assert (await alice.state(room, "m.space.parent", space))["via"] == ["hs.test"]
        for kind, name in (("room", room), ("space", space)):
            assert await invitations(alice, name, alice.id) == 1, kind
        with home.service(**OFTEN):  # and nothing of it is asked again and again
            asked = await alice.say(room, "!say here I am")
            await alice.wait_event(answers(asked), REPLY_S)
        again = home.run("sync", "--dry-run")
        assert far in again.stdout and "set_room_name" not in again.stdout
