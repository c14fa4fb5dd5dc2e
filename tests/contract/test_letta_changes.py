"""Which back end tells that its agents changed, and how soon. A real App Server."""

from __future__ import annotations

import asyncio

from homeroom.letta.app_server import AppServerLetta
from homeroom.letta.openai_proxy import OpenAIProxyLetta
from homeroom.letta.rest import RestLetta
from support.app_server import AppServerHarness
from support.loopback import Say, loopback

SOON_S = 20.0


class Ear:
    """Counts what it is told, and can wait for more."""

    def __init__(self) -> None:
        self.times = 0
        self._news = asyncio.Event()

    def __call__(self) -> None:
        self.times += 1
        self._news.set()

    async def more_than(self, times: int) -> None:
        async with asyncio.timeout(SOON_S):
            while self.times <= times:
                self._news.clear()
                await self._news.wait()


async def test_an_app_server_tells_of_agents_that_come_change_and_go(
    own_app_server: AppServerHarness,
) -> None:
    """Its protocol has no event for that (0.34.12): the folder of its agents is watched."""
    ada = await own_app_server.create_agent("Ada")
    async with AppServerLetta.connect(own_app_server.url, own_app_server.token) as letta:
        ear = Ear()
        listening = asyncio.create_task(letta.run_changes(ear))
        await ear.more_than(0)  # once it listens: what was before, nobody will tell
        for change in (
            lambda: own_app_server.create_agent("Bea"),
            lambda: own_app_server.rename_agent(ada.id, "Cleo"),
            lambda: own_app_server.describe_agent(ada.id, "Keeps notes"),
            lambda: own_app_server.delete_agent(ada.id),
        ):
            before = ear.times
            await change()
            await ear.more_than(before)
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def test_listening_outlives_a_crash_of_the_app_server(
    own_app_server: AppServerHarness,
) -> None:
    ada = await own_app_server.create_agent("Ada")
    async with AppServerLetta.connect(own_app_server.url, own_app_server.token) as letta:
        ear = Ear()
        listening = asyncio.create_task(letta.run_changes(ear))
        await ear.more_than(0)
        own_app_server.crash()
        own_app_server.start()
        await ear.more_than(1)  # it listens again
        before = ear.times
        await own_app_server.rename_agent(ada.id, "Cleo")
        await ear.more_than(before)
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def test_the_other_protocols_tell_nothing_and_say_so_at_once() -> None:
    listed = {"object": "list", "data": []}
    async with loopback(lambda asked: Say(listed)) as server:
        config = server.config(letta_backend="openai")
        async with asyncio.timeout(SOON_S), OpenAIProxyLetta.open(config) as letta:
            await letta.run_changes(Ear())
    async with (
        loopback(lambda asked: Say([] if "agents" in asked.target else {})) as server,
        asyncio.timeout(SOON_S),
        RestLetta.open(server.config()) as rest,
    ):
        await rest.run_changes(Ear())
