"""Whoever waits for an answer hears what the agent says, whichever process asks it. All real."""

from __future__ import annotations

import re

from mcp import Client

from support.home import Home, on_both_back_ends

WORDS = 16


@on_both_back_ends
async def test_a_process_without_the_bridge_tells_the_answer_while_it_grows(home: Home) -> None:
    await home.letta.create_agent("Ada")
    heard: list[str] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        heard.append(message or "")

    with home.service() as service:
        async with Client(home.stdio()) as client:
            result = await client.call_tool(
                "chat_with_agent",
                {"agent": "Ada", "message": f"!chunkdelay 0.4\n!words {WORDS}", "mirror": False},
                progress_callback=on_progress,
            )
            assert (await service.health())["bridge"]["runs_here"], "the client's process has not"
    answer = result.structured_content
    assert answer and answer["reply"] == " ".join(f"word{n}" for n in range(WORDS)), answer
    pieces = [said for said in heard if said.startswith("the agent says: ")]
    numbers = [int(number) for piece in pieces for number in re.findall(r"word(\d+)\b", piece)]
    assert len(pieces) >= 3, heard
    assert numbers == sorted(set(numbers)) and len(numbers) >= WORDS // 2, heard
