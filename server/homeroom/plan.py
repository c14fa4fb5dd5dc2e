"""What must change so that Matrix agrees with Letta. Pure: no clock, no I/O, no logging.

Owns the order of steps and the names that rooms get. Laws (each held by a test): applying a plan
leaves nothing to do; a crash after any prefix of it converges; the order of the input does not
matter; what agrees is not touched; no agent with a room gets another one; no more than a few are
retired at once unless a person says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from collections.abc import Mapping as Dict
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from homeroom.config import Config
from homeroom.drift import (
    CLOSED,
    FIGHT,
    PUT_BACK_LIMIT,
    Word,
    followed,
    is_fought_over,
    successor,
)
from homeroom.model import (
    Action,
    Agent,
    AgentId,
    GhostId,
    Json,
    Mapping,
    RoomId,
    RoomView,
    Space,
    ghost_localpart,
    localpart_of,
)
from homeroom.plan_space import (
    SIDE_KINDS,
    Surroundings,
    apply_to_avatar,
    plan_picture,
    plan_place,
    plan_space,
    with_room,
    without_refusal,
)

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
BRAKE_WINDOW_MS = 86_400_000
"""At once means within a day: those who vanish a few at a time are counted together."""

Keep = Literal["nothing", "name", "topic", "both"]
NO_SPACE = Space()


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
    history: bool = False
    """Whether a new room gets what was said before."""
    confirm_removals: bool = False
    """A person has said that however many are gone may be retired."""
    removals_confirmed_ms: int = 0
    """When a person last said so: who was retired until then does not count any more."""
    space_name: str = ""
    """Of the space that all rooms hang in; empty: none."""
    avatars: bool = False

    @property
    def surroundings(self) -> Surroundings:
        """What of it concerns the space and the pictures."""
        return Surroundings(
            server_name=self.server_name,
            space_name=self.space_name,
            invite=self.invite if self.invites else (),
            avatars=self.avatars,
            ask_again=self.ask_again,
        )


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
        history=config.history_count > 0,
        select_tags=config.select_tags,
        select_names=config.select_names,
        select_ids=config.select_ids,
        space_name="" if "spaces" in off else config.space_name,
        avatars="avatars" not in off,
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
        or any(_matches(name, pattern.casefold()) for pattern in policy.select_names)
    )


def _matches(name: str, pattern: str) -> bool:
    """Whether they agree, where only ``*`` and ``?`` have a meaning: names have brackets."""
    return fnmatchcase(name, pattern.replace("[", "[[]"))


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


def marker_of(mapping: Mapping, store_id: str) -> Json:
    """What marks a room as the agent's; a user that was imported is named, for its own name does
    not follow from the agent's id."""
    marker = {"agent_id": mapping.agent_id, "store_id": store_id}
    if localpart_of(mapping.ghost) == ghost_localpart(mapping.agent_id):
        return marker
    return marker | {"ghost": mapping.ghost}


