"""What happens to a chat before it is on its lane."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from homeroom.asking import Asking, Question
from homeroom.config import Config
from homeroom.directory import Directory
from homeroom.errors import Unavailable
from homeroom.letta import Letta
from homeroom.store import open_store

CONFIG = Config(letta_url="http://127.0.0.1:9")


async def test_a_letta_that_hangs_ends_a_chat_before_anything_is_sent(tmp_path: Path) -> None:
    async def hang() -> Letta:
        await anyio.sleep_forever()
        raise AssertionError

    async with open_store(tmp_path / "s.db") as store:
        asking = Asking(CONFIG, store, Directory(hang, store, CONFIG))
        with anyio.fail_after(10), pytest.raises(Unavailable, match="nothing was sent"):
            await asking.ask(Question("Ada", "Hello", "c", "local", find_s=0.05))
        assert await store.list_changes(0, 10) == []
