"""The mapping file of the system that Homeroom replaces: which user and room each agent had.

Owns the file's shapes and what is wrong with an entry. Pure. Invariant: a password in the file is
not even looked at, so it cannot be kept, logged or shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter

from homeroom.errors import LimitExceeded, Misuse
from homeroom.model import AgentId, GhostId, RoomId

FILE_BYTES = 16_777_216
"""Some 40,000 agents. A larger file is another file."""
_SHAPE = (
    'It must be JSON: {"agent-id": {"agent_id", "agent_name", "matrix_user_id", "room_id"}, ...}'
    " or a list of such entries"
)
_AGENT_ID = re.compile(r"[\x21-\x7e]{1,200}")
_USER_ID = re.compile(r"@[\x21-\x39\x3b-\x7e]+:[A-Za-z0-9.\-\[\]:]+")
_ROOM_ID = re.compile(r"![\x21-\x7e]+")
_ID_BYTES = 255
"""Source: https://spec.matrix.org/v1.16/appendices/#common-namespaced-identifier-grammar"""


@dataclass(frozen=True, slots=True)
class OldHome:
    """One entry: the Matrix user and room that an agent has had. ``position`` counts from 1."""

    position: int
    agent_id: AgentId
    agent_name: str
    ghost: GhostId
    room_id: RoomId
    problem: str = ""
    """What is wrong with the entry as it stands; whatever else it says is then not to be used."""


@dataclass(frozen=True, slots=True)
class Adoption:
    """What became of one entry."""

    home: OldHome
    outcome: Literal["adopted", "already", "refused"]
    reason: str = ""
    regex: str = ""
    """What the registration lacks to cover the user, where that is the reason."""


def read_old_homes(raw: bytes) -> list[OldHome]:
    """The entries of a mapping file, in its order; malformed ones carry a ``problem``.

    Raises:
        LimitExceeded: it is too large to be one.
        Misuse: it is empty, no JSON, or of another shape.
    """
    if len(raw) > FILE_BYTES:
        raise LimitExceeded("A mapping file", FILE_BYTES, len(raw), "bytes")
    if not raw.strip():
        raise Misuse(f"The mapping file is empty. {_SHAPE}.")
    if b"\0" in raw:
        raise Misuse(f"The mapping file has NUL bytes: it is binary, or damaged. {_SHAPE}.")
    try:
        data = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise Misuse(f"The mapping file is not UTF-8 (byte {error.start + 1}). {_SHAPE}.") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise Misuse(f"The mapping file is no JSON ({where}). {_SHAPE}.") from None
    except (ValueError, RecursionError):
        raise Misuse(
            f"The mapping file is no JSON that can be read: a number or its nesting is beyond"
            f" measure. {_SHAPE}."
        ) from None
    if isinstance(data, dict):
        entries: Iterable[tuple[str, Any]] = data.items()
        if data and not any(isinstance(value, dict) for value in data.values()):
            raise Misuse(f"The mapping file holds something else. {_SHAPE}.")
    elif isinstance(data, list):
        entries = (("", entry) for entry in data)
    else:
        raise Misuse(f"The mapping file holds something else. {_SHAPE}.")
    return _without_repeats(
        [_entry(number, key, entry) for number, (key, entry) in enumerate(entries, 1)]
    )


def _entry(position: int, key: str, entry: object) -> OldHome:
    def malformed(problem: str, agent_id: str = key) -> OldHome:
        return OldHome(position, AgentId(agent_id[:200]), "", GhostId(""), RoomId(""), problem)

    if not isinstance(entry, dict):
        return malformed("the entry is no object")
    agent_id = entry.get("agent_id", key)
    if not isinstance(agent_id, str) or not _AGENT_ID.fullmatch(agent_id):
        return malformed("agent_id is missing, or no id of Letta's")
    if key and key != agent_id:
        return malformed(f"it stands under {key[:200]!r} and says it is {agent_id!r}", agent_id)
    name, user, room = (entry.get(field) for field in ("agent_name", "matrix_user_id", "room_id"))
    if not isinstance(user, str) or not _fits(_USER_ID, user):
        return malformed("matrix_user_id is missing, or no Matrix id such as @name:example.org",
                         agent_id)  # fmt: skip
    if room in (None, ""):
        return malformed("it has no room; the next sync makes one", agent_id)
    if not isinstance(room, str) or not _fits(_ROOM_ID, room):
        return malformed("room_id is no room id such as !opaque:example.org", agent_id)
    shown = name if isinstance(name, str) else ""
    shown = shown.encode("utf-8", "replace").decode()[:200]
    return OldHome(position, AgentId(agent_id), shown, GhostId(user), RoomId(room))


def _fits(pattern: re.Pattern[str], text: str) -> bool:
    return len(text) <= _ID_BYTES and pattern.fullmatch(text) is not None


def _without_repeats(homes: list[OldHome]) -> list[OldHome]:
    """The same, with a problem for each that repeats the agent, user or room of one before."""
    first: dict[tuple[str, str], int] = {}
    result: list[OldHome] = []
    for home in homes:
        problem = home.problem
        names = (("agent", home.agent_id), ("user", home.ghost), ("room", home.room_id))
        for what, value in names if not problem else ():
            if other := first.get((what, value)):
                problem = f"it is a duplicate: entry {other} has the same {what}"
                break
        if not problem:
            first.update(dict.fromkeys(names, home.position))
            result.append(home)
        else:
            result.append(
                OldHome(home.position, home.agent_id, home.agent_name, home.ghost, home.room_id,
                        problem)
            )  # fmt: skip
    return result


_homes = TypeAdapter(list[OldHome])
_adoptions = TypeAdapter(list[Adoption])


def dump_homes(homes: list[OldHome]) -> str:
    return _homes.dump_json(homes).decode()


def read_homes(text: str) -> list[OldHome]:
    return _homes.validate_json(text)


def dump_adoptions(adoptions: list[Adoption]) -> str:
    return _adoptions.dump_json(adoptions).decode()


def read_adoptions(text: str) -> list[Adoption]:
    return _adoptions.validate_json(text)
