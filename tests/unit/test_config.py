"""Settings: names, sources, and the one sentence that a wrong one gets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from homeroom.config import EXAMPLES, Config, load_config, unknown_variables, variable_of
from homeroom.errors import ConfigError
from homeroom.registration import load_registration, new_registration, write_registration


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("HOMEROOM_"):
            monkeypatch.delenv(name)


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "homeroom.toml"
    path.write_text(
        'HOMEROOM_LETTA_URL = "http://file:1"\nsync_interval_s = 5\ninvite = ["@a:b.c"]\n'
    )
    monkeypatch.setenv("HOMEROOM_LETTA_URL", "ws://env:2/")
    config = load_config(path)
    assert config.letta_url == "ws://env:2"
    assert config.sync_interval_s == 5
    assert config.invite == ("@a:b.c",)
    assert config.letta_backend == "auto"


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOMEROOM_LETTA_URL", "http://l:1")
    monkeypatch.setenv("HOMEROOM_MATRIX_URL", "")
    assert not load_config().has_matrix


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("letta_url", None, "is missing"),
        ("switch_off", "rename,names", "'spaces', 'avatars' or 'accept_invites'"),
        ("space_name", "  ", "must not be blank"),
        ("accept_invites", "everybody", "which is none of invited-people"),
        ("accept_invites", "local,nobody", "has nobody beside others"),
        ("invite_poll_s", "0", "greater than or equal to 1"),
        ("keep_edits", "all", "'nothing', 'name', 'topic' or 'both'"),
        ("retire_after_s", "-1", "greater than or equal to 0"),
        ("letta_url", "localhost:8283", "must be a URL"),
        ("letta_url", "http://user:pw@host", "must not carry a user"),
        ("letta_backend", "rset", "'auto', 'rest', 'app-server' or 'openai'"),
        ("matrix_url", "matrix.org", "must be a URL"),
        ("matrix_server_name", "https://hs", "must be a bare server name"),
        ("http_hosts", "homeroom.example.org, http://x", "has 'http://x', which is no bare host"),
        ("http_hosts", "homeroom.example.org:8017", "no bare host name"),
        ("invite", "@a:b.c, bob", "has 'bob', which is no Matrix id"),
        ("sync_interval_s", "soon", "valid number"),
        ("sync_interval_s", "0", "greater than or equal to 1"),
        ("log_level", "LOUD", "'DEBUG'"),
    ],
)
def test_a_wrong_value_gets_one_sentence_with_its_variable_and_an_example(
    name: str, value: str | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOMEROOM_LETTA_URL", "http://l:1")
    if value is None:
        monkeypatch.delenv(variable_of(name))
    else:
        monkeypatch.setenv(variable_of(name), value)
    with pytest.raises(ConfigError) as caught:
        load_config()
    text = str(caught.value)
    assert text.startswith(variable_of(name)) and says in text
    assert text.endswith(f"{variable_of(name)}={EXAMPLES[name]}")
    assert "\n" not in text


def test_half_a_matrix_names_the_missing_half(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOMEROOM_LETTA_URL", "http://l:1")
    monkeypatch.setenv("HOMEROOM_MATRIX_URL", "http://m:1")
    with pytest.raises(ConfigError, match="HOMEROOM_MATRIX_SERVER_NAME is missing"):
        load_config()
    monkeypatch.setenv("HOMEROOM_MATRIX_SERVER_NAME", "hs.test")
    with pytest.raises(ConfigError, match="HOMEROOM_MATRIX_REGISTRATION is missing"):
        load_config()


def test_an_unknown_key_in_the_file_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    path = tmp_path / "homeroom.toml"
    path.write_text('leta_url = "http://l:1"')
    with pytest.raises(
        ConfigError, match=r"leta_url in homeroom\.toml is no setting, perhaps letta"
    ):
        load_config(path)


def test_a_file_that_is_missing_or_broken_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("a = ")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(tmp_path / "broken.toml")


def test_a_misspelt_variable_is_noticed() -> None:
    assert unknown_variables({"HOMEROOM_LETA_URL": "x", "HOMEROOM_INVITE": "y", "PATH": ""}) == [
        ("HOMEROOM_LETA_URL", "HOMEROOM_LETTA_URL")
    ]


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOMEROOM_LETTA_URL", "http://l:1")
    monkeypatch.setenv("HOMEROOM_LETTA_TOKEN", "hunter2")
    monkeypatch.setenv("HOMEROOM_HTTP_TOKEN", "hunter3")
    assert "hunter" not in repr(load_config())


def test_every_setting_has_an_example_and_a_description() -> None:
    assert set(EXAMPLES) == set(Config.model_fields)
    assert all(field.description for field in Config.model_fields.values())


# --- the registration ----------------------------------------------------------------------------


def test_a_registration_is_for_its_owner_alone_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "registration.yaml"
    write_registration(new_registration("hs.test"), path)
    assert path.stat().st_mode & 0o777 == 0o600
    registration = load_registration(path)
    assert registration.url is None
    assert registration.owns_user("@agent_1:hs.test")
    assert not registration.owns_user("@agent_1:hsxtest")
    assert not registration.owns_user("@you:hs.test")
    assert registration.owns_alias("#agent_1:hs.test")
    assert registration.as_token.get_secret_value() not in repr(registration)


def test_tokens_are_fresh_each_time() -> None:
    one, two = new_registration("hs.test"), new_registration("hs.test")
    assert len({one["as_token"], one["hs_token"], two["as_token"], two["hs_token"]}) == 4


def test_a_registration_in_use_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "registration.yaml"
    write_registration(new_registration("hs.test"), path)
    before = path.read_text()
    with pytest.raises(ConfigError, match="exists"):
        write_registration(new_registration("hs.test"), path)
    assert path.read_text() == before
    path.chmod(0o644)
    write_registration(new_registration("hs.test"), path, force=True)
    assert path.read_text() != before and path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not valid YAML"),
        ("id: x", "url is wrong"),
        (yaml.safe_dump(new_registration("hs") | {"as_token": ""}), "must not be empty"),
    ],
)
def test_a_broken_registration_says_what_is_wrong_and_no_token(
    tmp_path: Path, text: str, says: str
) -> None:
    path = tmp_path / "registration.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        load_registration(path)
    tokens = re.findall(r"_token: (\S{20,})", text)
    assert not any(token in str(caught.value) for token in tokens)


def test_names_and_tags_may_have_spaces_and_parts_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOMEROOM_LETTA_URL", "http://l:1")
    monkeypatch.setenv("HOMEROOM_SELECT_NAMES", "Support *, Ada,")
    monkeypatch.setenv("HOMEROOM_SWITCH_OFF", "Rename, retire")
    config = load_config()
    assert config.select_names == ("Support *", "Ada")
    assert config.switch_off == ("rename", "retire")
