"""What the contract tests of Letta say things with, and hear answers with."""

from __future__ import annotations

import asyncio
import uuid


def fresh(stem: str) -> str:
    """A name that no other test uses."""
    return f"{stem}-{uuid.uuid4().hex[:8]}"


class Heard:
    """Collects deltas and says when the first has come."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.first = asyncio.Event()

    def __call__(self, piece: str) -> None:
        self.pieces.append(piece)
        self.first.set()
