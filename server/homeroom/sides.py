"""Side actions (the space, the pictures): carried out and recorded, and their failures kept apart.

A refusal is written into the row and asked again only when a person asks; what somebody undoes each
time is left to them. Invariant: nothing that happens here keeps an agent from its room.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, replace

from homeroom.config import Config
from homeroom.errors import Rejected, Unavailable, was_answered
from homeroom.homes import told_by_making
from homeroom.matrix import Matrix
from homeroom.model import (
    Action,
    Agent,
    AgentId,
    Avatar,
    Failure,
    Mapping,
    RoomId,
    RoomTold,
    RoomView,
    Space,
    StateEvent,
)
from homeroom.pictures import apply_picture
from homeroom.plan import Policy, apply_to_mapping
from homeroom.plan_space import (
    AVATAR_KINDS,
    HUB_SEED,
    SIDE_KINDS,
    absent_from,
    apply_to_space,
    avatar_content,
    is_there,
    new_space,
    old_spaces,
    with_link,
)
from homeroom.spaces import apply_place, change_space, find_space, look_at_space, space_spec
from homeroom.store import Store

HOUR_S = 3600.0
TIMES_PER_HOUR = 3
"""So often the same thing is put back within an hour; then somebody means it, or another bot does,
and people have to settle it."""

Save = Callable[[Mapping], Awaitable[None]]


@dataclass(slots=True)
class Around:
    """What one run knows of the space and the rooms; kept up to date as it changes them."""

    space: Space
    rooms: MutableMapping[RoomId, RoomView]
    policy: Policy
    fence: int

    @property
    def space_id(self) -> RoomId | None:
        """The space that rooms hang in now; None if there is none to use."""
        wish = self.policy.surroundings
        there = bool(wish.space_name) and is_there(self.space, self.rooms, wish.hub)
        return self.space.room_id if there else None


class Sides:
    """The hands for side actions."""

    def __init__(self, config: Config, store: Store) -> None:
        self._config, self._store = config, store
        self._done_s: dict[tuple[AgentId, str, str], deque[float]] = {}
        """When each was carried out of late."""

    def is_blocked(self, action: Action, mapping: Mapping, around: Around) -> bool:
        """Whether it has to wait for space, room or user, whose own failure says why."""
        if action.kind not in SIDE_KINDS:
            return False
        if action.kind in AVATAR_KINDS and not mapping.ghost_ready:
            return True
        if action.kind in ("upload_avatar", "set_avatar"):
            return False
        if mapping.room_id is None or mapping.room_gone:
            return True
        if action.kind == "set_parent" and not mapping.hub_joined:
            return True  # the user, which does it, may be out of the room; the hub does the rest
        return action.kind != "set_room_avatar" and around.space_id is None

    def find_fight(self, action: Action, now_ms: int) -> Failure | None:
        """Why the action is left alone for now: somebody undoes it each time."""
        done_s = self._done_s.get(_key(action))
        if done_s is None or len(done_s) < TIMES_PER_HOUR:
            return None
        left_s = done_s[0] + HOUR_S - time.monotonic()
        if left_s <= 0:
            return None
        reason = (
            f"done {TIMES_PER_HOUR} times within an hour and undone each time by somebody or"
            " another bot. Settle it with them, then run homeroom sync"
        )
        return Failure(action, reason, final=False, next_try_ms=now_ms + round(left_s * 1000))

    def _note_success(self, action: Action) -> None:
        done_s = self._done_s.setdefault(_key(action), deque(maxlen=TIMES_PER_HOUR))
        done_s.append(time.monotonic())

    async def apply(
        self, matrix: Matrix, action: Action, agent: Agent, mapping: Mapping, around: Around,
        save: Save,
    ) -> Mapping:  # fmt: skip
        """Carries out a side action on an agent's room or ghost, and records it."""
        if action.kind in AVATAR_KINDS:

            async def keep(avatar: Avatar) -> None:
                await save(replace(mapping, avatar=avatar))

            avatar = await apply_picture(
                matrix, mapping.ghost, agent.id, mapping.room_id, mapping.avatar, action, keep
            )
            mapping = replace(mapping, avatar=avatar)
        else:
            space_id = around.space_id
            assert space_id  # see ``is_blocked``
            home = around.rooms.get(mapping.room_id) if mapping.room_id else None
            old = old_spaces(home, around.space, around.rooms) if home else []
            try:
                changes = await apply_place(matrix, action, mapping, space_id, old)
            except Rejected:
                await self._look_for_space(matrix, space_id, around)
                raise
            await self.record(changes, around)
        mapping = apply_to_mapping(mapping, action, agent, around.policy)
        await save(mapping)
        self._note_success(action)
        return mapping

    async def apply_to_space(self, matrix: Matrix, action: Action, around: Around) -> None:
        """Carries out an action on the space or the hub, and records it."""
        space = around.space

        async def save(space: Space) -> None:
            around.space = space
            await self._store.save_space(space, around.fence)

        async def keep(avatar: Avatar) -> None:
            await save(replace(around.space, avatar=avatar))

        if action.kind == "make_space":
            await save(await self._ensure_space(matrix, around))
            self._note_success(action)
            return
        if action.kind in AVATAR_KINDS:
            avatar = await apply_picture(
                matrix, matrix.hub, HUB_SEED, space.room_id, space.avatar, action, keep
            )
            space = replace(space, avatar=avatar)
        else:
            assert space.room_id
            try:
                told = await change_space(matrix, action, space, around.policy.keep_edits)
            except Rejected:
                await self._look_for_space(matrix, space.room_id, around)
                raise
            await self.record(told, around)
        await save(apply_to_space(space, action))
        self._note_success(action)

    async def _look_for_space(self, matrix: Matrix, space_id: RoomId, around: Around) -> None:
        """After a refusal: is the space still there at all?

        Raises:
            Unavailable: it is not, so this was no refusal for good; the next sync makes another.
        """
        told: dict[RoomId, RoomTold] = {}
        await look_at_space(matrix, space_id, around.rooms, told)
        if space_id in told:
            await self._store.save_seen(space_id, told[space_id], around.fence)
        if around.space_id is None:
            raise Unavailable("matrix", "the space is gone, and the next sync makes another")

    async def _ensure_space(self, matrix: Matrix, around: Around) -> Space:
        """The row of the space, found or made."""
        old, wish, policy = around.space, around.policy.surroundings, around.policy
        has_picture = wish.avatars and old.avatar.digest
        absent = absent_from(old, around.rooms, wish.hub)
        invite = tuple(person for person in wish.invite if person not in absent)
        spec = space_spec(
            wish.space_name, invite, policy.invite, self._config.matrix_room_version,
            await self._store.get_meta("store_id"),
            avatar_content(HUB_SEED, old.avatar) if has_picture else {},
        )  # fmt: skip
        found, made = await find_space(matrix, spec, old.room_id, around.rooms), None
        if found is None:
            try:
                made = await matrix.create_room(matrix.hub, spec)
            except (Rejected, Unavailable) as error:
                # It may be there, and only somebody who was to be invited out of reach.
                if was_answered(error):
                    found = await find_space(matrix, spec, old.room_id, around.rooms)
                if found is None:
                    raise
        if made is None:
            assert found
            return await self._row_of_found(matrix, found, absent, around)
        await self._store.save_told(told_by_making(matrix.hub, matrix, made, spec), around.fence)
        around.rooms.update(await self._store.list_rooms(made))
        return new_space(old, made, wish)

    async def _row_of_found(
        self, matrix: Matrix, room_id: RoomId, absent: frozenset[str], around: Around
    ) -> Space:
        """The row of a space that was there already: what it is called is for the plan to see to;
        who is known there was invited before, and may have left since."""
        told, wish = dict[RoomId, RoomTold](), around.policy.surroundings
        await look_at_space(matrix, room_id, around.rooms, told)
        if room_id in told:
            await self._store.save_seen(room_id, told[room_id], around.fence)
        known = around.rooms[room_id].users("join", "invite", "leave", "ban")
        return replace(
            around.space, room_id=room_id, name="", refused_actions=(),
            invited=(known | absent) & frozenset(wish.invite),
            alias_room=await matrix.find_room(wish.space_alias) or "",
        )  # fmt: skip

    async def record(self, changes: list[StateEvent], around: Around) -> None:
        """Notes state that was set, in the store and for the rest of this run."""
        await self._store.save_state(changes, around.fence)
        for event in changes:
            view = around.rooms.get(event.room_id, RoomView(event.room_id))
            around.rooms[event.room_id] = with_link(view, event)


def _key(action: Action) -> tuple[AgentId, str, str]:
    return action.agent_id, action.kind, action.value
