"""The laws of the reconciler's brain, whatever the agents are called."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from homeroom.model import Action, Agent, AgentId, Mapping, RoomId, ghost_localpart
from homeroom.plan import (
    Keep,
    Policy,
    apply_to_mapping,
    may_write,
    new_mapping,
    plan,
    room_topic,
    with_new_room,
)

POLICY = Policy(server_name="hs.test", invite=("@a:hs.test", "@b:hs.test"))

agent_ids = st.text(min_size=1, max_size=40).map(AgentId)
agents_lists = st.lists(
    st.builds(Agent, id=agent_ids, name=st.text(max_size=300), description=st.text(max_size=20)),
    max_size=6,
    unique_by=lambda agent: agent.id,
)


def apply(
    actions: list[Action], agents: list[Agent], mappings: dict[AgentId, Mapping], policy: Policy
) -> dict[AgentId, Mapping]:
    by_id = {agent.id: agent for agent in agents}
    result = dict(mappings)
    for action in actions:
        agent = by_id[action.agent_id]
        old = result.get(agent.id) or new_mapping(agent, policy.server_name)
        if action.kind == "create_room":
            result[agent.id] = with_new_room(old, agent, policy, RoomId(f"!{agent.id}"))
        else:
            result[agent.id] = apply_to_mapping(old, action, agent, policy)
    return result


@given(agents_lists)
def test_applying_a_plan_leaves_nothing_to_do(agents: list[Agent]) -> None:
    done = apply(plan(agents, {}, POLICY), agents, {}, POLICY)
    assert plan(agents, done, POLICY) == []


@given(agents_lists, st.data())
def test_a_crash_after_any_prefix_converges_to_the_same_end(
    agents: list[Agent], data: st.DataObject
) -> None:
    actions = plan(agents, {}, POLICY)
    cut = data.draw(st.integers(0, len(actions)))
    half = apply(actions[:cut], agents, {}, POLICY)
    healed = apply(plan(agents, half, POLICY), agents, half, POLICY)
    assert healed == apply(actions, agents, {}, POLICY)


@given(agents_lists, st.randoms())
def test_the_order_of_the_agents_does_not_matter(agents: list[Agent], random: object) -> None:
    shuffled = list(agents)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert plan(shuffled, {}, POLICY) == plan(agents, {}, POLICY)


@given(agents_lists, agents_lists)
def test_what_agrees_is_not_touched_when_others_come(old: list[Agent], new: list[Agent]) -> None:
    known = {agent.id for agent in old}
    done = apply(plan(old, {}, POLICY), old, {}, POLICY)
    everybody = [*old, *(agent for agent in new if agent.id not in known)]
    assert not [a for a in plan(everybody, done, POLICY) if a.agent_id in known]


def test_a_renamed_agent_keeps_its_ghost_and_room_and_gets_its_new_name() -> None:
    agent = Agent(AgentId("agent-1"), "Old")
    done = apply(plan([agent], {}, POLICY), [agent], {}, POLICY)
    renamed = replace(agent, name="New")
    actions = plan([renamed], done, POLICY)
    assert [(a.kind, a.value) for a in actions] == [
        ("set_display_name", "New"),
        ("set_room_name", "New - Letta Agent Chat"),
        ("set_topic", "Chat with New (Letta Agent)"),
    ]


def test_a_changed_description_changes_the_topic_alone_and_is_shortened() -> None:
    agent = Agent(AgentId("agent-1"), "Ada")
    done = apply(plan([agent], {}, POLICY), [agent], {}, POLICY)
    described = replace(agent, description="Keeps\n  notes")
    assert [(a.kind, a.value) for a in plan([described], done, POLICY)] == [
        ("set_topic", "Chat with Ada (Letta Agent): Keeps notes")
    ]
    topic = room_topic(replace(agent, description="long " * 1000))
    assert len(topic) < 400 and topic.endswith("…")


@given(agents_lists, st.data())
def test_whatever_changes_in_letta_the_next_plan_brings_in_step_and_touches_nobody_else(
    agents: list[Agent], data: st.DataObject
) -> None:
    done = apply(plan(agents, {}, POLICY), agents, {}, POLICY)
    texts = st.text(max_size=20)
    changed = [
        replace(agent, name=data.draw(texts), description=data.draw(texts))
        if data.draw(st.booleans())
        else agent
        for agent in agents
    ]
    actions = plan(changed, done, POLICY)
    assert {a.kind for a in actions} <= {"set_display_name", "set_room_name", "set_topic"}
    same = {new.id for old, new in zip(agents, changed, strict=True) if old == new}
    assert not same & {a.agent_id for a in actions}
    cut = data.draw(st.integers(0, len(actions)))
    half = apply(actions[:cut], changed, done, POLICY)
    healed = apply(plan(changed, half, POLICY), changed, half, POLICY)
    assert plan(changed, healed, POLICY) == []


def test_a_room_with_a_past_is_looked_at_before_it_is_left_alone() -> None:
    agent = Agent(AgentId("agent-1"), "Ada")
    adopted = replace(
        new_mapping(agent, "hs.test"), room_id=RoomId("!old"), ghost_ready=True, hub_joined=True,
        display_name="Ada", invited=frozenset(POLICY.invite),
    )  # fmt: skip
    kinds = [a.kind for a in plan([agent], {agent.id: adopted}, POLICY)]
    assert kinds == ["set_room_name", "set_topic"]


@given(
    st.sampled_from(["name", "topic"]),
    st.sampled_from(["nothing", "name", "topic", "both"]),
    st.text(max_size=3),
    st.text(max_size=3),
    st.sampled_from([True, False, None]),
)
def test_what_a_person_set_is_kept_where_the_policy_says_so_and_nowhere_else(
    detail: Literal["name", "topic"], keep: Keep, applied: str, current: str, ours: bool | None
) -> None:
    may = may_write(detail, applied, current, ours=ours, keep=keep)
    if keep not in (detail, "both") or ours:
        assert may
    elif current and (ours is False or current != applied):
        assert not may


def test_a_person_who_joins_the_list_is_invited_and_nobody_else_is() -> None:
    agent = Agent(AgentId("agent-1"), "Ada")
    done = apply(plan([agent], {}, POLICY), [agent], {}, POLICY)
    wider = replace(POLICY, invite=(*POLICY.invite, "@c:hs.test"))
    assert [(a.kind, a.value) for a in plan([agent], done, wider)] == [
        ("invite_person", "@c:hs.test")
    ]


def test_a_refused_invitation_is_asked_again_only_when_a_person_asks() -> None:
    """Rivals retried forbidden invites for ever, which stopped all relaying."""
    agent = Agent(AgentId("agent-1"), "Ada")
    done = apply(plan([agent], {}, POLICY), [agent], {}, POLICY)
    refused = (("@b:hs.test", "no"),)
    row = replace(done[agent.id], invited=frozenset(["@a:hs.test"]), refused=refused)
    assert plan([agent], {agent.id: row}, POLICY) == []
    asked = plan([agent], {agent.id: row}, replace(POLICY, ask_again=True))
    assert [a.value for a in asked] == ["@b:hs.test"]


@given(st.lists(agent_ids, unique=True, max_size=30))
def test_two_agents_never_share_a_ghost(ids: list[AgentId]) -> None:
    assert len({ghost_localpart(agent_id) for agent_id in ids}) == len(ids)


def test_ghosts_are_named_after_the_agents_id_and_never_like_the_hub() -> None:
    uuid = "597b5756-2915-4560-ba6b-91005f085166"
    assert ghost_localpart(AgentId(f"agent-{uuid}")) == "agent_" + uuid.replace("-", "_")
    assert ghost_localpart(AgentId("agent-local-1")) == "agent_local_1"
    assert ghost_localpart(AgentId("agent-hub")) != "agent_hub"
    assert ghost_localpart(AgentId("a_b")) != ghost_localpart(AgentId("a-b"))
    assert ghost_localpart(AgentId("Ünïcode / Name")).startswith("agent_n_code_name_")
