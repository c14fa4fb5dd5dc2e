"""Word of changes to those who asked for it, in both eras of the protocol.

Owns who watches what. Since 2026-07-28 a client opens one stream and names the resources on it;
before, it subscribes to one after the other and is told on its connection. Both are bounded, both
end with whoever asked, and neither says more than a URI. Invariant: a change that happens after a
subscription was answered is told.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Any

import anyio
from mcp.server.subscriptions import ListenHandler, ResourceUpdated, ServerEvent, SubscriptionBus
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    EmptyResult,
    SubscribeRequestParams,
    SubscriptionsListenRequestParams,
    SubscriptionsListenResult,
    UnsubscribeRequestParams,
)

from homeroom.errors import HomeroomError, Misuse
from homeroom_tools.caller import current_caller
from homeroom_tools.resources import Kind, watched_of
from homeroom_tools.text import ERROR_CHARS, clean_line

if TYPE_CHECKING:
    from mcp.server import MCPServer
    from mcp.server.context import ServerRequestContext

    from homeroom.app import App
    from homeroom.reading import Watched

MAX_URIS = 100
"""Most resources that one session or stream watches."""
MAX_STREAMS = 100
"""Most streams that are open at once."""
MAX_STREAMS_EACH = 25
"""Most of them that one caller has, so that it leaves some to others."""
PAUSE_S = 5.0
"""After a store that did not answer, in seconds."""
_STATE = "homeroom.watching"

log = logging.getLogger(__name__)

Tell = Callable[[str], Awaitable[None]]


def add_updates(
    server: MCPServer[Any], app: App, bus: SubscriptionBus, kinds: Collection[Kind]
) -> None:
    """Serves subscriptions to the resources of ``app`` that are of these kinds. ``bus`` carries
    what the SDK tells."""
    updates = _Updates(app, bus, kinds)
    low = server._lowlevel_server  # no public way to these handlers in 2.3
    low.add_request_handler("resources/subscribe", SubscribeRequestParams, updates.subscribe)
    low.add_request_handler("resources/unsubscribe", UnsubscribeRequestParams, updates.unsubscribe)
    low.add_request_handler(
        "subscriptions/listen", SubscriptionsListenRequestParams, updates.listen
    )


class _Updates:
    def __init__(self, app: App, bus: SubscriptionBus, kinds: Collection[Kind]) -> None:
        self._app, self._bus, self._kinds = app, bus, kinds
        self._streams: Counter[str] = Counter()

    async def subscribe(
        self, ctx: ServerRequestContext[Any, Any], params: SubscribeRequestParams
    ) -> EmptyResult:
        """Watches one resource for this connection."""
        watching = self._of_connection(ctx)
        uri = str(params.uri)
        if len(watching.uris) >= MAX_URIS and uri not in watching.uris:
            raise MCPError(INVALID_REQUEST, f"A session may watch {MAX_URIS} resources.")
        await watching.add(uri, await self._found(uri))
        return EmptyResult()

    async def unsubscribe(
        self, ctx: ServerRequestContext[Any, Any], params: UnsubscribeRequestParams
    ) -> EmptyResult:
        """Watches it no longer."""
        await self._of_connection(ctx).remove(str(params.uri))
        return EmptyResult()

    async def listen(
        self, ctx: ServerRequestContext[Any, Any], params: SubscriptionsListenRequestParams
    ) -> SubscriptionsListenResult:
        """One stream: what the SDK tells of the lists, and what happens to these resources."""
        uris = list(params.notifications.resource_subscriptions or ())
        if len(uris) > MAX_URIS:
            raise MCPError(INVALID_REQUEST, f"A stream may watch {MAX_URIS} resources.")
        caller = current_caller()
        for count, most in (
            (self._streams.total(), MAX_STREAMS),
            (self._streams[caller], MAX_STREAMS_EACH),
        ):
            if count >= most:
                raise MCPError(INVALID_REQUEST, f"{most} streams are open already. Try later.")
        self._streams[caller] += 1
        bus = _StreamBus(self._bus)
        watching = _Watching(self._app, bus.tell)
        try:
            for uri in uris:
                try:
                    await watching.add(uri, await self._found(uri))
                except MCPError as error:
                    # As the protocol has it, what does not exist may be watched and never changes.
                    if error.code != INVALID_PARAMS:
                        raise
            return await ListenHandler(bus)(ctx, params)
        finally:
            self._streams[caller] -= 1
            await watching.close()

    async def _found(self, uri: str) -> Watched:
        wanted = watched_of(uri, self._kinds)
        if wanted is None:
            raise MCPError(INVALID_PARAMS, "Unknown resource", {"uri": uri})
        try:
            return await self._app.watch(wanted)
        except Misuse as error:
            text = clean_line(error.own_words, ERROR_CHARS)
            raise MCPError(INVALID_PARAMS, text, {"uri": uri}) from error
        except HomeroomError as error:
            raise MCPError(INVALID_REQUEST, clean_line(error.own_words, ERROR_CHARS)) from error

    def _of_connection(self, ctx: ServerRequestContext[Any, Any]) -> _Watching:
        session = ctx.session
        connection = session._connection  # its state and its end have no public way in 2.3
        watching = connection.state.get(_STATE)
        if watching is None:
            watching = _Watching(self._app, session.send_resource_updated)
            connection.state[_STATE] = watching
            connection.exit_stack.push_async_callback(watching.close)
        return watching


class _Watching:
    """What one client watches, and the task that looks."""

    def __init__(self, app: App, tell: Tell) -> None:
        self._app, self._tell = app, tell
        self.uris: dict[str, Watched] = {}
        self._seen: dict[Watched, str] = {}
        self._task: asyncio.Task[None] | None = None

    async def add(self, uri: str, watched: Watched) -> None:
        if uri not in self.uris:
            self._seen |= await self._app.stamps([watched])
            self.uris[uri] = watched
            await self._restart()

    async def remove(self, uri: str) -> None:
        if self.uris.pop(uri, None) is not None:
            await self._restart()

    async def close(self) -> None:
        self.uris.clear()
        await self._restart()

    async def _restart(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled() and (error := task.exception()):
                # Its client went away while it was being told.
                log.warning("watching_ended", extra={"reason": type(error).__name__})
        if self.uris:
            self._task = asyncio.create_task(self._run(), name="resource-updates")

    async def _run(self) -> None:
        while True:
            try:
                now = await self._app.wait_stamps([*self.uris.values()], self._seen)
            except HomeroomError as error:
                log.warning("watching_failed", extra={"reason": str(error)})
                await anyio.sleep(PAUSE_S)
                continue
            changed = {one for one, stamp in now.items() if stamp != self._seen.get(one)}
            self._seen |= now
            for uri, watched in [*self.uris.items()]:
                if watched in changed:
                    await self._tell(uri)


class _StreamBus:
    """The server's bus, with what is meant for one stream alone."""

    def __init__(self, shared: SubscriptionBus) -> None:
        self._shared = shared
        self._listeners: list[Callable[[ServerEvent], None]] = []

    async def publish(self, event: ServerEvent) -> None:
        await self._shared.publish(event)

    async def tell(self, uri: str) -> None:
        for listener in self._listeners:
            listener(ResourceUpdated(uri))

    def subscribe(self, listener: Callable[[ServerEvent], None]) -> Callable[[], None]:
        self._listeners.append(listener)
        unsubscribe = self._shared.subscribe(listener)

        def end() -> None:
            self._listeners.clear()
            unsubscribe()

        return end
