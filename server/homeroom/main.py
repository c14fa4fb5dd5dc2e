"""The composition root: commands and exit codes.

With ``serving`` and the other commands the only importer of ``homeroom_tools``. What an LLM client
waits for comes first: everything heavy (nio, SQLite, rich, the embedded servers) is imported by the
command that needs it, when it does.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import click

from homeroom import __version__
from homeroom.commands import add_commands
from homeroom.commands_rooms import add_room_commands
from homeroom.config import EXAMPLES, Config, load_config, split_names, unknown_variables
from homeroom.errors import ConfigError, HomeroomError
from homeroom.import_command import add_import
from homeroom.registration import load_registration, new_registration, write_registration
from homeroom.resume_command import add_resume
from homeroom.serving import serve_http, serve_stdio
from homeroom.telemetry import setup_logging
from homeroom.token_commands import add_token_commands
from homeroom_tools.text import harmless

if TYPE_CHECKING:
    from homeroom.local.stack import LocalStack
    from homeroom.reports import SyncStatus

EXIT_DRIFT = 2
EXIT_USAGE = 64
"""EX_USAGE of sysexits.h. Not click's own 2, which would read as drift."""
EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h."""
DEFAULT_HTTP = "127.0.0.1:8017"


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise ConfigError("--http", f"must be a port or HOST:PORT, not {text!r}", DEFAULT_HTTP)
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        # Without them ::1 reads as port 1 of another address.
        problem = f"has an IPv6 address without brackets or without a port: {text!r}"
        raise ConfigError("--http", problem, "[::1]:8017")
    return host.strip("[]") or "127.0.0.1", int(port)


def _base_url(host: str, port: int) -> str:
    """Where a client finds what listens there; an IPv6 address stands in brackets (RFC 3986)."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


# --- commands ------------------------------------------------------------------------------------

_config_option = click.option(
    "--config", "config_path", type=click.Path(dir_okay=False, path_type=Path),
    help="TOML file with the same settings; the environment wins over it.",
)  # fmt: skip


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="homeroom")
def cli() -> None:
    """A home in Matrix for every Letta agent, and all of them in any LLM client over MCP."""


def _start(config_path: Path | None, **given: object) -> Config:
    """The configuration, everything that can be wrong with it checked, and logging set up.

    ``given`` are settings from the command line, which win; None is not given.
    """
    config = load_config(config_path)
    given = {name: value for name, value in given.items() if value is not None}
    config = config.model_copy(update=given)
    if config.matrix_registration and config.has_matrix:
        load_registration(config.matrix_registration)
    setup_logging(config.log_level)
    for name, near in unknown_variables(os.environ):
        click.echo(f"homeroom: {name} is no setting of Homeroom; perhaps {near} is meant", err=True)
    return config


@cli.command()
@click.option("--http", metavar="[HOST:]PORT", help="Serve HTTP at this address, not stdio.")
@click.option("--stdio", is_flag=True, help="With --http: serve stdin and stdout as well.")
@click.option("--read-only", is_flag=True, help="Only tools that change nothing.")
@click.option("--toolsets", metavar="A,B", help="Instead of HOMEROOM_TOOLSETS.")
@click.option("--exclude-tools", metavar="X,Y", help="Instead of HOMEROOM_EXCLUDE_TOOLS.")
@_config_option
def serve(
    http: str | None,
    stdio: bool,
    read_only: bool,
    toolsets: str | None,
    exclude_tools: str | None,
    config_path: Path | None,
) -> int:
    """Run the MCP server (stdio, or HTTP with --http) and the bridge."""
    config = _start(
        config_path,
        read_only=read_only or None,
        toolsets=split_names(toolsets) or None,
        exclude_tools=split_names(exclude_tools) or None,
    )
    if http is None:
        gc.disable()  # imports make many objects and no garbage; looking costs a tenth
        return anyio.run(serve_stdio, config)
    host, port = _address(http)

    def ready(bound: int) -> None:
        click.echo(f"homeroom: MCP at {_base_url(host, bound)}/mcp", err=True)

    return anyio.run(partial(serve_http, config, host, port, ready, stdio=stdio))


