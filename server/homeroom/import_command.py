"""The command that takes over the users and rooms of the system before: ``import-mappings``.

Owns how a mapping file is read from disk and how the outcome is told. What the file says is made
harmless before a terminal sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import click

from homeroom.errors import ConfigError, Misuse
from homeroom_tools.text import clean, harmless

if TYPE_CHECKING:
    from homeroom.config import Config
    from homeroom.old_homes import Adoption, OldHome

Start = Callable[[Path | None], "Config"]
Option = Callable[[Callable[..., int]], Callable[..., int]]
EXIT_LEFT = 2
"""Something in the file was not adopted."""


def add_import(cli: click.Group, start: Start, config_option: Option) -> None:
    """Adds it to ``cli``; ``start`` reads the configuration that ``config_option`` names."""

    @cli.command("import-mappings")
    @click.argument("file", type=click.Path(path_type=Path))
    @click.option("--dry-run", is_flag=True, help="Only say what would be adopted.")
    @config_option
    def import_mappings(file: Path, dry_run: bool, config_path: Path | None) -> int:
        """Keep the users and rooms that agents have from an older bridge. Exit code 2: not all."""
        config = start(config_path)
        if not config.has_matrix:
            raise ConfigError(
                "HOMEROOM_MATRIX_URL", "is missing, and there are no rooms", "http://127.0.0.1:8008"
            )
        homes = _read(file)
        done = anyio.run(_import, config, homes, dry_run)
        _print(done, dry_run)
        return EXIT_LEFT if any(one.outcome == "refused" for one in done) else 0


def _read(file: Path) -> list[OldHome]:
    from homeroom.old_homes import FILE_BYTES, read_old_homes

    try:
        with file.open("rb") as opened:
            raw = opened.read(FILE_BYTES + 1)
    except OSError as error:
        raise Misuse(f"{file} cannot be read: {error.strerror}.") from None
    return read_old_homes(raw)


async def _import(config: Config, homes: list[OldHome], dry_run: bool) -> list[Adoption]:
    from homeroom.app import open_app

    async with open_app(config, bridge=False, read_only=dry_run) as app:
        return await app.import_homes(homes, dry_run=dry_run)


def _print(done: list[Adoption], dry_run: bool) -> None:
    would = {"adopted": "would adopt"} if dry_run else {}
    for one in done:
        mark = "NOT adopted" if one.outcome == "refused" else would.get(one.outcome, one.outcome)
        home = one.home
        where = f": {home.ghost} in {home.room_id}" if one.outcome != "refused" else ""
        why = f": {one.reason}" if one.reason else ""
        agent = " ".join(filter(None, (home.agent_name, home.agent_id)))
        click.echo(harmless(f"{mark:11} entry {home.position} {agent}{where}{why}"))
    count = {what: sum(one.outcome == what for one in done) for what in _ENDS}
    counted = ", ".join(f"{count[what]} {would.get(what, words)}" for what, words in _ENDS.items())
    click.echo(f"{len(done)} {'entry' if len(done) == 1 else 'entries'}: {counted}")
    if missing := [one.regex for one in done if one.regex]:
        click.echo("The registration does not cover all users. Under namespaces.users it lacks:")
        click.echo(f"  - {{exclusive: false, regex: '{clean(_pattern(missing))}'}}")
    if count["adopted"] and not dry_run:
        click.echo("The next sync does the rest: a running bridge does it now, else: homeroom sync")


_ENDS = {"adopted": "adopted", "already": "adopted before", "refused": "not adopted"}


def _pattern(regexes: Iterable[str]) -> str:
    """One regular expression for these users and nobody else: a shorter one might mean people."""
    found = sorted(set(regexes))
    names = [regex.removeprefix("@").partition(":")[0] for regex in found]
    server = found[0].partition(":")[2]
    return found[0] if len(found) == 1 else f"@({'|'.join(names)}):{server}"
