"""What a text looks like as a Matrix message. Pure.

Owns the Markdown, what of its HTML clients are shown, and the cutting of long texts. Knows
neither rooms nor agents. Invariant: whatever the text, the HTML holds no script and no image.
"""

from __future__ import annotations

from html import escape
from typing import Any

import nh3
from markdown_it import MarkdownIt

from homeroom.model import Json

CHUNK_CHARS = 12_000
"""A longer answer becomes several events: one may have 65,536 bytes, and it holds the text twice.
Source: https://spec.matrix.org/v1.16/client-server-api/#size-limits"""

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
    content: dict[str, Any] = {"msgtype": "m.notice" if notice else "m.text", "body": text}
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
