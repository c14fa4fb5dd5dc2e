"""What a reconciliation costs: making homes, finding nothing to do, and the relay meanwhile.

Homes are made in turns with a bare script that sends the same requests, on the same Synapse, which
has more and more rooms: the later a round, the slower both sides are. The agents are those of a
stand-in for Letta's list; where they must answer, they are an App Server's.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import httpx

from benchmarks.bare_provision import BareProvision
from benchmarks.stand import PERSON, Stand
from benchmarks.table import Row
from benchmarks.tap import Tap, tap
from homeroom.app import App, open_app
from homeroom.config import Config
from homeroom.local.child import Child, free_port
from homeroom.matrix import open_matrix
from homeroom.model import Agent, SyncReport
from support.loopback import Asked, Loopback, Say, loopback
from support.person import Person
from support.synapse import matrix_config

BATCH = 100
MANY = 1000
NEWCOMERS = 200
TARGET_PROVISION = 1.2
TARGET_RELAY = 1.5
FIRST_SYNC_LIMIT_S = 300.0
"""The homeserver may take so long to answer the hub's first sync."""
_REQUEST = re.compile(rb"^[A-Z]+ /\S* HTTP/1\.1\r\n")


async def measure(rounds: int, stand: Stand, directory: Path) -> list[Row]:
    """Rows for homes made in ``rounds`` batches of 100, and for syncs that find nothing to do."""
    url = urlsplit(stand.homeserver.url)
    async with tap(str(url.hostname), int(url.port or 0)) as wires:
        rows = [await _made(rounds, stand, wires, directory)]
        for size in (10, BATCH, MANY):
            rows += await _unchanged(size, stand, wires, directory)
    rows.append(await _first_sync(stand))
    return rows


# --- homes ---------------------------------------------------------------------------------------


async def _made(rounds: int, stand: Stand, wires: Tap, directory: Path) -> Row:
    ours: list[float] = []
    bare: list[float] = []
    calls: list[int] = []
    for number in range(rounds):
        sides: list[Callable[[], Any]] = [
            lambda number=number: _homeroom_makes(number, stand, wires, directory, ours, calls),
            lambda number=number: _bare_makes(number, stand, wires, bare),
        ]
        for side in sides if number % 2 else reversed(sides):
            await side()
    note = f"{calls[0] / BATCH:.1f} requests an agent"
    what = f"{BATCH} agents get their homes"
    return Row(what, ours, bare, unit="s", target=TARGET_PROVISION, note=note)


async def _homeroom_makes(
    number: int, stand: Stand, wires: Tap, directory: Path, took_s: list[float], calls: list[int]
) -> None:
    async with _homeroom(f"made{number}", BATCH, stand, wires, directory) as (app, _):
        await app.bridge.get_matrix()  # connected and checked: no part of making homes
        wires.clear()
        report = await app.sync_once(lambda action, failure: None, lambda progress: None)
        assert not report.failures and not report.left, report.failures[:1]
        took_s.append(report.duration_s)
        calls.append(_requests(wires))


async def _bare_makes(number: int, stand: Stand, wires: Tap, took_s: list[float]) -> None:
    registration = stand.homeserver.registration
    async with aiohttp.ClientSession() as http:
        script = BareProvision(
            http, f"http://127.0.0.1:{wires.port}", registration.as_token.get_secret_value(),
            stand.homeserver.server_name,
        )  # fmt: skip
        hub = f"@agent_hub:{stand.homeserver.server_name}"
        names = [f"agent_bare{number}_{at:04}" for at in range(BATCH)]
        async with open_matrix(matrix_config(stand.homeserver), registration) as matrix:
            await matrix.check()
        began_s = time.perf_counter()
        await script.provision(names, hub, stand.person_id)
        took_s.append(time.perf_counter() - began_s)


# --- nothing to do -------------------------------------------------------------------------------


async def _unchanged(size: int, stand: Stand, wires: Tap, directory: Path) -> list[Row]:
    """A sync that finds everything in agreement: its time, its CPU time, its calls."""
    times_ms: list[float] = []
    cpu_ms: list[float] = []
    async with _homeroom(f"same{size}", size, stand, wires, directory) as (app, letta):
        first = await app.sync_once(lambda action, failure: None, lambda progress: None)
        assert not first.failures and not first.left, first.failures[:1]
        async with _bridge(app):
            # What the hub's sync tells of the new rooms is taken in before anything is measured.
            await _settle(app)
            wires.clear()
            letta.asked.clear()
            for _ in range(7):
                cpu_s = time.process_time()
                report = await app.sync()
                cpu_ms.append((time.process_time() - cpu_s) * 1000)
                assert not report.planned, report.planned[:3]
                times_ms.append(report.duration_s * 1000)
            lists = len(letta.asked) / len(times_ms)
            others = [line for line in _lines(wires) if b"/sync?" not in line]
    note = f"{lists:.1f} calls to Letta, {len(others) / len(times_ms):.1f} to Matrix"
    rows = [Row(f"sync that finds nothing to do, {size:,} agents", times_ms[1:], note=note)]
    rows.append(Row("… CPU time", cpu_ms[1:], note="with the process's other loops"))
    if size == MANY:
        rows.insert(0, Row(f"{size:,} agents get their homes", [first.duration_s], unit="s"))
    return rows


