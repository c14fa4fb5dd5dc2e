"""The app's stand-in while it opens: it has everything that the app has, and waits."""

from __future__ import annotations

import ast
import asyncio
import inspect
from pathlib import Path
from typing import Any

import pytest

import homeroom_tools
from homeroom.app import App
from homeroom.config import Config
from homeroom.serving import DeferredApp

TOOLS = Path(homeroom_tools.__file__).parent
LIMIT_S = 30.0


def used_of_the_app() -> set[str]:
    """What the tools ask of ``app`` or ``self._app``, by reading their source."""
    used = set()
    for path in TOOLS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and path.name != "web.py":  # its app is Starlette's
                owner = ast.unparse(node.value)
                if owner == "app" or (owner == "self._app" and path.name != "gate.py"):
                    used.add(node.attr)
    return used


def test_whatever_the_tools_ask_of_the_app_can_wait_until_it_is_open() -> None:
    used = used_of_the_app()
    assert {"list_agents", "chat", "wait_stamps"} <= used
    for name in used | {"health", "hint_invitations"}:
        assert inspect.iscoroutinefunction(getattr(App, name)), name


async def test_a_call_opens_the_app_waits_for_it_and_gets_its_answer(tmp_path: Path) -> None:
    config = Config(letta_url="http://127.0.0.1:1", data_dir=tmp_path)  # type: ignore[arg-type]
    deferred: Any = DeferredApp()
    calls = [
        asyncio.create_task(call())
        for call in (deferred.sync_status, lambda: deferred.list_parked("", 10, ""))
    ]
    await asyncio.sleep(0)
    assert not any(call.done() for call in calls), "nobody has opened it"
    async with asyncio.timeout(LIMIT_S):
        holding = asyncio.create_task(deferred.hold(config))
        status, parked = await asyncio.gather(*calls)
        assert (status.finished_ms, parked.total) == (0, 0)
        with pytest.raises(AttributeError, match="no_such_thing"):
            await deferred.no_such_thing()
        await deferred.close()
        await holding
