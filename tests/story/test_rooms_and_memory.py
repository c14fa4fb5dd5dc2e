"""Rooms, memory's past and word of changes over MCP. All real: Synapse, Letta, Homeroom."""

from __future__ import annotations

import asyncio
import warnings
from typing import Any
from urllib.parse import quote

import anyio
from mcp import Client
from mcp_types import ResourceUpdatedNotification, TextResourceContents

from support.client import call, refusal
from support.home import Home
from support.talk import REPLY_S, ask

URL = "{}/mcp"


async def test_what_people_and_an_agent_say_is_read_over_mcp(home: Home) -> None:
    agent = await home.letta.create_agent("Ada", "Keeps notes")
    async with home.login() as alice:
        with home.service() as service:
            room = await alice.join(await alice.wait_invite())
            for number in range(3):
                await ask(alice, room, f"!say answer {number}")
            async with Client(URL.format(service.url)) as client:
                rooms = await call(client, "list_rooms")
                (entry,) = rooms["rooms"]
                assert (entry["id"], entry["agent_id"], entry["people"]) == (room, agent.id, 1)
                assert entry["state"] == "home" and entry["last_active"]
                texts: list[str] = []
                arguments: dict[str, Any] = {"room": "Ada", "limit": 2}
                while True:
                    page = await call(client, "read_room", **arguments)
                    assert page["room"] == room
                    texts += [m["text"] for m in page["messages"]]
                    for message in page["messages"]:
                        by_agent = message["sender"] != alice.id
                        assert message["from_agent"] is by_agent and message["time"]
                    if "next_cursor" not in page:
                        break
                    arguments["cursor"] = page["next_cursor"]
                said = [t for n in (2, 1, 0) for t in (f"answer {n}", f"!say answer {n}")]
                assert texts == said
                text = await refusal(client, "read_room", room="Adda")
                assert "There is no room 'Adda'. Did you mean: Ada" in text
                shown = await call(client, "get_agent", agent="Ada", detail="full")
                assert shown["ghost"].startswith("@agent_") and shown["room"] == room


async def test_memory_is_changed_told_of_listed_searched_and_changed_back(home: Home) -> None:
    agent = await home.letta.create_agent("Ada", blocks={"human": "Nothing known."})
    async with home.login() as alice:
        with home.service(HOMEROOM_MEMORY_NOTICES="true") as service:
            await alice.join(await alice.wait_invite())
            async with Client(URL.format(service.url)) as client:
                place = {"agent": agent.id, "label": "human"}
                added = await call(
                    client, "update_agent_memory", **place, value="Likes tea.", mode="append"
                )
                assert "+Likes tea." in added["diff"]
                notice = await alice.wait_event(
                    lambda e: "was changed over MCP" in e["content"].get("body", ""), REPLY_S
                )
                assert "tea" not in notice["content"]["body"]
                assert notice["content"]["msgtype"] == "m.notice"
                found = await call(client, "search_agent_memory", agent="Ada", query="TEA")
                assert [hit["name"] for hit in found["hits"]] == ["human"]
                kept = await call(client, "get_agent_memory", **place, history=True)
                assert [v["by"] for v in kept["history"]] == ["local", "elsewhere"]
                undone = await call(
                    client, "update_agent_memory", **place, undo_of=added["revision"]
                )
                assert undone["revision"] == added["old_revision"]
                now = await call(client, "get_agent_memory", **place)
                assert now["blocks"][0]["value"] == "Nothing known."


