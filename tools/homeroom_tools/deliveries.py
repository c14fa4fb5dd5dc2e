"""The tools about what became of a message: ``explain_delivery``."""

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


def delivery_tools(app: App) -> list[Tool]:
    """The tools of this module, bound to ``app``."""

    async def explain_delivery(id: DeliveryId) -> views.DeliveryStory:  # noqa: A002
        """Tells what became of one message, step by step with times: when it was received, by
        which rule it was ignored, how often it was tried and why not, when it was answered. Use it
        when somebody asks why an agent did not answer. The text of messages is not part of it.
        """
        return views.delivery_story(await app.explain(id))

    return [
        make_tool(
            explain_delivery,
            title="Explain a delivery",
            read_only=True,
            destructive=False,
            idempotent=True,
            open_world=False,
        ),
    ]
