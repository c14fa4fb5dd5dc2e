"""One client on stdin and stdout.

Owns the life of a stdio process: what ends it (EOF, a signal, a parent that is gone), and that it
does end. Invariant: stdout carries nothing but protocol, and ``run_stdio`` always returns, so the
caller's own clean-up runs.

Two things the SDK's stdio loop does not do: its reader sits in a thread that a signal cannot
interrupt, so the process would hang; and it dies of SIGTERM without clean-up.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import anyio
from mcp.server.stdio import stdio_server

from homeroom_tools.caller import calling, on_stdio
from homeroom_tools.eras import serve_connection

if TYPE_CHECKING:
    from mcp.server import MCPServer

ON_EXIT_LIMIT_S = 1.0
"""Longest that ``on_exit`` may take, in seconds: LLM clients kill after two."""
EXIT_LIMIT_S = 1.8
"""After a signal the process is gone within this many seconds, clean or not."""
PARENT_POLL_S = 0.5
"""How often to look whether the parent is still there, in seconds."""
_READ_BYTES = 65_536

log = logging.getLogger(__name__)


async def run_stdio(
    server: MCPServer[Any],
    on_exit: Callable[[], Awaitable[None]] | None = None,
    on_answered: Callable[[], None] = lambda: None,
    *,
    agent: str = "",
) -> int:
    """Serves the client on stdin and stdout until it leaves; returns the process's exit code.

    0 after EOF or when the parent is gone, 128 + the signal's number after SIGTERM or SIGINT.
    ``on_exit`` runs in each case (and when cancelled) before this returns, for at most
    ``ON_EXIT_LIMIT_S``. After a signal a watchdog ends the process at ``EXIT_LIMIT_S`` even if the
    caller's clean-up hangs, so nothing but clean-up may follow. Once per process, main thread.
    ``on_answered`` is called when the client's second message shows that it had the answer to the
    first: the time to begin what would have kept it waiting. ``agent`` is the agent that the client
    works for, if it is one's.
    """
    end = _End()
    count = 0
    caller = on_stdio(agent)

    def on_message() -> None:
        nonlocal count
        count += 1
        if count == 2:
            on_answered()

    try:
        with anyio.CancelScope() as scope, _stdin_lines() as lines, calling(caller):
            end.scope = scope
            # Only what the SDK iterates over is needed of the file it asks for.
            stdin = cast("anyio.AsyncFile[str] | None", lines)
            async with stdio_server(stdin=stdin) as (read, write), anyio.create_task_group() as tg:
                tg.start_soon(_watch_signals, end)
                tg.start_soon(_watch_parent, end)
                await serve_connection(server, read, write, on_message)
                tg.cancel_scope.cancel()
    finally:
        if on_exit is not None:
            with anyio.move_on_after(ON_EXIT_LIMIT_S, shield=True):
                await on_exit()
    log.info("stdio_ended", extra={"reason": end.reason})
    return end.code


class _End:
    """Why serving ends: the first reason counts."""

    def __init__(self) -> None:
        self.reason, self.code = "eof", 0
        self.scope: anyio.CancelScope | None = None

    def now(self, reason: str, code: int) -> None:
        self.reason, self.code = reason, code
        watchdog = threading.Timer(EXIT_LIMIT_S, os._exit, (code,))
        watchdog.daemon = True
        watchdog.start()
        if self.scope is not None:
            self.scope.cancel()


async def _watch_signals(end: _End) -> None:
    if sys.platform == "win32":
        return  # no signal receivers there; Ctrl-C raises KeyboardInterrupt as usual
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            end.now(number.name, 128 + number)
            # Later signals are swallowed here while the receiver is open; the watchdog is running.


async def _watch_parent(end: _End) -> None:
    """Ends serving when the parent dies without closing our stdin (somebody else holds it too).

    Polling, not PR_SET_PDEATHSIG: that one fires when the *thread* that started us ends.
    """
    parent = os.getppid()
    while os.getppid() == parent:  # noqa: ASYNC110 - nobody could set an event
        await anyio.sleep(PARENT_POLL_S)
    end.now("parent_gone", 0)


# --- stdin ---------------------------------------------------------------------------------------


@contextmanager
def _stdin_lines() -> Iterator[AsyncIterator[str] | None]:
    """The lines of stdin as they arrive; meanwhile fd 0 is /dev/null for everybody else.

    None on Windows, where the SDK's own reader does.
    """
    if sys.platform == "win32":
        yield None
        return
    wire = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    try:
        yield _lines(wire)
    finally:
        # The thread may still be reading from ``wire``, so that stays open.
        os.dup2(wire, 0)


async def _lines(fd: int) -> AsyncIterator[str]:
    send, receive = anyio.create_memory_object_stream[bytes](0)
    loop = asyncio.get_running_loop()

    def read() -> None:
        # A plain daemon thread on a plain read: it holds no lock that the interpreter would wait
        # for at exit, and no pool joins it.
        try:
            while chunk := os.read(fd, _READ_BYTES):
                asyncio.run_coroutine_threadsafe(send.send(chunk), loop).result()
            loop.call_soon_threadsafe(send.close)
        except (OSError, RuntimeError, anyio.BrokenResourceError):
            pass  # nobody listens any more

    threading.Thread(target=read, name="stdin", daemon=True).start()
    rest = b""
    async with receive:
        async for chunk in receive:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line.decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")
