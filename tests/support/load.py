"""People who talk in many rooms at once, and the count of what became of what they said.

The count is made from what the homeserver has, through a person's client: nothing that the bridge
says of itself is believed.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import anyio

from support.home import Home
from support.person import Event, Person
from support.rooms import ghost_of, new_room
from support.synapse import PASSWORD
from support.talk import asked_in

SETTLE_S = 300.0
ROOMS_AT_ONCE = 5
"""A homeserver makes no room sooner for being asked for all of them at once."""


@dataclass(frozen=True)
class Figures:
    """What became of all that was said."""

    said: int = 0
    answered: int = 0
    lost: int = 0
    doubled: int = 0
    disordered: int = 0
    """Answers that came before the answer to something said earlier in the same room."""
    parked: int = 0
    """Given up with a notice that says so."""
    wrong: int = 0
    """Answers with another text than the one that was asked for, and answers to what was given up:
    whoever wrote was told something that is not so."""

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.doubled or self.disordered or self.wrong)


@dataclass
class Crowd:
    """Four people, or as many as there are, in the same rooms."""

    people: Sequence[Person]
    rooms: Sequence[str]
    open_most: int = 24
    """So many messages may be unanswered before nobody says more."""
    script: str = "!delay 0.1"
    said: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Event id -> room and the word that the answer must be."""
    answered_at: dict[str, float] = field(default_factory=dict)
    """Event id -> when (by ``anyio.current_time``) its first answer or notice was seen."""
    _seen: int = 0
    _silent: bool = False

    def look(self) -> None:
        """Notes what the first person has seen since the last look."""
        events = self.people[0].events
        while self._seen < len(events):
            event = events[self._seen]
            self._seen += 1
            asked = asked_in(event)
            if asked in self.said and (_is_answer(event) or is_farewell(event)):
                self.answered_at.setdefault(asked, anyio.current_time())

    @property
    def open_count(self) -> int:
        self.look()
        return len(self.said) - len(self.answered_at)

    @property
    def unanswered(self) -> set[str]:
        """What has neither an answer nor a notice so far."""
        self.look()
        return self.said.keys() - self.answered_at.keys()

    async def talk(self) -> None:
        """Talks until cancelled or told to be silent: everybody in every room, in turns."""
        number = 0
        while not self._silent:
            if self.open_count >= self.open_most:
                await anyio.sleep(0.05)
                continue
            await self.say(number)
            number += 1
            await anyio.sleep(0.05)

    async def say(self, number: int, word: str = "") -> str:
        """Says, as one of the people in one of the rooms, that the answer shall be ``word``."""
        room = self.rooms[number % len(self.rooms)]
        person = self.people[(number + number // len(self.rooms)) % len(self.people)]
        word = word or f"word {number}"
        content = {"msgtype": "m.text", "body": f"{self.script}\n!say {word}"}
        path = ("rooms", room, "send", "m.room.message", uuid.uuid4().hex)
        while True:
            try:
                event_id = str((await person._ask("PUT", path, body=content))["event_id"])
                break
            except (aiohttp.ClientError, OSError):
                await anyio.sleep(0.2)  # the same again, like any client while its server restarts
        self.said[event_id] = (room, word)
        return event_id

    @asynccontextmanager
    async def talking(self) -> AsyncIterator[None]:
        """Talks meanwhile, and has said all of it at the end."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.talk)
            yield
            self._silent = True
        self._silent = False

    async def settle(self, limit_s: float = SETTLE_S) -> None:
        """Returns when everything has been answered or given up, or when for ``limit_s`` nothing
        more was."""
        left, since_s = -1, anyio.current_time()
        while (count := self.open_count) and anyio.current_time() - since_s < limit_s:
            if count != left:
                left, since_s = count, anyio.current_time()
            await anyio.sleep(0.1)

    async def wait_answers(self, count: int, limit_s: float = SETTLE_S) -> float:
        """Returns when (by ``anyio.current_time``) so many more were answered than now."""
        self.look()
        wanted = len(self.answered_at) + count
        with anyio.fail_after(limit_s):
            while len(self.answered_at) < wanted:
                await anyio.sleep(0.02)
                self.look()
        return sorted(self.answered_at.values())[wanted - 1]

    async def count(self) -> Figures:
        """What the homeserver has of it."""
        figures: defaultdict[str, int] = defaultdict(int)
        for room in self.rooms:
            told = await self.people[0].messages(room)
            for key, value in self._count_room(told).items():
                figures[key] += value
        assert figures["said"] == len(self.said), "the homeserver has another number of questions"
        return Figures(**figures)

    def _count_room(self, told: list[Event]) -> dict[str, int]:
        asked = [e["event_id"] for e in told if e["event_id"] in self.said]
        answers: defaultdict[str, list[str]] = defaultdict(list)
        farewells: set[str] = set()
        order: list[int] = []
        place = {event_id: number for number, event_id in enumerate(asked)}
        for event in told:
            question = asked_in(event)
            if question not in place:
                continue
            if _is_answer(event):
                if question not in answers:
                    order.append(place[question])
                answers[question].append(event["content"]["body"])
            elif is_farewell(event):
                farewells.add(question)
        newest, disordered = -1, 0
        for number in order:
            disordered += number < newest
            newest = max(newest, number)
        return {
            "said": len(asked),
            "answered": len(answers),
            "lost": sum(e not in answers and e not in farewells for e in asked),
            "doubled": sum(len(texts) > 1 for texts in answers.values()),
            "disordered": disordered,
            "parked": len(farewells - answers.keys()),
            "wrong": len(farewells & answers.keys())
            + sum(self.said[e][1] != text for e, t in answers.items() for text in t),
        }


def _is_answer(event: Event) -> bool:
    return bool(asked_in(event)) and event["content"].get("msgtype") == "m.text"


def is_farewell(event: Event) -> bool:
    """Whether it says that a message was given up."""
    return bool(asked_in(event)) and str(event["content"].get("body", "")).startswith(
        "⚠️ Your message"
    )


@asynccontextmanager
async def crowd(
    home: Home, names: Sequence[str], *, agents: int, further_rooms: int
) -> AsyncIterator[Crowd]:
    """``names`` are localparts of those who are invited everywhere. A service must run: everybody
    goes into the rooms of ``agents`` new agents, and into ``further_rooms`` of their own, into
    each of which they take one of the agents along."""
    made: list[Any] = [await home.letta.create_agent(f"Agent {n}") for n in range(agents)]
    async with AsyncExitStack() as stack:
        people = [
            await stack.enter_async_context(Person.login(home.homeserver.url, name, PASSWORD))
            for name in names
        ]
        rooms: list[str] = []
        with anyio.fail_after(SETTLE_S):
            while len(_homes(people[0], made)) < agents:  # noqa: ASYNC110
                await anyio.sleep(0.1)
        rooms += _homes(people[0], made)
        async with anyio.create_task_group() as tasks:
            for room in rooms:
                tasks.start_soon(_enter, people, room)

        at_once = anyio.CapacityLimiter(ROOMS_AT_ONCE)

        async def open_room(number: int) -> None:
            host = people[number % len(people)]
            others = [person for person in people if person is not host]
            guests = [person.id for person in others] + [ghost_of(made[number % agents])]
            async with at_once:
                room = await new_room(host, *guests)
                await _enter(others, room)
            rooms.append(room)

        async with anyio.create_task_group() as tasks:
            for number in range(further_rooms):
                tasks.start_soon(open_room, number)
        found = Crowd(people, rooms)
        await _wait_served(found)
        yield found


async def _enter(people: Sequence[Person], room: str) -> None:
    """Takes all of them, who are invited, into the room."""
    for person in people:
        await person.wait_invite(SETTLE_S, room)
        await person.join(room)


def _homes(person: Person, made: Sequence[Any]) -> list[str]:
    """The rooms of these agents, and not of one that the server made by half and that is gone."""
    ghosts = {ghost_of(agent) for agent in made}
    return [
        room
        for room in person.invites()
        if ghosts & {str(event["sender"]) for event in person.invite_state(room)}
    ]


async def _wait_served(found: Crowd) -> None:
    """Returns when an agent answers in each of the rooms."""
    for number in range(len(found.rooms)):
        await found.say(number)
    await found.settle(60)
    assert found.open_count == 0, f"{found.open_count} rooms are not served"
