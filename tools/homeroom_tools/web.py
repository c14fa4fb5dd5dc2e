"""The server over HTTP: Streamable HTTP at /mcp, SSE at /sse, /health, /metrics, and pushes.

Owns the routes and the sockets; who may speak to them is the gate's to say (``gate``).
Invariants: without a token only loopback is served, and nobody holds a connection without ever
finishing a request.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import h11
import uvicorn
from mcp.server.sse import SseServerTransport
from mcp.server.transport_security import TransportSecuritySettings
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from homeroom.errors import ConfigError
from homeroom_tools.eras import serve_connection
from homeroom_tools.gate import (
    CALLER,
    MAX_BODY_BYTES,
    Door,
    Gate,
    Hosts,
    forbid,
    is_loopback,
)  # fmt: skip
from homeroom_tools.pushes import push_routes
from homeroom_tools.rate import Rates
from homeroom_tools.scopes import needs_of
from homeroom_tools.tokens import Tokens

if TYPE_CHECKING:
    from mcp.server import MCPServer
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

Health = Callable[[], Awaitable[Mapping[str, Any]]]
"""Gives the state of the process; ``status`` is "ok" when all is well."""

OnPush = Callable[[Collection[str]], Awaitable[None]]
"""Hears of each push of the homeserver, with the users that it says were invited."""

MAX_SESSIONS = 1000
"""Most handshake-era sessions at once; each costs some 40 KB."""
MAX_CONNECTIONS = 500
"""Most connections at once, SSE sessions among them; each costs a file descriptor of usually 1024.
More are answered with 503."""
SESSION_IDLE_S = 1800.0
"""A session nobody used for this long is closed, in seconds."""
LINGER_S = 1.0
"""How long the answer to a request that was given up is left to be read, in seconds."""
REQUEST_LIMIT_S = 30.0
"""Longest from the first byte of a request to its last, in seconds; then 408."""
SHUTDOWN_LIMIT_S = 1
"""How long open streams may go on after ``stop``, in seconds."""

_MESSAGES = "/messages/"
_UNCHECKED = TransportSecuritySettings(enable_dns_rebinding_protection=False)


@dataclass(frozen=True, slots=True)
class Site:
    """Where the server is reached, and by whom."""

    host: str = "127.0.0.1"
    """The address it is bound to; it decides which Host headers are ours."""
    port: int = 0
    """0 picks a free one."""
    tokens: Tokens = field(default_factory=Tokens)
    """Who comes in. Where none is needed everybody on this machine does. Where one is, /health
    answers a loopback peer without it, too, with its status alone, so that a probe needs none."""
    allowed_hosts: Collection[str] = ()
    """More names, without ports, under which clients may reach it."""
    hs_token: str = ""
    """What the homeserver proves itself with when it pushes; empty: there is no homeserver."""
    on_push: OnPush | None = None
    rate_per_s: float = 0.0
    """How often one caller may ask; 0: as often as it likes."""


def http_app(server: MCPServer[Any], site: Site, health: Health) -> Starlette:
    """The ASGI application, gate included. Once per server: it owns the session manager.

    Raises:
        ConfigError: ``site`` is open to others and there is no token, or the tokens are unreadable.
        TypeError: a tool has no scope.
    """
    if not site.tokens.exist and not is_loopback(site.host):
        raise ConfigError(
            "HOMEROOM_HTTP_TOKEN",
            f"is missing, no other token was made (homeroom token new), and {site.host}:{site.port}"
            " is open to other machines",
            "a-long-random-string",
        )
    app = server.streamable_http_app(
        transport_security=_UNCHECKED,
        max_request_body_size=MAX_BODY_BYTES,
        max_sessions=MAX_SESSIONS,
        session_idle_timeout=SESSION_IDLE_S,
    )
    app.router.routes += [*_sse_routes(server), *_state_routes(health)]
    app.router.routes += (
        push_routes(site.hs_token, site.on_push or _unheard) if site.hs_token else []
    )
    door = Door(
        Hosts(site.host, site.allowed_hosts),
        site.tokens,
        Rates(site.rate_per_s),
        needs_of(server._tool_manager.list_tools()),
        count_sessions=partial(_sessions_of, server),
        is_open=not is_loopback(site.host),
        lets_pushes_by=bool(site.hs_token),
    )
    app.user_middleware.insert(0, Middleware(Gate, door=door))
    return app


async def _unheard(invited: Collection[str]) -> None:
    """Nobody listens."""


def _sessions_of(server: MCPServer[Any], name: str) -> int:
    owners = server.session_manager._session_owners.values()  # no public way to ask
    return sum(owner["client_id"] == name for owner in owners)


def _state_routes(health: Health) -> list[Route]:
    async def get_health(request: Request) -> Response:
        report = dict(await health())
        status = report.get("status", "ok")
        body = report if "read" in request.scope[CALLER].scopes else {"status": status}
        return JSONResponse(body, status_code=200 if status == "ok" else 503)

    async def get_metrics(request: Request) -> Response:
        caller = request.scope[CALLER]
        if "read" not in caller.scopes:
            return forbid(caller, "read")
        from homeroom_tools.metrics import CONTENT_TYPE_LATEST, metrics_text

        return Response(metrics_text(await health()), media_type=CONTENT_TYPE_LATEST)

    return [
        Route("/health", get_health, methods=["GET"]),
        Route("/metrics", get_metrics, methods=["GET"]),
    ]


def _sse_routes(server: MCPServer[Any]) -> list[Route | Mount]:
    """The SDK's own SSE app but for one thing: a probe does not decide the era (``eras``)."""
    sse = SseServerTransport(
        _MESSAGES, security_settings=_UNCHECKED, max_request_body_size=MAX_BODY_BYTES
    )

    class Connect:  # an instance, because Starlette takes a function for something else
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            async with sse.connect_sse(scope, receive, send) as (read, write):
                await serve_connection(server, read, write)

    return [
        Route("/sse", Connect(), methods=["GET"]),
        Mount(_MESSAGES, app=sse.handle_post_message),
    ]