def new_mapping(agent: Agent, server_name: str, made_ms: int = 0) -> Mapping:
    """The row of an agent for which nothing has been done yet."""
    ghost = ghost_of(agent.id, server_name)
    return Mapping(agent_id=agent.id, ghost=ghost, agent_name=agent.name, made_ms=made_ms)


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
    agents: Iterable[Agent],
    mappings: Dict[AgentId, Mapping],
    rooms: Dict[RoomId, RoomView],
    policy: Policy,
    now_ms: int = 0,
    space: Space = NO_SPACE,
) -> list[Action]:
    """The actions still to do: those on the space first, then agent by agent (in the order of their
    ids), each in its order.

    ``agents`` are all that Letta has: one that is mapped and not among them is on its way out.
    ``rooms`` are what is known of rooms; of one that is not among them nothing is presumed.
    """
    wish = policy.surroundings
    actions = plan_space(space, rooms, wish, keep_name=policy.keep_edits in ("name", "both"))
    present = {agent.id: agent for agent in agents}
    chosen = {agent.id for agent in present.values() if is_selected(agent, policy)}
    for agent_id in sorted(chosen):
        agent = present[agent_id]
        mapping = mappings.get(agent_id) or new_mapping(agent, policy.server_name)
        actions += _plan_one(agent, mapping, rooms, policy)
        actions += plan_place(mapping, space, rooms, wish)
    actions += _plan_retirements(present, mappings, policy, now_ms)
    for agent_id, mapping in sorted(mappings.items()):
        if agent_id not in chosen and mapping.room_id and not mapping.room_gone:
            actions += plan_place(mapping, space, rooms, wish)  # it stays where people find it
    return actions


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
    since_ms = max(now_ms - BRAKE_WINDOW_MS, policy.removals_confirmed_ms)
    lately = [m for m in mappings.values() if m.retired and m.retired_ms > since_ms]
    lost = [*gone, *lately]
    held, losses, all_there_were = "", len(lost), _count_before(lost, living)
    too_many = losses >= BRAKE_COUNT and losses > BRAKE_SHARE * all_there_were
    if too_many and not policy.confirm_removals:
        when = "within a day" if lately else "at once"
        held = (
            f"{losses} of {all_there_were} agents are gone from Letta {when}, which looks like a"
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


def _count_before(lost: Collection[Mapping], living: Collection[Mapping]) -> int:
    """How many agents there were when the first of the ``lost`` went missing.

    Those who came since are no reason to believe that the others are gone: another Letta at the
    same address comes with as many agents as it likes.
    """
    first_ms = min((mapping.missing_since_ms for mapping in lost), default=0)
    ids = {mapping.agent_id for mapping in lost}
    others = (mapping for mapping in living if mapping.agent_id not in ids)
    return len(ids) + sum(not m.made_ms or m.made_ms < first_ms for m in others)


def retired_name(mapping: Mapping) -> str:
    """The name of the room of an agent that is gone."""
    name = mapping.room_name or room_name(Agent(mapping.agent_id, mapping.agent_name))
    return f"{name} (retired)"


def _plan_one(
    agent: Agent, mapping: Mapping, rooms: Dict[RoomId, RoomView], policy: Policy
) -> list[Action]:
    actions: list[Action] = []

    def do(kind: str, reason: str, value: str = "", held: str = "") -> None:
        actions.append(Action(kind, agent.id, agent.name, reason, value, held))  # type: ignore[arg-type]

    if not mapping.ghost_ready:
        do("register_ghost", "the agent has no Matrix user", mapping.ghost)
    may_name = policy.rename or not mapping.display_name
    if may_name and mapping.display_name != display_name(agent):
        why = "the agent was renamed" if mapping.display_name else "the ghost has no name"
        do("set_display_name", why, display_name(agent))
    view = rooms.get(mapping.room_id) if mapping.room_id and not mapping.room_gone else None
    if view and view.closed and (new := successor(mapping, rooms)):
        do("follow_room", f"its room {mapping.room_id} was replaced", new)
        mapping, view = followed(mapping, view, new), rooms.get(new)
    elif view and view.closed:
        do("follow_room", f"its room {mapping.room_id} was closed", "", CLOSED)
        return actions
    homeless = not mapping.room_id or mapping.room_gone
    actions += plan_picture(mapping, policy.surroundings)  # a new room is created with it
    if homeless:
        why = f"its room {mapping.room_id} was deleted" if mapping.room_id else ""
        alias = alias_of(agent.id, policy.server_name)
        do("create_room", why or "the agent has no room", alias)
    if not mapping.hub_joined:
        do("join_hub", "the hub reads every agent room")
    if not homeless and mapping.alias_room not in (None, mapping.room_id):
        elsewhere = f"its alias leads to {mapping.alias_room}"
        why = elsewhere if mapping.alias_room else "the room has lost its alias"
        do("set_alias", why, alias_of(agent.id, policy.server_name))
    refused = {person for person, _ in mapping.refused}
    for person in policy.invite if policy.invites else ():
        if person in mapping.invited or (person in refused and not policy.ask_again):
            continue
        if homeless and person not in refused:
            continue  # invited by the call that creates the room
        do("invite_person", "belongs in every agent room", person)
    if mapping.retired:
        do("restore_agent", "the agent is in Letta again", room_name(agent))
    if not homeless and policy.rename:  # a new room is created with both
        for word in _WORDS:
            _plan_word(word, agent, mapping, view, policy, do)
    if not homeless and not mapping.marked:
        why = "an adopted room is found again by its alias and marker"
        do("mark_room", why, alias_of(agent.id, policy.server_name))
    if policy.history and (mapping.history_due or homeless) and not mapping.history_written:
        do("write_history", "its room is new")
    return actions


_WORDS: tuple[Word, ...] = ("name", "topic")


def _plan_word(
    word: Word, agent: Agent, mapping: Mapping, view: RoomView | None, policy: Policy,
    do: Callable[..., None],
) -> None:  # fmt: skip
    """What becomes of the room's name or topic: ours follows the agent, and a person's edit of it
    stays or is put back, as the policy says."""
    is_name = word == "name"
    wanted = room_name(agent) if is_name else room_topic(agent)
    applied = mapping.room_name if is_name else mapping.topic
    kind = "set_room_name" if is_name else "set_topic"
    if is_name and mapping.retired:
        return
    if applied != wanted:
        changed = "the agent was renamed" if is_name else "name or description changed"
        do(kind, changed if applied else f"its {word} is not known", wanted)
        return
    if view is None or not (view.known and mapping.hub_joined) or _is_kept(word, policy.keep_edits):
        return
    seen = view.name if is_name else view.topic
    if seen.text != wanted:
        fight = is_fought_over(mapping, word) and not policy.ask_again
        held = FIGHT.format(count=PUT_BACK_LIMIT) if fight else ""
        do(kind, f"{seen.sender or 'somebody'} changed the {word} in the room", wanted, held)


def _is_kept(word: Word, keep: Keep) -> bool:
    return keep in (word, "both")


def may_write(detail: Word, applied: str, current: str, *, ours: bool | None, keep: Keep) -> bool:
    """Whether the name or topic of a room may be replaced by ours.

    Args:
        applied: What we wrote last; empty if that is not known.
        current: What the room has.
        ours: Whether one of our ghosts set that; None if the homeserver does not say.
    """
    if not _is_kept(detail, keep):
        return True
    if ours is None:
        ours = current == applied
    return ours or (not current and not applied)


def with_new_room(mapping: Mapping, agent: Agent, policy: Policy, room_id: RoomId) -> Mapping:
    """The row after the room was created: the same call set its name and invited everybody."""
    return replace(
        mapping,
        room_id=room_id,
        room_gone=False,
        room_name=room_name(agent),
        topic=room_topic(agent),
        invited=frozenset(policy.invite) if policy.invites else frozenset(),
        avatar=with_room(mapping.avatar, room_id) if policy.avatars else mapping.avatar,
        history_due=policy.history and not mapping.history_written,
        marked=True,
        alias_room=room_id,
        put_back=(),
    )


def apply_to_mapping(mapping: Mapping, action: Action, agent: Agent, policy: Policy) -> Mapping:
    """The row after ``action`` succeeded. For a room that was created see ``with_new_room``, for
    one that was followed ``followed``."""
    if action.kind in SIDE_KINDS:
        avatar = apply_to_avatar(mapping.avatar, action, mapping.room_id)
        return replace(without_refusal(mapping, action), avatar=avatar)
    match action.kind:
        case "register_ghost":
            return replace(mapping, ghost_ready=True)
        case "set_display_name":
            return replace(mapping, display_name=action.value, agent_name=agent.name)
        case "join_hub":
            return replace(mapping, hub_joined=True)
        case "set_alias":
            return replace(mapping, alias_room=mapping.room_id)
        case "set_room_name":
            return replace(mapping, room_name=action.value)
        case "set_topic":
            return replace(mapping, topic=action.value)
        case "retire_agent":
            return replace(mapping, room_name=action.value, retired=True)
        case "restore_agent":
            return replace(
                mapping, room_name=action.value, retired=False, retired_ms=0, missing_since_ms=0,
                missing_seen=0,
            )  # fmt: skip
        case "mark_room":
            return replace(mapping, marked=True, alias_room=mapping.room_id)
        case "write_history":
            return replace(mapping, history_due=False)
        case "invite_person":
            return replace(
                mapping,
                invited=mapping.invited | {action.value},
                refused=tuple(pair for pair in mapping.refused if pair[0] != action.value),
            )
        case _:
            return mapping


def _short(text: str, limit: int = NAME_LIMIT) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
