"""The tools about what became of a message: ``explain_delivery``,
``list_parked`` and ``replay_parked``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from mcp.server.mcpserver.tools import Tool
from pydantic import Field

from homeroom.errors import Misuse
from homeroom_tools import views
from homeroom_tools.agents import Cursor, Detail, Limit, OptionalAgent
from homeroom_tools.caller import current_caller
from homeroom_tools.toolkit import make_reader, make_tool

if TYPE_CHECKING:
    from homeroom.app import App

DeliveryId = Annotated[str, Field(min_length=1, description="reply_id or Matrix event id ($...).")]
ParkedId = Annotated[str, Field(min_length=1, description="From list_parked.")]
Drop = Annotated[bool, Field(description="End it for good instead.")]


def delivery_tools(app: App) -> list[Tool]:
    """The tools of this module, bound to ``app``."""

    async def explain_delivery(id: DeliveryId) -> views.DeliveryStory:  # noqa: A002
        """Tells what became of a message, step by step, without its text. Use it if an agent did
        not answer.
        """
        return views.delivery_story(await app.explain(id))

    async def list_parked(
        agent: OptionalAgent = "", detail: Detail = "concise", limit: Limit = 20,
        cursor: Cursor = "",
    ) -> views.ParkedList:  # fmt: skip
        """Lists messages and posts given up, and rooms with late messages, for replay_parked.
        full adds room and more reason.
        """
        return views.parked_list(await app.list_parked(agent, limit, cursor), full=detail == "full")

    async def replay_parked(id: ParkedId, drop: Drop = False) -> views.Replayed:  # noqa: A002
        """Tries a parked item again, before newer ones, or has a room's late messages answered. Use
        it when the cause is repaired. What may have arrived is not sent twice.
        """
        name = id.strip()
        if drop:
            if name.startswith("!"):
                raise Misuse("Only one item at a time can be dropped, by its id. Nothing was done.")
            await app.drop_parked(name, f"dropped over MCP by {current_caller()}")
            return views.Replayed(id=name, dropped=True)
        if name.startswith("!"):
            return views.caught_up(name, await app.catch_up(name))
        return views.Replayed(id=name, ahead=await app.replay_parked(name))

    return [
        make_reader(explain_delivery, title="Explain a delivery"),
        make_reader(list_parked, title="List parked"),
        make_tool(
            replay_parked,
            title="Replay or drop",
            read_only=False,
            destructive=True,  # what is dropped is never answered
            idempotent=False,
            open_world=True,  # the agent has tools of its own
        ),
    ]
