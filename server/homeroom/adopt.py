"""Taking over the users and rooms that agents have from the system before.

Owns which of them may be taken over, and how such a room is found again. Invariants: nothing in
Matrix is changed by an import; a room and a user are one agent's; what was said in an adopted room
before is not answered.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace

import anyio

from homeroom.errors import HomeroomError, Rejected
from homeroom.matrix import Matrix
from homeroom.model import Agent, AgentId, Mapping
from homeroom.old_homes import Adoption, OldHome
from homeroom.plan import alias_of, marker_of, new_mapping
from homeroom.store import Decide, Store

_LOOKS_AT_ONCE = 4
"""More in flight does not make a homeserver faster (measured on Synapse)."""


async def adopt(
    homes: Collection[OldHome], agents: Collection[Agent], store: Store, matrix: Matrix, *,
    now_ms: int, decide: Decide | None = None, fence: int = 0,
) -> list[Adoption]:  # fmt: skip
    """Takes over what can be taken over; without ``decide`` it only tells what that would be.

    Only the store's rows are written: a sync then does what is left, as for any agent. What is
    said in the rooms from ``now_ms`` on is heard. Doing it again adopts nothing.

    Raises:
        Unavailable: the homeserver does not answer; what was adopted by then is kept.
        LeaseLost: another process runs the bridge.
    """
    mappings = await store.list_mappings()
    known = {agent.id: agent for agent in agents}
    limiter = anyio.CapacityLimiter(_LOOKS_AT_ONCE)
    found: dict[int, Adoption] = {}
    failed: list[HomeroomError] = []

    async def one(home: OldHome) -> None:
        async with limiter:
            try:
                found[home.position] = await judged(home)
            except HomeroomError as error:
                failed.append(error)
                group.cancel_scope.cancel()

    async def judged(home: OldHome) -> Adoption:
        verdict = _by_what_we_know(home, known, mappings, matrix)
        verdict = verdict or await _by_what_matrix_says(home, matrix)
        if verdict is None and decide is not None:
            agent = known.get(home.agent_id) or Agent(home.agent_id, home.agent_name)
            row = mappings.get(agent.id) or new_mapping(agent, matrix.server_name, now_ms)
            row = _adopted(row, home, now_ms)
            try:
                await store.save_mapping(row, decide, fence)
            except Rejected as taken:  # by a process that has lost the lease meanwhile
                verdict = Adoption(home, "refused", taken.reason)
        return verdict or Adoption(home, "adopted")

    async with anyio.create_task_group() as group:
        for home in homes:
            group.start_soon(one, home)
    if any(adoption.outcome == "adopted" for adoption in found.values()) and decide is not None:
        await store.ask_audit(fence)  # of such a room nothing is known but what the file says
    if failed:
        raise failed[0]
    return [found[position] for position in sorted(found)]


def _adopted(row: Mapping, home: OldHome, now_ms: int) -> Mapping:
    """The row with the old user and room, of which nothing of ours is known to be applied."""
    return replace(
        row,
        ghost=home.ghost, room_id=home.room_id, ghost_ready=False, display_name="", room_name="",
        topic="", hub_joined=False, marked=False, heard_from_ms=now_ms, problem="",
        room_gone=False, alias_room=None, put_back=(), invited=frozenset(), refused=(),
        refused_actions=(), avatar=replace(row.avatar, profile="", room_id=None, room=""),
    )  # fmt: skip


def _by_what_we_know(
    home: OldHome, known: dict[AgentId, Agent], mappings: dict[AgentId, Mapping], matrix: Matrix
) -> Adoption | None:
    """The verdict on an entry that need not be looked up in Matrix."""

    def refused(reason: str, regex: str = "") -> Adoption:
        return Adoption(home, "refused", reason, regex)

    if home.problem:
        return refused(home.problem)
    mine = mappings.get(home.agent_id)
    if mine and mine.room_id and (mine.ghost, mine.room_id) == (home.ghost, home.room_id):
        return Adoption(home, "already")
    server = home.ghost.partition(":")[2]
    if server != matrix.server_name:
        return refused(
            f"{home.ghost} is a user of {server}, and Homeroom works on {matrix.server_name}"
        )
    if mine and mine.room_id and not mine.room_gone:
        return refused(f"the agent is mapped to {mine.ghost} in {mine.room_id} already")
    for other in mappings.values():
        if other.agent_id != home.agent_id and home.ghost == other.ghost:
            return refused(f"{home.ghost} is the user of agent {other.agent_id}")
        if other.agent_id != home.agent_id and home.room_id == other.room_id:
            return refused(f"the room is that of agent {other.agent_id}")
    if mine is None and home.agent_id not in known:
        return refused("Letta has no such agent")
    if not matrix.is_ghost(home.ghost):
        regex = re.escape(home.ghost)
        return refused(
            f"{home.ghost} is outside the user namespaces of the registration, which lack"
            f" regex {regex}: add it and restart the homeserver and Homeroom", regex,
        )  # fmt: skip
    if not matrix.may_be_agent(home.ghost):
        return refused(f"{home.ghost} is Homeroom's own user")
    return None


async def _by_what_matrix_says(home: OldHome, matrix: Matrix) -> Adoption | None:
    ghost = home.ghost
    seen = await matrix.inspect_home(ghost, home.room_id)
    alias = alias_of(home.agent_id, matrix.server_name)
    reason = ""
    if not seen.exists:
        reason = f"there is no user {ghost} on the homeserver"
    elif not seen.may_drive:
        reason = (
            f"the homeserver does not let us act as {ghost}: restart it, so that it reads the"
            " registration that Homeroom has"
        )
    elif seen.membership in ("leave", "ban"):
        how = "was banned from" if seen.membership == "ban" else "has left, or was put out of,"
        reason = f"{ghost} {how} the room: let it in again, and import again"
    elif seen.membership != "join":
        reason = (
            f"{ghost} is not in the room {home.room_id} (invited to it at most), or there is no"
            " such room any more"
        )
    elif seen.replaced_by:
        reason = f"the room was upgraded to {seen.replaced_by}: name that one in the file"
    elif seen.encrypted:
        reason = "the room is encrypted, and agents cannot read there; the next sync makes another"
    elif seen.marked_for not in ("", home.agent_id):
        reason = f"the room is marked as that of agent {seen.marked_for}"
    elif (other := await matrix.find_room(alias)) not in (None, home.room_id):
        reason = f"Homeroom has made the agent a room already, {other}, which {alias} points to"
    return Adoption(home, "refused", reason) if reason else None


async def mark_room(matrix: Matrix, mapping: Mapping, store_id: str) -> None:
    """Gives an adopted room the alias and the marker by which it is found with an empty store.

    Raises:
        Rejected: the alias points to another room, or the ghost lacks the power for it.
    """
    assert mapping.room_id
    alias = alias_of(mapping.agent_id, matrix.server_name)
    taken_by = await matrix.find_room(alias)
    if taken_by not in (None, mapping.room_id):
        reason = f"{alias} points to another room, {taken_by}; with an empty store that one counts"
        raise Rejected("matrix", reason)
    if taken_by is None:
        await matrix.point_alias(mapping.ghost, alias, mapping.room_id)
    await matrix.mark(mapping.ghost, mapping.room_id, marker_of(mapping, store_id))
