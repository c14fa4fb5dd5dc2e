"""What runs inside one process that serves: the MCP server in front, the app behind it.

Owns their order: the first answer of a client comes before anything heavy is imported, and the app
is closed in order, in bounded time, whatever ends the process.
"""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import anyio

from homeroom.background import Loop, background
from homeroom.registration import load_registration

if TYPE_CHECKING:
    from homeroom.app import App
    from homeroom.config import Config
    from homeroom_tools.selection import Selection

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


async def serve_stdio(config: Config) -> int:
    """Serves the client on stdin and stdout until it leaves; the exit code."""
    from homeroom_tools.serve import build_server, run_stdio

    deferred = DeferredApp()
    server = build_server(cast("App", deferred), selection(config))
    async with background(partial(deferred.hold, config)):
        code = await run_stdio(server, on_answered=deferred.open, agent=config.stdio_agent)
        await deferred.close()
        return code


async def serve_http(
    config: Config, host: str, port: int, on_ready: Callable[[int], None], *loops: Loop,
    stdio: bool = False,
) -> int:  # fmt: skip
    """Serves until a signal, or with ``stdio`` until that client leaves. ``loops`` run beside it;
    one that raises ends it with its error."""
    from homeroom_tools.serve import Site, Tokens, build_server, run_http, run_stdio
    from homeroom_tools.tokens import TOKENS_FILE

    deferred, stop = DeferredApp(), anyio.Event()
    deferred.open()
    app = cast("App", deferred)
    site = Site(
        host,
        port,
        Tokens(config.data_dir / TOKENS_FILE, config.http_token.get_secret_value()),
        config.http_hosts,
        _hs_token(config),
        on_push=app.hint_invitations,
        rate_per_s=config.http_rate,
    )
    server, codes = build_server(app, selection(config)), [0]

    async def run_until_it_ends() -> None:
        if stdio:
            codes.append(await run_stdio(server, agent=config.stdio_agent))
            stop.set()
            await deferred.close()
        else:
            await _stop_on_signal(stop)

    async with background(partial(deferred.hold, config), run_until_it_ends, *loops):
        await run_http(server, site, health=app.health, stop=stop, on_ready=on_ready)
        await deferred.close()
    return codes[-1]


def selection(config: Config) -> Selection:
    """The tools that the settings leave. Raises ConfigError for a name that there is not."""
    from homeroom_tools.selection import select

    return select(
        read_only=config.read_only, toolsets=config.toolsets, exclude=config.exclude_tools
    )


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
