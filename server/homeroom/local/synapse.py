"""A real Synapse as a child process: loopback only, SQLite, no federation.

Owns one directory with its configuration, keys, database and log. Knows nothing of Homeroom's
rooms. Invariant: server name, port and secrets are drawn once and stay, however often it restarts.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib.util
import json
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml

from homeroom.errors import ConfigError, Rejected, Unavailable
from homeroom.local.child import Child, free_port

_SECRETS = ("macaroon_secret_key", "form_secret", "registration_shared_secret")
_GENEROUS = {"per_second": 100, "burst_count": 1000}
"""For what one household's people do at once, on a server that only this machine reaches. They
join every agent's room (Synapse's default: ten, then one in ten seconds), and they try one client
after the other (the default: five logins, then one in five minutes). Wrong passwords and all else
keep Synapse's limits; the bridge itself is not limited."""


class Synapse:
    """A homeserver in ``directory``; nothing runs before ``start``.

    Args:
        registrations: appservice registration files it loads at start.
        bcrypt_rounds: work factor of people's passwords; only tests may lower it.
        extra: top-level settings laid over ours.
    Raises:
        ConfigError: Synapse is not installed, or the directory belongs to another server name.
    """

    def __init__(
        self,
        directory: Path,
        server_name: str = "homeroom.local",
        *,
        registrations: Sequence[Path] = (),
        bcrypt_rounds: int = 12,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        if importlib.util.find_spec("synapse") is None:
            raise ConfigError(
                "HOMEROOM_MATRIX_URL",
                "is not set and the embedded homeserver is not installed "
                "(pip install 'homeroom[local]'); install it or name a homeserver of your own",
                "http://127.0.0.1:8008",
            )
        self.server_name = server_name
        self._dir = directory.resolve()
        self._registrations = [path.resolve() for path in registrations]
        self._bcrypt_rounds, self._extra = bcrypt_rounds, dict(extra or {})
        self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._identity = self._load_identity()
        self._child = Child(
            "Synapse",
            [sys.executable, "-m", "synapse.app.homeserver", "-c", self._dir / "homeserver.yaml"],
            cwd=self._dir,
            log=self._dir / "synapse.log",
        )

    @property
    def url(self) -> str:
        """Base URL of its client API; the same after every restart."""
        return f"http://127.0.0.1:{self._identity['port']}"

    @property
    def alive(self) -> bool:
        return self._child.alive

    @property
    def log(self) -> Path:
        return self._child.log

    def start(self, timeout_s: float = 60.0) -> None:
        """Starts it and returns when it answers. Blocks; call it from a thread that stays.

        Raises:
            ChildFailed: it ended or was not ready in time; the text has the end of its log.
        """
        self._write_private("homeserver.yaml", yaml.safe_dump(self._settings(), sort_keys=False))
        self._write_private("log.yaml", yaml.safe_dump(_LOG_SETTINGS))
        self._child.start()
        self._child.wait_ready(self._is_ready, timeout_s)

    def stop(self) -> None:
        """Ends it in an orderly way. Safe to call twice."""
        self._child.stop()

    def kill(self) -> None:
        """kill -9."""
        self._child.kill()

    def check(self) -> None:
        """Raises ChildFailed if it has ended by itself."""
        self._child.check()

    def register_person(self, localpart: str, password: str, *, admin: bool = False) -> str:
        """The Matrix id of the person, registered now or before (the password then stays).

        Raises:
            Rejected: the name is not allowed, e.g. it lies in a ghosts' namespace.
            Unavailable: the homeserver does not answer.

        Source: https://element-hq.github.io/synapse/latest/admin_api/register_api.html
        """
        path = f"{self.url}/_synapse/admin/v1/register"
        try:
            with httpx.Client(trust_env=False, timeout=30.0) as client:
                nonce = client.get(path).json()["nonce"]
                answer = client.post(
                    path,
                    json={
                        "nonce": nonce,
                        "username": localpart,
                        "password": password,
                        "admin": admin,
                        "mac": self._registration_mac(nonce, localpart, password, admin),
                        "inhibit_login": True,
                    },
                )
        except httpx.HTTPError:
            raise Unavailable("matrix", "the embedded homeserver does not answer") from None
        if not answer.is_success:
            problem = answer.json()
            if problem.get("errcode") != "M_USER_IN_USE":
                raise Rejected("matrix", str(problem.get("error")), str(problem.get("errcode")))
        return f"@{localpart}:{self.server_name}"

    def _registration_mac(self, nonce: str, localpart: str, password: str, admin: bool) -> str:
        role = "admin" if admin else "notadmin"
        text = "\0".join([nonce, localpart, password, role])
        key = str(self._identity["registration_shared_secret"])
        return hmac.new(key.encode(), text.encode(), hashlib.sha1).hexdigest()

    def _is_ready(self) -> bool:
        try:
            answer = httpx.get(f"{self.url}/_matrix/client/versions", trust_env=False, timeout=5.0)
        except httpx.TransportError:
            return False
        return answer.is_success

    def _load_identity(self) -> dict[str, Any]:
        path = self._dir / "identity.json"
        if path.exists():
            identity: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if identity["server_name"] != self.server_name:
                raise ConfigError(
                    "HOMEROOM_MATRIX_SERVER_NAME",
                    f"is {self.server_name!r} but the homeserver in {self._dir} is "
                    f"{identity['server_name']!r}, and a homeserver cannot change its name; keep "
                    "that name or use another directory",
                    identity["server_name"],
                )
            return identity
        identity = {"server_name": self.server_name, "port": free_port()}
        identity |= {name: secrets.token_urlsafe(32) for name in _SECRETS}
        self._write_private("identity.json", json.dumps(identity, indent=1))
        return identity

    def _settings(self) -> dict[str, Any]:
        listener = {
            "port": self._identity["port"],
            "type": "http",
            "tls": False,
            "bind_addresses": ["127.0.0.1"],
            "resources": [{"names": ["client"], "compress": False}],
        }
        settings = {
            "server_name": self.server_name,
            "public_baseurl": f"{self.url}/",
            "report_stats": False,
            "pid_file": str(self._dir / "synapse.pid"),
            "listeners": [listener],
            "database": {"name": "sqlite3", "args": {"database": str(self._dir / "synapse.db")}},
            "log_config": str(self._dir / "log.yaml"),
            "media_store_path": str(self._dir / "media"),
            "signing_key_path": str(self._dir / "signing.key"),
            "trusted_key_servers": [],
            "suppress_key_server_warning": True,
            "federation_domain_whitelist": [],
            "enable_registration": False,
            "url_preview_enabled": False,
            "presence": {"enabled": False},
            # Agents have no address book: people find a ghost by its name.
            "user_directory": {"enabled": True, "search_all_users": True},
            "bcrypt_rounds": self._bcrypt_rounds,
            "rc_joins": {"local": _GENEROUS},
            "rc_login": {"address": _GENEROUS, "account": _GENEROUS},
            "rc_joins_per_room": _GENEROUS,
            "app_service_config_files": [str(path) for path in self._registrations],
        }
        return settings | {name: self._identity[name] for name in _SECRETS} | self._extra

    def _write_private(self, name: str, text: str) -> None:
        fd = os.open(self._dir / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)


_LOG_SETTINGS = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"level": "WARNING", "handlers": ["console"]},
}
