"""Which users and rooms of an older bridge can be taken over, on a real homeserver that had them
before Homeroom's registration was installed: users with passwords, in and out of its namespace."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import pytest
import yaml

from homeroom.adopt import adopt
from homeroom.items import Decision
from homeroom.local.synapse import Synapse
from homeroom.matrix import Matrix, open_matrix
from homeroom.matrix._client import DEVICE_ID
from homeroom.model import Agent, AgentId, Avatar, GhostId, Mapping, RoomEvent, RoomId
from homeroom.old_homes import Adoption, OldHome
from homeroom.plan import new_mapping
from homeroom.registration import load_registration, new_registration, write_registration
from homeroom.store import AUDITED_MS, Store, open_store
from support.matrix import devices, move_in
from support.person import Person
from support.synapse import PASSWORD, QUICK, SERVER_NAME, Homeserver, matrix_config

NOW_MS = 1_790_000_000_000
INSIDE, OUTSIDE, GONE, INVITED = "agent_old_ada", "letta_bob", "agent_old_cleo", "agent_old_dan"


def ignore(event: RoomEvent, mapping: Mapping, people: int) -> Decision:
    return Decision("ignored")


async def create_room(owner: Person, **body: Any) -> RoomId:
    asked = {"preset": "trusted_private_chat", "name": f"{owner.id} - Letta Agent Chat"} | body
    return RoomId((await owner._ask("POST", ("createRoom",), body=asked))["room_id"])


@dataclass
class Old:
    """A homeserver as an older bridge left it, with Homeroom's registration loaded since."""

    homeserver: Homeserver
    rooms: dict[str, RoomId]

    def cover(self, regex: str) -> None:
        """Adds a namespace to the registration, and starts the homeserver anew."""
        path = self.homeserver.registration_path
        data = yaml.safe_load(path.read_text())
        data["namespaces"]["users"].append({"exclusive": False, "regex": regex})
        path.write_text(yaml.safe_dump(data))
        self.homeserver.synapse.stop()
        self.homeserver.synapse.start()
        self.homeserver = replace(self.homeserver, registration=load_registration(path))


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Old]:
    directory = tmp_path_factory.mktemp("old")
    path = directory / "registration.yaml"
    write_registration(new_registration(SERVER_NAME), path)
    with ExitStack() as stack:

        def started(registrations: list[Path]) -> Synapse:
            synapse = Synapse(
                directory / "synapse", SERVER_NAME, registrations=registrations,
                bcrypt_rounds=4, extra=QUICK,
            )  # fmt: skip
            stack.callback(synapse.stop)
            synapse.start()
            return synapse

        before = started([])
        for localpart in (INSIDE, OUTSIDE, GONE, INVITED):
            before.register_person(localpart, PASSWORD)
        rooms = anyio.run(furnish, before)
        before.stop()
        homeserver = Homeserver(started([path]), load_registration(path), path)
        yield Old(homeserver, rooms)


async def furnish(synapse: Synapse) -> dict[str, RoomId]:
    async with (
        Person.login(synapse.url, INSIDE, PASSWORD) as ada,
        Person.login(synapse.url, OUTSIDE, PASSWORD) as bob,
        Person.login(synapse.url, GONE, PASSWORD) as cleo,
    ):
        rooms = {"ada": await create_room(ada), "bob": await create_room(bob)}
        await ada.say(rooms["ada"], "said long ago")
        rooms["left"] = await create_room(cleo, invite=[f"@{INVITED}:{SERVER_NAME}", ada.id])
        await ada.join(rooms["left"])
        await cleo.leave(rooms["left"])
        rooms["upgraded"] = await create_room(ada)
        upgrade = ("rooms", rooms["upgraded"], "upgrade")
        new = await ada._ask("POST", upgrade, body={"new_version": "11"})
        rooms["replacement"] = RoomId(new["replacement_room"])
        encryption = {
            "type": "m.room.encryption",
            "state_key": "",
            "content": {"algorithm": "m.megolm.v1.aes-sha2"},
        }
        rooms["encrypted"] = await create_room(ada, initial_state=[encryption])
        marker = {
            "type": "org.homeroom.room",
            "state_key": "",
            "content": {"agent_id": "agent-somebody-else"},
        }
        rooms["marked"] = await create_room(ada, initial_state=[marker])
        return rooms


