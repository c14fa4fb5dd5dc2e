"""What is particular to Letta's App Server: the lock on its tools, keys, restarts, memory files."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from homeroom.errors import LimitExceeded, NotFound, Unavailable, Uncertain
from homeroom.letta.app_server import AppServerLetta
from homeroom.letta.link import Link
from homeroom.letta.run import Run
from homeroom.local.scripted_model import ScriptedModel
from homeroom.model import AgentId, ConversationId
from support.app_server import AppServerHarness
from support.heard import Heard, fresh

WAIT_S = 60.0
SECRET = "the-host's-own-words"


@pytest.fixture
def own_server(scripted_model: ScriptedModel, tmp_path: Path) -> Iterator[AppServerHarness]:
    """An App Server that one test may crash."""
    server = AppServerHarness(tmp_path / "server", scripted_model)
    try:
        yield server.start()
    finally:
        server.stop()


def host_tools(directory: Path) -> dict[str, dict[str, Any]]:
    """Every tool that Letta Code 0.34.12 defines or once named, with what would do harm."""
    secret, made = str(directory / "secret.txt"), str(directory / "made")
    touch, folder = f"touch {made}; cat {secret}", str(directory)
    patch = f"*** Begin Patch\n*** Add File: {made}\n+x\n*** End Patch"
    task = {"description": "x", "prompt": f"!tool Bash {json.dumps({'command': touch})}"}
    return {
        "Bash": {"command": touch, "description": "x"},
        "shell": {"command": ["bash", "-c", touch]},
        "shell_command": {"command": touch},
        "exec_command": {"cmd": touch},
        "write_stdin": {"session_id": 1, "chars": touch},
        "Monitor": {"command": touch, "description": "x"},
        "WatchPR": {"pr": "1"},
        "Write": {"file_path": made, "content": "x"},
        "Edit": {"file_path": secret, "old_string": "own", "new_string": "lost"},
        "MultiEdit": {"file_path": secret, "edits": [{"old_string": "own", "new_string": "lost"}]},
        "ApplyPatch": {"input": patch},
        "Read": {"file_path": secret},
        "ReadLSP": {"file_path": secret},
        "ViewImage": {"path": secret},
        "Glob": {"pattern": "*", "path": folder},
        "Grep": {"pattern": "host", "path": folder, "output_mode": "content"},
        "LS": {"path": folder},
        "read_artifact_file": {"path": secret},
        "write_artifact_file": {"path": made, "content": "x"},
        "Agent": {**task, "subagent_type": "general-purpose"},
        "Task": {**task, "subagent_type": "general-purpose"},
        "TaskCreate": {"subject": "x", "description": "x"},
        "TaskGet": {"taskId": "1"},
        "TaskList": {},
        "TaskUpdate": {"taskId": "1", "status": "completed"},
        "TaskStop": {"task_id": "1"},
        "Workflow": {"script": f"require('fs').writeFileSync({made!r}, 'x')"},
        "SendAgentMessage": {"agent_id": "x", "message": "x"},
        "Wake": {"action": "create", "prompt": "x", "cron": "* * * * *"},
        "EnterWorktree": {"name": "x"},
        "ExitWorktree": {},
        "SetWorkingDirectory": {"path": folder},
        "Skill": {"skill": "self-configuration"},
        "Memory": {"command": "view"},
        "UpdatePlan": {"plan": []},
        "AskUserQuestion": {"questions": []},
    }


@pytest.fixture
def host(tmp_path: Path) -> Path:
    directory = tmp_path / "host"
    directory.mkdir()
    (directory / "secret.txt").write_text(SECRET)
    return directory


def unharmed(host: Path) -> bool:
    names = [path.name for path in host.iterdir()]
    return names == ["secret.txt"] and (host / "secret.txt").read_text() == SECRET


async def test_no_tool_that_a_model_calls_reaches_the_host(
    app_server: AppServerHarness, host: Path
) -> None:
    agent = await app_server.create_agent(fresh("prisoner"))
    answers: dict[str, str] = {}
    async with asyncio.timeout(WAIT_S), AppServerLetta.open(app_server.config()) as letta:
        room = await letta.open_conversation(agent.id, "cell")
        for name, arguments in host_tools(host).items():
            script = f"!tool {name} {json.dumps(arguments)}"
            turn = await letta.turn(agent.id, script, conversation=room, key=fresh("k"))
            answers[name] = turn.text
    assert unharmed(host)
    refused = ("denied", "not found", "not available", "not loaded", "Unknown")
    assert not {name: said for name, said in answers.items() if not any(r in said for r in refused)}
    assert "Permission denied" in answers["Bash"]


async def test_a_turn_offers_its_model_no_tools(
    app_server: AppServerHarness, scripted_model: ScriptedModel
) -> None:
    agent = await app_server.create_agent(fresh("unarmed"))
    async with asyncio.timeout(WAIT_S), AppServerLetta.open(app_server.config()) as letta:
        await letta.turn(agent.id, "hello", conversation=None, key=fresh("k"))
    assert not scripted_model.stats()["bodies"][-1].get("tools")


async def test_the_openai_path_of_the_same_server_is_locked_too(
    app_server: AppServerHarness, host: Path
) -> None:
    agent = await app_server.create_agent(fresh("side-door"))
    headers = {"Authorization": f"Bearer {app_server.token}"}
    answers: dict[str, str] = {}
    async with httpx.AsyncClient(base_url=app_server.http_url, headers=headers) as client:
        for name, arguments in host_tools(host).items():
            script = f"!tool {name} {json.dumps(arguments)}"
            body = {"model": agent.name, "messages": [{"role": "user", "content": script}]}
            reply = await client.post("/v1/chat/completions", json=body, timeout=WAIT_S)
            answers[name] = reply.text
    assert unharmed(host)
    assert "Permission denied" in answers["Bash"]
    assert not {name for name, said in answers.items() if SECRET in said}


async def test_a_server_that_its_owner_left_open_runs_nothing_for_a_turn(
    own_server: AppServerHarness, host: Path
) -> None:
    own_server.unlock()
    agent = await own_server.create_agent(fresh("trusted"))
    async with asyncio.timeout(WAIT_S), AppServerLetta.open(own_server.config()) as letta:
        room = await letta.open_conversation(agent.id, "cell")
        for name, arguments in host_tools(host).items():
            script = f"!tool {name} {json.dumps(arguments)}"
            turn = await letta.turn(agent.id, script, conversation=room, key=fresh("k"))
            assert "Refused" in turn.text, name
    assert unharmed(host)


async def calls(model: ScriptedModel, words: str) -> int:
    """How many of the model's last requests ended with these words."""
    bodies = model.stats()["bodies"]
    return sum(words in json.dumps(body["messages"][-1]) for body in bodies)


