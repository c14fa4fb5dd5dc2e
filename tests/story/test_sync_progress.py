"""Whoever waits for a sync hears how far it has got, whichever process does the work. All real."""

from __future__ import annotations

import re

import anyio.to_thread
from mcp import Client

from support.home import Home, on_v1

RARELY = {"HOMEROOM_SYNC_INTERVAL_S": "3600"}


@on_v1  # which tells of no new agent: the sync that is asked for finds them
async def test_progress_comes_over_mcp_and_to_a_command_beside_the_bridge(home: Home) -> None:
    heard: list[tuple[float, str]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, message or ""))

    with home.service(**RARELY) as service:
        await service.wait_in_step()  # else the sync it begins with may find some of them
        for number in range(8):
            await home.letta.create_agent(f"Agent {number}")
        async with Client(f"{service.url}/mcp") as client:
            result = await client.call_tool("sync_agents", {}, progress_callback=on_progress)
        assert result.structured_content is not None and result.structured_content["in_step"]
        counts = [re.fullmatch(r"(\d+) of (\d+) actions(, last: .+)?", text) for _, text in heard]
        assert any(found and int(found[1]) > 0 and int(found[2]) >= 40 for found in counts), heard
        numbers = [number for number, _ in heard]
        assert numbers == sorted(set(numbers))

        for number in range(8):
            await home.letta.create_agent(f"Late {number}")
        done = await anyio.to_thread.run_sync(home.run, "sync")
        assert done.returncode == 0 and "create_room" in done.stdout, done.stderr
        assert re.search(r"^\d+ of \d+ actions, \S+", done.stderr, re.MULTILINE), done.stderr
        assert "done " not in done.stderr, "another process did the work"
