"""The file of tokens: what it holds, who may make what, and what a look-up says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from homeroom.chats import owner_of
from homeroom.errors import ConfigError, Misuse, NotFound
from homeroom_tools.caller import RESERVED, SCOPES, Caller, on_stdio
from homeroom_tools.tokens import Tokens, list_tokens, new_token, revoke_token
from support.fake_process import environment


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "tokens.json"


def test_a_token_is_found_under_its_name_with_its_scopes(path: Path) -> None:
    phone = new_token(path, "phone", ["chat", "read"])
    desk = new_token(path, "desk", ["operate"])
    tokens = Tokens(path, "shared secret")
    assert tokens.find(phone) == Caller("phone", frozenset({"read", "chat"}))
    assert tokens.find(desk) == Caller("desk", frozenset({"operate"}))
    assert tokens.find("shared secret") == Caller("http-token", frozenset(SCOPES))
    assert phone != desk and len(phone) > 40


def test_a_token_of_an_agents_client_says_whose_it_is_and_older_files_name_nobody(
    path: Path,
) -> None:
    ada = new_token(path, "ada", ["chat"], agent="agent-1")
    tokens = Tokens(path)
    assert tokens.find(ada) == Caller("ada", frozenset({"chat"}), "agent-1")
    file = json.loads(path.read_text())
    for agent, found in ((None, Caller("ada", frozenset({"chat"}))), (7, None)):
        file["tokens"][0]["agent"] = agent
        if agent is None:
            del file["tokens"][0]["agent"]
        path.write_text(json.dumps(file))
        if found:
            assert tokens.find(ada) == found
        else:
            with pytest.raises(ConfigError, match="damaged"):
                tokens.find(ada)


def test_a_stdio_client_of_an_agent_is_a_principal_of_its_own() -> None:
    assert on_stdio() == Caller("stdio")
    assert on_stdio("Ada").agent == "Ada"
    assert len({owner_of(on_stdio(agent).name) for agent in ("", "Ada", "Bob")}) == 3


@pytest.mark.parametrize("given", ["", "x", "hr_", "\udcff", "shared secret "])
def test_what_is_no_token_finds_nobody(path: Path, given: str) -> None:
    token = new_token(path, "phone", ["read"])
    tokens = Tokens(path, "shared secret")
    assert tokens.find(given) is None
    assert tokens.find(token[:-1]) is None and tokens.find(token + "x") is None
    (kept,) = list_tokens(path)
    assert tokens.find(kept.sha256) is None
    assert Tokens(path).find("") is None and Tokens().find("") is None


def test_the_file_holds_hashes_and_is_its_owners_alone(path: Path) -> None:
    token = new_token(path, "phone", ["read"])
    assert token not in path.read_text() and token[5:25] not in path.read_text()
    for file in path.parent.iterdir():
        assert file.stat().st_mode & 0o077 == 0, file
    assert path.parent.stat().st_mode & 0o077 == 0


def test_a_revoked_token_is_refused_from_then_on_by_whoever_knew_it(path: Path) -> None:
    first, second = new_token(path, "one", ["read"]), new_token(path, "two", ["read"])
    tokens = Tokens(path)
    assert tokens.find(first) and tokens.find(second)
    assert revoke_token(path, "one") == 1
    assert tokens.find(first) is None and tokens.find(second)
    assert revoke_token(path, "two") == 0
    assert not tokens.exist and tokens.find(second) is None


def test_revoking_the_last_token_opens_no_door(path: Path) -> None:
    tokens = Tokens(path)
    assert not tokens.are_needed
    new_token(path, "one", ["read"])
    assert tokens.are_needed
    revoke_token(path, "one")
    assert tokens.are_needed and not tokens.exist
    path.unlink()
    assert not tokens.are_needed


@pytest.mark.parametrize("name", ["", "-x", "Phone", "a b", "a/b", "x" * 41, "é", *RESERVED])
def test_an_unfit_name_is_refused_and_said_why(path: Path, name: str) -> None:
    with pytest.raises(Misuse, match="1 to 40"):
        new_token(path, name, ["read"])
    assert not path.exists()


@pytest.mark.parametrize("scopes", [[], ["admin"], ["read", "write"]])
def test_a_token_needs_scopes_that_there_are(path: Path, scopes: list[str]) -> None:
    with pytest.raises(Misuse, match="read, chat, memory, operate"):
        new_token(path, "phone", scopes)


def test_a_name_is_given_once(path: Path) -> None:
    new_token(path, "phone", ["read"])
    with pytest.raises(Misuse, match="Revoke it first"):
        new_token(path, "phone", ["chat"])
    with pytest.raises(NotFound, match="phone"):
        revoke_token(path, "fone")
    revoke_token(path, "phone")
    new_token(path, "phone", ["chat"])
    assert [token.scopes for token in list_tokens(path)] == [("chat",)]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"version": 1}', '{"version": 2, "tokens": []}', '{"version": 1, "tokens": 7}']
    + [
        json.dumps(
            {"version": 1, "tokens": [{"name": "x", "scopes": scopes, "created_s": 1, "sha256": h}]}
        )
        for scopes, h in ((["all"], "00" * 32), (["read"], "00"), (["read"], "xx" * 32))
    ],
)
def test_a_file_that_is_not_ours_lets_nobody_in_and_says_so(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text)
    path.chmod(0o600)
    tokens = Tokens(path, "shared secret")
    assert tokens.are_needed
    with pytest.raises(ConfigError, match=r"tokens\.json"):
        tokens.find("shared secret")
    with pytest.raises(ConfigError):
        new_token(path, "phone", ["read"])
    assert path.read_text() == text


def test_a_file_that_others_can_write_is_not_believed(path: Path) -> None:
    token = new_token(path, "phone", ["read"])
    path.chmod(0o620)
    with pytest.raises(ConfigError, match="chmod 600"):
        Tokens(path).find(token)


def test_two_makers_at_once_lose_no_token(path: Path) -> None:
    make = (
        "import sys; from pathlib import Path; from homeroom_tools.tokens import new_token; "
        "[new_token(Path(sys.argv[1]), f'{sys.argv[2]}-{n}', ['read']) for n in range(20)]"
    )
    makers = [
        subprocess.Popen([sys.executable, "-c", make, str(path), name], env=environment())
        for name in ("one", "two", "three")
    ]
    assert [maker.wait(60) for maker in makers] == [0, 0, 0]
    assert len(list_tokens(path)) == 60