async def test_a_key_may_hold_any_characters(app_server: AppServerHarness) -> None:
    agent, key = await app_server.create_agent(fresh("odd")), "$évent/+ =#2 " + fresh("k")
    async with asyncio.timeout(WAIT_S), AppServerLetta.open(app_server.config()) as letta:
        turn = await letta.turn(agent.id, "hello", conversation=None, key=key)
    assert turn.text == "echo: hello"


async def test_a_key_is_run_once_by_one_client_and_again_by_one_that_did_not_see_its_end(
    app_server: AppServerHarness, scripted_model: ScriptedModel
) -> None:
    agent, key, words = await app_server.create_agent(fresh("once")), fresh("k"), fresh("hello")
    async with asyncio.timeout(WAIT_S), AppServerLetta.open(app_server.config()) as letta:
        first = await letta.turn(agent.id, words, conversation=None, key=key)
        again = await letta.turn(agent.id, words, conversation=None, key=key)
    async with asyncio.timeout(WAIT_S), AppServerLetta.open(app_server.config()) as letta:
        later = await letta.turn(agent.id, words, conversation=None, key=key)
        assert later == await letta.turn(agent.id, words, conversation=None, key=key)
    assert first == again and later.text == first.text
    assert await calls(scripted_model, words) == 2


async def test_a_key_whose_turn_failed_can_be_sent_again(
    app_server: AppServerHarness, scripted_model: ScriptedModel
) -> None:
    agent, key, words = await app_server.create_agent(fresh("again")), fresh("k"), fresh("boom")
    async with asyncio.timeout(WAIT_S), AppServerLetta.open(app_server.config()) as letta:
        for _ in range(2):
            with pytest.raises(Unavailable):
                await letta.turn(agent.id, f"!status 500 {words}", conversation=None, key=key)
        assert not await letta.find_turn(agent.id, conversation=None, key=key, text=words)
        turn = await letta.turn(agent.id, "!say fine", conversation=None, key=key)
    assert turn.text == "fine"
    assert await calls(scripted_model, words) == 2