@asynccontextmanager
async def _bridge(app: App) -> AsyncIterator[None]:
    task = asyncio.create_task(app.bridge.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _settle(app: App) -> SyncReport:
    """Syncs until nothing is planned and the hub hears its rooms."""
    async with asyncio.timeout(300):
        while True:
            try:
                report = await app.sync()
            except Exception as error:  # the bridge has just begun
                print(f"not yet: {error}", file=sys.stderr)
                await asyncio.sleep(1)
                continue
            if not report.planned and await app._store.get_heard_ms():
                return report


async def _first_sync(stand: Stand) -> Row:
    """The hub's very first /sync, with all the rooms that were made here."""
    registration = stand.homeserver.registration
    async with open_matrix(matrix_config(stand.homeserver), registration) as matrix:
        rooms = len(await matrix.joined_rooms(matrix.hub))
        times_s = []
        for _ in range(3):
            began_s = time.perf_counter()
            await matrix.sync("", 0)
            times_s.append(time.perf_counter() - began_s)
    limit = [FIRST_SYNC_LIMIT_S] * len(times_s)
    what = f"the hub's first sync, {rooms:,} rooms, against its time limit"
    return Row(what, times_s, limit, unit="s", target=1.0)


# --- the relay meanwhile -------------------------------------------------------------------------


async def measure_relay(count: int, stand: Stand) -> list[Row]:
    """A message and its reply while nothing happens, and while 200 agents get their homes."""
    talker = await stand.letta.create_agent("Talker")
    await _create_agents(stand, NEWCOMERS)
    idle: list[float] = []
    busy: list[float] = []
    chosen = {"HOMEROOM_SELECT_IDS": talker.id}
    async with Person.login(stand.homeserver.url, PERSON, stand.password) as person:
        with _service(stand, chosen):
            room = await person.join(await _invite(person, talker, stand))
            for number in range(-3, count):
                took_ms = await _passage_ms(person, room)
                if number >= 0:
                    idle.append(took_ms)
        began_s = time.time()
        with _service(stand, {}) as url:
            await _passage_ms(person, room)
            while not await _has_synced(url, began_s):
                busy.append(await _passage_ms(person, room))
    pairs = min(len(idle), len(busy))
    assert pairs, "the homes were made before anybody could say a word"
    note = f"against the same while idle; {len(busy)} messages meanwhile"
    what = f"relay: said → reply seen, while {NEWCOMERS} agents get their homes"
    return [Row(what, busy[:pairs], idle[:pairs], target=TARGET_RELAY, note=note)]


async def _create_agents(stand: Stand, count: int) -> None:
    limit = asyncio.Semaphore(4)

    async def one(number: int) -> None:
        async with limit:
            await stand.letta.create_agent(f"Newcomer {number:03}")

    await asyncio.gather(*(one(number) for number in range(count)))


async def _invite(person: Person, agent: Agent, stand: Stand) -> str:
    from homeroom.model import ghost_localpart

    alias = f"#{ghost_localpart(agent.id)}:{stand.homeserver.server_name}"
    registration = stand.homeserver.registration
    async with open_matrix(matrix_config(stand.homeserver), registration) as matrix:
        async with asyncio.timeout(60):
            while (room := await matrix.find_room(alias)) is None:
                await asyncio.sleep(0.2)
    return await person.wait_invite(60, room)


async def _passage_ms(person: Person, room: str) -> float:
    began_s = time.perf_counter()
    event_id = await person.say(room, "!say hello")

    def is_reply(event: dict[str, Any]) -> bool:
        relation = event["content"].get("m.relates_to") or {}
        return bool((relation.get("m.in_reply_to") or {}).get("event_id") == event_id)

    await person.wait_event(is_reply, 120)
    return (time.perf_counter() - began_s) * 1000


async def _has_synced(url: str, since_s: float) -> bool:
    """Whether a sync that began after ``since_s`` has made everything that there was to make."""
    async with httpx.AsyncClient(trust_env=False) as http:
        said = (await http.get(f"{url}/health", timeout=60)).json().get("last_sync", {})
    assert not said.get("failures"), said
    return bool(said.get("at_s", 0) > since_s and said.get("left") == 0)


@contextmanager
def _service(stand: Stand, extra: dict[str, str]) -> Iterator[str]:
    port = free_port()
    child = Child(
        "homeroom", [sys.executable, "-m", "homeroom", "serve", "--http", str(port)],
        cwd=stand.directory, log=stand.directory / "provision.log",
        env=stand.environ("provision") | extra,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"

    def is_up() -> bool:
        try:
            return httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    try:
        child.start()
        child.wait_ready(is_up, 60)
        yield url
    finally:
        child.stop()


# --- what Homeroom runs on -----------------------------------------------------------------------


@asynccontextmanager
async def _homeroom(
    name: str, size: int, stand: Stand, wires: Tap, directory: Path
) -> AsyncIterator[tuple[App, Loopback]]:
    """Homeroom in this process, with a store of its own and ``size`` agents of its own."""
    models = [
        {"id": f"agent-{name}-{at:04}", "object": "model", "owned_by": "letta",
         "name": f"{name} {at:04}", "description": "Keeps an eye on the house."}
        for at in range(size)
    ]  # fmt: skip
    body = json.dumps({"object": "list", "data": models}).encode()

    def answer(asked: Asked) -> Say | None:
        return Say(body) if asked.target.partition("?")[0] == "/v1/models" else None

    async with loopback(answer) as letta:
        config = Config(
            letta_url=letta.url, letta_backend="openai", data_dir=directory / name,
            matrix_url=f"http://127.0.0.1:{wires.port}",
            matrix_server_name=stand.homeserver.server_name,
            matrix_registration=stand.homeserver.registration_path, invite=(stand.person_id,),
            sync_interval_s=86400.0,
        )  # fmt: skip
        async with open_app(config, bridge=False) as app:
            yield app, letta


def _lines(wires: Tap) -> list[bytes]:
    """The request lines that passed."""
    heads = (_REQUEST.match(mark.data) for mark in wires.marks if mark.outbound)
    return [head.group(0) for head in heads if head]


def _requests(wires: Tap) -> int:
    return len(_lines(wires))
