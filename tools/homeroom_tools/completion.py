"""Completion of the arguments of prompts and resource URIs.

Owns what is proposed: ids, and names only where they are one short word, because a proposal stands
before a person and a model without anything that says who wrote it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from mcp.shared.exceptions import MCPError
from mcp_types import (
    INTERNAL_ERROR,
    CompleteRequestParams,
    CompleteResult,
    Completion,
    CompletionArgument,
    PromptReference,
    ResourceTemplateReference,
)

from homeroom.errors import HomeroomError, NotFound, is_handle
from homeroom_tools.resources import TEMPLATES, Kind
from homeroom_tools.text import ERROR_CHARS, clean_line

if TYPE_CHECKING:
    from mcp.server import MCPServer
    from mcp.server.context import ServerRequestContext

    from homeroom.app import App

MOST = 100
"""Proposals in one answer, at most. Source:
https://modelcontextprotocol.io/specification/2025-11-25/server/utilities/completion"""


def add_completion(server: MCPServer[Any], app: App, kinds: Collection[Kind]) -> None:
    """Has ``server`` propose values, from ``app``, for its prompts and these kinds of resources."""

    async def complete(
        ctx: ServerRequestContext[Any, Any], params: CompleteRequestParams
    ) -> CompleteResult:
        given = dict(params.context.arguments or {}) if params.context else {}
        try:
            found, more = await _proposals(app, kinds, params.ref, params.argument, given)
        except NotFound:
            found, more = [], False
        except HomeroomError as error:
            raise MCPError(INTERNAL_ERROR, clean_line(error.own_words, ERROR_CHARS)) from error
        more = more or len(found) > MOST
        return CompleteResult(
            completion=Completion(
                values=found[:MOST], total=None if more else len(found), has_more=more
            )
        )

    # The SDK's own decorator carries no types.
    server._lowlevel_server.add_request_handler(
        "completion/complete", CompleteRequestParams, complete
    )


async def _proposals(
    app: App,
    kinds: Collection[Kind],
    ref: ResourceTemplateReference | PromptReference,
    argument: CompletionArgument,
    given: Mapping[str, str],
) -> tuple[list[str], bool]:
    """What fits, and whether there is more."""
    if isinstance(ref, PromptReference):
        wanted: tuple[str | None, str] = ("prompt", argument.name)
    else:
        kind = next((kind for kind in kinds if TEMPLATES[kind] == ref.uri), None)
        wanted = (kind, argument.name)
    match wanted:
        case ("prompt", "agent"):
            return await _agents(app, argument.value, by_name=True)
        case ("agent" | "memory", "id"):
            return await _agents(app, argument.value, by_name=False)
        case ("memory", "label") if given.get("id"):
            return await _labels(app, unquote(given["id"]), argument.value), False
        case ("room", "id"):
            return await _rooms(app, argument.value), False
        case _:
            return [], False


async def _agents(app: App, begun: str, *, by_name: bool) -> tuple[list[str], bool]:
    """Agents with ``begun`` in what is known of them: names that are one word, else ids. What can
    only be the beginning of an id is looked for there alone, among all agents."""
    is_id = not by_name and begun.casefold().startswith("agent-")
    found, cursor = list[str](), ""
    while True:
        page = await app.list_agents("" if is_id else begun, MOST, cursor)
        for agent in (view.agent for view in page.agents):
            name = agent.name if by_name and is_handle(agent.name) else agent.id
            if is_handle(name) and (not is_id or name.casefold().startswith(begun.casefold())):
                found.append(name)
        cursor = page.next_cursor
        if not is_id or not cursor or len(found) > MOST:
            return found, bool(cursor)


async def _labels(app: App, agent: str, begun: str) -> list[str]:
    labels = [block.label for block in (await app.get_memory(agent)).blocks]
    begun = begun.casefold()
    return [label for label in labels if is_handle(label) and label.casefold().startswith(begun)]


async def _rooms(app: App, begun: str) -> list[str]:
    """Ids of rooms with ``begun`` in the id or in their agent's name, of all that there are."""
    begun, found, cursor = begun.casefold(), dict[str, None](), ""
    while True:
        page = await app.list_rooms("", MOST, cursor)
        for room in page.rooms:
            if is_handle(room.id) and begun in f"{room.id}\n{room.agent_name}".casefold():
                found[room.id] = None  # a room of several agents has a row for each
        cursor = page.next_cursor
        if not cursor or len(found) > MOST:
            return [*found]
