"""What the homeserver may ask of an application service that has a URL.

Owns these routes and their guard, the hs_token. The hub's /sync is the log of what was said, and
pushes that wait in a homeserver are lost when it restarts; so a push is read for one thing alone:
which of our users were invited somewhere, which the hub cannot see. Even that is only a hint to ask
them. Invariants: whoever lacks the token learns nothing; no push is refused for what it says, nor
for what others sent from the same address.

Source: https://spec.matrix.org/v1.16/application-service-api/
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
from typing import TYPE_CHECKING

from starlette.background import BackgroundTask
from starlette.responses import JSONResponse
from starlette.routing import Route

from homeroom_tools.rate import Failures

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

    from starlette.requests import Request

    Heard = Callable[[Collection[str]], Awaitable[None]]

PUSH_PATH = "/_matrix/app/"
"""All paths below it are the homeserver's."""
MAX_PUSH_BYTES = 64 * 1024 * 1024
"""Largest push, in bytes; a homeserver sends a hundred events of up to 64 KiB at once, and as much
again of other things, and repeats for ever what is refused. It is not held in memory."""
MAX_READ_BYTES = 1024 * 1024
"""Largest push that is looked into, in bytes. A larger one is a flood; its invitations are found
when the ghosts are asked in turn."""
FAILED_PUSHES = 20
"""So many pushes of one address may come with a wrong token before the next such gets 429 ..."""
FAILED_PUSHES_PER_S = 0.2
"""... and then one in five seconds: a homeserver's token is right, or stays wrong."""
MAX_INVITED = 200
"""Most users of one push that are handed on: a push has a hundred events."""


def push_routes(hs_token: str, on_push: Heard) -> list[Route]:
    """The routes that a homeserver with ``hs_token`` uses.

    ``on_push`` hears of every push, after it was answered, with the users it says were invited.
    """
    guard = _Guard(hs_token)

    def guarded(
        answer: JSONResponse, heard: Heard | None = None
    ) -> Callable[[Request], Awaitable[JSONResponse]]:
        async def serve(request: Request) -> JSONResponse:
            if (refusal := guard.refusal(request)) is not None:
                return refusal
            body = await _read(request)
            if body is None:
                return _error(413, "M_TOO_LARGE", f"A push may have {MAX_PUSH_BYTES} bytes.")
            if heard is None:
                return answer
            return JSONResponse({}, background=BackgroundTask(heard, invited_users(body)))

        return serve

    taken = guarded(JSONResponse({}), on_push)
    pinged = guarded(JSONResponse({}))
    nobody = guarded(_error(404, "M_NOT_FOUND", "It is made by Homeroom or it does not exist."))
    unknown = guarded(_error(404, "M_UNRECOGNIZED", "Homeroom has no such endpoint."))
    v1 = f"{PUSH_PATH}v1"
    return [
        Route(f"{v1}/transactions/{{txn_id}}", taken, methods=["PUT"]),
        Route(f"{v1}/ping", pinged, methods=["POST"]),
        Route(f"{v1}/users/{{user_id}}", nobody, methods=["GET"]),
        Route(f"{v1}/rooms/{{alias:path}}", nobody, methods=["GET"]),
        Route(
            PUSH_PATH + "{rest:path}",
            unknown,
            methods=["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"],
        ),
    ]


class _Guard:
    """Lets pass whoever has the hs_token, and nobody else.

    The token is looked at before the address: the homeserver and whoever guesses may be behind one
    proxy, and must not be able to silence each other. A guess that is told "too many" instead of
    "wrong" learns no less, so what a token is safe by is its length (``registration`` makes 48
    random bytes); the 429 is for a homeserver with an old token, to ask less often.
    """

    def __init__(self, hs_token: str) -> None:
        self._digest = hashlib.sha256(hs_token.encode()).digest()
        self._failures = Failures(FAILED_PUSHES, FAILED_PUSHES_PER_S)

    def refusal(self, request: Request) -> JSONResponse | None:
        """Why a request does not pass; None if it does."""
        given = _token_of(request)
        given_digest = hashlib.sha256(given.encode(errors="surrogateescape")).digest()
        if hmac.compare_digest(given_digest, self._digest):
            return None
        peer = request.client.host if request.client else ""
        if wait_s := self._failures.wait_s(peer):
            after = {"Retry-After": str(math.ceil(wait_s))}
            return _error(429, "M_LIMIT_EXCEEDED", "Too many wrong tokens from there.", after)
        self._failures.count(peer)
        if not given:
            return _error(401, "M_MISSING_TOKEN", "The hs_token is needed.")
        return _error(403, "M_FORBIDDEN", "This is not the hs_token.")


def _token_of(request: Request) -> str:
    """The token of the header, else of the query, where homeservers put it before v1.4."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return given.strip()
    return request.query_params.get("access_token", "")


def invited_users(body: bytes) -> list[str]:
    """The users that a push says were invited somewhere; none if it says something else.

    Source: https://spec.matrix.org/v1.16/application-service-api/#put_matrixappv1transactionstxnid
    """
    try:
        pushed = json.loads(body)
    except (ValueError, RecursionError):
        return []
    events = pushed.get("events") if isinstance(pushed, dict) else None
    found: dict[str, None] = {}
    for event in events if isinstance(events, list) else ():
        content = event.get("content") if isinstance(event, dict) else None
        if not isinstance(content, dict) or content.get("membership") != "invite":
            continue
        user = event.get("state_key")
        if event.get("type") == "m.room.member" and isinstance(user, str) and len(user) <= 255:
            found[user] = None
    return list(found)[:MAX_INVITED]


async def _read(request: Request) -> bytes | None:
    """The body, read to its end; None if it is too large, empty if it is too large to look into.

    A connection with an unread body is of no more use, and the homeserver would take the break
    for a failure.
    """
    kept, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_PUSH_BYTES:
            return None
        if size <= MAX_READ_BYTES:
            kept += chunk
    return bytes(kept) if size <= MAX_READ_BYTES else b""


def _error(
    status: int, code: str, why: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    return JSONResponse({"errcode": code, "error": why}, status_code=status, headers=headers)
