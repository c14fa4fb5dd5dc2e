"""The memory of an App Server's agents: files that are shown and written as blocks.

Owns reading, writing and having conversations learn of it; ``memfs`` owns what a file means. Knows
nothing of turns. Invariant: a write that the server refuses leaves the file as it was.
"""

from __future__ import annotations

import difflib
import re
from contextlib import suppress

from homeroom.errors import LimitExceeded, NotFound, Rejected
from homeroom.letta import memfs
from homeroom.letta.link import Link
from homeroom.model import AgentId, Block

_CONVERSATIONS = 500
_TOO_LONG = re.compile(r"(\d+) characters exceeds (\d+)")


async def list_blocks(link: Link, agent_id: AgentId) -> list[Block]:
    await link.request(
        "agent_retrieve", agent_id=agent_id
    )  # the server knows an empty memory for any id
    limit = await _file_characters(link, agent_id)
    blocks = []
    for label in await _labels(link, agent_id):
        text = await _read(link, agent_id, memfs.path_of(label))
        if text is not None:
            block = memfs.parse(label, text, limit).block
            if not memfs.is_bare_index(label, block.value):
                blocks.append(block)
    return blocks


async def write_block(link: Link, agent_id: AgentId, label: str, value: str) -> Block:
    await link.request(
        "agent_retrieve", agent_id=agent_id
    )  # the server would create a memory for any id
    path = memfs.path_of(label)
    before = await _read(link, agent_id, path)
    if before is None:
        labels = await _labels(link, agent_id)
        near = difflib.get_close_matches(label, labels, len(labels) or 1, 0.0)
        raise NotFound("memory block", label, near)
    limit = await _file_characters(link, agent_id)
    file = memfs.parse(label, before, limit)
    if file.block.limit and len(value) > file.block.limit:
        raise LimitExceeded(f"Memory block {label!r}", file.block.limit, len(value), "characters")
    try:
        await _write(link, agent_id, path, file.with_value(value))
    except Rejected as refusal:
        # A refused commit leaves the new text in the working tree and staged.
        with suppress(Rejected):
            await _write(link, agent_id, path, before)
        too_long = _TOO_LONG.search(refusal.reason)
        if too_long:
            what = f"The memory of this agent, with block {label!r},"
            raise LimitExceeded(what, int(too_long[2]), int(too_long[1]), "characters") from None
        raise
    await _recompile(link, agent_id)
    after = await _read(link, agent_id, path)
    return memfs.parse(label, after or "", limit).block


async def _recompile(link: Link, agent_id: AgentId) -> None:
    """Has every conversation of the agent know its memory as it is now.

    By itself a running conversation is told of a change in its next turn and forgets it in the
    one after that (0.34.12).
    """
    query = {"agent_id": agent_id, "limit": _CONVERSATIONS}
    listed = await link.request("conversation_list", query=query)
    for conversation in listed["conversations"]:
        await link.request(
            "conversation_recompile", agent_id=agent_id, conversation_id=conversation["id"]
        )


async def _labels(link: Link, agent_id: AgentId) -> list[str]:
    listed = await link.request("list_memory", agent_id=agent_id)
    paths = (str(entry["relative_path"]) for entry in listed["entries"])
    return [label for label in map(memfs.label_of, paths) if label is not None]


async def _read(link: Link, agent_id: AgentId, path: str) -> str | None:
    try:
        answer = await link.request("read_memory_file", agent_id=agent_id, path=path)
    except Rejected as refusal:
        # A path out of the memory, or one whose folder is a file, is no block either.
        if re.search("ENOENT|ENOTDIR|EISDIR|inside the memory root", refusal.reason):
            return None
        raise Rejected("letta", f"the memory file {path} cannot be read") from None
    content: str | None = answer.get("content")
    return content


async def _write(link: Link, agent_id: AgentId, path: str, text: str) -> None:
    message = f"Update {path} from Homeroom"
    await link.request(
        "write_memory_file",
        key=path,
        agent_id=agent_id,
        path=path,
        content=text,
        commit_message=message,
    )


async def _file_characters(link: Link, agent_id: AgentId) -> int:
    return memfs.file_characters(await _read(link, agent_id, memfs.POLICY_PATH))


async def _check_agent(link: Link, agent_id: AgentId) -> None:
    """Raises NotFound."""
    await link.request("agent_retrieve", agent_id=agent_id)