def home(room: str, user: str = INSIDE, agent: str = "agent-ada", position: int = 1) -> OldHome:
    ghost = user if user.startswith("@") else f"@{user}:{SERVER_NAME}"
    return OldHome(position, AgentId(agent), "Ada", GhostId(ghost), RoomId(room))


@dataclass
class Bench:
    store: Store
    matrix: Matrix
    fence: int

    async def adopt(
        self, *homes: OldHome, agents: tuple[str, ...] = ("agent-ada", "agent-bob"), **how: Any
    ) -> list[Adoption]:
        known = [Agent(AgentId(name), name) for name in agents]
        real = {"decide": ignore, "fence": self.fence} | how
        return await adopt(homes, known, self.store, self.matrix, now_ms=NOW_MS, **real)

    async def refusal(self, *homes: OldHome, **how: Any) -> str:
        before = await self.store.list_mappings()
        verdict = (await self.adopt(*homes, **how))[-1]
        assert verdict.outcome == "refused"
        assert await self.store.list_mappings() == before
        return verdict.reason


@asynccontextmanager
async def bench(old: Old, path: Path) -> AsyncIterator[Bench]:
    config = matrix_config(old.homeserver)
    async with (
        open_store(path / "s.db") as store,
        open_matrix(config, old.homeserver.registration) as matrix,
    ):
        lease = await store.take_lease("me", rank=1, ttl_ms=60_000, is_gone=lambda owner: True)
        fence = lease.fence
        yield Bench(store, matrix, fence)


async def test_a_user_with_a_password_and_their_room_are_adopted_once(
    old: Old, tmp_path: Path
) -> None:
    wanted = home(old.rooms["ada"])
    async with bench(old, tmp_path) as it:
        preview = await it.adopt(wanted, decide=None)
        assert [one.outcome for one in preview] == ["adopted"]
        assert await it.store.list_mappings() == {}, "a dry run writes nothing"
        assert DEVICE_ID not in devices_of(old, wanted.ghost), "and gives the user no device"
        assert [one.outcome for one in await it.adopt(wanted)] == ["adopted"]
        row = (await it.store.list_mappings())[wanted.agent_id]
        assert (row.ghost, row.room_id) == (wanted.ghost, wanted.room_id)
        assert row.heard_from_ms == NOW_MS
        assert not (row.ghost_ready or row.hub_joined or row.marked or row.invited)
        assert [one.outcome for one in await it.adopt(wanted)] == ["already"]
        assert (await it.store.list_mappings())[wanted.agent_id] == row


def devices_of(old: Old, ghost: str) -> set[str]:
    return {device["device_id"] for device in devices(old.homeserver, ghost)}


async def test_an_agent_that_is_remembered_is_known_also_while_letta_lacks_it(
    old: Old, tmp_path: Path
) -> None:
    wanted = home(old.rooms["ada"])
    async with bench(old, tmp_path) as it:
        assert "Letta has no such agent" in await it.refusal(wanted, agents=())
        remembered = new_mapping(Agent(AgentId("agent-ada"), "Ada"), SERVER_NAME)
        shown = Avatar("mxc://hs.test/ada", digest="drawn", profile="drawn")
        refused = (("set_parent", "no power"),)
        lived = replace(remembered, ghost_ready=True, avatar=shown, refused_actions=refused)
        await it.store.save_mapping(lived, ignore, it.fence)
        await it.store.save_audit({}, {}, {}, {}, it.fence, audited_ms=NOW_MS)
        await it.adopt(wanted, agents=(), decide=None)
        assert await it.store.get_meta(AUDITED_MS), "a look at a file asks for nothing"
        assert [one.outcome for one in await it.adopt(wanted, agents=())] == ["adopted"]
        row = (await it.store.list_mappings())[wanted.agent_id]
        assert row.ghost == wanted.ghost and not row.ghost_ready
        assert row.avatar == replace(shown, profile=""), "which another user has shown"
        assert row.refused_actions == () and not await it.store.get_meta(AUDITED_MS)


