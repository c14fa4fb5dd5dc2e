"""The server over HTTP: Streamable HTTP at /mcp, SSE at /sse, /health, and the homeserver's pushes.

Owns who may speak to it. One gate stands before every route and checks, in this order, the Host
header (421), the Origin header (403) and the bearer token (401); the SDK's own checks are off,
because they cover some routes only. The homeserver alone goes past it, to routes that have a
guard of their own. Invariant: without a token only loopback is served.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import anyio
import uvicorn
from mcp.server.transport_security import TransportSecuritySettings
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Route

from homeroom.errors import ConfigError
from homeroom_tools.pushes import PUSH_PATH, push_routes

if TYPE_CHECKING:
    from mcp.server import MCPServer
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

Health = Callable[[], Awaitable[Mapping[str, Any]]]
"""Gives the state of the process; ``status`` is "ok" when all is well."""

MAX_BODY_BYTES = 4 * 1024 * 1024
"""Largest request body, in bytes; more is answered with 413."""
MAX_SESSIONS = 1000
"""Most handshake-era sessions at once; each costs some 40 KB."""
SESSION_IDLE_S = 1800.0
"""A session nobody used for this long is closed, in seconds."""
SHUTDOWN_LIMIT_S = 1
"""How long open streams may go on after ``stop``, in seconds."""

_UNCHECKED = TransportSecuritySettings(enable_dns_rebinding_protection=False)


def http_app(
    server: MCPServer[Any],
    host: str,
    port: int,
    token: str,
    health: Health,
    allowed_hosts: Collection[str] = (),
    hs_token: str = "",
) -> Starlette:
    """The ASGI application, gate included. Once per server: it owns the session manager.

    Args:
        host: The address it will be bound to; it decides which Host headers are ours.
        token: What clients must send as ``Authorization: Bearer``; empty means nobody has to.
            Then /health answers a loopback peer without a token too, with its status alone, so
            that a probe needs no secret.
        allowed_hosts: More names, without ports, under which clients may reach it.
        hs_token: What the homeserver proves itself with when it pushes; empty means that there is
            no homeserver.

    Raises:
        ConfigError: ``host`` is not loopback and there is no token.
    """
    if not token and not _is_loopback(host):
        raise ConfigError(
            "HOMEROOM_HTTP_TOKEN",
            f"is missing, and {host}:{port} is open to other machines",
            "a-long-random-string",
        )

    async def get_health(request: Request) -> JSONResponse:
        report = dict(await health())
        status = report.get("status", "ok")
        body = report if request.scope[_TRUSTED] else {"status": status}
        return JSONResponse(body, status_code=200 if status == "ok" else 503)

    app = server.streamable_http_app(
        transport_security=_UNCHECKED,
        max_request_body_size=MAX_BODY_BYTES,
        max_sessions=MAX_SESSIONS,
        session_idle_timeout=SESSION_IDLE_S,
    )
    sse = server.sse_app(transport_security=_UNCHECKED, max_request_body_size=MAX_BODY_BYTES)
    app.router.routes += [*sse.routes, Route("/health", get_health, methods=["GET"])]
    app.router.routes += push_routes(hs_token) if hs_token else []
    gate = Middleware(
        _Gate, hosts=_Hosts(host, allowed_hosts), token=token, lets_pushes_by=bool(hs_token)
    )
    app.user_middleware.insert(0, gate)
    return app


async def run_http(
    server: MCPServer[Any],
    *,
    host: str,
    port: int,
    token: str,
    health: Health,
    stop: anyio.Event,
    on_ready: Callable[[int], None] = lambda port: None,
    allowed_hosts: Collection[str] = (),
    hs_token: str = "",
) -> None:
    """Serves until ``stop`` is set, then lets streams go on for ``SHUTDOWN_LIMIT_S`` and returns.

    Signals are left to the caller. ``on_ready`` is called with the port once connections are
    taken; port 0 picks a free one.

    Raises:
        ConfigError: the address cannot be bound, or is open to others and there is no token.
    """
    app = http_app(server, host, port, token, health, allowed_hosts, hs_token)
    listener = _bind(host, port)
    bound_port: int = listener.getsockname()[1]
    config = uvicorn.Config(
        app,
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


# --- The gate ------------------------------------------------------------------------------------

_TRUSTED = "homeroom.trusted"
"""Key of the ASGI scope: whether the caller may see details."""


class _Hosts:
    """Which Host and Origin headers are ours.

    A Host is ours if it names loopback, the address we are bound to, or a configured name. Where
    we are open to other machines any bare IP address is ours as well: clients use addresses we
    cannot know, and an address cannot be rebound as a name can.

    Source: https://modelcontextprotocol.io/specification (transports: servers must validate
    Origin to prevent DNS rebinding).
    """

    def __init__(self, bound: str, more: Collection[str]) -> None:
        self._names = {name.lower().strip("[]") for name in (bound, "localhost", *more)}
        self._is_open = not _is_loopback(bound)

    def is_ours(self, authority: str) -> bool:
        name = _name_of(authority)
        if name is None:
            return False
        return name in self._names or _is_loopback(name) or (self._is_open and _is_ip(name))

    def is_origin_ours(self, origin: str, host: str) -> bool:
        scheme, _, authority = origin.partition("://")
        name = _name_of(authority)
        if scheme not in ("http", "https") or name is None:
            return False
        return name in self._names or _is_loopback(name) or name == _name_of(host)


class _Gate:
    """ASGI middleware: nobody gets past it whose Host, Origin or token is wrong.

    Pushes go by unchecked. Their routes ask for the hs_token, which no browser holds, so a rebound
    name gains nothing there; and the homeserver calls us by whatever name the registration's URL
    has, which is for its operator to choose and not for us to know.
    """

    def __init__(self, app: ASGIApp, hosts: _Hosts, token: str, lets_pushes_by: bool) -> None:
        self._app, self._hosts, self._lets_pushes_by = app, hosts, lets_pushes_by
        self._digest = hashlib.sha256(token.encode()).digest() if token else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_push = scope["type"] == "http" and scope["path"].startswith(PUSH_PATH)
        if scope["type"] == "http" and not (is_push and self._lets_pushes_by):
            refusal = self._refusal(scope)
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._hosts.is_ours(host):
            return _refuse(421, "This server does not answer to that Host.")
        if origin is not None and not self._hosts.is_origin_ours(origin, host):
            return _refuse(403, "This Origin may not use this server.")
        given = headers.get("authorization", "")
        scope[_TRUSTED] = not self._digest or self._is_token(given)
        if scope[_TRUSTED] or (scope["path"] == "/health" and _is_from_loopback(scope)):
            return None
        challenge = 'Bearer realm="homeroom"' + (', error="invalid_token"' if given else "")
        return _refuse(401, "A bearer token is needed.", {"WWW-Authenticate": challenge})

    def _is_token(self, authorization: str) -> bool:
        scheme, _, given = authorization.partition(" ")
        digest = hashlib.sha256(given.strip().encode()).digest()
        return hmac.compare_digest(digest, self._digest) and scheme.lower() == "bearer"


def _refuse(status: int, why: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": why}, status_code=status, headers=headers)


def _name_of(authority: str) -> str | None:
    """The host of ``host[:port]`` in lower case without brackets; None if it is malformed."""
    if not authority or any(character in authority for character in "/\\@?# \t,"):
        return None
    try:
        parts = urlsplit(f"//{authority}")
        _ = parts.port  # raises if it is no number
    except ValueError:
        return None
    return parts.hostname


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    name = name.strip("[]").lower()
    return name == "localhost" or (_is_ip(name) and ipaddress.ip_address(name).is_loopback)


def _is_from_loopback(scope: Scope) -> bool:
    client = scope.get("client")
    return client is not None and _is_loopback(client[0])
