"""A person's message and the agent's reply, through Homeroom and through a bare script in turns.

Both are processes of their own, on the same Synapse and the same App Server, each behind the same
taps. Between them they share nothing else: each has a room, a hub and a conversation of its own.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.bare_relay import Settings
from benchmarks.stand import PERSON, Stand
from benchmarks.table import Row
from benchmarks.tap import Mark, Tap, tap, websocket_messages
from homeroom.local.child import Child, free_port
from homeroom.matrix import Matrix, open_matrix
from homeroom.model import Agent, RoomId, RoomSpec, ghost_localpart
from support.person import Person
from support.synapse import matrix_config

_PAUSE_S = 0.05
"""After each message: what one side still writes down must not cost the other side time."""
_SETTLED_S = 10.0
_IDLE_S = 3.0
_LETTA_CALLS = ("runtime_start", "conversation_messages_list", "input")


@dataclass(frozen=True)
class Passage:
    """The instants of one message, in seconds of the monotonic clock."""

    said: float
    heard: float
    """The sync response with the message was handed to the relay."""
    asked: float
    """The first request to Letta left it."""
    turned: float
    """The request that begins the turn left it."""
    answered: float
    """Letta's last byte of the turn was handed to it."""
    posted: float
    """The post left it."""
    accepted: float
    """The homeserver's answer to the post was handed to it."""
    seen: float
    """The person's client had the reply."""
    cpu_s: float
    """CPU time of the relay's process for it, with what it does after the reply was seen."""


SPANS: tuple[tuple[str, str, str], ...] = (
    ("relay (a): sync response → first Letta request", "heard", "asked"),
    ("relay (b): Letta's last byte → post accepted", "answered", "accepted"),
    ("… of (b): → the post leaves", "answered", "posted"),
    ("relay: sync response → turn requested", "heard", "turned"),
    ("relay: whole message, said → reply seen", "said", "seen"),
)


@dataclass(frozen=True)
class Side:
    """One relay that is running."""

    name: str
    pid: int
    room_id: str


class Bench:
    """The person, the taps and the relays between them."""

    def __init__(self, person: Person, matrix: Tap, letta: Tap) -> None:
        self._person, self._matrix, self._letta = person, matrix, letta

    async def passage(self, side: Side) -> Passage:
        """Says something in the side's room and waits for the reply."""
        word = uuid.uuid4().hex
        self._matrix.clear()
        self._letta.clear()
        cpu_s, said = cpu_time_s(side.pid), time.perf_counter()
        event_id = await self._person.say(side.room_id, f"!say The word is {word}.")

        def is_reply(event: Mapping[str, object]) -> bool:
            content = event["content"]
            assert isinstance(content, dict)
            relation = content.get("m.relates_to") or {}
            return bool((relation.get("m.in_reply_to") or {}).get("event_id") == event_id)

        reply = await self._person.wait_event(is_reply)
        seen = time.perf_counter()
        assert word in reply["content"]["body"], reply["content"]
        instants = None
        async with asyncio.timeout(_SETTLED_S):
            while instants is None:
                await asyncio.sleep(_PAUSE_S)
                instants = _instants(self._matrix.marks, self._letta.marks, word)
        return Passage(said=said, seen=seen, cpu_s=cpu_time_s(side.pid) - cpu_s, **instants)


def _instants(matrix: list[Mark], letta: list[Mark], word: str) -> dict[str, float] | None:
    """None while the homeserver has not answered the post: the reply may be seen before that."""
    arrival = next(m for m in matrix if not m.outbound and word.encode() in m.data)
    asks = [
        (mark.at_s, message["type"])
        for mark in letta
        if mark.outbound and mark.at_s > arrival.at_s
        for message in websocket_messages(mark.data)
        if message.get("type") in _LETTA_CALLS
    ]
    asked = asks[0][0]
    # The response may have come in several pieces; what counts is the last.
    heard = max(
        m.at_s
        for m in matrix
        if m.wire == arrival.wire and not m.outbound and arrival.at_s <= m.at_s < asked
    )
    post = next(
        m
        for m in matrix
        if m.outbound and m.data.startswith(b"PUT ") and b"/send/m.room.message/" in m.data
    )
    accepted = next((m for m in matrix if m.wire == post.wire and m.at_s > post.at_s), None)
    if accepted is None:
        return None
    assert accepted.data.startswith(b"HTTP/1.1 200"), accepted.data[:200]
    ends = [m.at_s for m in letta if not m.outbound and b'"turn_finished"' in m.data]
    return {
        "heard": heard,
        "asked": asked,
        "turned": next(at for at, kind in asks if kind == "input"),
        "answered": max(at for at in ends if at < post.at_s),
        "posted": post.at_s,
        "accepted": accepted.at_s,
    }


def cpu_time_s(pid: int) -> float:
    """CPU time that all threads of the process used so far. Linux; 0 elsewhere."""
    paths = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(path.read_text().split()[0]) for path in paths) / 1e9


# --- the two sides -------------------------------------------------------------------------------


@contextmanager
def _homeroom(stand: Stand, matrix: Tap, letta: Tap) -> Iterator[Child]:
    port = free_port()
    service = Child(
        "homeroom",
        [sys.executable, "-m", "homeroom", "serve", "--http", str(port)],
        cwd=stand.directory,
        log=stand.directory / "homeroom.log",
        env=stand.environ("service", matrix_port=matrix.port, letta_port=letta.port),
    )
    try:
        service.start()
        yield service
    except (AssertionError, TimeoutError):
        print(service.log_tail(), file=sys.stderr)
        raise
    finally:
        service.stop()