async def test_what_matrix_does_not_allow_is_refused_with_the_reason(
    old: Old, tmp_path: Path
) -> None:
    rooms = old.rooms
    async with bench(old, tmp_path) as it:
        for wanted, words in (
            (home("!nowhere:hs.test"), "or there is no such room"),
            (home(rooms["bob"]), "or there is no such room"),
            (home(rooms["left"], GONE), "has left, or was put out of, the room"),
            (home(rooms["left"], INVITED), "is not in the room"),
            (home(rooms["ada"], "agent_nobody"), "there is no user @agent_nobody:hs.test"),
            (home(rooms["upgraded"]), f"was upgraded to {rooms['replacement']}"),
            (home(rooms["encrypted"]), "is encrypted"),
            (home(rooms["marked"]), "is marked as that of agent agent-somebody-else"),
            (home(rooms["ada"], "@ada:elsewhere.org"), "is a user of elsewhere.org"),
            (home(rooms["ada"], "agent_hub"), "Homeroom's own user"),
            (replace(home(rooms["ada"]), problem="it is broken"), "it is broken"),
        ):
            assert words in await it.refusal(wanted), words


async def test_a_room_or_user_that_is_anothers_and_an_agent_that_has_a_room_are_refused(
    old: Old, tmp_path: Path
) -> None:
    rooms = old.rooms
    async with bench(old, tmp_path) as it:
        await it.adopt(home(rooms["ada"]))
        other = home(rooms["ada"], GONE, "agent-bob")
        assert "the room is that of agent agent-ada" in await it.refusal(other)
        other = home(rooms["replacement"], INSIDE, "agent-bob")
        assert "is the user of agent agent-ada" in await it.refusal(other)
        moved = home(rooms["replacement"])
        assert f"in {rooms['ada']} already" in await it.refusal(moved)


async def test_a_room_that_homeroom_made_before_is_not_forgotten_for_an_older_one(
    old: Old, tmp_path: Path
) -> None:
    async with bench(old, tmp_path) as it:
        _, made = await move_in(it.matrix, "agent_bob")
        wanted = home(old.rooms["ada"], agent="agent-bob")
        assert f"has made the agent a room already, {made}" in await it.refusal(wanted)


# The last one: it changes the registration for good.
async def test_users_outside_the_namespace_are_adopted_once_the_registration_covers_them(
    old: Old, tmp_path: Path
) -> None:
    wanted = home(old.rooms["bob"], OUTSIDE, "agent-bob-2")
    agents = ("agent-bob-2",)
    async with bench(old, tmp_path) as it:
        assert "outside the user namespaces" in await it.refusal(wanted, agents=agents)
        (verdict,) = await it.adopt(wanted, agents=agents)
        assert verdict.regex in verdict.reason
    # Homeroom has the new file, and the homeserver does not yet.
    registration = old.homeserver.registration
    mine = registration.model_copy(deep=True)
    mine.namespaces.users.append(
        type(mine.namespaces.users[0])(exclusive=False, regex=verdict.regex)
    )
    half = replace(old, homeserver=replace(old.homeserver, registration=mine))
    async with bench(half, tmp_path) as it:
        assert "does not let us act" in await it.refusal(wanted, agents=agents)
    old.cover(verdict.regex)
    async with bench(old, tmp_path) as it:
        assert [one.outcome for one in await it.adopt(wanted, agents=agents)] == ["adopted"]
