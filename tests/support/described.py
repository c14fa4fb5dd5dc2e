"""Reading an output schema as a client does: which field is what, and who wrote it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from homeroom_tools.toolkit import UNTRUSTED

_FIELD = re.compile(r"(\w+)(?: [\w|]+)?: (.*)", re.DOTALL)


def fields_of(schema: dict[str, Any]) -> dict[str, tuple[bool, str]]:
    """Name of each field of an object -> whether others wrote it, and what it is."""
    ours, _, theirs = schema.get("description", "").partition(UNTRUSTED)
    found: dict[str, tuple[bool, str]] = {}
    for untrusted, text in ((False, ours.removesuffix(". ")), (True, theirs)):
        for entry in filter(None, text.split("; ")):
            matched = _FIELD.fullmatch(entry)
            assert matched, entry
            found[matched[1]] = (untrusted, matched[2])
    for name, field in schema.get("properties", {}).items():
        description = field["description"]
        found[name] = (description.startswith(UNTRUSTED), description)
    return found


def leaves(value: Any, schema: dict[str, Any], name: str = "") -> Iterator[tuple[bool, str, str]]:
    """Every text in ``value``: whether its field says that others wrote it, the field, the text."""
    if isinstance(value, dict):
        fields = fields_of(schema)
        for key, inner in value.items():
            untrusted, _ = fields[key]
            if isinstance(inner, list) and key in schema.get("properties", {}):
                for entry in inner:
                    yield from leaves(entry, schema["properties"][key]["items"], key)
            else:
                for text in inner if isinstance(inner, list) else [inner]:
                    yield untrusted, key, str(text)
    else:
        yield False, name, str(value)
