"""Who may bring agents into rooms, and who is invited to theirs again. Pure.

Nobody is invited twice of our own accord: what was once done for a person is written down with the
agent, and taken back only when the person asks or the list of people changes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from collections.abc import Mapping as Dict
from dataclasses import dataclass, replace

from homeroom.config import INVITED_PEOPLE, LOCAL, NOBODY, Config
from homeroom.errors import Misuse
from homeroom.model import AgentId, Mapping, RoomId, Space
from homeroom.residence import Invitation


@dataclass(frozen=True, slots=True)
class GuestPolicy:
    """What the configuration says of invitations of agents."""

    server_name: str
    people: tuple[str, ...] = ()
    accept: tuple[str, ...] = (INVITED_PEOPLE,)


def guest_policy_of(config: Config) -> GuestPolicy:
    return GuestPolicy(config.matrix_server_name, config.invite, config.accept_invites)


def askable(config: Config) -> tuple[str, ...]:
    """Those who may ask to be invited again, because they are invited anyway."""
    return () if "invites" in config.switch_off else config.invite


def check_askable(person: str, config: Config) -> None:
    """Raises Misuse unless ``person`` is one who is invited to every agent's room."""
    if "invites" in config.switch_off:
        raise Misuse(
            "HOMEROOM_SWITCH_OFF has `invites`, so Homeroom invites nobody. Nothing was changed."
        )
    if person not in config.invite:
        raise Misuse(
            f"{person[:255]} is not in HOMEROOM_INVITE, and nobody else is ever invited by"
            " Homeroom. Nothing was changed. Add the id there and restart the service, or have"
            " somebody in the room invite them."
        )


def why_declined(
    invitation: Invitation, policy: GuestPolicy, *, inviter_is_ghost: bool, is_retired: bool
) -> str:
    """Why an agent does not accept an invitation; empty: it accepts."""
    if inviter_is_ghost:
        return "agents do not invite each other"
    if invitation.is_space:
        return "a space holds rooms and no talk"
    if is_retired:
        return "the agent is gone from Letta"
    if may_invite(invitation.inviter, policy):
        return ""
    return f"HOMEROOM_ACCEPT_INVITES ({', '.join(policy.accept)}) does not cover the inviter"


def may_invite(inviter: str, policy: GuestPolicy) -> bool:
    """Whether agents accept invitations of that user."""
    domain = inviter.partition(":")[2]
    return (
        inviter in policy.accept
        or (domain in policy.accept and domain not in (INVITED_PEOPLE, LOCAL, NOBODY))
        or (INVITED_PEOPLE in policy.accept and inviter in policy.people)
        or (LOCAL in policy.accept and domain == policy.server_name)
    )


def observe_list(
    mappings: Dict[AgentId, Mapping], people: Collection[str]
) -> dict[AgentId, Mapping]:
    """The rows that change because people are not on the list any more: should they come back to
    it, they are invited anew."""
    changed = {}
    for agent_id, mapping in mappings.items():
        invited = mapping.invited & frozenset(people)
        refused = tuple(pair for pair in mapping.refused if pair[0] in people)
        if (invited, refused) != (mapping.invited, mapping.refused):
            changed[agent_id] = replace(mapping, invited=invited, refused=refused)
    return changed


def ask_again(
    mappings: Dict[AgentId, Mapping],
    persons: Collection[str],
    is_there: Callable[[RoomId, str], bool],
) -> dict[AgentId, Mapping]:
    """The rows that change because these people ask to be invited again, where they are not in
    the room or invited already."""
    changed = {}
    for agent_id, mapping in mappings.items():
        room_id = mapping.room_id
        asking = {who for who in persons if room_id and not is_there(room_id, who)}
        if asking & (mapping.invited | {who for who, _ in mapping.refused}):
            changed[agent_id] = replace(
                mapping,
                invited=mapping.invited - asking,
                refused=tuple(pair for pair in mapping.refused if pair[0] not in asking),
            )
    return changed


def space_after(
    space: Space, people: Collection[str], asking: Collection[str],
    is_there: Callable[[RoomId, str], bool],
) -> Space:  # fmt: skip
    """The row of the space: like homes, it forgets who left the list and who asks."""
    room_id = space.room_id
    ask = {who for who in asking if room_id and not is_there(room_id, who)}
    keep = frozenset(people) - ask
    refused = tuple(
        pair for pair in space.refused_actions if not pair[0].startswith("@") or pair[0] in keep
    )
    return replace(
        space, invited=space.invited & keep, absent=space.absent & keep, refused_actions=refused
    )