async def test_an_id_that_the_server_swallows_is_not_waited_for(
    app_server: AppServerHarness,
) -> None:
    agent, key = await app_server.create_agent(fresh("swallow")), fresh("k")
    async with asyncio.timeout(WAIT_S), AppServerLetta.open(app_server.config()) as letta:
        scope = (agent.id, str(await letta.open_conversation(agent.id, "room")))
        with letta._link.watch(scope) as events:
            run = Run(key)
            await letta._submit(scope, "!status 500 x", key, key)
            assert await letta._follow(scope, events, run, key)
            swallowed = Run(key)
            await letta._submit(scope, "hello", key, key)
            assert not await letta._follow(scope, events, swallowed, key)


async def test_a_client_finds_the_server_again_after_it_was_restarted(
    own_server: AppServerHarness,
) -> None:
    agent = await own_server.create_agent(fresh("patient"))
    async with asyncio.timeout(WAIT_S), AppServerLetta.open(own_server.config()) as letta:
        room = await letta.open_conversation(agent.id, "room")
        await letta.turn(agent.id, "my colour is teal", conversation=room, key=fresh("k"))
        await asyncio.to_thread(own_server.crash)
        with pytest.raises(Unavailable):
            await letta.get_agent(agent.id)
        await asyncio.to_thread(own_server.start)
        turn = await letta.turn(agent.id, "!ctx", conversation=room, key=fresh("k"))
    assert "teal" in turn.text


async def test_a_turn_lost_with_the_server_is_uncertain_and_then_found(
    own_server: AppServerHarness,
) -> None:
    """The server runs by itself what it was killed in, as soon as somebody looks."""
    agent, key, heard = await own_server.create_agent(fresh("lost")), fresh("k"), Heard()
    script = "!chunkdelay 0.1\n!words 30"
    async with asyncio.timeout(WAIT_S), AppServerLetta.open(own_server.config()) as letta:
        room = await letta.open_conversation(agent.id, "room")
        sent = asyncio.create_task(
            letta.turn(agent.id, script, conversation=room, key=key, on_delta=heard)
        )
        await heard.first.wait()
        await asyncio.to_thread(own_server.crash)
        with pytest.raises(Uncertain) as caught:
            await sent
        assert caught.value.key == key
        await asyncio.to_thread(own_server.start)
        found = await letta.find_turn(agent.id, conversation=room, key=key, text=script)
    assert found is not None
    assert len(found.text.split()) == 30


async def test_what_a_dead_client_left_half_said_is_said_whole_in_a_fork(
    app_server: AppServerHarness,
) -> None:
    """The server cuts a turn off when its last listener goes, and blocks the conversation."""
    agent, key, heard = await app_server.create_agent(fresh("cut")), fresh("k"), Heard()
    script = "!chunkdelay 0.1\n!words 40"
    async with asyncio.timeout(WAIT_S):
        async with AppServerLetta.open(app_server.config()) as letta:
            room = await letta.open_conversation(agent.id, "room")
            await letta.turn(agent.id, "my colour is teal", conversation=room, key=fresh("k"))
            sent = asyncio.create_task(
                letta.turn(agent.id, script, conversation=room, key=key, on_delta=heard)
            )
            await heard.first.wait()
            sent.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sent
        async with AppServerLetta.open(app_server.config()) as letta:
            assert await letta.find_turn(agent.id, conversation=room, key=key, text="") is None
            with pytest.raises(NotFound) as blocked:
                await letta.turn(agent.id, script, conversation=room, key=key)
            assert blocked.value.kind == "conversation"
            fork = await letta.open_conversation(agent.id, "room", room)
            turn = await letta.turn(agent.id, script, conversation=fork, key=key)
            known = await letta.turn(
                agent.id, "What is my colour?", conversation=fork, key=fresh("k")
            )
    assert len(turn.text.split()) == 40
    assert "teal" in known.text, "the fork remembers what was said before"


