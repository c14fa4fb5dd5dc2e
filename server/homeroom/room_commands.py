"""What people may order in a room, instead of talking to its agent. Pure.

A message is a command only if it is one to the letter: agents have commands of their own.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

CATCH_UP = "!catchup"
"""What a member of a room writes to have old messages answered."""
HELP = "!help"
RESUME = "!resume"
"""What a person writes in an agent's own room to have its paused exchanges go on."""
STOP = "!stop"
"""What a member of a room writes to have the agent leave off."""
STOP_ALL = "!stop all"
"""The same, and what waits there ends as well."""
_INVITE = re.compile(r"!invite\s+(me|@[^\s:]+:\S+)", re.IGNORECASE)

HELP_TEXT = f"""\
What you write here goes to the agent, but for these commands:

- `{STOP}` has me leave off what I am working on here; `{STOP_ALL}` also ends what waits for me.
- `{CATCH_UP}` has messages answered that came while I was away.
- `!invite me` invites you again into every agent room that you have left or declined; \
`!invite @name:server` does so for somebody else of those who belong there.
- `{RESUME}` lets messages between this agent and others go on that were paused.
- `{HELP}` shows this.
"""


@dataclass(frozen=True, slots=True)
class Command:
    kind: Literal["catch_up", "help", "invite", "resume", "stop"]
    person: str = ""
    """Who shall be invited again."""
    waiting_too: bool = False
    """Whether what waits shall end as well."""


def parse_command(text: str, sender: str) -> Command | None:
    """The command that a message is, or None."""
    text = text.strip()
    if text.lower() == CATCH_UP:
        return Command("catch_up")
    if text.lower() == HELP:
        return Command("help")
    if text.lower() == RESUME:
        return Command("resume")
    words = " ".join(text.lower().split())
    if words in (STOP, STOP_ALL):
        return Command("stop", waiting_too=words == STOP_ALL)
    if match := _INVITE.fullmatch(text):
        whom = match[1]
        return Command("invite", sender if whom.lower() == "me" else whom)
    return None


def answer_invite(command: Command, sender: str, people: Collection[str]) -> tuple[str, bool]:
    """What the room is told, and whether the person is invited again.

    Only those whom Homeroom invites may ask, and only for each other: an agent's user has more
    power in its room than most who are there.
    """
    if sender not in people:
        why = "only the people of HOMEROOM_INVITE, whom I invite anyway, can ask for that"
        return f"Nobody was invited: {why}.", False
    if command.person not in people:
        why = "that person is not in HOMEROOM_INVITE. Whoever runs Homeroom can add them"
        return f"Nobody was invited: {why}.", False
    whom = "You are" if command.person == sender else "They are"
    return f"{whom} invited again, wherever an agent's own room is missing them.", True
