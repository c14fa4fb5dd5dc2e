"""Serves a FakeApp over real transports, as a process of its own.

fake_server.py stdio LOG            who calls list_agents, `on_exit` and the clean-up append to LOG
fake_server.py http LOG HOST TOKEN [TOKENS_FILE [RATE]]
                            prints the port as its first line; SIGTERM ends it
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import anyio

from homeroom.reading import AgentPage
from homeroom_tools.caller import current_caller
from homeroom_tools.serve import Site, Tokens, build_server, run_http, run_stdio
from support.fake_app import FakeApp


async def stdio(log: Path) -> int:
    def note(line: str) -> None:
        with log.open("a") as file:
            file.write(line + "\n")

    async def on_exit() -> None:
        note("on_exit")

    class Noting(FakeApp):
        async def list_agents(self, *args: Any, **kwargs: Any) -> AgentPage:
            note(f"caller {current_caller()}")
            return await super().list_agents(*args, **kwargs)

    app = Noting()
    note(f"pid {os.getpid()}")
    try:
        code = await run_stdio(build_server(app), on_exit)
    finally:
        note("cleaned up")
    return code


async def http(host: str, token: str, tokens_file: str = "", rate: str = "0") -> int:
    stop = anyio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    app = FakeApp()
    tokens = Tokens(Path(tokens_file) if tokens_file else None, token)
    await run_http(
        build_server(app),
        Site(host, tokens=tokens, rate_per_s=float(rate)),
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