@cli.command()
@click.option("--dry-run", is_flag=True, help="Print the plan and touch nothing.")
@click.option(
    "--confirm-removals", is_flag=True, help="Retire however many agents are gone from Letta."
)
@click.option("--audit", is_flag=True, help="Look at every room itself first.")
@click.option("--invite", metavar="ID", default="", help="Invite this person again everywhere.")
@click.option("--status", is_flag=True, help="Only say how the last sync ended.")
@_config_option
def sync(
    dry_run: bool, confirm_removals: bool, audit: bool, invite: str, status: bool,
    config_path: Path | None,
) -> int:  # fmt: skip
    """Bring Matrix in step with Letta once. Exit code 0: in step, 2: drift left."""
    if status and (dry_run or confirm_removals or audit or invite):
        raise click.UsageError("--status goes with no other option: it changes nothing.")
    config = _start(config_path)
    if not config.has_matrix:
        raise ConfigError(
            "HOMEROOM_MATRIX_URL",
            "is missing, and there is nothing to sync",
            EXAMPLES["matrix_url"],
        )
    if status:
        return anyio.run(_sync_status, config)
    return anyio.run(_sync, config, dry_run, confirm_removals, audit, invite)


async def _sync(
    config: Config, dry_run: bool, confirm_removals: bool, audit: bool, invite: str
) -> int:
    from homeroom.app import open_app
    from homeroom.screen import open_sync_screen, print_report

    async with open_app(config, bridge=False, read_only=dry_run) as app:
        with open_sync_screen() as screen:
            report = await app.sync_once(
                screen.on_action,
                screen.on_progress,
                dry_run=dry_run,
                confirm_removals=confirm_removals,
                audit=audit,
                invite=invite,
            )
    print_report(report)
    return EXIT_DRIFT if report.left else 0


async def _sync_status(config: Config) -> int:
    from homeroom.app import open_app

    async with open_app(config, bridge=False) as app:
        status = await app.sync_status()
    for label, text in _status_lines(status):
        click.echo(f"{label:9} {harmless(text)}")
    return 0 if status.in_step else EXIT_DRIFT


def _status_lines(status: SyncStatus) -> Iterator[tuple[str, str]]:
    from homeroom.times import utc_text

    if not status.finished_ms:
        yield "last run", "none yet: run homeroom serve, or homeroom sync"
        return
    yield "last run", utc_text(status.finished_ms)
    if status.error:
        yield "error", status.error
    for outage in status.outages:
        since, again = utc_text(outage.since_ms), utc_text(outage.next_try_ms)
        yield "away", f"{outage.service} since {since}: {outage.reason} (next probe {again})"
    if (report := status.report) is None:
        return
    if status.error:
        yield "before", f"{utc_text(status.report_ms)}, when it could be done"
    agents, done = _count(report.agent_count, "agent"), _count(len(report.applied), "action")
    yield "found", agents
    yield "did", f"{done} in {report.duration_s:.1f} s"
    for failure in report.failures:
        action, again = failure.action, utc_text(failure.next_try_ms) if failure.next_try_ms else ""
        next_try = f"next try {again}" if again else "tried again only by homeroom sync"
        yield "failing", f"{action.agent_name}: {action.kind}: {failure.reason} ({next_try})"
    for unread in report.unread:
        yield "unread", unread
    failed = {failure.action for failure in report.failures}
    for action in report.left:
        if action not in failed:
            why = f"held back: {action.held}" if action.held else action.reason
            yield "left", f"{action.agent_name}: {action.kind}: {why}"
    if status.in_step:
        yield "left", "nothing: Matrix is in step with Letta"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@cli.command()
@click.option("--url", help="Where the homeserver can reach `serve --http` (not needed: we sync).")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("registration.yaml"),
    help="The file to write (0600).",
)  # fmt: skip
@click.option("--server-name", help="Instead of HOMEROOM_MATRIX_SERVER_NAME.")
@click.option("--force", is_flag=True, help="Replace an existing file and the tokens in it.")
def registration(url: str | None, out: Path, server_name: str | None, force: bool) -> int:
    """Write the appservice registration for the homeserver, with fresh tokens."""
    name = server_name or os.environ.get("HOMEROOM_MATRIX_SERVER_NAME", "")
    if not name:
        raise ConfigError(
            "HOMEROOM_MATRIX_SERVER_NAME",
            "is missing (or use --server-name)",
            EXAMPLES["matrix_server_name"],
        )
    named_by = "--server-name" if server_name else "HOMEROOM_MATRIX_SERVER_NAME"
    write_registration(new_registration(name, url, named_by=named_by), out, force=force)
    click.echo(f"Wrote {out}, which only you can read (0600). Now:")
    click.echo("  1. let the homeserver's user read it, too (its owner or group, or a copy)")
    click.echo("  2. name it in the homeserver's configuration (Synapse: app_service_config_files)")
    click.echo("  3. restart the homeserver")
    click.echo(f"  4. HOMEROOM_MATRIX_REGISTRATION={out.resolve()} homeroom doctor")
    return 0