async def test_a_changed_memory_is_known_in_every_later_turn_of_a_running_conversation(
    app_server: AppServerHarness,
) -> None:
    agent = await app_server.create_agent(fresh("memo"), blocks={"human": "nothing"})
    async with asyncio.timeout(WAIT_S), AppServerLetta.open(app_server.config()) as letta:
        room = await letta.open_conversation(agent.id, "room")
        await letta.turn(agent.id, "hello", conversation=room, key=fresh("k"))
        await letta.write_block(agent.id, "human", "favourite colour is teal.")
        said = [
            await letta.turn(
                agent.id, "What is my favourite colour?", conversation=room, key=fresh("k")
            )
            for _ in range(3)
        ]
    assert ["teal" in turn.text for turn in said] == [True, True, True]


async def test_messages_sent_at_once_to_one_conversation_are_all_answered(
    app_server: AppServerHarness,
) -> None:
    agent = await app_server.create_agent(fresh("crowd"))
    async with asyncio.timeout(WAIT_S), AppServerLetta.open(app_server.config()) as letta:
        room = await letta.open_conversation(agent.id, "room")
        said = ("!delay 0.3\n!say one", "two", "three")
        turns = await asyncio.gather(
            *(letta.turn(agent.id, text, conversation=room, key=fresh("k")) for text in said)
        )
    # What waits in the queue may be answered as one: then each gets the answer to the last.
    assert turns[0].text == "one"
    assert {turn.text for turn in turns[1:]} <= {"echo: two", "echo: three"}


async def test_main_threads_of_different_agents_run_at_the_same_time(
    app_server: AppServerHarness,
) -> None:
    """The server's own ``default`` conversations fail each other's turns (0.34.12)."""
    agents = [await app_server.create_agent(fresh("twin")) for _ in range(3)]
    async with asyncio.timeout(WAIT_S), AppServerLetta.open(app_server.config()) as letta:
        script = "!chunkdelay 0.1\n!words 5"
        turns = await asyncio.gather(
            *(letta.turn(a.id, script, conversation=None, key=fresh("k")) for a in agents)
        )
        assert [len(turn.text.split()) for turn in turns] == [5, 5, 5]
    async with asyncio.timeout(WAIT_S), AppServerLetta.open(app_server.config()) as letta:
        later = await letta.turn(agents[0].id, "!ctx", conversation=None, key=fresh("k"))
    assert "word4" in later.text


@pytest.mark.parametrize(
    "value", ["", "x", "x\n", "\n\nx\n", "---\na: b\n---\nx", " tab\t\r\n ", "é🙂"]
)
async def test_a_memory_file_holds_any_text_exactly(
    app_server: AppServerHarness, value: str
) -> None:
    agent = await app_server.create_agent(fresh("files"), blocks={"human": "first"})
    async with asyncio.timeout(WAIT_S), AppServerLetta.open(app_server.config()) as letta:
        written = await letta.write_block(agent.id, "human", value)
        (read,) = await letta.list_blocks(agent.id)
    assert written == read
    assert read.value == value


async def test_front_matter_and_folders_survive_a_write(app_server: AppServerHarness) -> None:
    agent = await app_server.create_agent(fresh("files"), blocks={"human": "first"})
    head = "---\nname: Plans\ndescription: 'what: next'\n---\n"
    async with asyncio.timeout(WAIT_S):
        async with Link.open(app_server.url, app_server.token) as link:
            for path, text in (("notes/MEMORY.md", "# Notes\n"), ("notes/plans.md", head + "a\n")):
                fields: dict[str, Any] = {"agent_id": agent.id, "path": path, "content": text}
                await link.request("write_memory_file", key="k", **fields)
        async with AppServerLetta.open(app_server.config()) as letta:
            block = await letta.write_block(agent.id, "notes/plans", "b")
            labels = [block.label for block in await letta.list_blocks(agent.id)]
        async with Link.open(app_server.url, app_server.token) as link:
            path = "notes/plans.md"
            answer = await link.request("read_memory_file", agent_id=agent.id, path=path)
            text = answer["content"]
    assert (block.value, block.description) == ("b", "what: next")
    assert block.limit == 20_000 - len(head) - 1
    assert text == head + "b\n"
    assert sorted(labels) == ["human", "notes/plans"]


