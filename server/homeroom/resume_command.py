"""``homeroom resume``: which agents may not write to each other for now, and how they may again.

It uses the store and nothing else, so it works with nothing running; a bridge that runs has both
rooms told. Names of agents are made harmless before a terminal sees them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import click

from homeroom_tools.text import harmless

if TYPE_CHECKING:
    from homeroom.config import Config
    from homeroom.exchange import Exchange

Start = Callable[[Path | None], "Config"]
Option = Callable[[Callable[..., int]], Callable[..., int]]


def add_resume(cli: click.Group, start: Start, config_option: Option) -> None:
    """Adds it to ``cli``; ``start`` reads the configuration that ``config_option`` names."""

    @cli.command()
    @click.argument("one", metavar="A", default="")
    @click.argument("other", metavar="B", default="")
    @config_option
    def resume(one: str, other: str, config_path: Path | None) -> int:
        """List the agents whose messages to each other are paused, or let those of A and B (ids
        or names) go on."""
        if one and not other:
            raise click.UsageError("A pause is between two agents: homeroom resume A B.")
        config = start(config_path)
        if one:
            anyio.run(_resume, config, one, other)
        else:
            anyio.run(_list, config)
        return 0


async def _list(config: Config) -> None:
    from homeroom.store import open_store
    from homeroom.times import utc_text

    async with open_store(config.store_path) as store:
        paused = await store.list_paused()
    for one in paused:
        pair = harmless(" ".join(one.pair))
        click.echo(f"{pair}  {utc_text(one.paused_ms)} to {one.until}")
        click.echo(f"    {_names(one)}: {one.reason}")
    click.echo(f"{len(paused)} paused")


async def _resume(config: Config, one: str, other: str) -> None:
    from homeroom.pauses import pick, resumed_items
    from homeroom.store import open_store

    async with open_store(config.store_path) as store:
        found = pick(await store.list_paused(), one, other)
        await store.resume_pair(found.pair, resumed_items)
    click.echo(f"{_names(found)} may write to each other again")


def _names(of: Exchange) -> str:
    from homeroom.pauses import agent_label

    low, high = (agent_label(of.names[n], of.pair[n]) for n in range(2))
    return harmless(f"{low} and {high}")