async def run_http(
    server: MCPServer[Any],
    site: Site,
    *,
    health: Health,
    stop: anyio.Event,
    on_ready: Callable[[int], None] = lambda port: None,
) -> None:
    """Serves until ``stop`` is set, then lets streams go on for ``SHUTDOWN_LIMIT_S`` and returns.

    Signals are left to the caller. ``on_ready`` is called with the port once connections are
    taken.

    Raises:
        ConfigError: the address cannot be bound, or is open to others and there is no token.
    """
    app = http_app(server, site, health)
    listener = _bind(site.host, site.port)
    bound_port: int = listener.getsockname()[1]
    config = uvicorn.Config(
        app,
        http=_PromptRequests,
        limit_concurrency=MAX_CONNECTIONS,
        log_config=None,  # the root logger is configured already, and writes to stderr
        access_log=False,  # full URLs hold session ids
        lifespan="on",
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_LIMIT_S,
    )
    web = _WebServer(config, lambda: on_ready(bound_port))
    try:
        async with anyio.create_task_group() as tg:

            async def wait_for_stop() -> None:
                await stop.wait()
                web.should_exit = True

            tg.start_soon(wait_for_stop)
            try:
                await web.serve(sockets=[listener])
            except anyio.get_cancelled_exc_class():
                # Else the application is not told of its end, and uvicorn logs it as a fault.
                if web.started:
                    with anyio.CancelScope(shield=True):
                        await web.shutdown(sockets=[listener])
                raise
            tg.cancel_scope.cancel()
    finally:
        listener.close()


class _WebServer(uvicorn.Server):
    """uvicorn without its signal handlers, telling when it is ready."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()


class _PromptRequests(H11Protocol):
    """HTTP/1.1 in which a request, head and body, is there within ``REQUEST_LIMIT_S`` or never.

    uvicorn itself waits without end for whoever sends a byte now and then.
    """

    _deadline: asyncio.TimerHandle | None = None
    _given_up = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._begin()

    def data_received(self, data: bytes) -> None:
        if self._given_up:
            return
        self._begin()
        super().data_received(data)
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        super().connection_lost(exc)

    def _begin(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(REQUEST_LIMIT_S, self._give_up)

    def _end(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        if self.conn.our_state is h11.SEND_BODY or self.transport.is_closing():
            self.transport.close()  # nothing sensible can be said in the middle of an answer
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            head = [("content-length", "0"), ("connection", "close")]
            answer = h11.Response(status_code=408, headers=head, reason=b"Request Timeout")
            for event in (answer, h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        # Closed at once, what still comes in would have the answer thrown away before it is read.
        self._given_up = True
        self.transport.write_eof()
        self._deadline = self.loop.call_later(LINGER_S, self.transport.close)


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(256)
            listener.setblocking(False)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        problem = f"cannot listen on {host}:{port} ({error.strerror or error})"
        raise ConfigError("--http", problem, "127.0.0.1:8017") from None
    return listener
