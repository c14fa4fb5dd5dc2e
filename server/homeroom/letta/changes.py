"""How an App Server tells that its agents changed.

It has no event for that: who creates, renames or deletes an agent gets an answer, and nobody else
hears of it (Letta Code 0.34.12). But it watches files for its clients, and each of its agents is
one file in one folder. So the folder is watched: ``file_changed`` comes within 0.2 s of a change.
Owns where that folder is. Where it is somewhere else nothing comes, and the interval must do.
"""

from __future__ import annotations

import asyncio
import logging
import posixpath
import re
from collections.abc import Callable

from homeroom.errors import HomeroomError
from homeroom.letta.link import LOST, UNSCOPED, Link
from homeroom.retry import pause_s

log = logging.getLogger(__name__)

_STATUS_S = 5.0
"""The status of a conversation comes with the answer to the request for it."""
_NOBODY_S = 30.0
"""How often to look for a first agent: without one the server does not say where its files are."""
_MEMORY = re.compile(r"(?P<root>.+)[/\\]memfs[/\\][^/\\]+[/\\]memory[/\\]?")


async def run_changes(link: Link, on_change: Callable[[], None]) -> None:
    """Calls ``on_change`` at every change, until cancelled; see ``Letta.run_changes``."""
    failures = 0
    with link.watch(UNSCOPED) as events:
        while True:
            try:
                folder = await _agents_folder(link)
                if folder:
                    await link.send("watch_file", request_id="homeroom-agents", path=folder)
            except HomeroomError:
                failures += 1
                await asyncio.sleep(pause_s(failures))
                continue
            if not folder:
                await asyncio.sleep(_NOBODY_S)
                continue
            log.info("agents_watched")
            on_change()  # what happened before nobody will tell
            while (event := await events.get())["type"] != LOST:
                if event["type"] == "file_changed" and event.get("path") == folder:
                    on_change()
            failures = 1
            await asyncio.sleep(pause_s(failures))


async def _agents_folder(link: Link) -> str:
    """Where the server keeps its agents; empty if it does not say.

    It says where the memory of an agent is, and both are under one root.
    """
    listed = await link.request("agent_list", query={"limit": 1})
    if not listed["agents"]:
        return ""
    scope = (str(listed["agents"][0]["id"]), "default")
    with link.watch(scope) as events:
        runtime = {"agent_id": scope[0], "conversation_id": scope[1]}
        await link.request("sync", runtime=runtime)
        try:
            async with asyncio.timeout(_STATUS_S):
                while (event := await events.get())["type"] != "update_device_status":
                    if event["type"] == LOST:
                        return ""
        except TimeoutError:
            return ""
    status = event.get("device_status")
    told = status.get("memory_directory") if isinstance(status, dict) else None
    memory = _MEMORY.fullmatch(told) if isinstance(told, str) else None
    return posixpath.join(memory["root"], "agents") if memory else ""
