"""Whoever watches a memory block hears of it when its agent changed it in a turn. All real."""

from __future__ import annotations

import asyncio
import json
import warnings

from mcp import Client
from mcp_types import ResourceUpdatedNotification, TextResourceContents

from homeroom.letta import open_letta
from homeroom.model import AgentId
from support.client import call, connect
from support.home import Home, on_both_back_ends

LIMIT_S = 120.0
LEARNT = "Likes tea."
INSERT = {"label": "human", "new_string": LEARNT}


async def learn(home: Home, client: Client, agent: AgentId) -> None:
    """A turn in which the agent's memory changes."""
    script = f"!tool memory_insert {json.dumps(INSERT)}\n!say learnt"
    if home.environ["HOMEROOM_LETTA_BACKEND"] == "app-server":
        # Turns get no tools there; others may change its files while it is at work.
        script = "!say learnt"
        async with open_letta(home.letta.config()) as letta:
            await letta.write_block(agent, "human", LEARNT)
    said = {"agent": agent, "message": script, "mirror": False}
    assert (await call(client, "chat_with_agent", **said))["reply"] == "learnt"


@on_both_back_ends
async def test_a_block_that_its_agent_changed_is_told_in_both_eras_and_in_every_process(
    home: Home,
) -> None:
    agent = await home.letta.create_agent("Ada", blocks={"human": "Nothing known."})
    block = f"agent://{agent.id}/memory/human"
    told: asyncio.Queue[str] = asyncio.Queue()

    async def on_message(message: object) -> None:
        if isinstance(message, ResourceUpdatedNotification):
            told.put_nowait(str(message.params.uri))

    with home.service() as service:
        async with (
            asyncio.timeout(LIMIT_S),
            Client(home.stdio(), mode="legacy", message_handler=on_message) as older,
            connect(service.url, era="2026-07-28") as client,
            client.listen(resource_subscriptions=[block]) as stream,
        ):
            with warnings.catch_warnings(action="ignore"):  # the SDK's words on the old era
                await older.subscribe_resource(block)
            await learn(home, client, agent.id)
            assert (await anext(aiter(stream))).uri == block  # type: ignore[union-attr]
            assert await told.get() == block
            (content,) = (await client.read_resource(block)).contents
            assert isinstance(content, TextResourceContents) and LEARNT in content.text
            said = {"agent": agent.id, "message": "!say nothing new", "mirror": False}
            await call(client, "chat_with_agent", **said)
            value = {"agent": agent.id, "label": "human", "value": "New."}
            await call(client, "update_agent_memory", **value)
            assert (await anext(aiter(stream))).uri == block  # type: ignore[union-attr]
            assert await told.get() == block
