"""Who is calling, for whatever a call must be bound to: reply ids, rates, scopes.

Owns one context variable. The transports set it (``web`` once per HTTP request, ``stdio`` once per
process) and the SDK carries it along to the tool, also where a session has a task of its own.
Invariant: what it says was proven by a token or by the transport, never by what a client calls
itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, get_args

Scope = Literal["read", "chat", "memory", "operate"]
"""What a caller may do: look, talk with agents, change their memory, run the house."""
SCOPES: tuple[Scope, ...] = get_args(Scope)
STDIO = "stdio"
"""The caller on stdin and stdout: whoever started the process."""
LOCAL = "local"
"""A caller over HTTP where no token is needed, which is on loopback alone, and one in memory."""
RESERVED = (STDIO, LOCAL, "http-token")
"""Names that no token in the file may have; the last is HOMEROOM_HTTP_TOKEN."""


@dataclass(frozen=True, slots=True)
class Caller:
    """A principal: ``name`` is the same for every request of it, also after a restart."""

    name: str
    scopes: frozenset[Scope] = frozenset(SCOPES)
    agent: str = ""
    """The agent (id or name) that it works for: what it sends is that agent's. Empty: a person's
    client. Like the rest of it never what the client says."""


def on_stdio(agent: str = "") -> Caller:
    """The caller on stdin and stdout; one that works for an agent is a principal of its own."""
    return Caller(f"{STDIO}:{agent}" if agent else STDIO, agent=agent)


_current: ContextVar[Caller | None] = ContextVar("homeroom_caller", default=None)
_ANYBODY_HERE = Caller(LOCAL)


def current_caller() -> str:
    """The name of whoever made the present call: a token's name, "stdio", "local", or
    "stdio:" and an agent."""
    return current_principal().name


def current_principal() -> Caller:
    """The same with its scopes."""
    return _current.get() or _ANYBODY_HERE


@contextmanager
def calling(caller: Caller) -> Iterator[None]:
    """All calls that are made, or handed on, in this context are of ``caller``."""
    token = _current.set(caller)
    try:
        yield
    finally:
        _current.reset(token)
