"""Serves a FakeApp over real transports, as a process of its own.

fake_server.py stdio LOG            `on_exit` and the caller's clean-up append to LOG
fake_server.py http LOG HOST TOKEN  prints the port as its first line; SIGTERM ends it
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

import anyio

from homeroom_tools.serve import build_server, run_http, run_stdio
from support.fake_app import FakeApp


async def stdio(log: Path) -> int:
    def note(line: str) -> None:
        with log.open("a") as file:
            file.write(line + "\n")

    async def on_exit() -> None:
        note("on_exit")

    app = FakeApp()
    note(f"pid {os.getpid()}")
    try:
        code = await run_stdio(build_server(app), on_exit)
    finally:
        note("cleaned up")
    return code


async def http(host: str, token: str) -> int:
    stop = anyio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    app = FakeApp()
    await run_http(
        build_server(app),
        host=host,
        port=0,
        token=token,
        health=app.health,
        stop=stop,
        on_ready=lambda port: print(port, flush=True),  # noqa: T201
    )
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    transport, log_path, *rest = sys.argv[1:]
    if transport == "stdio":
        sys.exit(asyncio.run(stdio(Path(log_path))))
    sys.exit(asyncio.run(http(*rest)))
