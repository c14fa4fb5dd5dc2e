"""Search in what an agent has archived, over real servers."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from homeroom.errors import NotFound
from homeroom.letta import open_letta
from homeroom.model import AgentId
from support.fixtures_letta import LettaServer

HARBOUR = "The harbour opens at six in the morning."


async def archive(server: Any, agent_id: AgentId, *texts: str) -> None:
    for text in texts:
        await server.call("POST", f"/v1/agents/{agent_id}/archival-memory", {"text": text})


async def test_passages_are_found_by_meaning_where_the_agent_has_a_model_for_it(
    letta_v1: Any,
) -> None:
    embedding = {"embedding": "openai/text-embedding-3-small"}
    agent = await letta_v1.create_agent(f"archivist-{uuid.uuid4().hex[:8]}", **embedding)
    await archive(letta_v1, agent.id, HARBOUR, "Bread is baked on Tuesdays.")
    async with open_letta(letta_v1.config()) as letta:
        recall = await letta.search_passages(agent.id, "when does the harbour open", 5)
        one = await letta.search_passages(agent.id, "harbour", 1)
    assert recall.method == "semantic"
    assert recall.passages[0].text == HARBOUR and len(recall.passages) == 2
    assert recall.passages[0].id.startswith("passage-")
    assert len(one.passages) == 1


async def test_without_such_a_model_the_words_themselves_are_looked_for(letta_v1: Any) -> None:
    agent = await letta_v1.create_agent(f"archivist-{uuid.uuid4().hex[:8]}")
    await archive(letta_v1, agent.id, HARBOUR, "Bread is baked on Tuesdays.")
    async with open_letta(letta_v1.config()) as letta:
        recall = await letta.search_passages(agent.id, "HARBOUR", 5)
        nothing = await letta.search_passages(agent.id, "lighthouse", 5)
    assert recall.method == "text"
    assert [passage.text for passage in recall.passages] == [HARBOUR]
    assert nothing.passages == ()


async def test_the_archive_of_an_agent_that_is_gone_is_not_found(
    letta_server: LettaServer,
) -> None:
    made = await letta_server.create_agent(f"short-lived-{uuid.uuid4().hex[:8]}")
    await letta_server.delete_agent(made.id)
    async with open_letta(letta_server.config()) as letta:
        with pytest.raises(NotFound):
            await letta.search_passages(made.id, "anything", 5)


async def test_a_back_end_without_archives_has_no_passages(app_server: Any) -> None:
    agent = await app_server.create_agent(f"files-{uuid.uuid4().hex[:8]}", blocks={"human": "tea"})
    async with open_letta(app_server.config()) as letta:
        assert (await letta.search_passages(agent.id, "tea", 5)).passages == ()
