"""The composition root: commands, exit codes, and what runs inside one process.

With ``commands`` the only importer of ``homeroom_tools``. What an LLM client waits for comes first:
everything heavy (nio, SQLite, rich, the embedded servers) is imported by the command that needs it,
when it does.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import anyio
import click

from homeroom import __version__
from homeroom.background import Loop, background
from homeroom.commands import add_commands
from homeroom.config import (
    EXAMPLES,
    Config,
    load_config,
    load_registration,
    new_registration,
    unknown_variables,
    write_registration,
)
from homeroom.errors import ConfigError, HomeroomError
from homeroom.telemetry import setup_logging

if TYPE_CHECKING:
    from homeroom.app import App
    from homeroom.local.stack import LocalStack
    from homeroom.model import Action, Failure, SyncReport
    from homeroom.reports import SyncStatus

EXIT_DRIFT = 2
EXIT_USAGE = 64
"""EX_USAGE of sysexits.h. Not click's own 2, which would read as drift."""
EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h."""
DEFAULT_HTTP = "127.0.0.1:8017"
CLOSE_LIMIT_S = 1.5
"""LLM clients kill a server that takes longer than two seconds to end."""
OPEN_LATEST_S = 2.0
"""A client that says nothing does not keep the bridge from starting for longer than this."""


class DeferredApp:
    """Stands for the app while it opens: every call waits until it is there.

    So an LLM client gets its first answer before SQLite, nio and Letta are even imported.
    """

    def __init__(self) -> None:
        self._wanted = anyio.Event()
        self._opened = anyio.Event()
        self._closing = anyio.Event()
        self._closed = anyio.Event()
        self._app: App | None = None

    def open(self) -> None:
        """Has the app opened now; otherwise the first call does, or ``OPEN_LATEST_S``."""
        self._wanted.set()

    async def hold(self, config: Config) -> None:
        """Opens the app when it is wanted and keeps it open until ``close``; a loop of it that
        dies raises here."""
        with anyio.move_on_after(OPEN_LATEST_S):
            await self._wanted.wait()
        gc.freeze()  # what was imported so far stays for good: collections need not look at it
        gc.enable()
        from homeroom.app import open_app

        try:
            if not self._closing.is_set():
                async with open_app(config) as self._app:
                    self._opened.set()
                    await self._closing.wait()
        finally:
            self._closed.set()

    async def close(self) -> None:
        """Has the app closed in order, so that others may take over at once, in bounded time."""
        self._closing.set()
        self._wanted.set()
        with anyio.move_on_after(CLOSE_LIMIT_S):
            await self._closed.wait()

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            self.open()
            await self._opened.wait()
            return await getattr(self._app, name)(*args, **kwargs)

        return call


# --- serving -------------------------------------------------------------------------------------


async def _serve_stdio(config: Config) -> int:
    from homeroom_tools.serve import build_server, run_stdio

    deferred = DeferredApp()
    server = build_server(cast("App", deferred))
    async with background(partial(deferred.hold, config)):
        code = await run_stdio(server, on_answered=deferred.open)
        await deferred.close()
        return code


async def _serve_http(
    config: Config, host: str, port: int, on_ready: Callable[[int], None], *loops: Loop
) -> int:
    """Serves until a signal. ``loops`` run beside it; one that raises ends it with its error."""
    from homeroom_tools.serve import build_server, run_http

    deferred, stop = DeferredApp(), anyio.Event()
    deferred.open()
    app = cast("App", deferred)
    async with background(partial(deferred.hold, config), partial(_stop_on_signal, stop), *loops):
        await run_http(
            build_server(app),
            host=host,
            port=port,
            token=config.http_token.get_secret_value(),
            allowed_hosts=config.http_hosts,
            hs_token=_hs_token(config),
            health=app.health,
            stop=stop,
            on_ready=on_ready,
        )
        await deferred.close()
    return 0


def _hs_token(config: Config) -> str:
    """What the homeserver proves itself with when it pushes; empty without Matrix."""
    if not config.has_matrix or config.matrix_registration is None:
        return ""
    return load_registration(config.matrix_registration).hs_token.get_secret_value()


async def _stop_on_signal(stop: anyio.Event) -> None:
    if sys.platform == "win32":
        return  # no signal receivers there; Ctrl-C raises KeyboardInterrupt as usual
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            stop.set()


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise ConfigError("--http", f"must be a port or HOST:PORT, not {text!r}", DEFAULT_HTTP)
    return host.strip("[]") or "127.0.0.1", int(port)


# --- commands ------------------------------------------------------------------------------------

_config_option = click.option(
    "--config", "config_path", type=click.Path(dir_okay=False, path_type=Path),
    help="TOML file with the same settings; the environment wins over it.",
)  # fmt: skip


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="homeroom")
def cli() -> None:
    """A home in Matrix for every Letta agent, and all of them in any LLM client over MCP."""


def _start(config_path: Path | None, **settings: str) -> Config:
    """The configuration, everything that can be wrong with it checked, and logging set up."""
    config = load_config(config_path)
    if config.matrix_registration and config.has_matrix:
        load_registration(config.matrix_registration)
    setup_logging(config.log_level)
    for name, near in unknown_variables(os.environ):
        click.echo(f"homeroom: {name} is no setting of Homeroom; perhaps {near} is meant", err=True)
    return config


@cli.command()
@click.option("--http", metavar="[HOST:]PORT", help="Serve HTTP at this address, not stdio.")
@_config_option
def serve(http: str | None, config_path: Path | None) -> int:
    """Run the MCP server (stdio, or HTTP with --http) and the bridge."""
    config = _start(config_path)
    if http is None:
        gc.disable()  # imports make many objects and no garbage; looking costs a tenth
        return anyio.run(_serve_stdio, config)
    host, port = _address(http)

    def ready(bound: int) -> None:
        click.echo(f"homeroom: MCP at http://{host}:{bound}/mcp", err=True)

    return anyio.run(_serve_http, config, host, port, ready)


@cli.command()
@click.option("--dry-run", is_flag=True, help="Print the plan and touch nothing.")
@click.option(
    "--confirm-removals", is_flag=True, help="Retire however many agents are gone from Letta."
)
@click.option("--status", is_flag=True, help="Only say how the last sync ended.")
@_config_option
def sync(dry_run: bool, confirm_removals: bool, status: bool, config_path: Path | None) -> int:
    """Bring Matrix in step with Letta once. Exit code 0: in step, 2: drift left."""
    if status and (dry_run or confirm_removals):
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
    return anyio.run(_sync, config, dry_run, confirm_removals)


async def _sync(config: Config, dry_run: bool, confirm_removals: bool) -> int:
    from homeroom.app import open_app

    def on_action(action: Action, failure: Failure | None) -> None:
        mark = "FAILED" if failure else "done"
        click.echo(f"{mark:6} {action.kind} {action.agent_name} {action.value}", err=True)

    async with open_app(config, bridge=False) as app:
        report = await app.sync_once(on_action, dry_run=dry_run, confirm_removals=confirm_removals)
    _print_report(report)
    return EXIT_DRIFT if report.left else 0


async def _sync_status(config: Config) -> int:
    from homeroom.app import open_app
    from homeroom_tools.text import ERROR_CHARS, clean_line

    async with open_app(config, bridge=False) as app:
        status = await app.sync_status()
    for label, text in _status_lines(status):
        click.echo(f"{label:9} {clean_line(text, ERROR_CHARS)}")
    return 0 if status.in_step else EXIT_DRIFT


def _status_lines(status: SyncStatus) -> Iterator[tuple[str, str]]:
    from homeroom.model import utc_text

    if not status.finished_ms:
        yield "last run", "none yet: run homeroom serve, or homeroom sync"
        return
    yield "last run", utc_text(status.finished_ms)
    if status.error:
        yield "error", status.error
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
    failed = {failure.action for failure in report.failures}
    for action in report.left:
        if action not in failed:
            why = f"held back: {action.held}" if action.held else action.reason
            yield "left", f"{action.agent_name}: {action.kind}: {why}"
    if status.in_step:
        yield "left", "nothing: Matrix is in step with Letta"


def _print_report(report: SyncReport) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    applied = set(report.applied)
    reasons = {failure.action: failure.reason for failure in report.failures}
    table = Table("agent", "action", "value", "why", "result")
    for action in report.planned:
        if action in reasons:
            result = Text(f"failed: {reasons[action]}", "red")
        elif action.held:
            result = Text(f"held back: {action.held}", "yellow")
        else:
            result = Text("done", "green") if action in applied else Text("to do")
        row = (action.agent_name, action.kind, action.value, action.reason)
        table.add_row(*(Text(cell) for cell in row), result)
    console = Console()
    if report.planned:
        console.print(table)
    agents, actions = _count(report.agent_count, "agent"), _count(len(report.planned), "action")
    planned = f"{agents}, {actions} planned, "
    done = f"{len(report.applied)} done, {len(report.left)} left, {report.duration_s:.1f} s"
    console.print(planned + done, highlight=False)


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


@cli.command()
@_config_option
def doctor(config_path: Path | None) -> int:
    """Check everything, one line each with the fix. Exit code 0 only if all is well."""
    try:
        config = load_config(config_path)
    except ConfigError as error:
        click.echo(f"✗ configuration  {error}")
        return EXIT_CONFIG
    setup_logging("ERROR")
    return anyio.run(_doctor, config)


async def _doctor(config: Config) -> int:
    from homeroom.doctor import examine

    sick = False
    async for check in examine(config):
        sick = sick or not check.passed
        click.echo(f"{'✓' if check.passed else '✗'} {check.name:14} {check.detail}")
        if not check.passed and check.fix:
            click.echo(f"  {'':14} → {check.fix}")
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
        return anyio.run(_serve_http, config, host, port, welcome, stack.watch)
    finally:
        stack.stop()


def _print_welcome(stack: LocalStack, host: str, port: int) -> None:
    import json

    url = f"http://{host}:{port}/mcp"
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

Talk over MCP   {url}  (SSE: http://{host}:{port}/sse, health: http://{host}:{port}/health)
  Claude Code   claude mcp add --transport http homeroom {url}
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
        click.echo(f"homeroom: {error}", err=True)
        code = EXIT_CONFIG
    except HomeroomError as error:
        click.echo(f"homeroom: {error}", err=True)
        code = 1
    except BaseExceptionGroup as group:
        known, unknown = group.split(HomeroomError)
        if unknown or known is None:
            raise
        first: BaseException = known
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        click.echo(f"homeroom: {first}", err=True)
        code = EXIT_CONFIG if isinstance(first, ConfigError) else 1
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
