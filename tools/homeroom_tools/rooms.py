"""The tools about rooms: which there are, and what was said in one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from mcp.server.mcpserver.tools import Tool
from pydantic import Field

from homeroom_tools import room_views as views
from homeroom_tools.agents import Cursor, Detail, Limit, OptionalAgent
from homeroom_tools.long_rows import Place
from homeroom_tools.toolkit import make_reader

if TYPE_CHECKING:
    from homeroom.app import App

RoomRef = Annotated[str, Field(min_length=1, description="Id, alias, or its agent's id or name.")]


def room_tools(app: App) -> list[Tool]:
    """The tools of this module, bound to ``app``."""

    async def read_room(room: RoomRef, limit: Limit = 20, cursor: Cursor = "") -> views.Transcript:
        """Reads a Matrix room Homeroom serves. Use it to see what people and agents said."""
        place = Place.of(cursor)
        page = await app.read_room(room, place.count(limit), place.cursor)
        return views.transcript(page, limit, place)

    async def list_rooms(
        agent: OptionalAgent = "", detail: Detail = "concise", limit: Limit = 50,
        cursor: Cursor = "",
    ) -> views.RoomList:  # fmt: skip
        """Lists the rooms Homeroom serves. Use it to see where something happened.
        full adds alias and problem.
        """
        page = await app.list_rooms(agent, limit, cursor)
        return views.room_list(page, full=detail == "full")

    return [
        make_reader(read_room, title="Read a room"),
        make_reader(list_rooms, title="List rooms"),
    ]
