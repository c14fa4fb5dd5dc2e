"""The bearer tokens of HTTP clients: made by a person, kept as hashes, each with a name and scopes.

Owns the file ``tokens.json`` in the data directory. A file of its own and not the store: the gate
needs it before the store is open, and a copy of the store that somebody hands on to have a fault
looked into must not say who may come in. Only hashes are kept; a token has 256 random bits, so a
plain SHA-256 is as good as a slow hash. Every look-up sees the file as it is on disk, so a revoked
token is refused from the next request on.
Invariant: once somebody made a token, no request passes without one, though all were revoked.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from homeroom.errors import ConfigError, Misuse, NotFound
from homeroom_tools.caller import RESERVED, SCOPES, Caller, Scope

TOKENS_FILE = "tokens.json"
PREFIX = "hr_"
"""What a token begins with, so that scanners for leaked secrets can know it."""
_TOKEN_BYTES = 32
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Token:
    """What is kept of a token: everything but itself."""

    name: str
    sha256: str
    scopes: tuple[Scope, ...]
    created_s: int
    """Seconds since 1970, UTC."""
    agent: str = ""
    """Letta's id of the agent whose client holds it; empty for a person's."""


class Tokens:
    """Who may come in: the holders of the tokens in ``path`` and of the one in the settings.

    ``shared`` is HOMEROOM_HTTP_TOKEN, which has all scopes; empty means there is none.
    """

    def __init__(self, path: Path | None = None, shared: str = "") -> None:
        self._path = path
        self._shared = _digest(shared) if shared else b""
        self._seen: tuple[int, ...] | None = None
        self._known: list[tuple[bytes, Caller]] = []

    @property
    def are_needed(self) -> bool:
        """Whether nobody comes in without one."""
        return bool(self._shared) or (self._path is not None and self._path.exists())

    @property
    def exist(self) -> bool:
        """Whether there is one that would be accepted. Raises ConfigError as ``find`` does."""
        self._refresh()
        return bool(self._shared or self._known)

    def find(self, given: str) -> Caller | None:
        """The caller whose token ``given`` is. Takes as long for a wrong one as for a right one.

        Raises:
            ConfigError: the file cannot be read or is not ours.
        """
        self._refresh()
        digest = _digest(given)
        found = None
        if hmac.compare_digest(digest, self._shared or b"\0" * len(digest)) and self._shared:
            found = Caller(RESERVED[-1])
        for known, caller in self._known:
            if hmac.compare_digest(digest, known):
                found = caller
        return found

    def _refresh(self) -> None:
        if self._path is None:
            return
        try:
            stat = os.stat(self._path)
        except FileNotFoundError:
            self._seen, self._known = None, []
            return
        # The file is replaced as a whole, so the inode tells what a coarse clock would not.
        seen = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if seen != self._seen:
            tokens = list_tokens(self._path)
            self._known = [
                (
                    bytes.fromhex(token.sha256),
                    Caller(token.name, frozenset(token.scopes), token.agent),
                )
                for token in tokens
            ]
            self._seen = seen


def new_token(path: Path, name: str, scopes: Collection[str], agent: str = "") -> str:
    """Makes a token and returns it: the only time that it can be seen.

    ``agent`` is the id of the agent whose client will hold it, if it is one's.

    Raises:
        Misuse: the name is taken or unfit, or there is no scope or an unknown one.
        ConfigError: the file cannot be read or written.
    """
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise Misuse(
            "A token's name has 1 to 40 of a-z, 0-9, dot, dash and underscore, begins with a letter"
            f" or digit, and is none of {', '.join(RESERVED)}. Name who will hold it."
        )
    known = tuple(scope for scope in SCOPES if scope in scopes)
    if not scopes or len(known) < len(set(scopes)):
        raise Misuse(f"A token needs at least one scope of {', '.join(SCOPES)}: --scope read.")
    token = PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)
    with _locked(path):
        tokens = list_tokens(path)
        if name in [other.name for other in tokens]:
            raise Misuse(
                f"There is a token called {name} already. Revoke it first, or choose another name."
            )
        made = Token(name, _digest(token).hex(), known, int(time.time()), agent)
        _write(path, [*tokens, made])
    return token


def list_tokens(path: Path) -> list[Token]:
    """All tokens in the order in which they were made; none if there is no file.

    Raises:
        ConfigError: the file cannot be read, others may write it, or it is not ours.
    """
    try:
        if sys.platform != "win32" and os.stat(path).st_mode & 0o022:
            raise _unfit(path, "can be written by other users; run: chmod 600 on it")
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["version"] != _VERSION:
            raise _unfit(path, "was written by a newer Homeroom")
        return [_token(fields) for fields in data["tokens"]]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unfit(path, f"cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        raise _unfit(path, "is damaged; restore it, or move it away and make new tokens") from None


def revoke_token(path: Path, name: str) -> int:
    """Forgets a token; returns how many are left.

    Raises:
        NotFound: there is none of that name.
        ConfigError: the file cannot be read or written.
    """
    with _locked(path):
        tokens = list_tokens(path)
        left = [token for token in tokens if token.name != name]
        if len(left) == len(tokens):
            raise NotFound("token", name, [token.name for token in tokens])
        _write(path, left)
    return len(left)


# --- the file ------------------------------------------------------------------------------------


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()


def _token(fields: dict[str, Any]) -> Token:
    scopes = tuple(scope for scope in SCOPES if scope in fields["scopes"])
    if len(scopes) != len(fields["scopes"]) or len(bytes.fromhex(fields["sha256"])) != 32:
        raise ValueError
    agent = fields.get("agent", "")  # files from before it have none
    if not isinstance(agent, str):
        raise ValueError
    return Token(str(fields["name"]), fields["sha256"], scopes, int(fields["created_s"]), agent)


def _write(path: Path, tokens: Sequence[Token]) -> None:
    text = json.dumps(
        {"version": _VERSION, "tokens": [asdict(token) for token in tokens]}, indent=1
    )
    fresh = path.with_suffix(".new")
    try:
        fresh.unlink(missing_ok=True)
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except OSError as error:
        raise _unfit(path, f"cannot be written ({error.strerror})") from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone among the processes that change the file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _unfit(path, f"cannot be written ({error.strerror})") from None
    try:
        if sys.platform != "win32":  # there, two people do not make tokens at once
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _unfit(path: Path, problem: str) -> ConfigError:
    return ConfigError(
        "HOMEROOM_DATA_DIR", f"has {path.name}, which {problem}", "/var/lib/homeroom"
    )
