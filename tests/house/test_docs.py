"""README, docs/ and the example configuration agree with the code.

``python tests/house/test_docs.py`` rewrites the table of settings in docs/configuration.md.
"""

from __future__ import annotations

import json
import re
import typing
from pathlib import Path

import pytest
from annotated_types import Ge, Le
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from homeroom.config import EXAMPLES, PREFIX, Config, load_config, variable_of
from homeroom.main import cli
from homeroom_tools.table import BEGIN as TOOLS_BEGIN

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
SETTINGS = ROOT / "docs" / "configuration.md"
EXAMPLE = ROOT / "claude_desktop_config.example.json"
BEGIN, END = "<!-- settings:begin -->", "<!-- settings:end -->"
PAGES = sorted([README, ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
VARIABLES = {variable_of(name) for name in Config.model_fields}


# --- the table of settings -----------------------------------------------------------------------


def settings_table() -> str:
    """A markdown table of every setting, from the code that reads it."""
    rows = [
        f"| `{variable_of(name)}` | {_default(name, field)} | {_accepted(field)} "
        f"| {field.description} | `{EXAMPLES[name]}` |"
        for name, field in Config.model_fields.items()
    ]
    head = [
        "| variable | default | accepts | what it is, and why | example |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*head, *rows])


def with_settings(text: str) -> str:
    """``text`` with the present table between its markers, which must be there once each."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end and BEGIN not in after and END not in after, f"need one {BEGIN} … {END}"
    return f"{before}{BEGIN}\n{settings_table()}\n{END}{after}"


def _default(name: str, field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    if name == "data_dir":
        return "per platform"
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    if isinstance(field.default, tuple):
        return f"`{','.join(field.default)}`" if field.default else "none"
    default = field.default.get_secret_value() if isinstance(field.default, SecretStr) else None
    default = field.default if default is None else default
    if isinstance(default, tuple):  # as it is written in a variable
        default = ",".join(str(part) for part in default)
    return (
        f"`{default:g}`"
        if isinstance(default, float)
        else f"`{default}`"
        if default or default == 0
        else "none"
    )


def _accepted(field: FieldInfo) -> str:
    values = typing.get_args(field.annotation)
    if typing.get_origin(field.annotation) is typing.Literal:
        return ", ".join(f"`{value}`" for value in values)
    low = next((rule.ge for rule in field.metadata if isinstance(rule, Ge)), None)
    high = next((rule.le for rule in field.metadata if isinstance(rule, Le)), None)
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    if field.annotation is bool:
        return "`true`, `false`"
    if field.annotation is SecretStr:
        return "a secret"
    if Path in (field.annotation, *values):
        return "a path"
    return "a list" if typing.get_origin(field.annotation) is tuple else "text"


def test_every_setting_is_in_the_table_of_settings_as_the_code_has_it() -> None:
    text = SETTINGS.read_text(encoding="utf-8")
    assert text == with_settings(text), "run: python tests/house/test_docs.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_no_setting_that_does_not_exist(page: Path) -> None:
    named = set(re.findall(rf"\b{PREFIX}[A-Z_]*[A-Z]\b", page.read_text(encoding="utf-8")))
    assert named <= VARIABLES


def test_the_settings_in_a_toml_example_are_accepted(tmp_path: Path) -> None:
    examples = re.findall(r"```toml\n(.*?)```", SETTINGS.read_text(encoding="utf-8"), re.DOTALL)
    assert examples
    for number, example in enumerate(examples):
        path = tmp_path / f"{number}.toml"
        path.write_text(example, encoding="utf-8")
        load_config(path)


# --- the example configuration -------------------------------------------------------------------


def test_the_example_configuration_of_claude_desktop_starts_homeroom(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (server,) = json.loads(EXAMPLE.read_text(encoding="utf-8"))["mcpServers"].values()
    assert server["args"][0] in cli.commands
    assert set(server["env"]) <= VARIABLES
    for name, value in server["env"].items():
        monkeypatch.setenv(name, value)
    assert load_config().has_matrix


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_json_on_a_page_parses_and_names_settings_that_exist(page: Path) -> None:
    for block in re.findall(r"```json\n *(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        data = json.loads(block)
        servers = data.get("mcpServers") or data.get("servers") or data.get("context_servers")
        for server in (servers or {}).values():
            assert set(server.get("env", {})) <= VARIABLES


# --- commands, links and paths -------------------------------------------------------------------


def test_every_command_and_option_is_in_the_readme() -> None:
    text = README.read_text(encoding="utf-8")
    for name, command in cli.commands.items():
        assert f"`homeroom {name}" in text, name
        for option in command.params:
            if option.param_type_name == "argument":
                assert f" {option.human_readable_name}" in text, option.opts
                continue
            assert f"`{option.opts[0]}" in text or f" {option.opts[0]}" in text, option.opts


def test_the_readme_has_the_commands_of_the_makefile_that_it_promises() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    promised = set(re.findall(r"\bmake ([a-z]+)\b", README.read_text(encoding="utf-8")))
    assert {"demo", "test"} <= promised <= targets


def test_the_readme_has_a_place_for_the_table_of_tools() -> None:
    assert TOOLS_BEGIN in README.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_of_a_page_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert linked.is_relative_to(ROOT), target
        assert not anchor or anchor in _anchors(linked), target


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, EXAMPLE], ids=lambda page: page.name)
def test_a_page_has_no_path_of_somebodys_machine(page: Path) -> None:
    found = re.findall(r"/(?:home|root|tmp|Users|work)/\S+", page.read_text(encoding="utf-8"))
    assert not found


if __name__ == "__main__":
    SETTINGS.write_text(with_settings(SETTINGS.read_text(encoding="utf-8")), encoding="utf-8")