@cli.group(invoke_without_command=True)
@_config_option
@click.pass_context
def doctor(context: click.Context, config_path: Path | None) -> int:
    """Check everything, one line each with the fix. Exit code 0 only if all is well."""
    if context.invoked_subcommand:
        return 0
    try:
        config = load_config(config_path)
    except ConfigError as error:
        click.echo(f"✗ configuration  {harmless(str(error))}")
        return EXIT_CONFIG
    setup_logging("ERROR")
    return anyio.run(_doctor, config)


async def _doctor(config: Config) -> int:
    from homeroom.doctor import examine

    sick = False
    async for check in examine(config):
        sick = sick or not check.passed
        click.echo(f"{'✓' if check.passed else '✗'} {check.name:14} {harmless(check.detail)}")
        if not check.passed and check.fix:
            click.echo(f"  {'':14} → {harmless(check.fix)}")
    return 1 if sick else 0


@cli.command()
@click.option("--http", default=DEFAULT_HTTP, show_default=True, metavar="[HOST:]PORT")
@click.option(
    "--dir", "directory", type=click.Path(file_okay=False, path_type=Path),
    help="Where the embedded servers keep their state.",
)  # fmt: skip
def up(http: str, directory: Path | None) -> int:
    """Run everything here: a Synapse, a Letta App Server and Homeroom. No account, no key."""
    import platformdirs

    from homeroom.local.stack import LocalStack

    host, port = _address(http)
    home = (directory or Path(platformdirs.user_data_dir("homeroom")) / "local").resolve()
    stack = LocalStack(home, os.environ)
    try:
        # Before the event loop, on this thread: the children live as long as it does.
        stack.start(lambda step: click.echo(f"starting {step} …", err=True))
        os.environ.update(stack.environ)
        config = load_config()
        setup_logging(os.environ.get("HOMEROOM_LOG_LEVEL", "WARNING").upper())
        anyio.run(stack.seed)
        welcome = partial(_print_welcome, stack, host)
        return anyio.run(serve_http, config, host, port, welcome, stack.watch)
    finally:
        stack.stop()


def _print_welcome(stack: LocalStack, host: str, port: int) -> None:
    import json

    base = _base_url(host, port)
    snippet = {
        "mcpServers": {
            "homeroom": {
                "command": sys.executable,
                "args": ["-m", "homeroom", "serve"],
                "env": stack.environ,
            }
        }
    }
    click.echo(f"""
Homeroom is up. The agents run on the {stack.model_name}.

Talk in Matrix  log in with any Matrix client on this machine, for example Element Desktop
  homeserver    {stack.homeserver_url}
  user          {stack.person_id}
  password      {stack.password}
  then accept the invitations: one room per agent.

Talk over MCP   {base}/mcp  (SSE: {base}/sse, health: {base}/health)
  Claude Code   claude mcp add --transport http homeroom {base}/mcp
  Claude Desktop, in claude_desktop_config.json:
{json.dumps(snippet, indent=2)}

Ctrl-C stops everything; what was said stays in {stack.directory}.
""")


@cli.command()
@click.option("--keep", is_flag=True, help="Keep the directory of the run and print its path.")
def demo(keep: bool) -> int:
    """Show the main job once, with real servers and timings, and stop. The exit code tells."""
    from homeroom.demo import run_demo

    setup_logging("ERROR")
    return run_demo(keep)


add_commands(cli, _start, _config_option)
add_room_commands(doctor, _start, _config_option)
add_import(cli, _start, _config_option)
add_token_commands(cli, _start, _config_option)
add_resume(cli, _start, _config_option)


def main() -> None:
    """Runs the command; every exit code is decided here."""
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        code = 130
    except click.ClickException as error:
        error.show()
        code = EXIT_USAGE if isinstance(error, click.UsageError) else error.exit_code
    except ConfigError as error:
        click.echo(f"homeroom: {harmless(str(error))}", err=True)
        code = EXIT_CONFIG
    except HomeroomError as error:
        click.echo(f"homeroom: {harmless(str(error))}", err=True)
        code = 1
    except BaseExceptionGroup as group:
        known, unknown = group.split(HomeroomError)
        if unknown or known is None:
            raise
        first: BaseException = known
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        click.echo(f"homeroom: {harmless(str(first))}", err=True)
        code = EXIT_CONFIG if isinstance(first, ConfigError) else 1
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
