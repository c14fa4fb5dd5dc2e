"""An agent's home in Matrix: finding, making and following its one room, and getting into it.

Owns the order of requests that keeps it one room. Does not decide when (``plan`` does). Invariant:
before a room is made, the alias and what the ghost is in have said that there is none; and the
alias, which leads to one room only, is part of making it.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Mapping as Dict
from dataclasses import dataclass, replace

from homeroom.config import Config
from homeroom.drift import Word, followed, is_deserted, with_gone_room, with_put_back, without_fight
from homeroom.errors import Rejected, Unavailable, was_answered
from homeroom.matrix import MARKER_TYPE, PARENT_TYPE, Matrix, is_gone, parent_content
from homeroom.model import (
    Action,
    Agent,
    AgentId,
    Detail,
    GhostId,
    Json,
    Mapping,
    Member,
    RoomId,
    RoomSpec,
    RoomTold,
    RoomView,
    Space,
    StateEvent,
    ghost_localpart,
    localpart_of,
)
from homeroom.people import ask_again, observe_list, space_after
from homeroom.plan import Policy, marker_of, may_write, room_name, room_topic, with_new_room
from homeroom.plan_space import avatar_content
from homeroom.posts import text_items
from homeroom.store import Decide, Store


@dataclass(frozen=True, slots=True)
class Homes:
    """What is done to an agent's room, each step recorded before it returns."""

    config: Config
    store: Store

    # --- people ----------------------------------------------------------------------------------

    async def observe_people(
        self, mappings: Dict[AgentId, Mapping], space: Space, absent: frozenset[str],
        policy: Policy, invite: Collection[str], fence: int | None,
    ) -> tuple[dict[AgentId, Mapping], Space]:  # fmt: skip
        """The rows that forget whom they have invited, and the space, which does so too: people who
        left the list, or who ask; and that the space has lost the ``absent``. Recorded unless there
        is no ``fence``."""
        errands = await self.store.pending_errands("invite")
        asking = {*invite, *errands.values()} & set(policy.invite)
        there = {who: await self.store.list_rooms_of(who) for who in asking}

        def is_there(room_id: RoomId, who: str) -> bool:
            return room_id in there[who]

        changed, new_space = dict[AgentId, Mapping](), replace(space, absent=absent)
        if policy.invites:
            changed = observe_list(mappings, policy.invite)
            changed |= ask_again({**mappings, **changed}, asking, is_there)
            new_space = space_after(new_space, policy.invite, asking, is_there)
        if fence is not None:
            if new_space != space:
                await self.store.save_space(new_space, fence)
            if changed or errands:
                await self.store.save_people(changed.values(), errands, fence)
        return changed, new_space

    # --- its user --------------------------------------------------------------------------------

    async def ensure_ghost(
        self, matrix: Matrix, mapping: Mapping, decide: Decide, fence: int
    ) -> tuple[Mapping, bool]:
        """The row with the agent's user, which is there from now on; and whether all is new: there
        was no such user, and the agent's alias leads nowhere."""
        found: RoomId | None = None
        if mapping.room_id is None:
            found = await matrix.find_room(matrix.alias(ghost_localpart(mapping.agent_id)))
            if found and (ghost := await _recall_ghost(matrix, mapping.agent_id, found)):
                mapping = replace(mapping, ghost=ghost)
        # The row comes first: whatever happens from here on is known to be ours.
        await self.store.save_mapping(mapping, decide, fence)
        is_new = await matrix.make_ghost(localpart_of(mapping.ghost))
        return mapping, is_new and not (found or mapping.room_id)

    # --- one room --------------------------------------------------------------------------------

    async def ensure_room(
        self, matrix: Matrix, agent: Agent, mapping: Mapping, policy: Policy,
        decide: Decide, fence: int, *, all_new: bool, parent: RoomId | None = None,
    ) -> Mapping:  # fmt: skip
        """The row with the agent's room: found by its alias, else by the marker in a room that the
        ghost is in, else created, in the space ``parent``. A room that is gone is not found again.

        A room that this store made (it carries our marker) is heard from its beginning, also when
        a crash kept us from recording it. One with another past is heard from when this store
        was made: on a first start nothing that was there before is answered.

        Raises:
            Rejected: the alias leads to a room that the ghost may not enter.
        """
        store_id = await self.store.get_meta("store_id")
        alias = matrix.alias(ghost_localpart(agent.id))
        gone = mapping.room_id if mapping.room_gone else None
        room_id = None if all_new else await matrix.find_room(alias)
        alias_room: str = room_id or ""
        if room_id and (room_id == gone or not await _enter(matrix, mapping.ghost, room_id)):
            await matrix.remove_alias(mapping.ghost, alias)
            room_id, alias_room = None, ""
        if room_id is None and not all_new:
            room_id = await _find_marked(matrix, agent, mapping, gone)
        if room_id is None:
            try:
                return await self._create(
                    matrix, agent, mapping, policy, store_id, parent, decide, fence
                )
            except (Rejected, Unavailable) as error:
                # Synapse makes the room first and then invites: one person out of its reach fails
                # it all (with a 502 if it is their homeserver), and yet the room is there. The
                # others are invited one by one.
                room_id = await matrix.find_room(alias) if was_answered(error) else None
                if room_id is None or not await _enter(matrix, mapping.ghost, room_id):
                    raise
                alias_room = room_id
        marker = await matrix.get_state(mapping.ghost, room_id, MARKER_TYPE)
        ours = marker is not None and marker.get("store_id") == store_id
        state, members = await matrix.room_state(mapping.ghost, room_id)
        ghosts = frozenset(m.user_id for m in members if matrix.is_ghost(m.user_id))
        since_ms = 0 if ours else int(await self.store.get_meta("born_ms"))
        mapping = replace(
            mapping, room_id=room_id, room_gone=False, heard_from_ms=since_ms,
            alias_room=alias_room, marked=marker is not None, history_due=ours and policy.history,
            # Who is known there was invited before, and may have left since.
            invited=frozenset(policy.invite)
            & {member.user_id for member in members if member.membership != "knock"},
        )  # fmt: skip
        # From now on it is known like a room that was made, though the hub has told nothing yet.
        told = RoomTold(state, members, ghosts)
        await self.store.save_mapping(mapping, decide, fence, made=told)
        return mapping

    async def _create(
        self, matrix: Matrix, agent: Agent, mapping: Mapping, policy: Policy, store_id: str,
        parent: RoomId | None, decide: Decide, fence: int,
    ) -> Mapping:  # fmt: skip
        people = policy.invite if policy.invites else ()
        shows = policy.avatars and mapping.avatar.digest
        spec = RoomSpec(
            alias_localpart=ghost_localpart(agent.id),
            name=room_name(agent),
            topic=room_topic(agent),
            invite=(matrix.hub, *people),
            admins=policy.invite,
            version=self.config.matrix_room_version,
            marker=marker_of(mapping, store_id),
            avatar=avatar_content(agent.id, mapping.avatar) if shows else {},
            parent=parent,
        )
        room_id = await matrix.create_room(mapping.ghost, spec)
        mapping = replace(with_new_room(mapping, agent, policy, room_id), heard_from_ms=0)
        made = told_by_making(mapping.ghost, matrix, room_id, spec)
        await self.store.save_mapping(mapping, decide, fence, made=made)
        return mapping

    async def follow(
        self, matrix: Matrix, mapping: Mapping, old: RoomView, new: RoomId,
        decide: Decide, fence: int,
    ) -> Mapping:  # fmt: skip
        """The row once the ghost is in the room that replaces ``old``, and that is its home.

        Raises:
            Rejected: the ghost may not enter it; it has asked to be let in.
        """
        ghost = mapping.ghost
        try:
            await matrix.ensure_joined(ghost, new)
        except Rejected as refusal:
            if is_gone(refusal):
                why = f"its room was replaced by {new}, and nobody of this homeserver is there"
                raise Rejected("matrix", why, refusal.code) from None
            await self._ask_to_be_let_in(matrix, mapping, new, decide, fence)
            why = f"its room was replaced by {new}. Somebody there has to invite {ghost}"
            raise Rejected("matrix", why, refusal.code) from None
        store_id = await self.store.get_meta("store_id")
        marker = marker_of(mapping, store_id)
        marked = await matrix.get_state(ghost, new, MARKER_TYPE) == marker
        if not marked and await _may_mark(matrix, ghost, new):
            await matrix.mark(ghost, new, marker)
        alias = matrix.alias(ghost_localpart(mapping.agent_id))
        found = await matrix.find_room(alias)
        mapping = replace(followed(mapping, old, new), alias_room=found or "")
        await self.store.save_mapping(mapping, decide, fence)
        return mapping

    async def _ask_to_be_let_in(
        self, matrix: Matrix, mapping: Mapping, new: RoomId, decide: Decide, fence: int
    ) -> None:
        """Knocks; where that is not taken, the old room is told, once."""
        try:
            await matrix.knock(mapping.ghost, new)
        except Rejected:
            assert mapping.room_id
            text = (
                f"⚠️ This room was replaced by {new}, and I may not enter that. Somebody there has"
                f" to invite {mapping.ghost}; then I move."
            )
            asked = text_items(mapping.ghost, mapping.room_id, text, f"moved:{new}", notice=True)
            await self.store.save_mapping(mapping, decide, fence, asked)

    # --- getting in ------------------------------------------------------------------------------

    async def ensure_inside(
        self, matrix: Matrix, mapping: Mapping, view: RoomView | None
    ) -> Mapping | None:
        """Takes the hub into the agent's room, and the ghost as well if it is out.

        By the invitation they have; the ghost, which may invite, lets in a hub without one.

        Returns the row of an agent whose room turned out to be gone; None: they are in.

        Raises:
            Rejected: the ghost is out and not invited, or may not invite the hub (a ban stands).
        """
        room_id = mapping.room_id
        assert room_id
        hub_is_in = True
        try:
            await matrix.ensure_joined(matrix.hub, room_id)
        except Rejected as refusal:
            if is_gone(refusal) and is_deserted(view, matrix.server_name):
                return with_gone_room(mapping)
            hub_is_in = False
        if hub_is_in and view and view.members.get(mapping.ghost) == "join":
            return None
        try:
            await matrix.ensure_joined(mapping.ghost, room_id)
        except Rejected as refusal:
            who = mapping.ghost if hub_is_in else f"{matrix.hub} and {mapping.ghost}"
            reason = f"{who} left the room or was put out. Somebody in it has to invite {who} again"
            raise Rejected("matrix", reason, refusal.code) from None
        if not hub_is_in:
            try:
                await matrix.invite(mapping.ghost, room_id, matrix.hub)
            except Rejected as refusal:
                why = (
                    f"{matrix.hub} is not in {room_id}, and {mapping.ghost} may not invite it"
                    f" ({refusal.reason}). Somebody in it has to invite {matrix.hub}"
                )
                raise Rejected("matrix", why, refusal.code) from None
            await matrix.ensure_joined(matrix.hub, room_id)
        return None

    async def set_alias(self, matrix: Matrix, mapping: Mapping, alias: str) -> None:
        """Has the agent's alias lead to its room.

        Raises:
            Rejected: it is not ours, so whoever has it must give it up.
        """
        assert mapping.room_id
        try:
            await matrix.point_alias(mapping.ghost, alias, mapping.room_id)
        except Rejected as refusal:
            why = (
                f"{alias} cannot be pointed at {mapping.room_id} ({refusal.reason}). Somebody who"
                " may has to delete it; the next sync sets it"
            )
            raise Rejected("matrix", why, refusal.code) from None

    # --- name and topic --------------------------------------------------------------------------

    async def write_word(
        self, matrix: Matrix, mapping: Mapping, action: Action, word: Word, policy: Policy,
        decide: Decide, fence: int, now_ms: int,
    ) -> Mapping:  # fmt: skip
        """Gives the room the name or topic of ``action``, unless it has it or keeps a person's.

        What was applied before is forgotten first: if we die before the new value is recorded, the
        next plan looks again, whatever Letta says by then. Returns the row, in which it is counted
        that somebody else's was written over.
        """
        if mapping.room_id is None or mapping.room_gone:
            return mapping  # retired before its room was made
        is_name = word == "name"
        applied = mapping.room_name if is_name else mapping.topic
        is_farewell = action.kind == "retire_agent"
        try:
            found = await matrix.find_state(mapping.ghost, mapping.room_id, f"m.room.{word}")
        except Rejected as refusal:
            if is_farewell and refusal.code == "M_FORBIDDEN":
                return mapping  # its ghost is out of the room, and gone it is all the same
            raise
        content, sender = found or ({}, "")
        current = content.get(word)
        current = current if isinstance(current, str) else ""
        ours = matrix.is_ghost(sender) if sender else None
        keep = policy.keep_edits
        if current == action.value or not may_write(word, applied, current, ours=ours, keep=keep):
            return mapping
        unsure = replace(mapping, room_name="") if is_name else replace(mapping, topic="")
        await self.store.save_mapping(unsure, decide, fence)
        write = matrix.set_name if is_name else matrix.set_topic
        try:
            await write(mapping.ghost, mapping.room_id, action.value)
        except Rejected as refusal:
            if is_farewell and refusal.code == "M_FORBIDDEN":
                return mapping
            why = (
                f"{mapping.ghost} may not change the {word} of {mapping.room_id}"
                f" ({refusal.reason}). Give it the power, or switch rename off"
            )
            raise Rejected("matrix", why, refusal.code) from None
        event = StateEvent(
            mapping.room_id, f"m.room.{word}", "", {word: action.value}, mapping.ghost
        )
        await self.store.note_written(event, Detail(current, sender), fence)
        if ours or applied != action.value:
            return mapping
        counted = without_fight(mapping) if policy.ask_again else mapping
        return with_put_back(counted, word, now_ms)


