"""What the homeserver may ask of an application service that has a URL.

Owns these routes and their guard, the hs_token. The hub's /sync is the log of what was said, so a
push is taken and not read: it could only tell what the sync tells anyway, and pushes that wait in
a homeserver are lost when it restarts. Invariant: whoever lacks the token learns nothing.

Source: https://spec.matrix.org/v1.16/application-service-api/
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

PUSH_PATH = "/_matrix/app/"
"""All paths below it are the homeserver's."""
MAX_PUSH_BYTES = 64 * 1024 * 1024
"""Largest push, in bytes; a homeserver sends a hundred events of up to 64 KiB at once, and as much
again of other things, and repeats for ever what is refused. It is never held in memory."""


def push_routes(hs_token: str) -> list[Route]:
    """The routes that a homeserver with ``hs_token`` uses."""
    digest = hashlib.sha256(hs_token.encode()).digest()

    def guarded(answer: JSONResponse) -> Callable[[Request], Awaitable[JSONResponse]]:
        async def serve(request: Request) -> JSONResponse:
            given = _token_of(request)
            if not given:
                return _error(401, "M_MISSING_TOKEN", "The hs_token is needed.")
            if not hmac.compare_digest(hashlib.sha256(given.encode()).digest(), digest):
                return _error(403, "M_FORBIDDEN", "This is not the hs_token.")
            return await _refuse_if_too_large(request) or answer

        return serve

    taken = guarded(JSONResponse({}))
    nobody = guarded(_error(404, "M_NOT_FOUND", "It is made by Homeroom or it does not exist."))
    unknown = guarded(_error(404, "M_UNRECOGNIZED", "Homeroom has no such endpoint."))
    v1 = f"{PUSH_PATH}v1"
    return [
        Route(f"{v1}/transactions/{{txn_id}}", taken, methods=["PUT"]),
        Route(f"{v1}/ping", taken, methods=["POST"]),
        Route(f"{v1}/users/{{user_id}}", nobody, methods=["GET"]),
        Route(f"{v1}/rooms/{{alias:path}}", nobody, methods=["GET"]),
        Route(
            PUSH_PATH + "{rest:path}",
            unknown,
            methods=["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"],
        ),
    ]


def _token_of(request: Request) -> str:
    """The token of the header, else of the query, where homeservers put it before v1.4."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return given.strip()
    return request.query_params.get("access_token", "")


async def _refuse_if_too_large(request: Request) -> JSONResponse | None:
    """Reads the body to its end and forgets it: a connection with an unread body is of no more
    use, and the homeserver would take the break for a failure."""
    too_large = _error(413, "M_TOO_LARGE", f"A push may have {MAX_PUSH_BYTES} bytes.")
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_PUSH_BYTES:
            return too_large
    return None


def _error(status: int, code: str, why: str) -> JSONResponse:
    return JSONResponse({"errcode": code, "error": why}, status_code=status)
