"""What must change so that Matrix agrees with Letta. Pure: no clock, no I/O, no logging.

Owns the order of steps and the names that rooms get. Laws (each held by a test): applying a plan
leaves nothing to do; a crash after any prefix of it converges; the order of the input does not
matter; what agrees is not touched; no more than a few are retired at once unless a person says so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from collections.abc import Mapping as Dict
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from homeroom.config import Config
from homeroom.model import Action, Agent, AgentId, GhostId, Mapping, RoomId, ghost_localpart

NAME_LIMIT = 120
"""Characters of an agent's name that go into room names; Matrix allows 255 bytes."""
DESCRIPTION_LIMIT = 300
"""Characters of an agent's description that go into topics: what a client shows in two lines."""

MISSING_SEEN = 2
"""So many complete lists must lack an agent before it counts as gone."""
BRAKE_COUNT = 3
BRAKE_SHARE = 0.25
"""Retiring at least so many, and more than this share, at once is rather a Letta that was reset or
mistaken for another one: a person confirms it."""

Keep = Literal["nothing", "name", "topic", "both"]


@dataclass(frozen=True, slots=True)
class Policy:
    """What the configuration wants of every agent's home."""

    server_name: str
    invite: tuple[str, ...] = ()
    ask_again: bool = False
    """Ask again what was refused for good: only when a person called for the sync."""
    keep_edits: Keep = "topic"
    """Which of the details that a person has changed in a room are not written over."""
    retire_after_ms: int = 7_200_000
    rename: bool = True
    invites: bool = True
    retire: bool = True
    select_tags: tuple[str, ...] = ()
    select_names: tuple[str, ...] = ()
    """Patterns with ``*`` and ``?``, regardless of case."""
    select_ids: tuple[str, ...] = ()
    confirm_removals: bool = False
    """A person has said that however many are gone may be retired."""


def policy_of(config: Config) -> Policy:
    """What the settings want."""
    off = config.switch_off
    return Policy(
        server_name=config.matrix_server_name,
        invite=config.invite,
        keep_edits=config.keep_edits,
        retire_after_ms=int(config.retire_after_s * 1000),
        rename="rename" not in off,
        invites="invites" not in off,
        retire="retire" not in off,
        select_tags=config.select_tags,
        select_names=config.select_names,
        select_ids=config.select_ids,
    )


def is_selected(agent: Agent, policy: Policy) -> bool:
    """Whether the agent shall have a home: one tag, name or id of the policy fits, or it has none.

    An agent with a home that is not selected any more is left as it is, and not retired.
    """
    if not (policy.select_tags or policy.select_names or policy.select_ids):
        return True
    name = agent.name.casefold()
    return (
        agent.id in policy.select_ids
        or any(tag in policy.select_tags for tag in agent.tags)
        or any(fnmatchcase(name, pattern.casefold()) for pattern in policy.select_names)
    )


def room_name(agent: Agent) -> str:
    return f"{_short(agent.name) or agent.id} - Letta Agent Chat"


def room_topic(agent: Agent) -> str:
    topic = f"Chat with {_short(agent.name) or agent.id} (Letta Agent)"
    description = _short(agent.description, DESCRIPTION_LIMIT)
    return f"{topic}: {description}" if description else topic


def display_name(agent: Agent) -> str:
    return _short(agent.name) or agent.id


def ghost_of(agent_id: AgentId, server_name: str) -> GhostId:
    return GhostId(f"@{ghost_localpart(agent_id)}:{server_name}")


def alias_of(agent_id: AgentId, server_name: str) -> str:
    return f"#{ghost_localpart(agent_id)}:{server_name}"


def new_mapping(agent: Agent, server_name: str) -> Mapping:
    """The row of an agent for which nothing has been done yet."""
    return Mapping(agent_id=agent.id, ghost=ghost_of(agent.id, server_name), agent_name=agent.name)


def observe_missing(
    present: Collection[AgentId], mappings: Dict[AgentId, Mapping], now_ms: int
) -> dict[AgentId, Mapping]:
    """The rows that change because a complete list has just named the agents ``present``."""
    changed: dict[AgentId, Mapping] = {}
    for agent_id, mapping in mappings.items():
        if agent_id in present:
            if mapping.missing_seen and not mapping.retired:
                changed[agent_id] = replace(mapping, missing_since_ms=0, missing_seen=0)
        elif mapping.missing_seen < MISSING_SEEN:
            changed[agent_id] = replace(
                mapping,
                missing_since_ms=mapping.missing_since_ms or now_ms,
                missing_seen=mapping.missing_seen + 1,
            )
    return changed


def plan(
    agents: Iterable[Agent], mappings: Dict[AgentId, Mapping], policy: Policy, now_ms: int = 0
) -> list[Action]:
    """The actions still to do, agent by agent (in the order of their ids), each in its order.

    ``agents`` are all that Letta has: one that is mapped and not among them is on its way out.
    """
    actions: list[Action] = []
    present = {agent.id: agent for agent in agents}
    for agent_id, agent in sorted(present.items()):
        if not is_selected(agent, policy):
            continue
        mapping = mappings.get(agent_id) or new_mapping(agent, policy.server_name)
        actions += _plan_one(agent, mapping, policy)
    return actions + _plan_retirements(present, mappings, policy, now_ms)


