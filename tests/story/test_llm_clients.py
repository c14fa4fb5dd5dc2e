"""An LLM client and a person share the same agents: stdio, SSE and Streamable HTTP, all real."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from mcp import Client

from support.client import call, connect, refusal
from support.home import Home, Service
from support.rooms import join_rooms
from support.talk import ask

WAYS = ["stdio", "sse", "http"]


def connected(way: str, home: Home, service: Service) -> AbstractAsyncContextManager[Client]:
    if way == "stdio":
        return Client(home.stdio())
    return connect(service.url, way="sse" if way == "sse" else "http")


@pytest.mark.parametrize("way", WAYS)
async def test_a_client_lists_chats_and_edits_memory_and_the_room_sees_the_chat(
    home: Home, way: str
) -> None:
    agent = await home.letta.create_agent("Ada", "Keeps notes", {"human": "Nothing known."})
    await home.letta.create_agent("Brook")
    async with home.login() as alice:
        with home.service() as service:
            rooms = await join_rooms(alice, 2)
            async with connected(way, home, service) as client:
                listed = await call(client, "list_agents", query="ada")
                assert [a["id"] for a in listed["agents"]] == [agent.id]
                assert listed["agents"][0]["room"] == rooms["Ada"]
                assert listed["total"] == 1

                chat = await call(client, "chat_with_agent", agent="Ada", message="!say hello")
                assert (chat["status"], chat["reply"]) == ("complete", "hello")
                await alice.wait_event(
                    lambda e: (
                        e["room_id"] == rooms["Ada"]
                        and e["content"].get("msgtype") == "m.notice"
                        and "hello" in e["content"]["body"]
                        and "Answer to" in e["content"]["body"]
                    )
                )
                secret = await call(
                    client, "chat_with_agent", agent="Ada", message="!say psst", mirror=False
                )
                assert secret["reply"] == "psst"

                before = await call(client, "get_agent_memory", agent="Ada", label="human")
                block = before["blocks"][0]
                assert block["value"] == "Nothing known."
                await call(
                    client, "update_agent_memory", agent="Ada", label="human",
                    value="favourite colour is teal", mode="replace_text", old_text="Nothing known",
                    expected_revision=block["revision"],
                )  # fmt: skip
                after = await call(client, "get_agent_memory", agent="Ada", label="human")
                assert after["blocks"][0]["value"] == "favourite colour is teal."
                used = await call(
                    client, "chat_with_agent", agent="Ada", message="What is my favourite colour?"
                )
                assert "teal" in used["reply"]

                lost = await refusal(
                    client, "update_agent_memory", agent="Ada", label="human", value="x",
                    expected_revision=block["revision"],
                )  # fmt: skip
                assert "changed since you read it" in lost
                assert "human" in await refusal(
                    client, "get_agent_memory", agent="Ada", label="humann"
                )
                assert "Ada" in await refusal(client, "chat_with_agent", agent="Adda", message="x")

                synced = await call(client, "sync_agents")
                assert synced.get("failures", []) == []

            # The mirrored chat is the room's conversation, and nothing was relayed twice.
            assert "psst" not in " ".join(await alice.bodies(rooms["Ada"]))
            await ask(alice, rooms["Ada"], "!say from the room")
            bodies = await alice.bodies(rooms["Ada"])
            assert len([b for b in bodies if b.endswith("hello") and "Answer" in b]) == 1
            assert bodies[-1] == "from the room"


async def test_a_slow_answer_is_pending_and_survives_a_restart_of_the_server(home: Home) -> None:
    await home.letta.create_agent("Ada")
    with home.service() as service:
        async with connect(service.url) as client:
            chat = await call(
                client, "chat_with_agent", agent="Ada", message="!delay 5\n!say late", wait_s=0.2
            )
            assert chat["status"] == "pending"
        service.stop()
        service.start()
        async with connect(service.url) as client:
            reply = await call(client, "get_reply", reply_id=chat["reply_id"], wait_s=40)
            assert (reply["status"], reply["reply"]) == ("complete", "late")
            assert home.letta.model.stats()["chat"] > 0


async def test_two_agents_of_one_name_must_be_told_apart_by_id(home: Home) -> None:
    one, two = [await home.letta.create_agent("Twin") for _ in range(2)]
    with home.service() as service:
        async with connect(service.url) as client:
            said = await refusal(client, "chat_with_agent", agent="Twin", message="x")
            assert one.id in said and two.id in said
            chat = await call(client, "chat_with_agent", agent=two.id, message="!say I am two")
            assert chat["reply"] == "I am two"


async def test_without_matrix_the_letta_tools_work_and_the_others_say_what_to_set(
    home: Home,
) -> None:
    await home.letta.create_agent("Ada")
    blank = dict.fromkeys([k for k in home.environ if "MATRIX" in k or "INVITE" in k], "")
    async with Client(home.stdio(**blank)) as client:
        listed = await call(client, "list_agents")
        assert listed["agents"][0]["name"] == "Ada"
        chat = await call(client, "chat_with_agent", agent="Ada", message="!say hi")
        assert chat["reply"] == "hi"
        assert "HOMEROOM_MATRIX_URL" in await refusal(client, "sync_agents")


async def test_while_letta_is_away_tools_say_so_and_work_again_when_it_is_back(home: Home) -> None:
    await home.letta.create_agent("Ada")
    home.letta.stop()
    with home.service(start=False) as service:
        service.start(wait_ok=False)
        async with connect(service.url) as client:
            assert "Letta is not available" in await refusal(client, "list_agents")
            home.letta.start()
            chat: dict[str, Any] | None = None
            for _ in range(30):
                result = await client.call_tool("list_agents", {})
                if not result.is_error:
                    chat = await call(client, "chat_with_agent", agent="Ada", message="!say back")
                    break
                await service.changed()
            assert chat and chat["reply"] == "back"
