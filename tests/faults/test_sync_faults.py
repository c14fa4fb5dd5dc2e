"""Whatever breaks under the reconciler, the next run converges and nothing is there twice.

Real servers; a proxy before one of them loses, spoils and refuses what the test says.
"""

from __future__ import annotations

import re

import pytest

from homeroom.letta.rest import PAGE_COUNT
from support.app_server import AppServerHarness
from support.breaking import LETTA, MATRIX, OFTEN, assert_syncs, before, changes
from support.census import Census, assert_one_of_each
from support.fault_proxy import (
    Fault,
    FaultProxy,
    Request,
    bad_gateway,
    call,
    cut,
    drop_after,
    drop_before,
    failing,
    half_json,
    limited,
    path,
)
from support.home import Home, on_v1
from support.talk import ask


@pytest.mark.parametrize(
    "fault",
    [drop_before(), drop_after(), bad_gateway(), half_json(), limited(10)],
    ids=["drop_before", "drop_after", "502_page", "half_json", "429"],
)
async def test_each_request_may_fail_once_and_the_next_syncs_make_nothing_twice(
    own_home: Home, fault: Fault
) -> None:
    """Of every kind of request one fails, and each agent goes on where it was."""
    with before(own_home, MATRIX) as (home, proxy), Census(home.homeserver) as census:
        person = home.homeserver.person(home.person)
        await home.letta.create_many(2)
        assert_syncs(home)
        kinds = {kind_of(asked) for asked in proxy.requests if changes(asked)}
        assert len(kinds) >= 9, "user, names, picture, room, the hub's joining, the space"
        agents = 2 + len(kinds)
        for number in range(2, agents):
            await home.letta.create_agent(f"Agent {number}")
        for kind in kinds:
            proxy.on(lambda asked, kind=kind: changes(asked) and kind_of(asked) == kind, fault,
                     times=1)  # fmt: skip
        # The first requests, by which a homeserver is looked at, end the run they fail in.
        codes = []
        while (codes or [1])[-1] != 0 or proxy.has_rules:
            assert len(codes) < len(kinds), codes
            codes.append(home.run("sync").returncode)
        assert set(codes) <= {0, 1, 2}
        assert_one_of_each(census, agents, person)


def kind_of(asked: Request) -> str:
    """What a request does, whomever and whichever room it is about."""
    return asked.method + re.sub(r"/[^/]*(%|:|!)[^/]*|/upload/.*", "/*", asked.path)


async def test_a_homeserver_that_asks_for_time_gets_it_and_status_says_until_when(
    own_home: Home,
) -> None:
    with before(own_home, MATRIX) as (home, proxy), Census(home.homeserver) as census:
        rooms = path("/createRoom$")
        proxy.on(rooms, limited(4000), skip=1, times=1)  # the first one is the space
        await home.letta.create_agent("Ada")
        with home.service(**OFTEN) as service:
            await proxy.wait_count(rooms, 2)
            sync = await service.wait_sync(lambda sync: bool(sync.get("failing")))
            assert sync["failing"][0]["times"] == 1
            assert sync["failing"][0]["next_try_s"] > sync["at_s"]
            assert "limits how often" in sync["failures"][0]
            await proxy.wait_count(rooms, 3)
            _, refused_s, again_s, *_ = proxy.times_s(rooms)
            assert again_s - refused_s >= 3.9, "lag makes it no shorter: it is asked, then answered"
            await service.wait_sync(lambda sync: sync.get("left") == 0)
        assert_one_of_each(census, 1, home.homeserver.person(home.person))


async def test_a_homeserver_that_restarts_in_mid_plan_ends_with_one_room_each(
    own_home: Home,
) -> None:
    with before(own_home, MATRIX) as (home, proxy), Census(home.homeserver) as census:
        person = home.homeserver.person(home.person)
        for number in range(20):
            await home.letta.create_agent(f"Agent {number:02}")
        synapse, rooms = home.homeserver.synapse, path("/createRoom$")
        proxy.on(rooms, call(synapse.kill) & drop_after(), skip=5, times=1)
        with home.service(**OFTEN) as service:
            await proxy.wait_count(rooms, 6)
            sync = await service.wait_sync(lambda sync: "matrix" in sync.get("away", {}))
            assert sync["away"]["matrix"]["reason"]
            charged = [entry for entry in sync["failing"] if entry["times"]]
            assert len(charged) < 10 and len(sync["failing"]) >= 10
            synapse.start()
            await service.wait_sync(lambda sync: sync.get("left") == 0 and not sync["away"])
        assert_one_of_each(census, 20, person)


