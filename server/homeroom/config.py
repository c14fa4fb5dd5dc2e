"""Every knob, with its unit, its default and its reason; and the appservice registration file.

Owns the names of the environment variables (a contract) and the reading of both files. Knows
nothing of who uses a setting. Invariant: a Config that exists is valid, and its secrets are
SecretStr, so that no log line or traceback can show them.
"""

from __future__ import annotations

import difflib
import os
import re
import secrets
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import platformdirs
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from homeroom.errors import ConfigError
from homeroom.model import GHOST_PREFIX

PREFIX = "HOMEROOM_"

EXAMPLES: Mapping[str, str] = {
    "letta_url": "http://127.0.0.1:8283",
    "letta_token": "sk-let-...",
    "letta_backend": "auto",
    "matrix_url": "http://127.0.0.1:8008",
    "matrix_server_name": "example.org",
    "matrix_registration": "/etc/homeroom/registration.yaml",
    "matrix_room_version": "11",
    "invite": "@you:example.org,@me:example.org",
    "keep_edits": "topic",
    "retire_after_s": "7200",
    "switch_off": "rename,retire",
    "select_tags": "matrix,team",
    "select_names": "Support *,Ada",
    "select_ids": "agent-597b5756-2915-4560-ba6b-91005f085166",
    "sync_interval_s": "30",
    "turn_silence_s": "300",
    "max_turns": "10",
    "catch_up_s": "3600",
    "max_waiting": "100",
    "keep_days": "30",
    "data_dir": "/var/lib/homeroom",
    "http_token": "a-long-random-string",
    "http_hosts": "homeroom.example.org",
    "log_level": "INFO",
}
"""One value per setting that would be accepted; shown in every complaint about it."""

_MXID = re.compile(r"@[^\s:]+:[^\s]+")
_NO_SERVER_NAME = "must be a bare server name, without a scheme or a slash"
_HOST_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_SERVER_NAME = re.compile(r"[A-Za-z0-9.\-\[\]:]{1,230}")


def _url(schemes: tuple[str, ...]) -> AfterValidator:
    def check(value: str) -> str:
        parts = urlsplit(value)
        if value and (parts.scheme not in schemes or not parts.hostname):
            raise ValueError(f"must be a URL that begins with {', '.join(schemes)}")
        if parts.username or parts.password or parts.query:
            raise ValueError(
                "must not carry a user, password or query: tokens have settings of their own"
            )
        return value.rstrip("/")

    return AfterValidator(check)