@contextmanager
def _bare(settings: Settings, stand: Stand) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.bare_relay"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=stand.environ("bare"),
    ) as process:
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(asdict(settings)).encode() + b"\n")
            process.stdin.flush()
            yield process
        finally:
            process.kill()


async def _bare_side(
    stack: ExitStack, stand: Stand, bridge: Matrix, agent: Agent, taps: tuple[Tap, Tap], name: str
) -> Side:
    ghost = await bridge.ensure_ghost(f"agent_{name}")
    hub = await bridge.ensure_ghost(f"agent_{name}_hub")
    spec = RoomSpec(f"agent_{name}", name, "", (hub, stand.person_id), (), "11")
    room_id = await bridge.create_room(ghost, spec)
    await bridge.ensure_joined(hub, room_id)
    matrix, letta = taps
    settings = Settings(
        matrix_url=f"http://127.0.0.1:{matrix.port}",
        as_token=stand.homeserver.registration.as_token.get_secret_value(),
        hub=hub,
        ghost=ghost,
        person=stand.person_id,
        room_id=room_id,
        letta_url=f"ws://127.0.0.1:{letta.port}/ws",
        letta_token=stand.letta.token,
        agent_id=agent.id,
        full=name == "same",
    )
    process = stack.enter_context(_bare(settings, stand))
    assert process.stdout is not None
    line = await asyncio.to_thread(process.stdout.readline)
    assert line == b"listening\n", f"the bare relay ended: {line!r}"
    return Side(name, process.pid, room_id)


@asynccontextmanager
async def open_bench(stand: Stand) -> AsyncIterator[tuple[Bench, list[Side]]]:
    """Everything running: Homeroom, the script with the same calls, the script with the fewest."""
    servers = [urlsplit(url) for url in (stand.homeserver.url, stand.letta.url)]
    (hs, app_server) = ((str(s.hostname), int(s.port or 0)) for s in servers)
    agent = await stand.letta.create_agent("Bench")
    config = matrix_config(stand.homeserver)
    async with (
        tap(*hs) as matrix,
        tap(*app_server) as letta,
        open_matrix(config, stand.homeserver.registration) as bridge,
        Person.login(stand.homeserver.url, PERSON, stand.password) as person,
    ):
        with ExitStack() as stack:
            service = stack.enter_context(_homeroom(stand, matrix, letta))
            await person.wait_invite(60)
            sides = [Side("homeroom", service.pid, await _room_of(bridge, agent))]
            for name in ("same", "fewest"):
                taps = (matrix, letta)
                sides.append(await _bare_side(stack, stand, bridge, agent, taps, name))
            for side in sides:
                await person.wait_invite(60, side.room_id)
                await person.join(side.room_id)
            yield Bench(person, matrix, letta), sides


async def _room_of(bridge: Matrix, agent: Agent) -> RoomId:
    room_id = await bridge.find_room(bridge.alias(ghost_localpart(agent.id)))
    assert room_id is not None
    return room_id


# --- the rows ------------------------------------------------------------------------------------


async def measure(count: int, stand: Stand) -> list[Row]:
    """The relay's rows, ``count`` messages on each side, in turns."""
    async with open_bench(stand) as (bench, sides):
        passages: dict[str, list[Passage]] = {side.name: [] for side in sides}
        for number in range(-3, count):
            for side in sides if number % 2 else reversed(sides):
                passage = await bench.passage(side)
                if number >= 0:
                    passages[side.name].append(passage)
        idle = await _idle_percent(sides, 3)
    ours, same, fewest = (passages[side.name] for side in sides)
    rows = [Row(title, _span(ours, a, b), _span(same, a, b)) for title, a, b in SPANS]
    note = "without: no typing shown, no look into the history"
    title, begin, end = "… against the fewest calls", *SPANS[-1][1:]
    rows.append(Row(title, _span(ours, begin, end), _span(fewest, begin, end), note=note))
    if not min(_cpu_ms(same)):
        return rows  # this system does not tell
    rows.append(Row("relay: CPU time per message", _cpu_ms(ours), _cpu_ms(same)))
    note = "of one core; Homeroom serves MCP, too, and watches its store and its lease"
    rows.append(Row("relay: CPU when idle", idle["homeroom"], unit="%", note=note))
    return rows


def _cpu_ms(passages: list[Passage]) -> list[float]:
    return [passage.cpu_s * 1000 for passage in passages]


def _span(passages: list[Passage], begin: str, end: str) -> list[float]:
    return [(getattr(p, end) - getattr(p, begin)) * 1000 for p in passages]


async def _idle_percent(sides: list[Side], count: int) -> dict[str, list[float]]:
    used: dict[str, list[float]] = {side.name: [] for side in sides}
    for _ in range(count):
        before = [cpu_time_s(side.pid) for side in sides]
        await asyncio.sleep(_IDLE_S)
        for side, cpu_s in zip(sides, before, strict=True):
            used[side.name].append((cpu_time_s(side.pid) - cpu_s) / _IDLE_S * 100)
    return used
