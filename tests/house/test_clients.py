"""What we tell clients to put into their files parses, and names only what there is."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from homeroom import __version__
from homeroom.config import EXAMPLES, Config, load_config, variable_of
from homeroom.main import cli

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
REGISTRY = json.loads((ROOT / "server.json").read_text(encoding="utf-8"))
BUNDLE = json.loads((ROOT / "bundle" / "manifest.json").read_text(encoding="utf-8"))
VARIABLES = {variable_of(name) for name in Config.model_fields}
CLIENTS = {
    "Claude Desktop": "mcpServers",
    "Claude Code": "mcpServers",
    "Cursor": "mcpServers",
    "VS Code": "servers",
    "Zed": "context_servers",
    "Windsurf": "mcpServers",
    "Goose": "extensions",
    "LM Studio": "mcpServers",
}
"""Each client's own key for the servers it knows."""
URLS = ("url", "serverUrl", "uri")


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    assert found, title
    return found[1]


def servers_of(title: str) -> list[dict[str, Any]]:
    """Every server in the examples of a client's section."""
    found: list[dict[str, Any]] = []
    for language, text in re.findall(r"```(\w+)\n(.*?)```", section(title), re.S):
        if language in ("json", "yaml"):
            data = json.loads(text) if language == "json" else yaml.safe_load(text)
            found += data[CLIENTS[title]].values()
    return found


@pytest.mark.parametrize("title", CLIENTS)
def test_the_examples_for_a_client_parse_and_name_only_what_there_is(title: str) -> None:
    servers = servers_of(title)
    assert servers
    for server in servers:
        urls = [server[key] for key in URLS if key in server]
        command = server.get("command") or server.get("cmd")
        assert len(urls) + bool(command) == 1
        if urls:
            assert urls[0].endswith(("/mcp", "/sse"))
            assert server["headers"]["Authorization"].startswith("Bearer ")
        else:
            assert Path(command).name == "homeroom"
            assert server["args"][0] in cli.commands
            assert set(server.get("env") or server["envs"]) <= VARIABLES


def test_the_commands_for_claude_code_name_only_what_there_is() -> None:
    (block,) = re.findall(r"```sh\n(.*?)```", section("Claude Code"), re.S)
    for line in block.strip().splitlines():
        words = shlex.split(line)
        assert words[:3] == ["claude", "mcp", "add"] and "homeroom" in words
        if "--env" in words:
            assert words[words.index("--env") + 1].split("=")[0] in VARIABLES
        if "--" in words:
            assert words[words.index("--") + 1 :][1] in cli.commands


def test_the_commands_for_tokens_are_those_there_are() -> None:
    block = re.search(r"```sh\n(homeroom token.*?)```", PAGE, re.S)
    assert block
    token = cli.commands["token"]
    for line in block[1].strip().splitlines():
        assert shlex.split(line)[2] in token.commands  # type: ignore[attr-defined]


# --- the MCP registry ----------------------------------------------------------------------------

_INPUT = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][A-Z0-9_]*$"},
        "description": {"type": "string"},
        "isRequired": {"type": "boolean"},
        "isSecret": {"type": "boolean"},
        "format": {"enum": ["string", "number", "boolean", "filepath"]},
        "default": {"type": "string"},
        "placeholder": {"type": "string"},
    },
    "additionalProperties": False,
}
_ARGUMENT = {
    "type": "object",
    "required": ["type", "value"],
    "properties": {"type": {"const": "positional"}, "value": {"type": "string"}},
    "additionalProperties": False,
}
_SCHEMAS = "https://static.modelcontextprotocol.io/schemas"
_VERSION = {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"}
REGISTRY_RULES = {
    "type": "object",
    "required": ["$schema", "name", "description", "version", "packages"],
    "properties": {
        "$schema": {"const": f"{_SCHEMAS}/2025-12-11/server.schema.json"},
        "name": {"type": "string", "pattern": "^[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+$", "maxLength": 200},
        "title": {"type": "string", "minLength": 1, "maxLength": 100},
        "description": {"type": "string", "minLength": 1, "maxLength": 100},
        "version": _VERSION,
        "packages": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["registryType", "identifier", "version", "transport"],
                "properties": {
                    "registryType": {"const": "pypi"},
                    "identifier": {"type": "string"},
                    "version": _VERSION,
                    "runtimeHint": {"const": "uvx"},
                    "transport": {"const": {"type": "stdio"}},
                    "packageArguments": {"type": "array", "items": _ARGUMENT},
                    "environmentVariables": {"type": "array", "items": _INPUT},
                },
                "additionalProperties": False,
            },
        },
    },
    "additionalProperties": False,
}
"""What the registry's schema of 2025-12-11 and its further rules ask of a file like ours, in our
own words: the schema itself is at an address that tests do not reach. Nothing that passes here
fails there; stricter than it where that costs nothing.

Source: internal/validators/schemas/2025-12-11.json of github.com/modelcontextprotocol/registry
(commit e361b5f) and https://modelcontextprotocol.io/registry/package-types.
"""


def test_the_registry_entry_keeps_the_registrys_rules() -> None:
    problems = Draft202012Validator(REGISTRY_RULES).iter_errors(REGISTRY)
    assert [problem.message for problem in problems] == []


def test_the_registry_entry_is_that_of_this_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (package,) = REGISTRY["packages"]
    assert package["identifier"] == project["name"]
    assert REGISTRY["version"] == package["version"] == project["version"] == __version__
    assert package["packageArguments"][0]["value"] in cli.commands
    inputs = {given["name"]: given for given in package["environmentVariables"]}
    assert set(inputs) <= VARIABLES
    for name, field in Config.model_fields.items():
        given = inputs.get(variable_of(name))
        assert given or not field.is_required()
        if given:
            assert given.get("isRequired", False) == field.is_required()
            assert given.get("isSecret", False) == ("Secret" in str(field.annotation))
            assert given["description"] == field.description
    # The registry looks for this in the package's description to see whose it is.
    assert f"<!-- mcp-name: {REGISTRY['name']} -->" in (ROOT / "README.md").read_text()


# --- the bundle ----------------------------------------------------------------------------------


def test_the_bundle_asks_for_settings_that_there_are_and_hands_each_one_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = BUNDLE["server"]["mcp_config"]
    asked = BUNDLE["user_config"]
    assert config["args"][-2:] == ["homeroom", "serve"]
    assert BUNDLE["version"] == __version__
    assert {variable_of(name) for name in asked} == set(config["env"]) <= VARIABLES
    for variable, value in config["env"].items():
        name = variable.removeprefix("HOMEROOM_").lower()
        assert value == f"${{user_config.{name}}}"
        assert asked[name].get("sensitive", False) == (name == "letta_token")
        monkeypatch.setenv(variable, EXAMPLES[name])
    assert load_config().has_matrix
    for variable in config["env"]:  # as when a person fills in nothing
        name = variable.removeprefix("HOMEROOM_").lower()
        monkeypatch.setenv(variable, asked[name]["default"])
    assert not load_config().has_matrix