class Config(BaseSettings):
    """Homeroom's settings: the environment (``HOMEROOM_...``) over a TOML file over defaults."""

    # An empty variable means "not set": LLM clients hand on empty strings for blank fields.
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True
    )

    letta_url: Annotated[str, _url(("http", "https", "ws", "wss"))] = Field(
        description="Where Letta listens. ws and wss mean an App Server.",
    )
    letta_token: SecretStr = Field(
        default=SecretStr(""), description="Letta's password or API key, where it wants one."
    )
    letta_backend: Literal["auto", "rest", "app-server", "openai"] = Field(
        default="auto",
        description="Which Letta protocol to speak; auto probes and says what it found.",
    )
    matrix_url: Annotated[str, _url(("http", "https"))] = Field(
        default="", description="The homeserver's client API. Empty: tools only, no bridge."
    )
    matrix_server_name: str = Field(
        default="", description="The part of Matrix ids after the colon."
    )
    matrix_registration: Path | None = Field(
        default=None,
        description="The appservice registration YAML: both tokens and the namespaces.",
    )
    matrix_room_version: Literal["10", "11", "12"] = Field(
        default="11",
        description="Room version of new rooms, pinned: a homeserver upgrade changes nothing. "
        "11 is what most clients and bots handle today.",
    )
    invite: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Matrix ids invited to every agent room, separated by commas."
    )
    keep_edits: Literal["nothing", "name", "topic", "both"] = Field(
        default="topic",
        description="Which detail of a room stays as a person has set it when the agent's name or "
        "description changes in Letta. What is not named here is written over then.",
    )
    retire_after_s: float = Field(
        default=7200.0,
        ge=0.0,
        le=2592000.0,
        description="Seconds an agent must be gone from Letta before its room is marked as "
        "retired: longer than it takes to move or restore a Letta.",
    )
    switch_off: Annotated[tuple[Literal["rename", "invites", "retire"], ...], NoDecode] = Field(
        default=(),
        description="Parts of the sync that are left to people: `rename` (names and topics after "
        "the start), `invites`, `retire`; separated by commas.",
    )
    select_tags: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Only agents with one of these Letta tags have a home in Matrix, or those that "
        "one of the next two selects. Separated by commas; all three empty: every agent.",
    )
    select_names: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="The same by name: patterns with * and ?, regardless of case.",
    )
    select_ids: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="The same by Letta's id of the agent."
    )
    sync_interval_s: float = Field(
        default=30.0, ge=1.0, le=86400.0, description="Seconds between two reconciliations."
    )
    turn_silence_s: float = Field(
        default=300.0,
        ge=5.0,
        le=86400.0,
        description="Seconds an agent may say nothing at all before its turn counts as lost. "
        "There is no limit on a whole turn.",
    )
    max_turns: int = Field(
        default=10, ge=1, le=500, description="Turns in flight at once, over all agents."
    )
    catch_up_s: float = Field(
        default=3600.0,
        ge=0.0,
        le=31_536_000.0,
        description="Seconds. Messages that Homeroom first sees after an outage and that are older "
        "are answered only when somebody in the room writes !catchup. 0: all that came meanwhile.",
    )
    max_waiting: int = Field(
        default=100,
        ge=1,
        le=100_000,
        description="Messages that may wait for one agent in one conversation. Whoever sends more "
        "is told at once that it was not taken.",
    )
    keep_days: float = Field(
        default=30.0,
        ge=1.0,
        le=3650.0,
        description="Days that finished messages, and what is known of events, are kept. What was "
        "given up is kept until a person decides. Older events are never answered.",
    )
    data_dir: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("homeroom")),
        description="Where the store lives. One directory, one Homeroom.",
    )
    http_token: SecretStr = Field(
        default=SecretStr(""), description="Bearer token that HTTP clients must send."
    )
    http_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Names under which HTTP clients reach it, separated by commas, without ports. "
        "Loopback and the address of --http are known; any other name is refused, so that no web "
        "page can point a name of its own at it.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="How much goes to stderr."
    )

    @field_validator("invite", "http_hosts", mode="before")
    @classmethod
    def _split_list(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part for part in re.split(r"[,\s]+", value) if part)
        return value

    @field_validator("select_tags", "select_names", "select_ids", "switch_off", mode="before")
    @classmethod
    def _split_at_commas(cls, value: object, info: Any) -> object:
        if not isinstance(value, str):
            return value
        parts = [part.strip() for part in value.split(",")]  # names and tags may have spaces
        if info.field_name == "switch_off":
            parts = [part.lower() for part in parts]
        return tuple(part for part in parts if part)

    @field_validator("invite")
    @classmethod
    def _check_invite(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for person in value:
            if not _MXID.fullmatch(person):
                raise ValueError(f"has {person!r}, which is no Matrix id")
        return tuple(dict.fromkeys(value))

    @field_validator("http_hosts")
    @classmethod
    def _check_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not _HOST_NAME.fullmatch(name):
                raise ValueError(f"has {name!r}, which is no bare host name (no scheme, no port)")
        return tuple(dict.fromkeys(value))

    @field_validator("matrix_server_name")
    @classmethod
    def _check_server_name(cls, value: str) -> str:
        if value and not _SERVER_NAME.fullmatch(value):
            raise ValueError(_NO_SERVER_NAME)
        return value

    @field_validator("log_level", "letta_backend", "keep_edits", mode="before")
    @classmethod
    def _fold_case(cls, value: object, info: Any) -> object:
        if isinstance(value, str):
            return value.upper() if info.field_name == "log_level" else value.lower()
        return value

    @field_validator("matrix_room_version", mode="before")
    @classmethod
    def _version_is_text(cls, value: object) -> object:
        return str(value) if isinstance(value, int) else value

    @field_validator("data_dir", "matrix_registration", mode="after")
    @classmethod
    def _expand_home(cls, value: Path | None) -> Path | None:
        return value.expanduser() if value is not None else None

    @property
    def has_matrix(self) -> bool:
        """Whether the bridge has a homeserver to work with."""
        return bool(self.matrix_url)

    @property
    def store_path(self) -> Path:
        return self.data_dir / "homeroom.db"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # What init gets is the TOML file: the environment wins over it.
        return env_settings, init_settings


def variable_of(field_name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + field_name.upper()


def load_config(toml_path: Path | None = None) -> Config:
    """The settings from the environment and, below it, from ``toml_path``.

    Raises:
        ConfigError: one sentence naming the variable, what is wrong with it and an example.
    """
    values = _read_toml(toml_path) if toml_path else {}
    try:
        config = Config(**values)
    except ValidationError as error:
        raise _explain(error) from None
    if config.has_matrix:
        for name in ("matrix_server_name", "matrix_registration"):
            if not getattr(config, name):
                raise ConfigError(
                    variable_of(name), "is missing but HOMEROOM_MATRIX_URL is set", EXAMPLES[name]
                )
    return config


def unknown_variables(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """Variables that look like ours and are not, each with the nearest name there is."""
    known = [variable_of(name) for name in Config.model_fields]
    return [
        (name, (difflib.get_close_matches(name, known, 1, 0) or [""])[0])
        for name in environ
        if name.startswith(PREFIX) and name not in known
    ]


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            "--config", f"cannot be read ({error.strerror})", "homeroom.toml"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("--config", f"is not valid TOML ({error})", "homeroom.toml") from None
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = key.upper().removeprefix(PREFIX).lower()
        if name not in Config.model_fields:
            near = difflib.get_close_matches(name, Config.model_fields, 1, 0)[0]
            raise ConfigError(
                key, f"in {path.name} is no setting, perhaps {near} is meant", EXAMPLES[near]
            )
        values[name] = value
    return values


def _explain(error: ValidationError) -> ConfigError:
    first = error.errors(include_url=False, include_input=False)[0]
    name = str(first["loc"][0]) if first["loc"] else "letta_url"
    if first["type"] == "missing":
        problem = "is missing"
    else:
        problem = first["msg"].removeprefix("Value error, ")
        if not problem.startswith(("must", "has", "is")):
            problem = "is wrong: " + problem[0].lower() + problem[1:]
    return ConfigError(variable_of(name), problem, EXAMPLES.get(name, "..."))


# --- The appservice registration ----------------------------------------------------------------


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
    if not _SERVER_NAME.fullmatch(server_name):
        raise ConfigError(named_by, _NO_SERVER_NAME, EXAMPLES["matrix_server_name"])
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
