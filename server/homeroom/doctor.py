"""What is wrong and how to mend it: one line per check.

Owns the checks of configuration, Letta, homeserver, appservice, hub, store and homes. Changes
nothing but for registering and naming the hub. Each check stands alone, so that one that fails
does not hide the next.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from homeroom.config import Config
from homeroom.errors import ConfigError, HomeroomError
from homeroom.letta import Letta, open_letta
from homeroom.matrix import Matrix, open_matrix
from homeroom.model import ghost_localpart
from homeroom.observing import Observer
from homeroom.registration import Registration, load_registration
from homeroom.reports import read_status
from homeroom.store import open_store

PROBLEMS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. ``detail`` says what was seen, or what is wrong; ``fix`` what to do about it."""

    name: str
    passed: bool
    detail: str
    fix: str = ""


async def examine(config: Config) -> AsyncIterator[Check]:
    """Yields the checks one after the other, as they are made."""
    yield Check("configuration", True, "complete and well formed")
    yield await _store(config)
    yield await _letta(config)
    if not config.has_matrix:
        yield Check(
            "homeserver", False, "Matrix is not configured: tools only, no rooms",
            "set HOMEROOM_MATRIX_URL, HOMEROOM_MATRIX_SERVER_NAME and HOMEROOM_MATRIX_REGISTRATION",
        )  # fmt: skip
        return
    assert config.matrix_registration is not None
    try:
        registration = load_registration(config.matrix_registration)
    except ConfigError as error:
        yield Check("registration", False, str(error), "write one with `homeroom registration`")
        return
    yield _namespaces(config, registration)
    async with open_matrix(config, registration) as matrix:
        async for check in _matrix(config, matrix):
            yield check
        yield await _homes(config, matrix)


async def _store(config: Config) -> Check:
    try:
        async with open_store(config.store_path) as store:
            lease = await store.get_lease()
            items = await store.count_items()
    except HomeroomError as error:
        return Check("store", False, str(error), "make HOMEROOM_DATA_DIR a directory of your own")
    who = f"bridge run by {lease.owner}" if lease else "no bridge is running"
    counts = ", ".join(f"{count} {state}" for state, count in sorted(items.items())) or "no items"
    return Check("store", True, f"{who}; {counts}")


async def _letta(config: Config) -> Check:
    try:
        async with open_letta(config) as letta:
            agents = await letta.list_agents()
            can = letta.capabilities
    except HomeroomError as error:
        fix = "start Letta, or correct HOMEROOM_LETTA_URL, HOMEROOM_LETTA_TOKEN or _BACKEND"
        return Check("Letta", False, str(error), fix)
    version = f" {can.version}" if can.version else ""
    count = "1 agent" if len(agents) == 1 else f"{len(agents)} agents"
    detail = f"{can.backend}{version}, {count}"
    if not agents:
        detail += "; make one in Letta (its app, or its API) and it moves in at the next sync"
    return Check("Letta", True, detail)


async def _homes(config: Config, matrix: Matrix) -> Check:
    """What an audit finds that no sync can heal by itself. Nothing of it is recorded."""
    try:
        async with open_store(config.store_path) as store, open_letta(config) as letta:

            async def get_letta() -> Letta:
                return letta

            async def get_matrix() -> Matrix:
                return matrix

            observer = Observer(
                config, store, get_letta, get_matrix, lambda: time.time_ns() // 1_000_000
            )
            observed = await observer.observe(asked=False, audit=True)
            report = read_status(*await store.find_last_syncs()).report
    except HomeroomError as error:
        return Check("homes", False, f"cannot be looked at: {error}", "repair what is said above")
    drift, unread = observed.planned, observed.seen.unread if observed.seen else []
    failing = [failure for failure in report.failures if failure.final] if report else []
    problems = [
        *(f"{failure.action.agent_name}: {failure.reason}" for failure in failing),
        *(f"{action.agent_name}: {action.held}" for action in drift if action.held),
        *(f"could not be looked at: {why}" for why in unread),
    ]
    if problems:
        more = f" (and {len(problems) - PROBLEMS_SHOWN} more)" * (len(problems) > PROBLEMS_SHOWN)
        fix = "do what is said; `homeroom sync --status` has the rest, `homeroom sync` tries again"
        return Check("homes", False, "; ".join(problems[:PROBLEMS_SHOWN]) + more, fix)
    left = len(drift)  # nothing of it is held back, or it would be a problem
    todo = f", {left} actions left for the next sync" if left else ", all as they should be"
    return Check("homes", True, f"{len(observed.mappings)} looked at{todo}")


def _namespaces(config: Config, registration: Registration) -> Check:
    example = ghost_localpart("agent-1")  # type: ignore[arg-type]
    server = config.matrix_server_name
    ghost, alias = f"@{example}:{server}", f"#{example}:{server}"
    missing = [
        name
        for name, owned in (
            (ghost, registration.owns_user(ghost)),
            (alias, registration.owns_alias(alias)),
        )
        if not owned
    ]
    if missing:
        fix = "write a new file with `homeroom registration` for this server name and install it"
        return Check("registration", False, f"does not cover {' and '.join(missing)}", fix)
    return Check("registration", True, "covers ghosts and aliases")


async def _matrix(config: Config, matrix: Matrix) -> AsyncIterator[Check]:
    fix = (
        "check HOMEROOM_MATRIX_URL, and that the homeserver lists this registration file in"
        " app_service_config_files and was restarted since"
    )
    try:
        info = await matrix.check()
    except HomeroomError as error:
        yield Check("homeserver", False, str(error), fix)
        return
    newest = info.versions[-1] if info.versions else "unknown"
    yield Check("homeserver", True, f"token accepted, Matrix {newest}")
    yield Check("hub", info.whoami == matrix.hub, f"acts as {info.whoami}", fix)
    try:
        pushed_ms = await matrix.ping()
    except HomeroomError as error:
        fix = (
            "run `homeroom serve --http` at the registration's url, or set url: null and restart"
            " the homeserver: Homeroom reads by sync"
        )
        yield Check("pushes", False, str(error), fix)
        return
    silent = "none (url: null), read by sync"
    detail = silent if pushed_ms is None else f"reach us in {pushed_ms} ms"
    yield Check("pushes", True, detail)