async def test_whoever_watches_hears_of_messages_and_of_memory(home: Home) -> None:
    agent = await home.letta.create_agent("Ada", blocks={"human": "Nothing known."})
    async with home.login() as alice:
        with home.service() as service:
            room = await alice.join(await alice.wait_invite())
            messages = f"room://{quote(room, safe='')}/messages"
            memory = f"agent://{agent.id}/memory/human"
            told: asyncio.Queue[str] = asyncio.Queue()

            async def on_message(message: object) -> None:
                if isinstance(message, ResourceUpdatedNotification):
                    told.put_nowait(str(message.params.uri))

            url = URL.format(service.url)
            async with (
                asyncio.timeout(60),
                Client(url, mode="legacy", message_handler=on_message) as older,
                Client(url, mode="2026-07-28") as client,
                client.listen(resource_subscriptions=[messages, memory]) as stream,
            ):
                with warnings.catch_warnings(action="ignore"):  # the SDK's words on the old era
                    await older.subscribe_resource(memory)
                events = aiter(stream)
                await alice.say(room, "!say heard")
                assert (await anext(events)).uri == messages  # type: ignore[union-attr]
                (content,) = (await client.read_resource(messages)).contents
                assert isinstance(content, TextResourceContents)
                assert "!say heard" in content.text
                value = {"agent": agent.id, "label": "human", "value": "New."}
                await call(client, "update_agent_memory", **value)
                while (await anext(events)).uri != memory:  # type: ignore[union-attr]
                    pass  # the agent's own answer is word of the room as well
                assert await told.get() == memory


async def test_a_message_that_two_clients_of_one_person_send_at_once_is_one(home: Home) -> None:
    """And its answer is there after a restart, for them and for nobody without the id."""
    await home.letta.create_agent("Ada")
    with home.service() as service:
        said = {"agent": "Ada", "message": "!delay 1\n!say once", "wait_s": 0}
        async with (
            Client(URL.format(service.url)) as one,
            Client(home.stdio(HOMEROOM_LOG_LEVEL="ERROR")) as other,
        ):
            ids: list[str] = []

            async def send(client: Client) -> None:
                ids.append((await call(client, "chat_with_agent", **said))["reply_id"])

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(send, one)
                tasks.start_soon(send, other)
            assert len(ids) == 2 and len(set(ids)) == 1
            key = {**said, "idempotency_key": "k1"}
            keyed = (await call(one, "chat_with_agent", **key))["reply_id"]
            assert keyed != ids[0], "a key of its own makes it a message of its own"
            key["message"] = "another text"
            assert "another message" in await refusal(other, "chat_with_agent", **key)
        service.stop()
        service.start()
        async with Client(URL.format(service.url)) as client:
            for reply_id in (ids[0], keyed):
                reply = await call(client, "get_reply", reply_id=reply_id, wait_s=40)
                assert (reply["status"], reply["reply"]) == ("complete", "once")
            guessed = ids[0][:-1] + ("0" if ids[0][-1] != "0" else "1")
            assert "no reply id" in await refusal(client, "get_reply", reply_id=guessed)


async def test_an_urgent_chat_goes_first_and_one_whose_time_is_up_is_not_sent(home: Home) -> None:
    await home.letta.create_agent("Ada")
    with home.service(HOMEROOM_TOOLSETS="chat,operate") as service:
        async with Client(URL.format(service.url)) as client:

            async def say(text: str, **more: Any) -> str:
                said = {"agent": "Ada", "message": text, "wait_s": 0, "mirror": False, **more}
                return str((await call(client, "chat_with_agent", **said))["reply_id"])

            begun = await say("!delay 6\n!say begun")
            ids = {
                "low": await say("!delay 1\n!say low", priority="low"),
                "normal": await say("!delay 1\n!say normal"),
                "urgent": await say("!delay 1\n!say urgent", priority="urgent"),
            }
            late = await say("!say late", expires_after_s=1)
            reply = await call(client, "get_reply", reply_id=late, wait_s=40)
            assert reply["status"] == "failed" and "reply" not in reply
            for reply_id in (begun, *ids.values()):
                reply = await call(client, "get_reply", reply_id=reply_id, wait_s=40)
                assert reply["status"] == "complete"
            told = {
                name: [
                    step["at"]
                    for step in (await call(client, "explain_delivery", id=reply_id))["steps"]
                ][-1]
                for name, reply_id in ids.items()
            }
            assert told["urgent"] < told["normal"] < told["low"]
            story = await call(client, "explain_delivery", id=late)
            assert story["state"] == "expired"
            for seconds in (-1, 31 * 86_400):
                wrong = await refusal(
                    client, "chat_with_agent", agent="Ada", message="x", expires_after_s=seconds
                )
                assert "expires_after_s is in seconds" in wrong
