"""The commands that look into the mailbox: ``homeroom explain``, ``tail``, ``cancel``, ``parked``.

They use the store and nothing else, so they work while Letta or the homeserver is away and beside
a running bridge. What others wrote (reasons, names) is made harmless before a terminal sees it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import click

from homeroom_tools.text import harmless

if TYPE_CHECKING:
    from homeroom.config import Config
    from homeroom.deliveries import Deliveries
    from homeroom.items import Moved, Story

Start = Callable[[Path | None], "Config"]
Option = Callable[[Callable[..., int]], Callable[..., int]]


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

    @cli.command()
    @click.option("--last", default=10, show_default=True, type=click.IntRange(0, 10_000),
                  help="How many of the newest changes to begin with.")  # fmt: skip
    @config_option
    def tail(last: int, config_path: Path | None) -> int:
        """Show what moves, one line for each change of an item, until Ctrl-C."""
        config = start(config_path)
        with suppress(KeyboardInterrupt):
            anyio.run(_tail, config, last)
        return 0

    @cli.command()
    @click.argument("event_or_item")
    @click.option("--reason", default="a person cancelled it", help="For whoever asks later.")
    @config_option
    def cancel(event_or_item: str, reason: str, config_path: Path | None) -> int:
        """End a message that waits, or stop the agent that works on it; its room is told."""
        click.echo(anyio.run(_cancel, start(config_path), event_or_item, reason))
        return 0

    @cli.command()
    @click.argument("room", required=False, default="")
    @click.option("--all", "everywhere", is_flag=True, help="In all rooms.")
    @config_option
    def catchup(room: str, everywhere: bool, config_path: Path | None) -> int:
        """Have messages answered that came too late, in ROOM (its id, !...) or in all rooms."""
        if bool(room) == everywhere:
            raise click.UsageError("Name a room by its id, or say --all.")
        anyio.run(_catch_up, start(config_path), room)
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
        """List all items that were given up, oldest first, with who, when and why."""
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
        """End one for good; there will be no answer, and its room is told."""
        anyio.run(_drop, start(config_path), item_id, reason)
        return 0


@asynccontextmanager
async def _deliveries(config: Config) -> AsyncIterator[Deliveries]:
    from homeroom.deliveries import Deliveries
    from homeroom.store import open_store

    async with open_store(config.store_path) as store:
        yield Deliveries(store, status_events=config.status_events)


async def _cancel(config: Config, name: str, reason: str) -> str:
    async with _deliveries(config) as deliveries:
        item = await deliveries.cancel(name, reason)
    if not item.state.has_ended:
        return f"{item.id} is to be stopped: it is as soon as whoever runs the bridge can"
    if item.begun:
        return f"{item.id} is stopped; what the agent had already done for it may have happened"
    return f"{item.id} is cancelled"


async def _tail(config: Config, last: int) -> None:
    async with _deliveries(config) as deliveries:
        async for moved in deliveries.follow(last):
            try:
                click.echo(_line(moved))
            except BrokenPipeError:  # whoever read it has seen enough
                # Source: https://docs.python.org/3/library/signal.html#note-on-sigpipe
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return


def _line(moved: Moved) -> str:
    """When, which item, in which state, what and for whom, and why. No text of a message."""
    from homeroom.times import utc_text

    item, change, payload = moved.item, moved.change, moved.item.payload
    where = payload.get("room_id") or payload.get("mirror_room_id") or "over MCP"
    whom = payload.get("agent_id") or payload.get("ghost", "")
    who = f"{harmless(item.who)} to " if item.who else ""
    state = click.style(f"{change.state:10}", fg=_COLOURS[change.state])
    next_try = f" (again {utc_text(change.next_try_ms)})" if change.next_try_ms else ""
    why = f": {harmless(change.reason)}" if change.reason else ""
    return (
        f"{utc_text(change.at_ms)}  {item.id}  {state}  {item.kind:6}"
        f"  {who}{harmless(str(whom))}, {harmless(str(where))}{why}{next_try}"
    )


_COLOURS = {
    "waiting": "cyan",
    "claimed": "blue",
    "delivering": "blue",
    "done": "green",
    "parked": "red",
    "expired": "yellow",
    "cancelled": "yellow",
}
"""Of the states, on a terminal; in a pipe they are left out."""


async def _list_parked(config: Config) -> None:
    from homeroom.times import utc_text

    async with _deliveries(config) as deliveries:
        found = await deliveries.list_parked()
    for parked in found:
        item, payload = parked.item, parked.item.payload
        who = payload.get("sender") or payload.get("client") or payload.get("ghost", "")
        where = payload.get("room_id") or payload.get("mirror_room_id") or "over MCP"
        what = "message" if item.kind == "turn" else "post"
        sent = "may have been delivered" if item.begun else "was not delivered"
        click.echo(
            f"{item.id}  {utc_text(parked.parked_ms)}  {what} of {harmless(who)},"
            f" {harmless(where)}, {sent}"
        )
        click.echo(f"    {harmless(item.reason)}")
    click.echo(f"{len(found)} parked")


async def _replay(config: Config, item_id: str) -> None:
    async with _deliveries(config) as deliveries:
        place = await deliveries.replay(item_id)
    click.echo(f"{item_id} is back on its lane" + (f", {place} come first" if place else ""))


async def _catch_up(config: Config, room: str) -> None:
    async with _deliveries(config) as deliveries:
        done = await deliveries.catch_up(room)
    if done is None:
        click.echo("Nobody runs the bridge, or it is busy: it is done as soon as somebody does.")
        return
    left = f"; {done.left} are still kept: too many wait, or their agent is retired"
    click.echo(f"{done.answered} are answered now" + (left if done.left else ""))


async def _drop(config: Config, item_id: str, reason: str) -> None:
    async with _deliveries(config) as deliveries:
        await deliveries.drop(item_id, reason)
    click.echo(f"{item_id} is dropped")


async def _explain(config: Config, name: str) -> Story:
    async with _deliveries(config) as deliveries:
        return await deliveries.explain(name)


def _print_story(story: Story) -> None:
    from homeroom.times import utc_text

    for step in story.steps:
        click.echo(f"{utc_text(step.at_ms)}  {harmless(step.text)}")
    click.echo(f"{'now':>23}  {story.state}: {harmless(story.now)}")
