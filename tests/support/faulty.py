"""A Homeroom whose wires to its servers can be made faulty, and what must hold whatever they do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio

from homeroom.local.scripted_model import ScriptedModel
from homeroom.model import BackendName
from support.fault_proxy import (
    Fault,
    FaultProxy,
    Match,
    bad_gateway,
    cut,
    delay,
    drop_after,
    drop_before,
    failing,
    half_json,
    hang,
    limited,
    message,
    path,
    say,
)
from support.fixtures_letta import LettaServer
from support.home import Home, make_home
from support.load import is_farewell
from support.person import Event, Person
from support.soak import Soak
from support.synapse import PASSWORD, Homeserver
from support.talk import answers, answers_in

WAIT_S = 4.0
"""After so long a silent server counts as away here."""
ANSWERED_S = 60.0
QUESTIONS = 3

MATRIX_LIMIT = limited(500)
LETTA_LIMIT = say(429, {"detail": "Too many requests"})


@dataclass(repr=False)
class Stand:
    """A running Homeroom, a proxy before each of its servers, and a room in which it answers."""

    home: Home
    soak: Soak
    matrix: FaultProxy
    letta: FaultProxy
    model: ScriptedModel
    keeps_turns: bool
    """Whether its Letta goes on with a turn when the connection is lost."""
    room: str = ""

    def login(self) -> Any:
        return self.home.login()

    @property
    def log(self) -> str:
        return (self.home.directory / "homeroom.log").read_text()


@contextmanager
def faulty_stand(
    letta: LettaServer,
    backend: BackendName,
    synapse: Homeserver,
    model: ScriptedModel,
    directory: Path,
) -> Iterator[Stand]:
    home = make_home(synapse, letta, directory, f"faulty-{backend}", backend=backend)
    with FaultProxy(synapse.url) as matrix, FaultProxy(letta.url) as before_letta:
        environ = {
            "HOMEROOM_MATRIX_URL": matrix.url,
            "HOMEROOM_LETTA_URL": before_letta.url,
            "HOMEROOM_TURN_SILENCE_S": "5",
            "HOMEROOM_SYNC_INTERVAL_S": "3600",
        }
        soak = Soak(replace(home, environ=home.environ | environ))
        try:
            found = Stand(home, soak, matrix, before_letta, model, backend == "rest")
            anyio.run(_move_in, found)
            yield found
        finally:
            soak.stop()


async def _move_in(stand: Stand) -> None:
    await stand.home.letta.create_agent("Ada")
    async with stand.login() as person:
        stand.soak.start(wait_s=WAIT_S)
        stand.room = await person.join(await person.wait_invite())
        asked = await person.say(stand.room, "!say warm")
        await person.wait_event(answers(asked), ANSWERED_S)


def _is_text(event: Event) -> bool:
    return event["content"].get("msgtype") == "m.text"


def _ends(event_id: str) -> Callable[[Event], bool]:
    """Whether an event is the answer, or says that there will be none."""
    is_answer = answers(event_id)
    return lambda e: is_answer(e) and (_is_text(e) or is_farewell(e))


async def _assert_once_in_order(stand: Stand, person: Person, asked: list[str]) -> None:
    """Each has one answer, its own, in the order of the questions."""
    for event_id in asked:
        told = await person.wait_event(_ends(event_id), ANSWERED_S)
        assert _is_text(told), told["content"]["body"]
    found = answers_in([e for e in await person.messages(stand.room) if _is_text(e)])
    assert [found[event_id] for event_id in asked] == [[_word(n)] for n in range(len(asked))]
    assert [event_id for event_id in found if event_id in asked] == asked


def _word(number: int) -> str:
    return f"this is the answer to number {number}"


async def run_fault(
    stand: Stand,
    proxy: FaultProxy,
    match: Match,
    fault: Fault,
    *,
    times: int,
    cut_all: bool = False,
) -> None:
    """Says something before, while and after ``fault`` befalls what matches."""
    log_length, turns = len(stand.log), _turns(stand)
    async with Person.login(stand.home.homeserver.url, stand.home.person, PASSWORD) as person:
        came = proxy.count(match)
        proxy.on(match, fault, times=times)
        try:
            script = "!delay 1\n" if cut_all else "!chunkdelay 0.02\n"
            asked = [await person.say(stand.room, f"{script}!say {_word(0)}")]
            if cut_all:
                await stand.letta.wait_count(TURN, stand.letta.count(TURN) + 1)
                proxy.cut_all()
            await proxy.wait_count(match, came + 1)
            asked += [await person.say(stand.room, f"!say {_word(n)}") for n in range(1, QUESTIONS)]
            await _assert_once_in_order(stand, person, asked)
            assert not proxy.has_rules, "the fault did not happen as often as it should"
        finally:
            proxy.heal()
        # By the time that one more is answered, a second answer to an earlier one would be there.
        asked.append(await person.say(stand.room, f"!say {_word(QUESTIONS)}"))
        await _assert_once_in_order(stand, person, asked)
    assert "item_parked" not in stand.log[log_length:]
    heard = _turns(stand) - turns
    # An App Server drops what a client was having answered when it goes, so that is said again.
    again = times if proxy is stand.letta and not stand.keeps_turns else 0
    assert len(asked) <= heard <= len(asked) + again, "the agent heard something twice"


def _turns(stand: Stand) -> int:
    """How often the model was asked so far: once in each turn of these."""
    return int(stand.model.stats()["chat"])


SEND = path(r"/send/m\.room\.message/", "PUT")
SYNC = path(r"/sync$")
V1_TURN = path(r"/messages$", "POST")
APP_TURN = message(b'"create_message"')


def TURN(asked: Any) -> bool:  # a matcher like the others
    return V1_TURN(asked) or APP_TURN(asked)


def upgrade(asked: Any) -> bool:
    return bool(asked.is_websocket)


TORN = {
    "drop_before": (drop_before(), 2),
    "drop_after": (drop_after(), 2),
    "delay": (delay(2.0), 1),
    "hang": (hang(), 1),
    "cut_at_once": (cut(0), 2),
    "cut_in_the_middle": (cut(400), 2),
    "half_json": (half_json(), 2),
}
SAID = {"500": (failing(), 2), "502_with_403": (bad_gateway(), 2)}
MATRIX = TORN | SAID | {"429": (MATRIX_LIMIT, 2)}
LETTA = TORN | SAID | {"429": (LETTA_LIMIT, 2)}
HANDSHAKE = {name: LETTA[name] for name in LETTA if name not in ("drop_after", "half_json")}