async def _enter(matrix: Matrix, ghost: GhostId, room_id: RoomId) -> bool:
    """Whether the ghost is in the room that its alias leads to, now; False: nobody is.

    Raises:
        Rejected: others are, and it may not enter.
    """
    try:
        await matrix.ensure_joined(ghost, room_id)
    except Rejected as refusal:
        if is_gone(refusal):
            return False
        why = f"its alias leads to {room_id}. Somebody there has to invite {ghost}, or delete it"
        raise Rejected("matrix", why, refusal.code) from None
    return True


async def _find_marked(
    matrix: Matrix, agent: Agent, mapping: Mapping, gone: RoomId | None
) -> RoomId | None:
    """A room that the ghost is in and that one of ours has marked as the agent's home.

    Anybody can invite a ghost into a room that they have marked themselves: that is no home. A
    room that was closed is the last resort; it says where to go.
    """
    closed: RoomId | None = None
    for room_id in sorted(await matrix.joined_rooms(mapping.ghost) - {gone}):
        found = await matrix.find_state(mapping.ghost, room_id, MARKER_TYPE)
        if not found or found[0].get("agent_id") != agent.id or not matrix.is_ghost(found[1]):
            continue
        if not await matrix.get_state(mapping.ghost, room_id, "m.room.tombstone"):
            return room_id
        closed = closed or room_id
    return closed


