"""``homeroom token``: who may use the MCP server over HTTP.

The commands change a file and nothing else: a running server looks at it with every request. Only
for a token of an agent Letta is asked who that is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import click

if TYPE_CHECKING:
    from homeroom.config import Config

Start = Callable[[Path | None], "Config"]
Option = Callable[[Callable[..., int]], Callable[..., int]]


def add_token_commands(cli: click.Group, start: Start, config_option: Option) -> None:
    """Adds them to ``cli``; ``start`` reads the configuration that ``config_option`` names."""

    @cli.group()
    def token() -> None:
        """Make (new), list or revoke the tokens of HTTP clients."""

    _add_new(token, start, config_option)

    @token.command("list")
    @config_option
    def list_(config_path: Path | None) -> int:
        """List the tokens: name, scopes, when each was made, and the agent it is for."""
        from homeroom.times import utc_text
        from homeroom_tools.text import NAME_CHARS, clean_line
        from homeroom_tools.tokens import list_tokens

        for found in list_tokens(_path(start(config_path))):
            made = utc_text(found.created_s * 1000)
            whose = f"  agent {clean_line(found.agent, NAME_CHARS)}" if found.agent else ""
            click.echo(f"{found.name:40} {','.join(found.scopes):24} {made}{whose}")
        return 0

    @token.command()
    @click.argument("name")
    @config_option
    def revoke(name: str, config_path: Path | None) -> int:
        """Refuse a token from now on."""
        from homeroom_tools.tokens import revoke_token

        path = _path(start(config_path))
        left = revoke_token(path, name)
        click.echo(f"{name} is revoked")
        if not left:
            click.echo(
                f"No token is left. HTTP clients are refused until you make one, or remove {path}.",
                err=True,
            )
        return 0


def _add_new(token: click.Group, start: Start, config_option: Option) -> None:
    @token.command()
    @click.argument("name")
    @click.option(
        "--scope", "scopes", multiple=True, metavar="SCOPE",
        help="What its holder may do: read, chat, memory or operate. Repeat it for more.",
    )  # fmt: skip
    @click.option(
        "--agent", metavar="AGENT", default="",
        help="Id or name of the Letta agent whose client it is for: what that sends is measured by"
        " the limits on messages between agents.",
    )  # fmt: skip
    @config_option
    def new(name: str, scopes: tuple[str, ...], agent: str, config_path: Path | None) -> int:
        """Make a token and print it, this once."""
        from homeroom_tools.tokens import new_token

        config = start(config_path)
        agent_id = anyio.run(_agent_id, config, agent) if agent else ""
        made = new_token(_path(config), name, scopes, agent_id)
        click.echo(made)
        click.echo(f"{name} sends it as: Authorization: Bearer ...", err=True)
        click.echo("Only its hash is kept: it cannot be shown again.", err=True)
        return 0


async def _agent_id(config: Config, agent: str) -> str:
    """Letta's id of it, which a new name does not change. Raises NotFound, Ambiguous."""
    from homeroom.app import open_app

    async with open_app(config, bridge=False) as app:
        return (await app.get_agent(agent)).agent.id


def _path(config: Config) -> Path:
    from homeroom_tools.tokens import TOKENS_FILE

    return config.data_dir / TOKENS_FILE
