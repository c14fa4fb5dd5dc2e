"""All agents or an error, through every back end: a thousand, and lists that go wrong half way.

What a real Letta cannot be made to do is done by stand-ins; a thousand real rows are V1's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from homeroom.config import Config
from homeroom.errors import HomeroomError, Unavailable
from homeroom.letta import open_letta
from homeroom.letta.app_server import AppServerLetta
from homeroom.letta.openai_proxy import OpenAIProxyLetta
from homeroom.model import Agent
from support.app_stand import CUT, AppStand, app_stand
from support.letta_v1 import LettaV1
from support.loopback import Asked, Say, loopback

MANY = 1000


async def test_a_thousand_agents_of_a_real_v1_are_listed_in_one_pass(
    emptied_letta_v1: LettaV1,
) -> None:
    await emptied_letta_v1.create_many(MANY)
    try:
        async with open_letta(emptied_letta_v1.config()) as letta:
            listed = await letta.list_agents()
    finally:
        emptied_letta_v1.lose_agents()
    assert len({agent.id for agent in listed}) == len(listed) == MANY
    assert {agent.name for agent in listed} > {f"one of many {n}" for n in (1, 500, MANY - 1)}


# --- App Server -----------------------------------------------------------------------------------


class Shelf:
    """The agents of a stand-in, paged as the real server does: newest first, and from the start
    where the cursor is unknown. ``cap`` is the most it gives, whatever is asked for."""

    def __init__(self, count: int, cap: int = MANY) -> None:
        self.ids = [f"agent-{number}" for number in range(count)]
        self.cap = cap

    def __call__(self, command: dict[str, Any]) -> Any:
        query = command["query"]
        after = query.get("after")
        start = self.ids.index(after) + 1 if after in self.ids else 0
        page = self.ids[start : start + min(self.cap, query["limit"])]
        return {"agents": [{"id": agent_id, "name": agent_id} for agent_id in page]}


async def list_of(answer: Callable[[dict[str, Any]], Any]) -> tuple[list[Agent], AppStand]:
    async with app_stand(answer) as stand, AppServerLetta.connect(stand.url) as letta:
        return await letta.list_agents(), stand


@pytest.mark.parametrize("cap", [MANY, 100, 20], ids="at most {} a page".format)
async def test_a_thousand_agents_of_an_app_server_are_listed_whatever_its_pages(cap: int) -> None:
    shelf = Shelf(MANY, cap)
    listed, stand = await list_of(shelf)
    assert [agent.id for agent in listed] == shelf.ids
    pages = MANY // min(cap, 500)
    assert len(stand.asked) == 1 + pages + 1, "one to open, the pages, and one that is empty"


async def test_a_server_that_knows_no_cursors_is_not_read_for_ever() -> None:
    ids = [f"agent-{number}" for number in range(7)]
    page = {"agents": [{"id": agent_id} for agent_id in ids]}
    listed, stand = await list_of(lambda command: page)
    assert [agent.id for agent in listed] == ids
    assert len(stand.asked) == 3


async def test_a_list_that_starts_over_because_its_cursor_was_deleted_is_no_list() -> None:
    shelf = Shelf(MANY)

    def answer(command: dict[str, Any]) -> Any:
        if after := command["query"].get("after"):
            shelf.ids.remove(after)
        return shelf(command)

    with pytest.raises(Unavailable, match="the list of agents changed while it was read"):
        await list_of(answer)


async def test_a_list_that_is_cut_off_half_way_is_no_list() -> None:
    shelf = Shelf(MANY)
    with pytest.raises(Unavailable):
        await list_of(lambda command: CUT if "after" in command["query"] else shelf(command))


async def test_a_list_that_is_refused_half_way_is_no_list() -> None:
    shelf = Shelf(MANY)
    refusal = {"success": False, "error": "no"}
    with pytest.raises(HomeroomError):
        await list_of(lambda command: refusal if "after" in command["query"] else shelf(command))


# --- OpenAI's protocol ----------------------------------------------------------------------------


async def models_of(listing: Say) -> list[Agent]:
    served = 0

    def reply(asked: Asked) -> Say | None:
        nonlocal served
        if asked.target != "/v1/models":
            return None
        served += 1
        return Say({"data": []}) if served == 1 else listing  # the first is the opening's

    async with loopback(reply) as server:
        config = Config.model_validate({"letta_url": server.url, "letta_backend": "openai"})
        async with OpenAIProxyLetta.open(config) as letta:
            return await letta.list_agents()


async def test_a_thousand_models_are_listed_in_one_pass() -> None:
    models = [{"id": f"agent-{number}"} for number in range(MANY)]
    assert len(await models_of(Say({"data": models}))) == MANY


@pytest.mark.parametrize(
    "listing",
    [
        Say({"data": [{"id": "agent-0"}]}, torn=True),
        Say(b'{"data": [{"id": "agent-0"}, {"id'),
        Say({"data": "none"}),
        Say({}),
        Say({"detail": "no"}, 502),
    ],
    ids=["cut off", "half JSON", "no list", "nothing", "bad gateway"],
)
async def test_half_a_list_of_models_is_no_list(listing: Say) -> None:
    with pytest.raises(HomeroomError):
        await models_of(listing)
