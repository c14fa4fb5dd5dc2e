"""What an answer of the homeserver, or the lack of one, means to the caller.

Owns the translation into ``homeroom.errors``. It judges by status and error code alone and never
by the text of a page: only a Matrix error body may say that somebody must act, everything that
could come from a proxy in between is a passing fault. Texts from outside are clipped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import aiohttp

from homeroom.errors import HomeroomError, Rejected, Unavailable, Uncertain

_REASON_MAX_CHARS = 200
_CODE = re.compile(r"[A-Za-z0-9_.]{1,64}")
_RETRY_AFTER_MAX_S = 86400.0
"""A day: whatever a server asks beyond that is a fault of the server."""

_TOKEN_CODES = ("M_UNKNOWN_TOKEN", "M_MISSING_TOKEN")
_TOKEN_ADVICE = (
    "it does not accept the as_token. Is the registration file listed in its "
    "app_service_config_files, is it the same file, and was the homeserver restarted since?"
)


def clip(text: object) -> str:
    """``text`` on one line, at most 200 characters; empty for what is no string."""
    if not isinstance(text, str):
        return ""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[:2000]).split())
    return line if len(line) <= _REASON_MAX_CHARS else line[: _REASON_MAX_CHARS - 1] + "…"


def parse_object(raw: bytes, array_as: str = "") -> dict[str, Any] | None:
    """The JSON object in ``raw``, or an object with the JSON array in it under ``array_as``; None
    for anything else, however broken."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if array_as and isinstance(value, list):
        return {array_as: value}
    return value if isinstance(value, dict) else None


def read_answer(
    status: int, headers: Mapping[str, str], raw: bytes, key: str = "", array_as: str = ""
) -> dict[str, Any]:
    """The JSON object of a good answer.

    Args:
        key: idempotency key of the request, where repeating it without one would do it twice.
        array_as: the name for the array that the answer is instead of an object.

    Raises:
        Rejected: the homeserver itself refused.
        Unavailable: it is overloaded, failing, or something else answered in its place.
        Uncertain: a gateway gave up waiting for the answer to a request with a ``key``.
    """
    body = parse_object(raw, array_as)
    if 200 <= status < 300 and body is not None:
        return body
    raise _refusal(status, headers, body, key)


def _refusal(
    status: int, headers: Mapping[str, str], body: dict[str, Any] | None, key: str
) -> HomeroomError:
    answer = body or {}
    code, message = answer.get("errcode"), clip(answer.get("error"))
    if not isinstance(code, str) or not _CODE.fullmatch(code):
        code = ""
    if status == 429 or code == "M_LIMIT_EXCEEDED":
        wait_s = _retry_after_s(headers, answer)
        return Unavailable("matrix", "it limits how often we may ask", wait_s)
    if status == 504 and key:
        return Uncertain("matrix", key, "a gateway gave up waiting for it")
    if status >= 500:
        said = f" ({message})" if code and message else ""
        wait_s = _retry_after_s(headers, answer)
        why = f"it answered {status}{said}"
        return Unavailable("matrix", why, wait_s, foreign=bool(said), code=code)
    if status == 413:
        reason, code = message or "the request is too large", code or "M_TOO_LARGE"
        return Rejected("matrix", reason, code, foreign=bool(message))
    if not code:
        return Unavailable("matrix", _no_homeserver(status))
    if code in _TOKEN_CODES:
        return Rejected("matrix", _TOKEN_ADVICE, code)
    return Rejected("matrix", message or f"it answered {status}", code, foreign=bool(message))


def _no_homeserver(status: int) -> str:
    if 300 <= status < 400:
        return "its address redirects elsewhere; HOMEROOM_MATRIX_URL must be the final address"
    return f"what answered {status} at HOMEROOM_MATRIX_URL does not speak Matrix"


def _retry_after_s(headers: Mapping[str, str], body: Mapping[str, Any]) -> float | None:
    """Source: https://spec.matrix.org/v1.16/client-server-api/#rate-limiting (header first)."""
    header = headers.get("Retry-After", "")
    millis = body.get("retry_after_ms")
    if header.isascii() and header.isdigit():
        wait_s = float(header[:9])
    elif isinstance(millis, int | float) and millis > 0:
        wait_s = millis / 1000
    else:
        return None
    return min(wait_s, _RETRY_AFTER_MAX_S)


# Raised while the connection is being made: nothing has been written yet.
_NOT_SENT = (
    aiohttp.ClientConnectorError,
    aiohttp.ClientConnectorCertificateError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.InvalidURL,
)


def read_failure(error: BaseException, key: str = "") -> HomeroomError:
    """The error for a request that got no whole answer.

    Neither the address nor a header of the request is in its text: only the kind of fault.
    """
    if isinstance(error, _NOT_SENT):
        return Unavailable("matrix", _why_not_connected(error))
    kind = "no answer in time" if isinstance(error, TimeoutError) else "the connection broke"
    return Uncertain("matrix", key, kind) if key else Unavailable("matrix", kind)


def _why_not_connected(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
        return "its TLS certificate is not accepted"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "the name in HOMEROOM_MATRIX_URL does not resolve"
    return "nothing accepts connections at HOMEROOM_MATRIX_URL"
