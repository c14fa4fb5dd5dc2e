"""Which tools a process has."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters
from mcp.shared.exceptions import MCPError
from mcp_types import ResourceTemplateReference

from homeroom.config import Config
from homeroom.errors import ConfigError
from homeroom_tools import register
from homeroom_tools.selection import TOOL_NAMES, TOOLSETS, select
from homeroom_tools.serve import build_server
from support.fake_app import FakeApp

WRITE = {
    "sync_agents",
    "chat_with_agent",
    "update_agent_memory",
    "replay_parked",
    "diagnose_rooms",
}


def names(**settings: Any) -> list[str]:
    return [tool.name for tool in register(FakeApp(), select(**settings))]  # type: ignore[arg-type]


def test_all_tools_are_there_in_one_order() -> None:
    assert names() == list(TOOL_NAMES) and len(set(TOOL_NAMES)) == len(TOOL_NAMES)


def test_what_people_need_every_day_is_there_by_default() -> None:
    config = Config(letta_url="http://127.0.0.1:1")
    found = names(toolsets=config.toolsets, exclude=config.exclude_tools)
    assert found == [n for s in ("agents", "chat", "memory") for n in TOOLSETS[s]]


def test_read_only_wins_over_everything() -> None:
    found = names(read_only=True, toolsets=["chat", "operate", "memory"])
    assert not set(found) & WRITE
    assert {"get_reply", "read_room", "explain_delivery", "search_agent_memory"} <= set(found)


def test_excluding_wins_over_toolsets_and_order_stays() -> None:
    found = names(toolsets=["memory", "agents"], exclude=["get_agent"])
    assert found == [
        "list_agents", "sync_agents", "get_sync_status",
        "get_agent_memory", "update_agent_memory", "search_agent_memory",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"toolsets": ["chats"]},
            "TOOLSETS names 'chats', which is no toolset; perhaps chat",
        ),
        ({"exclude": ["chat_with"]}, "perhaps chat_with_agent is meant"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        select(**settings)


@pytest.mark.parametrize("era", ["2026-07-28", "legacy"])
async def test_a_tool_that_is_not_there_cannot_be_called_either(era: str) -> None:
    server = build_server(FakeApp(), select(read_only=True))  # type: ignore[arg-type]
    async with Client(server, mode=era) as client:
        listed = [tool.name for tool in (await client.list_tools()).tools]
        result = await client.call_tool("chat_with_agent", {"agent": "Ada", "message": "x"})
    assert "chat_with_agent" not in listed and result.is_error


PERSONA = "agent://agent-0001/memory/persona"


async def offered(era: str, **settings: Any) -> tuple[set[str], set[str], str]:
    """Templates of resources, prompts and the instructions of a server with these settings."""
    server = build_server(FakeApp(), select(**settings))  # type: ignore[arg-type]
    mode = "legacy" if era == "legacy" else "auto"  # one that is pinned asks nothing first
    async with Client(server, mode=mode) as client:
        templates = (await client.list_resource_templates()).resource_templates
        prompts = (await client.list_prompts()).prompts
        return (
            {template.name for template in templates},
            {prompt.name for prompt in prompts},
            client.instructions or "",
        )


@pytest.mark.parametrize("era", ["2026-07-28", "legacy"])
@pytest.mark.parametrize(
    ("settings", "resources", "prompts"),
    [
        (
            {},
            {"agent", "memory", "messages"},
            {"brief_me_on_agent", "hand_over_task", "catch_me_up"},
        ),
        (
            {"read_only": True},
            {"agent", "memory", "messages"},
            {"brief_me_on_agent", "catch_me_up"},
        ),
        (
            {"toolsets": ["agents", "chat"]},
            {"agent", "messages"},
            {"hand_over_task", "catch_me_up"},
        ),
        ({"exclude": ["read_room"]}, {"agent", "memory"}, {"hand_over_task"}),
        ({"toolsets": ["operate"]}, set(), set()),
    ],
)
async def test_resources_prompts_and_instructions_go_with_the_tools(
    era: str, settings: dict[str, Any], resources: set[str], prompts: set[str]
) -> None:
    there = set(names(**settings))
    found_resources, found_prompts, instructions = await offered(era, **settings)
    assert (found_resources, found_prompts) == (resources, prompts)
    said = {name for name in TOOL_NAMES if name in re.findall(r"\w+", instructions)}
    assert said <= there and (said or there.isdisjoint({"list_agents", "chat_with_agent"}))
    assert "data" in instructions and len(instructions.encode()) <= 1024


@pytest.mark.parametrize("era", ["2026-07-28", "legacy"])
async def test_what_a_left_out_tool_would_show_is_shown_in_no_other_way(era: str) -> None:
    server = build_server(FakeApp(), select(toolsets=["agents", "chat"]))  # type: ignore[arg-type]
    async with Client(server, mode=era) as client:
        with pytest.raises(MCPError) as caught:
            await client.read_resource(PERSONA)
        assert caught.value.code == -32602
        template = ResourceTemplateReference(uri="agent://{id}/memory/{label}")
        for argument in ("id", "label"):
            proposed = await client.complete(
                template, {"name": argument, "value": ""}, context_arguments={"id": "agent-0001"}
            )
            assert proposed.completion.values == []
        if era == "legacy":
            with (
                warnings.catch_warnings(action="ignore"),  # the SDK's words on the old era
                pytest.raises(MCPError) as caught,
            ):
                await client.subscribe_resource(PERSONA)
            assert caught.value.code == -32602
        assert (await client.read_resource("agent://agent-0001")).contents


def run(tmp_path: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "homeroom", "serve", *arguments],
        env=environ_of(tmp_path, **environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def environ_of(tmp_path: Path, **more: str) -> dict[str, str]:
    import os

    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "PYTHONPATH")}
    return {
        **kept,
        "HOME": str(tmp_path),
        "HOMEROOM_LETTA_URL": "http://127.0.0.1:1",
        "HOMEROOM_DATA_DIR": str(tmp_path),
        "HOMEROOM_LOG_LEVEL": "ERROR",
        **more,
    }


@pytest.mark.parametrize(
    ("arguments", "environ", "said"),
    [
        (["--toolsets", "agent"], {}, "perhaps agents is meant"),
        (["--exclude-tools", "get_replies"], {}, "perhaps get_reply is meant"),
        ([], {"HOMEROOM_TOOLSETS": "memories"}, "perhaps memory is meant"),
    ],
)
def test_serve_does_not_start_with_an_unknown_name(
    tmp_path: Path, arguments: list[str], environ: dict[str, str], said: str
) -> None:
    ended = run(tmp_path, *arguments, **environ)
    assert ended.returncode == 78 and said in ended.stderr
    assert not list(tmp_path.glob("*.db*")), "nothing was opened"


async def test_the_command_line_wins_over_the_environment(tmp_path: Path) -> None:
    environ = environ_of(tmp_path, HOMEROOM_TOOLSETS="operate", HOMEROOM_READ_ONLY="true")
    arguments = ["-m", "homeroom", "serve", "--toolsets", "chat,memory"]
    command = StdioServerParameters(command=sys.executable, args=arguments, env=environ)
    async with Client(command, mode="legacy") as client:
        tools = (await client.list_tools()).tools
    assert [tool.name for tool in tools] == [
        "get_reply", "read_room", "list_rooms", "get_agent_memory", "search_agent_memory",
    ]  # fmt: skip
    assert "chat_with_agent" not in json.dumps([tool.name for tool in tools])