async def _may_mark(matrix: Matrix, ghost: GhostId, room_id: RoomId) -> bool:
    """Whether the ghost has the power to mark a room that others made: else its alias must do."""
    levels: Json = await matrix.get_state(ghost, room_id, "m.room.power_levels") or {}
    users, events = levels.get("users"), levels.get("events")
    users, events = (
        users if isinstance(users, dict) else {},
        events if isinstance(events, dict) else {},
    )
    has = users.get(ghost, levels.get("users_default", 0))
    needs = events.get(MARKER_TYPE, levels.get("state_default", 50))
    return isinstance(has, int) and isinstance(needs, int) and has >= needs


def told_by_making(ghost: GhostId, matrix: Matrix, room_id: RoomId, spec: RoomSpec) -> RoomTold:
    """What a room that was just created has in it."""
    content: dict[str, Json] = {
        "m.room.create": {"type": "m.space"} if spec.is_space else {},
        "m.room.name": {"name": spec.name},
        "m.room.topic": {"topic": spec.topic},
        "m.room.canonical_alias": {"alias": matrix.alias(spec.alias_localpart)},
        MARKER_TYPE: spec.marker,
    }
    if spec.avatar:
        content["m.room.avatar"] = spec.avatar
    state = [StateEvent(room_id, type_, "", said, ghost) for type_, said in content.items()]
    if spec.parent:
        link = parent_content(matrix.server_name)
        state.append(StateEvent(room_id, PARENT_TYPE, spec.parent, link, ghost))
    members = (
        Member(room_id, ghost, "join"),
        *(Member(room_id, user, "invite") for user in spec.invite),
    )
    return RoomTold(tuple(state), members, frozenset({ghost, matrix.hub}))


async def _recall_ghost(matrix: Matrix, agent_id: AgentId, room_id: RoomId) -> GhostId | None:
    """The user that an adopted room names as the agent's; None if it names none.

    Whoever may write the marker in the room could name any user, so only one that we drive and
    that is in the room counts.
    """
    try:
        marker = await matrix.get_state(matrix.hub, room_id, MARKER_TYPE)
        named = (marker or {}).get("ghost")
        if not isinstance(named, str) or (marker or {}).get("agent_id") != agent_id:
            return None
        ghost = GhostId(named)
        if not (matrix.is_ghost(ghost) and matrix.may_be_agent(ghost)):
            return None
        return ghost if await _is_in(matrix, ghost, room_id) else None
    except Rejected as refusal:
        if refusal.code != "M_FORBIDDEN":
            raise
        return None  # the hub is not in it


async def _is_in(matrix: Matrix, ghost: GhostId, room_id: RoomId) -> bool:
    member = await matrix.get_state(matrix.hub, room_id, "m.room.member", ghost)
    return (member or {}).get("membership") == "join"
