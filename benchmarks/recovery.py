"""The recovery cliff: kill -9 while many conversations stream long answers, then start again.

Each question must have exactly one answer afterwards, whole; a run in which one has not raises.
"Without" is how long the answers took to stream in the same rooms with nobody killed.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import anyio

from benchmarks.stand import Stand
from benchmarks.table import Row
from support.home import Service, make_home
from support.load import Crowd, crowd

PERSON = "zoe"
AGENTS = 10
"""At most; there are rooms enough for as many conversations as are wanted."""
BEGUN_S = 240.0
"""How long nothing may move: on a busy machine an App Server takes its time to join many turns."""


async def measure(conversations: int, answer_s: int, servers: Stand, directory: Path) -> list[Row]:
    """One run: ``conversations`` answers of ``answer_s`` seconds, killed in the middle."""
    home = make_home(servers.homeserver, servers.letta, directory, PERSON)
    home.environ |= {
        "HOMEROOM_MAX_TURNS": str(conversations),
        "HOMEROOM_INVITE_POLL_S": "1",
        "HOMEROOM_LOG_LEVEL": "WARNING",
    }
    agents = min(AGENTS, conversations)
    with home.service() as service:
        async with crowd(
            home, (PERSON,), agents=agents, further_rooms=conversations - agents
        ) as people:
            bare_s = await _stream(people, servers, answer_s, None)
            ours_s = await _stream(people, servers, answer_s, service)
            figures = await people.count()
    assert figures.is_clean and figures.answered == figures.said, figures
    note = (
        f"{figures.answered} of {figures.said} answered once and whole; start of streaming to the"
        " last answer"
    )
    what = f"recovery: kill -9 in {conversations} answers of {answer_s} s"
    return [Row(what, [ours_s], [bare_s], unit="s", note=note)]


async def _stream(people: Crowd, servers: Stand, answer_s: int, victim: Service | None) -> float:
    """Seconds from when all of them stream until all are answered."""
    people.script = "!chunkdelay 1"
    words = " ".join(f"w{number}" for number in range(answer_s + 1))
    begun = _asked(servers)
    async with asyncio.TaskGroup() as tasks:
        for number in range(len(people.rooms)):
            tasks.create_task(people.say(number, f"{words} {len(people.said)}"))
    with anyio.fail_after(BEGUN_S):
        while _asked(servers) < begun + len(people.rooms):
            await anyio.sleep(0.1)
    began_s = anyio.current_time()
    if victim:
        victim.kill()
        victim.start(wait_ok=False)
    await people.settle(answer_s + BEGUN_S)
    assert people.open_count == 0, f"{people.open_count} are not answered"
    return max(people.answered_at.values()) - began_s


def _asked(servers: Stand) -> int:
    """How often the model was asked so far."""
    return int(servers.letta.model.stats()["chat"])