async def test_a_block_over_its_limit_is_refused_and_one_at_its_limit_is_not(
    app_server: AppServerHarness,
) -> None:
    agent = await app_server.create_agent(fresh("files"), blocks={"human": "first"})
    async with asyncio.timeout(WAIT_S), AppServerLetta.open(app_server.config()) as letta:
        (block,) = await letta.list_blocks(agent.id)
        with pytest.raises(LimitExceeded):
            await letta.write_block(agent.id, "human", "x" * (block.limit + 1))
        assert await letta.list_blocks(agent.id) == [block]
        full = await letta.write_block(agent.id, "human", "x" * block.limit)
    assert len(full.value) == block.limit


async def test_memory_of_an_unknown_agent_is_not_made_up(app_server: AppServerHarness) -> None:
    agent = AgentId("agent-local-00000000-0000-4000-8000-000000000000")
    async with asyncio.timeout(WAIT_S), AppServerLetta.open(app_server.config()) as letta:
        with pytest.raises(NotFound):
            await letta.list_blocks(agent)
        with pytest.raises(NotFound):
            await letta.write_block(agent, "human", "x")
        with pytest.raises(NotFound):
            room = ConversationId("local-conv-none")
            await letta.turn(agent, "hello", conversation=room, key=fresh("k"))


async def test_a_command_that_the_server_does_not_know_ends_by_its_deadline(
    app_server: AppServerHarness,
) -> None:
    async with Link.open(app_server.url, app_server.token) as link:
        with pytest.raises(Unavailable):
            await link.request("no_such_command", timeout_s=0.2)
        with pytest.raises(Uncertain) as caught:
            await link.request("no_such_command", key="the-key", timeout_s=0.2)
    assert caught.value.key == "the-key"


async def test_a_server_that_is_stopped_is_noticed_and_found_again_when_it_goes_on(
    own_server: AppServerHarness,
) -> None:
    async with (
        asyncio.timeout(WAIT_S),
        Link.open(own_server.url, own_server.token, silence_s=2.0) as link,
    ):
        await link.request("app_server_info")
        with own_server.stopped(), pytest.raises(Unavailable, match="silent for 2 s"):
            await link.request("app_server_info")
        while True:  # it may take a moment until it listens again
            try:
                await link.request("app_server_info")
                break
            except Unavailable:
                continue


async def test_a_server_keeps_nothing_of_a_turn_that_ended(own_server: AppServerHarness) -> None:
    """What it keeps until it is acknowledged it goes through at the end of every turn (0.34.12)."""
    agent = await own_server.create_agent(fresh("tidy"))
    async with asyncio.timeout(WAIT_S), AppServerLetta.open(own_server.config()) as letta:
        for room in ("one", "two"):
            conversation = await letta.open_conversation(agent.id, room)
            await letta.turn(agent.id, "hello", conversation=conversation, key=fresh("k"))
            with pytest.raises(Unavailable):
                await letta.turn(
                    agent.id, "!status 500 x", conversation=conversation, key=fresh("k")
                )
    kept = own_server.directory / ".letta/listener-terminal-state"
    assert not list(kept.rglob("*.json"))


async def test_no_agent_of_the_servers_own_reads_over_what_was_said(
    app_server: AppServerHarness,
) -> None:
    """After 25 turns Letta Code 0.34.12 starts one, with a shell, unless it is told not to."""
    agent = await app_server.create_agent(fresh("chatty"))
    async with asyncio.timeout(WAIT_S), AppServerLetta.open(app_server.config()) as letta:
        room = str(await letta.open_conversation(agent.id, "room"))
        await letta.turn(agent.id, "hello", conversation=ConversationId(room), key=fresh("k"))
        runtime = {"agent_id": agent.id, "conversation_id": room}
        answer = await letta._link.request("get_reflection_settings", runtime=runtime)
    assert answer["reflection_settings"]["trigger"] == "off"


async def test_an_agent_whose_model_is_gone_is_moved_to_one_that_is_there(
    own_server: AppServerHarness,
) -> None:
    agent = await own_server.create_agent(fresh("orphan"))
    async with asyncio.timeout(WAIT_S), AppServerLetta.open(own_server.config()) as letta:
        gone = {"model": "openai/gpt-5.5"}
        await letta._link.request("agent_update", key="m", agent_id=agent.id, body=gone)
        with pytest.raises(Unavailable):
            await letta.turn(agent.id, "hello", conversation=None, key=fresh("k"))
        await letta.mend_models("openai-compatible/")
        turn = await letta.turn(agent.id, "hello", conversation=None, key=fresh("k"))
    assert turn.text == "echo: hello"
