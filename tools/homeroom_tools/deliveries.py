"""The tools about what became of a message: ``explain_delivery``,
``list_parked`` and ``replay_parked``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from mcp.server.mcpserver.tools import Tool
from pydantic import Field

from homeroom_tools import views
from homeroom_tools.toolkit import make_tool

if TYPE_CHECKING:
    from homeroom.app import App

DeliveryId = Annotated[
    str, Field(min_length=1, description="A reply_id, or the Matrix event id of a message ($...).")
]

ParkedLimit = Annotated[int, Field(ge=1, le=100, description="Most items, the newest ones.")]
ParkedId = Annotated[str, Field(min_length=1, description="id that list_parked gave.")]


def delivery_tools(app: App) -> list[Tool]:
    """The tools of this module, bound to ``app``."""

    async def explain_delivery(id: DeliveryId) -> views.DeliveryStory:  # noqa: A002
        """Tells what became of one message, step by step with times: when it was received, by
        which rule it was ignored, how often it was tried and why not, when it was answered. Use it
        when somebody asks why an agent did not answer. The text of messages is not part of it.
        """
        return views.delivery_story(await app.explain(id))

    async def list_parked(limit: ParkedLimit = 20) -> views.ParkedList:
        """Lists the messages and posts that were given up and wait for a person, with who, when
        and why. explain_delivery tells more of one, replay_parked tries it again.
        """
        return views.parked_list(*await app.list_parked(limit))

    async def replay_parked(id: ParkedId) -> views.Replayed:  # noqa: A002
        """Tries a parked item again, before anything newer for the same agent and conversation.
        Call it when what was in the way is repaired. One that may have been delivered is looked
        for first and not sent twice. Its room is told.
        """
        return views.Replayed(id=id.strip(), ahead=await app.replay_parked(id))

    return [
        make_tool(
            explain_delivery,
            title="Explain a delivery",
            read_only=True,
            destructive=False,
            idempotent=True,
            open_world=False,
        ),
        make_tool(
            list_parked,
            title="List parked items",
            read_only=True,
            destructive=False,
            idempotent=True,
            open_world=False,
        ),
        make_tool(
            replay_parked,
            title="Replay a parked item",
            read_only=False,
            destructive=False,
            idempotent=False,
            open_world=True,  # the agent has tools of its own
        ),
    ]
