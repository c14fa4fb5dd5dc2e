"""The contract of ``homeroom.letta.Letta``, over every back end and real servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr

from homeroom.errors import NotFound, Rejected, Unavailable, Uncertain
from homeroom.letta import Letta, open_letta
from homeroom.local.child import free_port
from homeroom.model import AgentId, BackendName, ConversationId
from support.fixtures_letta import LettaServer
from support.heard import Heard, fresh

WAIT_S = 60.0
"""Far more than anything here takes; only a hang gets there."""


@asynccontextmanager
async def talking(
    server: LettaServer, **overrides: object
) -> AsyncIterator[tuple[Letta, AgentId, ConversationId | None]]:
    """A client, a new agent, and a conversation with it."""
    agent = await server.create_agent(fresh("talker"), blocks={"human": "nothing yet"})
    async with asyncio.timeout(WAIT_S), open_letta(server.config(**overrides)) as letta:
        yield letta, agent.id, await letta.open_conversation(agent.id, "a room")


async def test_an_agent_is_described_as_letta_has_it(letta_server: LettaServer) -> None:
    name, tag = fresh("Ada Ünïcode"), fresh("tag")
    made = await letta_server.create_agent(name, description="counts", tags=(tag,))
    async with open_letta(letta_server.config()) as letta:
        agent = await letta.get_agent(made.id)
    assert (agent.id, agent.name, agent.description) == (made.id, name, "counts")
    assert tag in agent.tags


async def test_a_renamed_agent_keeps_its_id(letta_server: LettaServer) -> None:
    made = await letta_server.create_agent(fresh("before"))
    await letta_server.rename_agent(made.id, "after")
    async with open_letta(letta_server.config()) as letta:
        assert (await letta.get_agent(made.id)).name == "after"


# More than one page as the server sees it: we ask V1 for 100 at a time, and an App Server gives 20
# where nobody asks for more. Agents of an App Server take a second each to make.
MANY: dict[BackendName, int] = {"rest": 105, "app-server": 25}


async def test_a_list_of_many_agents_is_whole(
    letta_server: LettaServer, backend: BackendName
) -> None:
    limit = asyncio.Semaphore(6)

    async def make(number: int) -> AgentId:
        async with limit:
            return (await letta_server.create_agent(f"one of many {number}")).id

    async def delete(agent_id: AgentId) -> None:
        async with limit:
            await letta_server.delete_agent(agent_id)

    made = await asyncio.gather(*(make(number) for number in range(MANY[backend])))
    async with open_letta(letta_server.config()) as letta:
        listed = [agent.id for agent in await letta.list_agents()]
    assert set(made) <= set(listed)
    assert len(listed) == len(set(listed))
    await asyncio.gather(*map(delete, made))


async def test_a_deleted_agent_is_not_found(letta_server: LettaServer) -> None:
    made = await letta_server.create_agent(fresh("short-lived"))
    await letta_server.delete_agent(made.id)
    async with open_letta(letta_server.config()) as letta:
        with pytest.raises(NotFound) as caught:
            await letta.get_agent(made.id)
        assert (caught.value.kind, caught.value.name) == ("agent", made.id)
        with pytest.raises(NotFound):
            await letta.list_blocks(made.id)
        with pytest.raises(NotFound):
            await letta.turn(made.id, "hello", conversation=None, key=fresh("k"))


async def test_a_malformed_agent_id_is_not_found(letta_server: LettaServer) -> None:
    async with open_letta(letta_server.config()) as letta:
        with pytest.raises(NotFound):
            await letta.get_agent(AgentId("../agents/?x=#y"))


async def test_a_turn_streams_its_answer_and_returns_it_whole(letta_server: LettaServer) -> None:
    heard = Heard()
    async with talking(letta_server) as (letta, agent, room):
        turn = await letta.turn(
            agent, "!words 12", conversation=room, key=fresh("k"), on_delta=heard
        )
    assert len(turn.text.split()) == 12
    assert turn.stop_reason == "end_turn"
    assert "".join(heard.pieces) == turn.text
    assert len(heard.pieces) > 1


async def test_any_text_comes_through_unchanged(letta_server: LettaServer) -> None:
    said = 'a\u2028b\u0085c "quoted" <b>&amp;</b> 🙂 {json: []}'
    async with talking(letta_server) as (letta, agent, room):
        turn = await letta.turn(agent, said, conversation=room, key=fresh("k"))
    assert turn.text == f"echo: {said}"


async def test_an_agent_may_answer_nothing(letta_server: LettaServer) -> None:
    async with talking(letta_server) as (letta, agent, room):
        turn = await letta.turn(agent, "!empty", conversation=room, key=fresh("k"))
    assert turn.text == ""


async def test_thoughts_are_not_part_of_the_answer(letta_server: LettaServer) -> None:
    async with talking(letta_server) as (letta, agent, room):
        script = "!think secret plan\n!say the answer"
        turn = await letta.turn(agent, script, conversation=room, key=fresh("k"))
    assert turn.text == "the answer"


async def test_a_turn_goes_on_after_a_tool_step(
    letta_server: LettaServer, backend: BackendName
) -> None:
    tool = {
        "rest": '!tool memory_insert {"label":"human","new_string":"likes tea"}',
        "app-server": '!tool Read {"file_path":"/etc/hostname"}',
    }[backend]
    async with talking(letta_server) as (letta, agent, room):
        turn = await letta.turn(agent, tool, conversation=room, key=fresh("k"))
    assert turn.text.startswith("done:")


@pytest.mark.parametrize(
    ("status", "error"), [(500, Unavailable), (429, Unavailable), (401, Rejected)]
)
async def test_a_failing_model_is_told_from_a_failing_letta(
    letta_server: LettaServer, status: int, error: type[Unavailable | Rejected]
) -> None:
    async with talking(letta_server) as (letta, agent, room):
        with pytest.raises(error) as caught:
            script = f"!status {status} private words"
            await letta.turn(agent, script, conversation=room, key=fresh("k"))
        assert isinstance(caught.value, Unavailable | Rejected)
        assert caught.value.service == "model"
        assert "private words" not in str(caught.value)
        again = await letta.turn(agent, "hello", conversation=room, key=fresh("k"))
    assert again.text == "echo: hello"


async def test_silence_leaves_a_turn_uncertain(letta_server: LettaServer) -> None:
    key = fresh("k")
    async with talking(letta_server, turn_silence_s=1.0) as (letta, agent, room):
        with pytest.raises(Uncertain) as caught:
            await letta.turn(agent, "!hang", conversation=room, key=key)
        assert caught.value.key == key
        await letta.cancel(agent, room)


async def test_speech_keeps_a_long_turn_alive(letta_server: LettaServer) -> None:
    """It speaks for longer than it may be silent, with pauses that are far shorter."""
    async with talking(letta_server, turn_silence_s=6.0) as (letta, agent, room):
        script = "!chunkdelay 0.5\n!words 16"
        turn = await letta.turn(agent, script, conversation=room, key=fresh("k"))
    assert len(turn.text.split()) == 16


async def test_a_running_turn_can_be_cancelled(letta_server: LettaServer) -> None:
    heard = Heard()
    async with talking(letta_server) as (letta, agent, room):
        script = "!chunkdelay 0.2\n!words 200"
        async with asyncio.TaskGroup() as tasks:
            turn = tasks.create_task(
                letta.turn(agent, script, conversation=room, key=fresh("k"), on_delta=heard)
            )
            await heard.first.wait()
            assert await letta.cancel(agent, room)
        assert turn.result().stop_reason == "cancelled"
        assert not await letta.cancel(agent, room)
        again = await letta.turn(agent, "hello", conversation=room, key=fresh("k"))
    assert again.text == "echo: hello"


async def test_two_conversations_of_an_agent_know_nothing_of_each_other(
    letta_server: LettaServer,
) -> None:
    async with talking(letta_server) as (letta, agent, here):
        there = await letta.open_conversation(agent, "another room")
        assert here != there
        await letta.turn(agent, "my colour is teal", conversation=here, key=fresh("k"))
        known = await letta.turn(agent, "!ctx", conversation=here, key=fresh("k"))
        unknown = await letta.turn(agent, "!ctx", conversation=there, key=fresh("k"))
    assert "teal" in known.text
    assert "teal" not in unknown.text


async def test_conversations_of_an_agent_run_at_the_same_time(letta_server: LettaServer) -> None:
    first, second = Heard(), Heard()
    async with talking(letta_server) as (letta, agent, here):
        there = await letta.open_conversation(agent, "another room")
        script = "!chunkdelay 0.5\n!words 200"
        async with asyncio.TaskGroup() as tasks:
            turns = [
                tasks.create_task(
                    letta.turn(agent, script, conversation=room, key=fresh("k"), on_delta=heard)
                )
                for room, heard in ((here, first), (there, second))
            ]
            await first.first.wait()
            await second.first.wait()
            assert not any(turn.done() for turn in turns), "both speak at the same time"
            for room in (here, there):
                assert await letta.cancel(agent, room)
        assert {turn.result().stop_reason for turn in turns} == {"cancelled"}


async def test_a_message_to_no_conversation_reaches_the_agents_own_thread(
    letta_server: LettaServer,
) -> None:
    async with talking(letta_server) as (letta, agent, _room):
        key = fresh("k")
        await letta.turn(agent, "my colour is teal", conversation=None, key=key)
        turn = await letta.turn(agent, "!ctx", conversation=None, key=fresh("k"))
        assert "teal" in turn.text
        found = await letta.find_turn(agent, conversation=None, key=key, text="my colour is teal")
    assert found is not None
    assert found.text == "echo: my colour is teal"


async def test_memory_reads_back_what_was_written(letta_server: LettaServer) -> None:
    value = "line one\n\n  indented\n# heading\n---\nkey: value\n---\nünïcode 🙂"
    async with talking(letta_server) as (letta, agent, _room):
        before = {block.label: block for block in await letta.list_blocks(agent)}
        assert before["human"].value == "nothing yet"
        written = await letta.write_block(agent, "human", value)
        after = {block.label: block for block in await letta.list_blocks(agent)}
    assert written.value == value
    assert after["human"] == written
    assert after["human"].revision != before["human"].revision


async def test_a_new_conversation_knows_the_memory_that_was_written(
    letta_server: LettaServer,
) -> None:
    async with talking(letta_server) as (letta, agent, _room):
        await letta.write_block(agent, "human", "Her colour is vermilion.")
        room = await letta.open_conversation(agent, "later")
        turn = await letta.turn(agent, "!sys", conversation=room, key=fresh("k"))
    assert "vermilion" in turn.text


async def test_an_unknown_label_comes_with_those_that_exist(letta_server: LettaServer) -> None:
    async with talking(letta_server) as (letta, agent, _room):
        with pytest.raises(NotFound) as caught:
            await letta.write_block(agent, "humam", "x")
        labels = {block.label for block in await letta.list_blocks(agent)}
    assert "human" in caught.value.candidates
    assert "humam" not in labels


async def test_a_finished_turn_is_found_by_its_key(letta_server: LettaServer) -> None:
    async with talking(letta_server) as (letta, agent, room):
        key, text = fresh("k"), "the one"
        turn = await letta.turn(agent, text, conversation=room, key=key)
        await letta.turn(agent, "a later one", conversation=room, key=fresh("k"))
        found = await letta.find_turn(agent, conversation=room, key=key, text=text)
    assert found is not None
    assert (found.text, found.stop_reason) == (turn.text, turn.stop_reason)


async def test_an_empty_answer_is_found_too(letta_server: LettaServer) -> None:
    async with talking(letta_server) as (letta, agent, room):
        key = fresh("k")
        await letta.turn(agent, "!empty", conversation=room, key=key)
        found = await letta.find_turn(agent, conversation=room, key=key, text="!empty")
    assert found is not None
    assert found.text == ""


async def test_a_running_turn_is_waited_for(letta_server: LettaServer) -> None:
    heard = Heard()
    async with talking(letta_server) as (letta, agent, room):
        key, script = fresh("k"), "!chunkdelay 0.25\n!words 9"
        sent = asyncio.create_task(
            letta.turn(agent, script, conversation=room, key=key, on_delta=heard)
        )
        await heard.first.wait()
        sent.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sent
        found = await letta.find_turn(agent, conversation=room, key=key, text=script)
    assert found is not None
    assert len(found.text.split()) == 9


async def test_a_turn_that_was_never_sent_is_not_found(letta_server: LettaServer) -> None:
    async with talking(letta_server) as (letta, agent, room):
        await letta.turn(agent, "hello", conversation=room, key=fresh("k"))
        assert not await letta.find_turn(agent, conversation=room, key=fresh("k"), text="hello")


async def test_the_last_exchanges_are_told_with_both_sides_and_nothing_else(
    letta_server: LettaServer,
) -> None:
    async with talking(letta_server) as (letta, agent, here):
        assert letta.capabilities.history
        assert await letta.list_history(agent, 5) == []
        there = await letta.open_conversation(agent, "another room")
        for text, conversation in (
            ("first", here),
            ("!think about it\n!say thought over", there),
            ('!tool memory_insert {"label": "human", "new_string": "x"}\n!say done', here),
            ("!empty", here),
            ("last", None),
        ):
            await letta.turn(agent, text, conversation=conversation, key=fresh("k"))
        past = await letta.list_history(agent, 10)
        newest = await letta.list_history(agent, 2)
    said = [one.answered for one in past]
    assert {said[0], said[-1]} == {"echo: first", "echo: last"}
    assert past[1].asked == "!think about it\n!say thought over" and said[1] == "thought over"
    assert len(past) == 4 and newest == past[-2:]
    assert not any(word in text for text in said for word in ("about it", "new_string"))
    assert not any("system-reminder" in one.asked for one in past)
    assert all(one.asked_ms > 1_700_000_000_000 for one in past)
    assert all(one.answered_ms >= one.asked_ms for one in past)


async def test_a_long_past_is_read_no_further_than_asked(letta_server: LettaServer) -> None:
    async with talking(letta_server) as (letta, agent, room):
        for number in range(8):
            await letta.turn(agent, f"number {number}", conversation=room, key=fresh("k"))
        past = await letta.list_history(agent, 5)
    assert [one.asked for one in past] == [f"number {number}" for number in range(3, 8)]


async def test_a_deleted_agent_has_no_past(letta_server: LettaServer) -> None:
    made = await letta_server.create_agent(fresh("short-lived"))
    await letta_server.delete_agent(made.id)
    async with open_letta(letta_server.config()) as letta:
        with pytest.raises(NotFound):
            await letta.list_history(made.id, 3)


async def test_nobody_at_the_address_is_unavailable(letta_server: LettaServer) -> None:
    url = urlsplit(letta_server.url)._replace(netloc=f"127.0.0.1:{free_port()}").geturl()
    with pytest.raises(Unavailable) as caught:
        async with open_letta(letta_server.config(letta_url=url)):
            pass
    assert caught.value.service == "letta"


async def test_a_wrong_token_is_rejected_and_not_repeated(letta_server: LettaServer) -> None:
    config = letta_server.config(letta_token=SecretStr("not-the-password"))
    with pytest.raises(Rejected) as caught:
        async with open_letta(config) as letta:
            await letta.list_agents()
    assert caught.value.service == "letta"
    assert "HOMEROOM_LETTA_TOKEN" in str(caught.value)
    assert "not-the-password" not in str(caught.value)