def _plan_retirements(
    present: Collection[AgentId], mappings: Dict[AgentId, Mapping], policy: Policy, now_ms: int
) -> list[Action]:
    if not policy.retire:
        return []
    living = [mapping for mapping in mappings.values() if not mapping.retired]
    gone = [
        mapping
        for mapping in living
        if mapping.agent_id not in present
        and mapping.missing_seen >= MISSING_SEEN
        and now_ms - mapping.missing_since_ms >= policy.retire_after_ms
    ]
    held = ""
    too_many = len(gone) >= BRAKE_COUNT and len(gone) > BRAKE_SHARE * len(living)
    if too_many and not policy.confirm_removals:
        held = (
            f"{len(gone)} of {len(living)} agents are gone from Letta at once, which looks like a"
            " mistake. If it is none, say so: homeroom sync --confirm-removals, or"
            " sync_agents(confirm_removals=true)"
        )
    return [
        Action(
            "retire_agent", mapping.agent_id, mapping.agent_name,
            "the agent is gone from Letta", retired_name(mapping), held,
        )
        for mapping in sorted(gone, key=lambda m: m.agent_id)
    ]  # fmt: skip


def retired_name(mapping: Mapping) -> str:
    """The name of the room of an agent that is gone."""
    name = mapping.room_name or room_name(Agent(mapping.agent_id, mapping.agent_name))
    return f"{name} (retired)"


def _plan_one(agent: Agent, mapping: Mapping, policy: Policy) -> list[Action]:
    actions: list[Action] = []

    def do(kind: str, reason: str, value: str = "") -> None:
        actions.append(Action(kind, agent.id, agent.name, reason, value))  # type: ignore[arg-type]

    if not mapping.ghost_ready:
        do("register_ghost", "the agent has no Matrix user", mapping.ghost)
    may_name = policy.rename or not mapping.display_name
    if may_name and mapping.display_name != display_name(agent):
        why = "the agent was renamed" if mapping.display_name else "the ghost has no name"
        do("set_display_name", why, display_name(agent))
    if not mapping.room_id:
        do("create_room", "the agent has no room", alias_of(agent.id, policy.server_name))
    if not mapping.hub_joined:
        do("join_hub", "the hub reads every agent room")
    refused = {person for person, _ in mapping.refused}
    for person in policy.invite if policy.invites else ():
        if person in mapping.invited or (person in refused and not policy.ask_again):
            continue
        if not mapping.room_id and person not in refused:
            continue  # invited by the call that creates the room
        do("invite_person", "belongs in every agent room", person)
    if mapping.retired:
        do("restore_agent", "the agent is in Letta again", room_name(agent))
    if mapping.room_id and policy.rename:  # a new room is created with both
        if mapping.room_name != room_name(agent) and not mapping.retired:
            why = "the agent was renamed" if mapping.room_name else "its name is not known"
            do("set_room_name", why, room_name(agent))
        if mapping.topic != room_topic(agent):
            why = "name or description changed" if mapping.topic else "its topic is not known"
            do("set_topic", why, room_topic(agent))
    return actions


def may_write(
    detail: Literal["name", "topic"], applied: str, current: str, *, ours: bool | None, keep: Keep
) -> bool:
    """Whether the name or topic of a room may be replaced by ours.

    Args:
        applied: What we wrote last; empty if that is not known.
        current: What the room has.
        ours: Whether one of our ghosts set that; None if the homeserver does not say.
    """
    if keep not in (detail, "both"):
        return True
    if ours is None:
        ours = current == applied
    return ours or (not current and not applied)


def with_new_room(mapping: Mapping, agent: Agent, policy: Policy, room_id: RoomId) -> Mapping:
    """The row after the room was created: the same call set its name and invited everybody."""
    return replace(
        mapping,
        room_id=room_id,
        room_name=room_name(agent),
        topic=room_topic(agent),
        invited=frozenset(policy.invite) if policy.invites else frozenset(),
    )


def apply_to_mapping(mapping: Mapping, action: Action, agent: Agent, policy: Policy) -> Mapping:
    """The row after ``action`` succeeded (for a room that was created see ``with_new_room``)."""
    match action.kind:
        case "register_ghost":
            return replace(mapping, ghost_ready=True)
        case "set_display_name":
            return replace(mapping, display_name=action.value, agent_name=agent.name)
        case "create_room":
            return mapping
        case "join_hub":
            return replace(mapping, hub_joined=True)
        case "set_room_name":
            return replace(mapping, room_name=action.value)
        case "set_topic":
            return replace(mapping, topic=action.value)
        case "retire_agent":
            return replace(mapping, room_name=action.value, retired=True)
        case "restore_agent":
            return replace(
                mapping, room_name=action.value, retired=False, missing_since_ms=0, missing_seen=0
            )
        case "invite_person":
            return replace(
                mapping,
                invited=mapping.invited | {action.value},
                refused=tuple(pair for pair in mapping.refused if pair[0] != action.value),
            )


def _short(text: str, limit: int = NAME_LIMIT) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
