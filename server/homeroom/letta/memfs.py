"""Memory files as memory blocks: the pure half of the App Server's memory.

Owns front matter, labels and limits. Pure: text in, values out. Invariant: for every value,
``parse(label, file.with_value(value)).block.value == value``, and front matter is never touched.

Source: Letta Code 0.34.12: the commit hook accepts ``name`` and ``description`` in front matter
(older layouts: ``description``, ``limit``, ``read_only``), refuses a file without front matter
(except the index files, ``MEMORY.md``, which must not have any) and a file of more than 20,000
characters, front matter included.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import yaml

from homeroom.model import Block

POLICY_PATH = ".memfs.config.json"
"""Where an agent's memory says otherwise than the defaults."""
FILE_CHARACTERS = 20_000

_SUFFIX = ".md"
_INDEX = "MEMORY"
_HEAD = re.compile(r"---\n(.*?\n)?---(?:\n|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class MemoryFile:
    """One memory file: what stands before its value, and the block that it is."""

    head: str
    block: Block

    def with_value(self, value: str) -> str:
        """The file's text with another value. A file ends with a newline, a value need not."""
        return f"{self.head}{value}\n"


def path_of(label: str) -> str:
    return label + _SUFFIX


def label_of(path: str) -> str | None:
    """The label of a memory file; None for what is no block (skills, pictures)."""
    if not path.endswith(_SUFFIX) or path.startswith("skills/"):
        return None
    return path.removesuffix(_SUFFIX)


def is_bare_index(label: str, value: str) -> bool:
    """Whether this is an index that only carries its heading: structure, not memory."""
    return label.rpartition("/")[2] == _INDEX and not re.sub(r"(?m)^#.*$", "", value).strip()


def parse(label: str, text: str, file_characters: int = FILE_CHARACTERS) -> MemoryFile:
    """The block in a memory file. Front matter that is no YAML counts as empty."""
    matched = _HEAD.match(text)
    taken = matched.end() if matched else 0
    head = text[:taken] + "\n" if matched and text[taken - 1] != "\n" else text[:taken]
    fields: object = None
    try:
        fields = yaml.safe_load((matched[1] or "") if matched else "")
    except yaml.YAMLError:
        fields = None
    known = fields if isinstance(fields, dict) else {}
    room = file_characters - len(head) - 1 if file_characters else 0
    own = known.get("limit")
    limit = min(own, room) if isinstance(own, int) and own > 0 and room else room
    block = Block(
        label=label,
        value=text[taken:].removesuffix("\n"),
        limit=max(limit, 0),
        read_only=known.get("read_only") is True,
        description=str(known.get("description") or ""),
    )
    return MemoryFile(head, block)


def file_characters(policy: str | None) -> int:
    """The limit of a whole file by the agent's own policy file, or the default; 0 means none."""
    try:
        limits = json.loads(policy or "{}")
    except ValueError:
        return FILE_CHARACTERS
    own = limits.get("maxFileCharacters") if isinstance(limits, dict) else None
    if policy is not None and own is None:
        return 0  # a policy replaces the defaults as a whole
    return own if isinstance(own, int) else FILE_CHARACTERS
