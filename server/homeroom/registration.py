"""The appservice registration: what both the homeserver and Homeroom read.

Owns the file's format, its tokens and its rights (0600). Knows no homeserver.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError, model_validator

from homeroom.config import EXAMPLES, NO_SERVER_NAME, PREFIX, SERVER_NAME, variable_of
from homeroom.errors import ConfigError
from homeroom.model import GHOST_PREFIX


class _Namespace(BaseModel):
    exclusive: bool = True
    regex: str


class _Namespaces(BaseModel):
    users: list[_Namespace] = []
    aliases: list[_Namespace] = []
    rooms: list[_Namespace] = []


class Registration(BaseModel):
    """The appservice registration: what both the homeserver and Homeroom read.

    Source: https://spec.matrix.org/v1.16/application-service-api/#registration
    """

    model_config = ConfigDict(extra="allow")

    id: str
    url: str | None
    as_token: SecretStr
    hs_token: SecretStr
    sender_localpart: str
    rate_limited: bool = False
    namespaces: _Namespaces

    def owns_user(self, user_id: str) -> bool:
        """Whether the homeserver lets us act as ``user_id``."""
        return any(re.match(ns.regex, user_id) for ns in self.namespaces.users)

    def owns_alias(self, alias: str) -> bool:
        return any(re.match(ns.regex, alias) for ns in self.namespaces.aliases)

    @model_validator(mode="after")
    def _has_tokens(self) -> Registration:
        if not self.as_token.get_secret_value() or not self.hs_token.get_secret_value():
            raise ValueError("as_token and hs_token must not be empty")
        return self


def new_registration(
    server_name: str, url: str | None = None, *, named_by: str = PREFIX + "MATRIX_SERVER_NAME"
) -> dict[str, Any]:
    """A registration with fresh tokens, as plain data in the order the file shows it.

    ``url`` None means the homeserver pushes nothing: Homeroom reads by sync alone. ``named_by``
    is where the server name stands, for the complaint about it.

    Raises:
        ConfigError: ``server_name`` is none, or ``url`` is none that a homeserver could push to.
    """
    if not SERVER_NAME.fullmatch(server_name):
        raise ConfigError(named_by, NO_SERVER_NAME, EXAMPLES["matrix_server_name"])
    if url is not None:
        url = _push_url(url)
    host = re.escape(server_name)
    return {
        "id": "homeroom",
        "url": url,
        "as_token": secrets.token_urlsafe(48),
        "hs_token": secrets.token_urlsafe(48),
        # Never the hub: the sender of an appservice may not sync (Synapse answers 500).
        "sender_localpart": "homeroom",
        # The bridge answers many people at once; it has its own brakes.
        "rate_limited": False,
        # Ghosts have devices but never log in, as on servers with delegated authentication.
        "io.element.msc4190": True,
        "namespaces": {
            "users": [{"exclusive": True, "regex": f"@{GHOST_PREFIX}.*:{host}"}],
            "aliases": [{"exclusive": True, "regex": f"#{GHOST_PREFIX}.*:{host}"}],
            "rooms": [],
        },
    }


def _push_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigError(
            "--url", "must be a URL that begins with http or https", "http://127.0.0.1:8017"
        )
    return url.rstrip("/")


def write_registration(registration: Mapping[str, Any], path: Path, *, force: bool = False) -> None:
    """Writes the YAML to a new file that only its owner can read.

    Raises:
        ConfigError: the file exists already (its tokens are in use) or cannot be written.
    """
    import yaml

    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if force else os.O_EXCL)
    try:
        fd = os.open(path, flags, 0o600)
    except FileExistsError:
        raise ConfigError(
            "--out",
            f"names {path}, which exists and holds tokens in use; choose another file, "
            "or --force to replace it",
            "registration-new.yaml",
        ) from None
    except OSError as error:
        raise ConfigError(
            "--out", f"cannot be written ({error.strerror})", "registration.yaml"
        ) from None
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        if hasattr(os, "fchmod"):  # not on Windows, where the directory's rights count
            os.fchmod(file.fileno(), 0o600)
        yaml.safe_dump(dict(registration), file, sort_keys=False)


def load_registration(path: Path) -> Registration:
    """The registration in ``path``.

    Raises:
        ConfigError: it cannot be read, is no YAML, or lacks a field.
    """
    import yaml

    variable = variable_of("matrix_registration")
    example = EXAMPLES["matrix_registration"]
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            variable, f"names {path}, which cannot be read ({error.strerror})", example
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ConfigError(variable, f"names {path}, which is not valid YAML", example) from None
    try:
        return Registration.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigError(
            variable, f"names {path}, in which {where} is wrong ({first['msg']})", example
        ) from None
