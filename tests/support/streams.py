"""Looking at what the scripted model is saying right now."""

from __future__ import annotations

import anyio

from homeroom.local.scripted_model import ScriptedModel

LIMIT_S = 60.0


async def wait_streaming(model: ScriptedModel, text: str, pieces: int = 3) -> None:
    """Returns when the model has sent so many words of the answer ``text``, which it says slowly
    (``!chunkdelay``). Raises TimeoutError after ``LIMIT_S``."""
    with anyio.fail_after(LIMIT_S):
        while model.stats()["streamed"].get(text, 0) < pieces:
            await _look_again()


async def _look_again() -> None:
    await anyio.sleep(0.05)
