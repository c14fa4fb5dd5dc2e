"""What ghosts say in rooms that are not, or not all, theirs. Pure."""

from __future__ import annotations

from homeroom.items import NewItem
from homeroom.model import GhostId
from homeroom.posts import notice_item, plain_label
from homeroom.residence import Claim
from homeroom.store.claims import Intruder


def needs_hub_notice(ghost: GhostId, claim: Claim, hub: GhostId, reason: str) -> NewItem:
    """What a room has to do before its agent can hear anything there."""
    text = (
        f"I am here, but I cannot hear you yet: I hear through {hub}, which could not come in"
        f" ({reason}). Please invite {hub} into this room; then I read what was written since I"
        " was invited. You may also put me out again."
    )
    key = f"needs-hub:{claim.room_id}:{claim.since_ms}:{claim.opened_ms}"
    return notice_item(ghost, claim.room_id, None, text, dedupe_key=key)


def away_notice(intruder: Intruder, hour: int) -> NewItem:
    """Where to talk to an agent that was taken into the home of another one; said once an hour."""
    name, host = plain_label(intruder.agent_name), plain_label(intruder.host_name)
    where = f"its own room, https://matrix.to/#/{intruder.own_room}" if intruder.own_room else ""
    text = (
        f"{name} has left again: this is the room of {host} alone. Talk to {name} in"
        f" {where or 'a room of its own'}, in a direct chat, or invite several agents into a new"
        " room, where each answers what is for it."
    )
    key = f"away:{intruder.room_id}:{intruder.ghost}:{hour}"
    return notice_item(intruder.host, intruder.room_id, None, text, dedupe_key=key)
