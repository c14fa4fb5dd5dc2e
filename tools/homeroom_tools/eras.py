"""One connection on a pair of streams, whichever era of the protocol the client decides on.

The SDK lets the first request decide, and takes a ``server/discover`` for a decision. But clients
probe with it and then shake hands on the same connection, so here it is answered and decides
nothing. Used where a connection is one pair of streams: stdio and SSE.

Source: https://github.com/anthropics/claude-code/issues/96183
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import anyio
from mcp.shared.message import SessionMessage
from mcp_types import (
    PROTOCOL_VERSION_META_KEY,
    SERVER_INFO_META_KEY,
    DiscoverResult,
    JSONRPCRequest,
    JSONRPCResponse,
)
from mcp_types.version import LATEST_MODERN_VERSION, MODERN_PROTOCOL_VERSIONS

if TYPE_CHECKING:
    from mcp.server import MCPServer
    from mcp.server.lowlevel import Server
    from mcp.shared._stream_protocols import ReadStream, WriteStream

Frame = SessionMessage | Exception


async def serve_connection(
    server: MCPServer[Any],
    read: ReadStream[Frame],
    write: WriteStream[SessionMessage],
    on_message: Callable[[], None] = lambda: None,
) -> None:
    """Serves until the client leaves. ``on_message`` is called with each message that arrives."""
    low = server._lowlevel_server
    undecided = _Undecided(low, read, write, on_message)
    await low.run(undecided, write, low.create_initialization_options())


class _Undecided:
    """``read`` without the probes that come before the first other request: those are answered."""

    def __init__(
        self,
        low: Server[Any],
        read: ReadStream[Frame],
        write: WriteStream[SessionMessage],
        on_message: Callable[[], None],
    ) -> None:
        self._low, self._read, self._write, self._on_message = low, read, write, on_message
        self._decided = False

    @property
    def last_context(self) -> Context | None:
        """The context of whoever sent the last message: who it was is written there."""
        return getattr(self._read, "last_context", None)

    async def receive(self) -> Frame:
        while True:
            item = await self._read.receive()
            self._on_message()
            request = item.message if isinstance(item, SessionMessage) else None
            if self._decided or not isinstance(request, JSONRPCRequest):
                return item
            if not _is_probe(request):
                self._decided = True
                return item
            await self._write.send(SessionMessage(_discovered(self._low, request)))

    async def aclose(self) -> None:
        await self._read.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Frame:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


def _is_probe(request: JSONRPCRequest) -> bool:
    meta = (request.params or {}).get("_meta")
    version = meta.get(PROTOCOL_VERSION_META_KEY) if isinstance(meta, dict) else None
    return request.method == "server/discover" and version in MODERN_PROTOCOL_VERSIONS


def _discovered(low: Server[Any], request: JSONRPCRequest) -> JSONRPCResponse:
    result = DiscoverResult(
        supported_versions=list(MODERN_PROTOCOL_VERSIONS),
        capabilities=low.get_capabilities(protocol_version=LATEST_MODERN_VERSION),
        instructions=low.instructions,
        result_type="complete",
        ttl_ms=0,
        cache_scope="private",
    ).model_dump(by_alias=True, mode="json", exclude_none=True)
    result["_meta"] = {SERVER_INFO_META_KEY: low.server_info_stamp}
    return JSONRPCResponse(jsonrpc="2.0", id=request.id, result=result)
