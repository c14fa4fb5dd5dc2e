"""The commands that look into the mailbox: ``homeroom explain``.

They read the store and nothing else, so they work while Letta or the homeserver is away and beside
a running bridge. What others wrote (reasons, names) is made harmless before a terminal sees it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import click

if TYPE_CHECKING:
    from homeroom.config import Config
    from homeroom.model import Story

Start = Callable[[Path | None], "Config"]


def add_commands(
    cli: click.Group,
    start: Start,
    config_option: Callable[[Callable[..., int]], Callable[..., int]],
) -> None:
    """Adds them to ``cli``; ``start`` reads the configuration that ``config_option`` names."""

    @cli.command()
    @click.argument("event_or_item")
    @config_option
    def explain(event_or_item: str, config_path: Path | None) -> int:
        """Tell what became of a message, from its event to its answer."""
        _print_story(anyio.run(_explain, start(config_path), event_or_item))
        return 0


async def _explain(config: Config, name: str) -> Story:
    from homeroom.deliveries import Deliveries
    from homeroom.store import open_store

    async with open_store(config.store_path) as store:
        return await Deliveries(store).explain(name)


def _print_story(story: Story) -> None:
    from homeroom.model import utc_text

    for step in story.steps:
        click.echo(f"{utc_text(step.at_ms)}  {_harmless(step.text)}")
    click.echo(f"{'now':>23}  {story.state}: {_harmless(story.now)}")


def _harmless(text: str) -> str:
    from homeroom_tools.text import ERROR_CHARS, clean_line

    return clean_line(text, ERROR_CHARS)
