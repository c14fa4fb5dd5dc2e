"""What Homeroom posts into rooms: bodies, their HTML, and the items that carry them. Pure.

Owns the size and the safety of what is posted. Invariant: an event fits, and what an agent or a
client wrote cannot be more than text, its formatting and links to the web.
"""

from __future__ import annotations

import json
import re
from html import escape
from typing import Any

import nh3
from markdown_it import MarkdownIt

from homeroom.items import ItemKind, NewItem, lane_of_room
from homeroom.model import Json

CHUNK_CHARS = 12_000
CONTENT_BYTES = 60_000
"""A longer answer becomes several events: one may have 65,536 bytes in all, and it holds the text
twice. Source: https://spec.matrix.org/v1.16/client-server-api/#size-limits"""

_markdown = MarkdownIt("commonmark", {"html": False, "linkify": False}).enable(
    ["table", "strikethrough"]
)
_ALLOWED_TAGS = {
    *("h1", "h2", "h3", "h4", "h5", "h6", "p", "br", "hr", "blockquote", "pre", "code"),
    *("a", "b", "strong", "i", "em", "u", "s", "del", "ul", "ol", "li"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}
"""What Matrix clients are advised to show, less what no agent needs.
Source: https://spec.matrix.org/v1.16/client-server-api/#mroommessage-msgtypes"""


def reply_content(text: str, *, notice: bool, reply_to: str | None, thread: str | None) -> Json:
    """An m.room.message with a plain and a sanitised HTML body."""
    # Nobody is mentioned: otherwise old push rules make "@room" in an answer ring everywhere.
    # Source: https://spec.matrix.org/v1.16/client-server-api/#user-and-room-mentions
    content: dict[str, Any] = {
        "msgtype": "m.notice" if notice else "m.text",
        "body": text,
        "m.mentions": {},
    }
    html = to_html(text)
    if html != f"<p>{escape(text, quote=False)}</p>":
        content["format"], content["formatted_body"] = "org.matrix.custom.html", html
    relation: dict[str, Any] = {}
    if reply_to:
        relation["m.in_reply_to"] = {"event_id": reply_to}
    if thread:
        relation |= {"rel_type": "m.thread", "event_id": thread, "is_falling_back": False}
    if relation:
        content["m.relates_to"] = relation
    return content


def to_html(markdown: str) -> str:
    """Markdown as the HTML that Matrix clients show: links to the web, no images, no script."""
    return nh3.clean(
        _markdown.render(markdown),
        tags=_ALLOWED_TAGS,
        attributes={"a": {"href"}, "ol": {"start"}, "code": {"class"}},
        url_schemes={"http", "https", "mailto", "matrix"},
    ).strip()


def split_text(text: str, limit: int = CHUNK_CHARS) -> list[str]:
    """Pieces of at most ``limit`` characters, cut at a paragraph, a line or a space if possible."""
    pieces: list[str] = []
    while len(text) > limit:
        cut = max(text.rfind(mark, limit // 2, limit) for mark in ("\n\n", "\n", " "))
        cut = cut if cut > 0 else limit
        pieces.append(text[:cut].rstrip())
        text = text[cut:].lstrip()
    return [*pieces, text]


def text_items(
    ghost: str, room_id: str, text: str, dedupe_key: str, *, notice: bool = False,
    reply_to: str | None = None, thread: str | None = None,
) -> list[NewItem]:  # fmt: skip
    def contents(limit: int) -> list[Json]:
        return [
            reply_content(piece, notice=notice, reply_to=reply_to, thread=thread)
            for piece in split_text(text, limit)
        ]

    limit = CHUNK_CHARS
    pieces = contents(limit)
    while any(_size(content) > CONTENT_BYTES for content in pieces):
        limit //= 2  # scripts of three bytes a character, tables, emoji
        pieces = contents(limit)
    return [
        NewItem(
            lane=lane_of_room(room_id),
            kind=ItemKind.POST,
            payload={"ghost": ghost, "room_id": room_id, "content": content},
            dedupe_key=dedupe_key if number == 0 else f"{dedupe_key}:{number}",
        )
        for number, content in enumerate(pieces)
    ]


def _size(content: Json) -> int:
    return len(json.dumps(dict(content), ensure_ascii=False).encode())


def notice_item(
    ghost: str, room_id: str, reply_to: str | None, text: str, *, dedupe_key: str,
    thread: str | None = None,
) -> NewItem:  # fmt: skip
    return text_items(
        ghost, room_id, text, dedupe_key, notice=True, reply_to=reply_to, thread=thread
    )[0]


def plain_label(label: str) -> str:
    """A client's name for itself, harmless in Markdown."""
    return re.sub(r"[^\w .\-+/]", "", label)[:60].strip() or "An MCP client"
