"""A homeserver for the tests: the embedded Synapse, quick and without limits on people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homeroom.config import Config
from homeroom.local.synapse import Synapse
from homeroom.registration import (
    Registration,
    load_registration,
    new_registration,
    write_registration,
)

SERVER_NAME = "hs.test"
PASSWORD = "correct horse battery"

_UNLIMITED = {"per_second": 10_000, "burst_count": 10_000}
QUICK: Mapping[str, Any] = {
    "rc_message": _UNLIMITED,
    "rc_registration": _UNLIMITED,
    "rc_login": {"address": _UNLIMITED, "account": _UNLIMITED, "failed_attempts": _UNLIMITED},
    "rc_joins": {"local": _UNLIMITED, "remote": _UNLIMITED},
    "rc_joins_per_room": _UNLIMITED,
    "rc_invites": {"per_room": _UNLIMITED, "per_user": _UNLIMITED, "per_issuer": _UNLIMITED},
    "rc_room_creation": _UNLIMITED,
    # Otherwise a second first sync within two minutes is answered with the earlier one.
    "caches": {"sync_response_cache_duration": 0},
}


@dataclass(frozen=True)
class Homeserver:
    """A Synapse that has our registration loaded."""

    synapse: Synapse
    registration: Registration
    registration_path: Path

    @property
    def url(self) -> str:
        return self.synapse.url

    @property
    def server_name(self) -> str:
        return self.synapse.server_name

    def person(self, localpart: str, *, admin: bool = False) -> str:
        """The Matrix id of a person who can log in with ``PASSWORD``."""
        return self.synapse.register_person(localpart, PASSWORD, admin=admin)


def prepare_homeserver(
    directory: Path,
    *,
    server_name: str = SERVER_NAME,
    push_url: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Homeserver:
    """A homeserver that is ready to be started; ``extra`` is laid over its settings."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "registration.yaml"
    if not path.exists():
        write_registration(new_registration(server_name, push_url), path)
    synapse = Synapse(
        directory / "synapse",
        server_name,
        registrations=[path],
        bcrypt_rounds=4,
        extra={**QUICK, **(extra or {})},
    )
    return Homeserver(synapse, load_registration(path), path)


def matrix_config(homeserver: Homeserver, **overrides: Any) -> Config:
    """A valid Config for that homeserver; ``overrides`` are fields of it, e.g. ``matrix_url``."""
    fields: dict[str, Any] = {
        "letta_url": "http://127.0.0.1:9",
        "matrix_url": homeserver.url,
        "matrix_server_name": homeserver.server_name,
        "matrix_registration": homeserver.registration_path,
    }
    return Config(**(fields | overrides))
