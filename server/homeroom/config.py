"""Every knob, with its unit, its default and its reason; and the appservice registration file.

Owns the names of the environment variables (a contract) and the reading of both files. Knows
nothing of who uses a setting. Invariant: a Config that exists is valid, and its secrets are
SecretStr, so that no log line or traceback can show them.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import platformdirs
from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from homeroom.errors import ConfigError

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
    "accept_invites": "invited-people,@guest:example.org,partner.example",
    "invite_poll_s": "30",
    "keep_edits": "topic",
    "space_name": "Letta Agents",
    "retire_after_s": "7200",
    "switch_off": "rename,retire",
    "select_tags": "matrix,team",
    "select_names": "Support *,Ada",
    "select_ids": "agent-597b5756-2915-4560-ba6b-91005f085166",
    "history_count": "10",
    "sync_interval_s": "30",
    "skip_after": "5",
    "audit_interval_s": "86400",
    "turn_silence_s": "300",
    "max_turns": "10",
    "catch_up_s": "3600",
    "max_waiting": "100",
    "max_waiting_total": "10000",
    "quiet_s": "2",
    "status_events": "true",
    "keep_days": "30",
    "hop_limit": "6",
    "pair_budget": "60",
    "stdio_agent": "agent-597b5756-2915-4560-ba6b-91005f085166",
    "memory_notices": "true",
    "read_only": "true",
    "toolsets": "agents,chat,memory,operate",
    "exclude_tools": "update_agent_memory",
    "data_dir": "/var/lib/homeroom",
    "http_token": "a-long-random-string",
    "http_hosts": "homeroom.example.org",
    "http_rate": "50",
    "log_level": "INFO",
}
"""One value per setting that would be accepted; shown in every complaint about it."""

SwitchOff = Literal["rename", "invites", "retire", "spaces", "avatars", "accept_invites"]
INVITED_PEOPLE, LOCAL, NOBODY = "invited-people", "local", "nobody"
_MXID = re.compile(r"@[^\s:]+:[^\s]+")
NO_SERVER_NAME = "must be a bare server name, without a scheme or a slash"
_HOST_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
SERVER_NAME = re.compile(r"[A-Za-z0-9.\-\[\]:]{1,230}")


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
    accept_invites: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(INVITED_PEOPLE,),
        description="Whose invitations into other rooms and direct chats agents accept: "
        "`invited-people` (those of HOMEROOM_INVITE), `local` (every user of the homeserver), "
        "`nobody`, or Matrix ids and domains; separated by commas. Others are declined.",
    )
    invite_poll_s: float = Field(
        default=30.0,
        ge=1.0,
        le=3600.0,
        description="Seconds within which every agent's user is asked for new invitations. Where "
        "the homeserver pushes, a push is quicker and this is ten times slower.",
    )
    keep_edits: Literal["nothing", "name", "topic", "both"] = Field(
        default="topic",
        description="Which detail of a room stays as a person has set it. What is not named here "
        "is put back by the next sync.",
    )
    space_name: str = Field(
        default="Letta Agents",
        max_length=120,
        description="Name of the Matrix space in which all agent rooms hang.",
    )
    retire_after_s: float = Field(
        default=7200.0,
        ge=0.0,
        le=2592000.0,
        description="Seconds an agent must be gone from Letta before its room is marked as "
        "retired: longer than it takes to move or restore a Letta.",
    )
    switch_off: Annotated[tuple[SwitchOff, ...], NoDecode] = Field(
        default=(),
        description="Parts of the sync that are left to people: `rename` (names and topics after "
        "the start), `invites`, `retire`, `spaces`, `avatars`, `accept_invites` (invitations of "
        "agents are neither accepted nor declined); separated by commas.",
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
    history_count: int = Field(
        default=0,
        ge=0,
        le=100,
        description="How many of an agent's last exchanges with people, over all its conversations "
        "in Letta, are written into its new room, once and marked as history. Everybody who is "
        "invited can read them.",
    )
    sync_interval_s: float = Field(
        default=30.0, ge=1.0, le=86400.0, description="Seconds between two reconciliations."
    )
    skip_after: int = Field(
        default=5,
        ge=1,
        le=1000,
        description="Failures in a row after which an agent is skipped: it is then tried after a "
        "minute or two, later once an hour, and not at every sync. Others do not wait for it.",
    )
    audit_interval_s: float = Field(
        default=86400.0,
        ge=1.0,
        le=31_536_000.0,
        description="Seconds between two audits, which look at every room, alias and agent's user "
        "themselves. Between them what the hub's sync tells must do; it does not tell of a room "
        "that was deleted whole.",
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
    max_waiting_total: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="The same for all agents together.",
    )
    quiet_s: float = Field(
        default=0.0,
        ge=0.0,
        le=60.0,
        description="Seconds. What one person writes in a room with pauses shorter than this "
        "becomes one turn, which begins at the latest after five times as long. 0: a turn for "
        "every message.",
    )
    status_events: bool = Field(
        default=False,
        description="Posts how each message fares as `com.beeper.message_send_status`, for clients "
        "that show it.",
    )
    keep_days: float = Field(
        default=30.0,
        ge=1.0,
        le=3650.0,
        description="Days that finished messages, and what is known of events, are kept. What was "
        "given up is kept until a person decides. Older events are never answered.",
    )
    hop_limit: int = Field(
        default=6,
        ge=1,
        le=100,
        description="How often one message from agent to agent may lead to the next. Over it the "
        "two are paused for an hour, or until somebody writes !resume in the room of either.",
    )
    pair_budget: int = Field(
        default=60,
        ge=1,
        le=100_000,
        description="Messages an hour that two agents may send each other. Over it they are paused "
        "until that hour is over, or somebody writes !resume.",
    )
    stdio_agent: str = Field(
        default="",
        max_length=200,
        description="The agent (id or name) whose process has started `homeroom serve` over stdio: "
        "what it sends counts as an agent's. Set it in the env of that agent's MCP configuration.",
    )
    memory_notices: bool = Field(
        default=False,
        description="Whether an agent's room is told, by a notice, which of its memory blocks was "
        "changed over MCP and by whom; not what stands in it.",
    )
    read_only: bool = Field(
        default=False,
        description="Only tools that change nothing, whatever the next two say.",
    )
    toolsets: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("agents", "chat", "memory"),
        description="Which groups of tools there are: `agents`, `chat`, `memory`, `operate`; "
        "separated by commas. Every model reads every tool before its first word.",
    )
    exclude_tools: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Tools that there are not, by name, separated by commas."
    )
    data_dir: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("homeroom")),
        description="Where the store lives. One directory, one Homeroom.",
    )
    http_token: SecretStr = Field(
        default=SecretStr(""),
        description="A bearer token for HTTP clients that may do everything. Better are those that"
        " `homeroom token` makes: they have names and scopes, and are kept as hashes.",
    )
    http_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Names under which HTTP clients reach it, separated by commas, without ports. "
        "Loopback and the address of --http are known; any other name is refused, so that no web "
        "page can point a name of its own at it.",
    )
    http_rate: float = Field(
        default=50.0, ge=0.0, le=100_000.0,
        description="Requests a second that one HTTP caller may make in the long run, four seconds'"
        " worth of them at once; more get 429. No client in use comes near it. 0: no limit.",
    )  # fmt: skip
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="How much goes to stderr."
    )

    @field_validator(
        "invite", "http_hosts", "accept_invites", "toolsets", "exclude_tools", mode="before"
    )
    @classmethod
    def _split_list(cls, value: object) -> object:
        return split_names(value) if isinstance(value, str) else value

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

    @field_validator("space_name")
    @classmethod
    def _check_space_name(cls, value: str) -> str:
        name = " ".join(value.split())
        if not name:
            raise ValueError("must not be blank; spaces in HOMEROOM_SWITCH_OFF goes without one")
        return name

    @field_validator("accept_invites")
    @classmethod
    def _check_accept(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for who in value:
            if who in (INVITED_PEOPLE, LOCAL, NOBODY) or _MXID.fullmatch(who):
                continue
            if not SERVER_NAME.fullmatch(who) or not re.search(r"[.:]|^localhost$", who):
                words = f"{INVITED_PEOPLE}, {LOCAL}, {NOBODY}"
                raise ValueError(f"has {who!r}, which is none of {words}, no Matrix id, no domain")
        if NOBODY in value and len(value) > 1:
            raise ValueError(f"has {NOBODY} beside others, which contradict it")
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
        if value and not SERVER_NAME.fullmatch(value):
            raise ValueError(NO_SERVER_NAME)
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


def split_names(text: str | None) -> tuple[str, ...] | None:
    """Names between commas or spaces; None for None."""
    return None if text is None else tuple(part for part in re.split(r"[,\s]+", text) if part)


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