async def test_a_letta_that_is_away_retires_nobody_and_is_followed_as_soon_as_it_is_back(
    home: Home,
) -> None:
    await home.letta.create_agent("Ada")
    async with home.login() as alice:
        with home.service(**OFTEN) as service:
            room = await alice.join(await alice.wait_invite())
            await ask(alice, room, "!say before")
            home.letta.crash()
            sync = await service.wait_sync(lambda sync: "letta" in sync.get("away", {}))
            since_s = sync["away"]["letta"]["since_s"]
            status = home.run("sync", "--status")
            assert status.returncode == 2 and "away      letta since" in status.stdout
            await service.wait_sync(lambda sync: sync["at_s"] >= since_s + 3)
            home.letta.start()
            await home.letta.create_agent("Bea")
            other = await alice.join(await alice.wait_invite(60))
            assert (await ask(alice, other, "!say new"))["content"]["body"] == "new"
            assert (await ask(alice, room, "!say after"))["content"]["body"] == "after"
            assert await alice.room_name(room) == "Ada - Letta Agent Chat"
            assert not any("retired" in body for body in await alice.bodies(room))


HALF = pytest.mark.parametrize(
    "fault",
    [half_json(), cut(200), failing(), bad_gateway()],
    ids=["half_json", "cut", "500", "502"],
)


@HALF
async def test_half_a_list_of_agents_changes_nothing(
    home: Home, own_app_server: AppServerHarness, fault: Fault
) -> None:
    """Over HTTP, and nobody would have to be missing for long."""
    for number in range(3):
        await home.letta.create_agent(f"Agent {number}")
    with FaultProxy(own_app_server.http_url) as proxy:
        environ = {"HOMEROOM_LETTA_URL": proxy.url, "HOMEROOM_LETTA_BACKEND": "openai", **OFTEN}
        with home.service(**environ) as service:
            await service.wait_sync(lambda sync: sync.get("left") == 0)
            lists = path("/v1/models$")
            proxy.on(lists, fault)
            await proxy.wait_count(lists, proxy.count(lists) + 3, 60)
            sync = await service.wait_sync(lambda sync: "letta" in sync.get("away", {}))
            assert sync["error"] and sync["agents"] == 3
            proxy.heal()
            sync = await service.wait_sync(lambda sync: not sync["away"])
            assert (sync["agents"], sync["left"], sync["applied"]) == (3, 0, 0)


async def test_a_list_cut_half_way_on_a_websocket_changes_nothing(home: Home) -> None:
    for number in range(12):
        await home.letta.create_agent(f"Agent {number}", "x" * 300)
    with before(home, LETTA) as (home, proxy), home.service(**OFTEN) as service:
        await service.wait_sync(lambda sync: sync.get("left") == 0)
        proxy.on(lambda asked: asked.is_websocket, cut(4000))
        proxy.cut_all()
        sync = await service.wait_sync(lambda sync: "letta" in sync.get("away", {}))
        assert sync["error"] and sync["agents"] == 12
        proxy.heal()
        sync = await service.wait_sync(lambda sync: not sync["away"])
        assert (sync["agents"], sync["left"]) == (12, 0)


@on_v1
@HALF
async def test_half_a_page_of_many_of_letta_v1_changes_nothing(home: Home, fault: Fault) -> None:
    """The first page comes whole, and one of the two agents is not on it."""
    await home.letta.create_agent("Agent early")
    await home.letta.create_many(PAGE_COUNT)
    await home.letta.create_agent("Agent late")
    selected = {"HOMEROOM_SELECT_NAMES": "Agent *"}
    with before(home, LETTA) as (home, proxy), home.service(**OFTEN, **selected) as service:
        whole = await service.wait_sync(lambda sync: sync.get("left") == 0)
        assert whole["agents"] == PAGE_COUNT + 2

        def second_page(asked: Request) -> bool:
            return asked.path == "/v1/agents/" and "after=" in asked.target

        proxy.on(second_page, fault)
        await proxy.wait_count(second_page, proxy.count(second_page) + 3, 60)
        sync = await service.wait_sync(lambda sync: "letta" in sync.get("away", {}))
        assert sync["error"] and sync["agents"] == PAGE_COUNT + 2
        proxy.heal()
        sync = await service.wait_sync(lambda sync: not sync["away"])
        assert (sync["agents"], sync["left"], sync["applied"]) == (PAGE_COUNT + 2, 0, 0)
