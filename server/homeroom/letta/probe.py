"""Which Letta answers at a URL: the products called Letta share a name and no protocol.

Owns the order of questions. Keeps nothing; the back end it picks does the rest. Invariant: a probe
only reads, and tells of an answer its status, never its body.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx

from homeroom.config import EXAMPLES, Config, variable_of
from homeroom.errors import ConfigError, Rejected, Unavailable
from homeroom.letta.absence import Absence
from homeroom.letta.openai_proxy import OpenAIProxyLetta, is_model_list
from homeroom.letta.rest import RestLetta
from homeroom.letta.wire import (
    CONNECT_S,
    authorization,
    http_url,
    is_loopback,
    lost,
    retry_after,
    trusted_roots,
    wrong_token,
)
from homeroom.model import BackendName

if TYPE_CHECKING:
    from homeroom.letta import Letta

PROBE_S = 10.0
"""Each question is answered from memory by a server that is up."""
_CLOUD_HOST = "api.letta.com"


@asynccontextmanager
async def connect(config: Config, absence: Absence | None = None) -> AsyncIterator[Letta]:
    """The back end that ``config.letta_backend`` names, or the one that ``auto`` finds.

    Raises:
        Unavailable: nothing answers at the URL.
        Rejected: Letta wants a token, or another one.
        ConfigError: what answers is no Letta.
    """
    named = config.letta_backend
    backend = await find_backend(config, absence) if named == "auto" else named
    async with _open(backend, config, absence) as letta:
        yield letta


async def find_backend(config: Config, absence: Absence | None = None) -> BackendName:
    """The protocol that the server at ``config.letta_url`` speaks.

    An App Server that also lists its agents as models is an App Server: that way has memory.

    Raises:
        Unavailable, Rejected, ConfigError: as ``connect``.
    """
    parts = urlsplit(config.letta_url)
    if parts.scheme in ("ws", "wss"):
        return "app-server"
    if parts.hostname == _CLOUD_HOST:
        return "rest"
    timeout = httpx.Timeout(PROBE_S, connect=CONNECT_S)
    statuses: list[int] = []
    async with httpx.AsyncClient(
        base_url=http_url(config),
        headers=authorization(config),
        timeout=timeout,
        verify=trusted_roots(),
        trust_env=not is_loopback(config.letta_url),
    ) as client:
        for path, backend in _QUESTIONS:
            try:
                response = await client.get(path)
            except httpx.RequestError as error:
                if absence:
                    absence.note_lost(error)
                raise lost(error, None) from error
            if response.status_code == 429 or response.status_code >= 500:
                if absence:
                    absence.note_answer(response.status_code, is_json=False)
                reason = f"it answered {response.status_code}"
                raise Unavailable("letta", reason, retry_after(response.headers))
            statuses.append(response.status_code)
            if response.is_success and _recognises(backend, response):
                return backend
    raise _no_letta(statuses)


_QUESTIONS: tuple[tuple[str, BackendName], ...] = (
    ("/v1/health/", "rest"),
    ("/app-server-info", "app-server"),
    ("/v1/models", "openai"),
)


def _recognises(backend: BackendName, response: httpx.Response) -> bool:
    try:
        body = response.json()
    except ValueError:
        return False
    if backend == "openai":
        return is_model_list(body)
    known = "version" if backend == "rest" else "protocol_version"
    return isinstance(body, dict) and known in body


def _no_letta(statuses: list[int]) -> ConfigError | Rejected:
    refused = next((status for status in statuses if status in (401, 403)), None)
    if refused:
        return wrong_token(refused)
    answers = ", ".join(str(status) for status in dict.fromkeys(statuses))
    return ConfigError(
        variable_of("letta_url"),
        f"names a server that is no Letta (it answered {answers} where Letta would say what it is)",
        EXAMPLES["letta_url"],
    )


def _open(
    backend: BackendName, config: Config, absence: Absence | None
) -> AbstractAsyncContextManager[Letta]:
    if backend == "rest":
        return RestLetta.open(config, absence)
    if backend == "openai":
        return OpenAIProxyLetta.open(config)
    from homeroom.letta.app_server import AppServerLetta

    return AppServerLetta.open(config)
