"""Which room counts as our space, on a real homeserver."""

from __future__ import annotations

from homeroom.model import MARKER_TYPE, SPACE_LOCALPART, RoomId
from homeroom.room_view import view_of
from homeroom.spaces import find_space, space_spec
from support.matrix import connect
from support.person import Person
from support.rooms import new_room
from support.synapse import PASSWORD, Homeserver


async def test_a_room_that_a_person_has_marked_is_not_taken_for_the_space_and_ours_is(
    own_synapse: Homeserver,
) -> None:
    own_synapse.person("eve")
    async with (
        connect(own_synapse) as matrix,
        Person.login(own_synapse.url, "eve", PASSWORD) as eve,
    ):
        await matrix.check()
        theirs = RoomId(await new_room(eve, matrix.hub, creation_content={"type": "m.space"}))
        await matrix.ensure_joined(matrix.hub, theirs)
        await eve.send_state(theirs, MARKER_TYPE, {"space": True, "store_id": "s"})
        spec = space_spec("Letta Agents", (), (), "11", "s", {})
        state, _ = await matrix.room_state(matrix.hub, theirs)
        for known in ({}, {theirs: view_of(theirs, state, {})}):
            assert await find_space(matrix, spec, None, known) is None
        ours = await matrix.create_room(matrix.hub, spec)
        assert await find_space(matrix, spec, None, {}) == ours
        await matrix.remove_alias(matrix.hub, matrix.alias(SPACE_LOCALPART))
        assert await find_space(matrix, spec, None, {}) == ours, "by its marker alone"
