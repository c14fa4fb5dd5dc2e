"""The example for Claude Desktop starts a server that works, once its paths are filled in."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mcp import Client, StdioServerParameters

from support.fake_process import import_path
from support.home import Home

EXAMPLE = Path(__file__).parents[2] / "claude_desktop_config.example.json"


async def test_the_example_configuration_starts_a_server_that_works(home: Home) -> None:
    await home.letta.create_agent("Ada")
    (server,) = json.loads(EXAMPLE.read_text())["mcpServers"].values()
    assert server["command"] == "homeroom"
    # Each value that the example has is replaced by the same thing of this test's own servers.
    env = {name: home.environ[name] for name in server["env"]}
    outside = {name: home.environ[name] for name in home.environ if name not in env}
    command = Path(sys.executable).with_name(server["command"])
    target = StdioServerParameters(
        command=str(command), args=server["args"],
        env={**outside, **env, "PYTHONPATH": import_path()},
    )  # fmt: skip
    async with home.login() as alice, Client(target) as client:
        room = await alice.join(await alice.wait_invite())  # the bridge runs
        chat = await client.call_tool("chat_with_agent", {"agent": "Ada", "message": "!say hello"})
        listed = await client.call_tool("list_agents", {})
    assert chat.structured_content and chat.structured_content["reply"] == "hello"
    assert listed.structured_content
    assert listed.structured_content["agents"][0]["room"] == room
