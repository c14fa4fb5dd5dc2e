"""The app of the surface tests takes the calls that the real one takes."""

from __future__ import annotations

import inspect

import pytest

from homeroom.app import App
from support.fake_app import FakeApp

NOT_OF_THE_APP = {"add", "answer", "say"}
METHODS = [
    name
    for name, _ in inspect.getmembers(FakeApp, inspect.isfunction)
    if not name.startswith("_") and name not in NOT_OF_THE_APP
]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_of_the_fake_takes_what_the_app_takes(name: str) -> None:
    theirs = inspect.signature(getattr(App, name)).parameters
    ours = inspect.signature(getattr(FakeApp, name)).parameters
    assert set(ours) <= set(theirs)
    for argument, parameter in ours.items():
        real = theirs[argument]
        assert parameter.kind is real.kind or real.kind is real.POSITIONAL_OR_KEYWORD
        if parameter.default is not parameter.empty:
            assert real.default == parameter.default


def test_every_call_of_the_tools_is_there() -> None:
    assert {
        "chat", "explain", "get_agent", "get_memory", "health", "list_agents", "list_parked",
        "list_rooms", "read_room", "replay_parked", "search_memory", "stamps", "sync",
        "sync_status", "update_memory", "wait_reply", "wait_stamps", "watch",
    } <= set(METHODS)  # fmt: skip
