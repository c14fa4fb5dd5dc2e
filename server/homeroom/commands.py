"""The commands that look into the mailbox: ``homeroom explain`` and ``homeroom parked``.

They use the store and nothing else, so they work while Letta or the homeserver is away and beside
a running bridge. What others wrote (reasons, names) is made harmless before a terminal sees it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import click

if TYPE_CHECKING:
    from homeroom.config import Config
    from homeroom.deliveries import Deliveries
    from homeroom.model import Story

Start = Callable[[Path | None], "Config"]
Option = Callable[[Callable[..., int]], Callable[..., int]]
LISTED = 100
"""Parked items that one list shows."""


def add_commands(
    cli: click.Group,
    start: Start,
    config_option: Option,
) -> None:
    """Adds them to ``cli``; ``start`` reads the configuration that ``config_option`` names."""

    @cli.command()
    @click.argument("event_or_item")
    @config_option
    def explain(event_or_item: str, config_path: Path | None) -> int:
        """Tell what became of a message, from its event to its answer."""
        _print_story(anyio.run(_explain, start(config_path), event_or_item))
        return 0

    _add_parked(cli, start, config_option)


def _add_parked(cli: click.Group, start: Start, config_option: Option) -> None:
    @cli.group(invoke_without_command=True)
    @config_option
    @click.pass_context
    def parked(context: click.Context, config_path: Path | None) -> int:
        """List what was given up (list), or show, replay or drop one of it."""
        if context.invoked_subcommand is None:
            anyio.run(_list_parked, start(config_path))
        return 0

    @parked.command("list")
    @config_option
    def list_(config_path: Path | None) -> int:
        """List the items that were given up, with who, when and why."""
        anyio.run(_list_parked, start(config_path))
        return 0

    @parked.command()
    @click.argument("item_id", metavar="ID")
    @config_option
    def show(item_id: str, config_path: Path | None) -> int:
        """Tell the whole story of one."""
        _print_story(anyio.run(_explain, start(config_path), item_id))
        return 0

    @parked.command()
    @click.argument("item_id", metavar="ID")
    @config_option
    def replay(item_id: str, config_path: Path | None) -> int:
        """Put one back at the head of its lane; its room is told."""
        anyio.run(_replay, start(config_path), item_id)
        return 0

    @parked.command()
    @click.argument("item_id", metavar="ID")
    @click.option("--reason", default="a person dropped it", help="For whoever asks later.")
    @config_option
    def drop(item_id: str, reason: str, config_path: Path | None) -> int:
        """End one for good; there will be no answer."""
        anyio.run(_drop, start(config_path), item_id, reason)
        return 0


@asynccontextmanager
async def _deliveries(config: Config) -> AsyncIterator[Deliveries]:
    from homeroom.deliveries import Deliveries
    from homeroom.store import open_store

    async with open_store(config.store_path) as store:
        yield Deliveries(store)


async def _list_parked(config: Config) -> None:
    from homeroom.model import utc_text

    async with _deliveries(config) as deliveries:
        found, total = await deliveries.list_parked(LISTED)
    for parked in found:
        item, payload = parked.item, parked.item.payload
        who = payload.get("sender") or payload.get("client") or payload.get("ghost", "")
        where = payload.get("room_id") or payload.get("mirror_room_id") or "over MCP"
        what = "message" if item.kind == "turn" else "post"
        sent = "may have been delivered" if item.begun else "was not delivered"
        click.echo(
            f"{item.id}  {utc_text(parked.parked_ms)}  {what} of {_harmless(who)},"
            f" {_harmless(where)}, {sent}"
        )
        click.echo(f"    {_harmless(item.reason)}")
    older = f", the newest {len(found)} listed" if total > len(found) else ""
    click.echo(f"{total} parked{older}")


async def _replay(config: Config, item_id: str) -> None:
    async with _deliveries(config) as deliveries:
        place = await deliveries.replay(item_id)
    click.echo(f"{item_id} is back on its lane" + (f", {place} come first" if place else ""))


async def _drop(config: Config, item_id: str, reason: str) -> None:
    async with _deliveries(config) as deliveries:
        await deliveries.drop(item_id, reason)
    click.echo(f"{item_id} is dropped")


async def _explain(config: Config, name: str) -> Story:
    async with _deliveries(config) as deliveries:
        return await deliveries.explain(name)


def _print_story(story: Story) -> None:
    from homeroom.model import utc_text

    for step in story.steps:
        click.echo(f"{utc_text(step.at_ms)}  {_harmless(step.text)}")
    click.echo(f"{'now':>23}  {story.state}: {_harmless(story.now)}")


def _harmless(text: str) -> str:
    from homeroom_tools.text import ERROR_CHARS, clean_line

    return clean_line(text, ERROR_CHARS)
