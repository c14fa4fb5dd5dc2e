"""The laws of the reconciler's brain, whatever the agents are called."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from homeroom.model import Action, Agent, AgentId, GhostId, Mapping, RoomId, ghost_localpart
from homeroom.people import ask_again, observe_list
from homeroom.plan import (
    Keep,
    Policy,
    apply_to_mapping,
    is_selected,
    may_write,
    new_mapping,
    observe_missing,
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
        if action.held:
            continue
        agent = by_id.get(action.agent_id) or Agent(action.agent_id, action.agent_name)
        old = result.get(agent.id) or new_mapping(agent, policy.server_name)
        if action.kind == "create_room":
            result[agent.id] = with_new_room(old, agent, policy, RoomId(f"!{agent.id}"))
        else:
            result[agent.id] = apply_to_mapping(old, action, agent, policy)
    return result


@given(agents_lists)
def test_applying_a_plan_leaves_nothing_to_do(agents: list[Agent]) -> None:
    done = apply(plan(agents, {}, {}, POLICY), agents, {}, POLICY)
    assert plan(agents, done, {}, POLICY) == []


@given(agents_lists, st.data())
def test_a_crash_after_any_prefix_converges_to_the_same_end(
    agents: list[Agent], data: st.DataObject
) -> None:
    actions = plan(agents, {}, {}, POLICY)
    cut = data.draw(st.integers(0, len(actions)))
    half = apply(actions[:cut], agents, {}, POLICY)
    healed = apply(plan(agents, half, {}, POLICY), agents, half, POLICY)
    assert healed == apply(actions, agents, {}, POLICY)


@given(agents_lists, st.randoms())
def test_the_order_of_the_agents_does_not_matter(agents: list[Agent], random: object) -> None:
    shuffled = list(agents)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert plan(shuffled, {}, {}, POLICY) == plan(agents, {}, {}, POLICY)


@given(agents_lists, agents_lists)
def test_what_agrees_is_not_touched_when_others_come(old: list[Agent], new: list[Agent]) -> None:
    known = {agent.id for agent in old}
    done = apply(plan(old, {}, {}, POLICY), old, {}, POLICY)
    everybody = [*old, *(agent for agent in new if agent.id not in known)]
    assert not [a for a in plan(everybody, done, {}, POLICY) if a.agent_id in known]


def test_a_renamed_agent_keeps_its_ghost_and_room_and_gets_its_new_name() -> None:
    agent = Agent(AgentId("agent-1"), "Old")
    done = apply(plan([agent], {}, {}, POLICY), [agent], {}, POLICY)
    renamed = replace(agent, name="New")
    actions = plan([renamed], done, {}, POLICY)
    assert [(a.kind, a.value) for a in actions] == [
        ("set_display_name", "New"),
        ("set_room_name", "New - Letta Agent Chat"),
        ("set_topic", "Chat with New (Letta Agent)"),
    ]


def test_a_changed_description_changes_the_topic_alone_and_is_shortened() -> None:
    agent = Agent(AgentId("agent-1"), "Ada")
    done = apply(plan([agent], {}, {}, POLICY), [agent], {}, POLICY)
    described = replace(agent, description="Keeps\n  notes")
    assert [(a.kind, a.value) for a in plan([described], done, {}, POLICY)] == [
        ("set_topic", "Chat with Ada (Letta Agent): Keeps notes")
    ]
    topic = room_topic(replace(agent, description="long " * 1000))
    assert len(topic) < 400 and topic.endswith("…")


@given(agents_lists, st.data())
def test_whatever_changes_in_letta_the_next_plan_brings_in_step_and_touches_nobody_else(
    agents: list[Agent], data: st.DataObject
) -> None:
    done = apply(plan(agents, {}, {}, POLICY), agents, {}, POLICY)
    texts = st.text(max_size=20)
    changed = [
        replace(agent, name=data.draw(texts), description=data.draw(texts))
        if data.draw(st.booleans())
        else agent
        for agent in agents
    ]
    actions = plan(changed, done, {}, POLICY)
    assert {a.kind for a in actions} <= {"set_display_name", "set_room_name", "set_topic"}
    same = {new.id for old, new in zip(agents, changed, strict=True) if old == new}
    assert not same & {a.agent_id for a in actions}
    cut = data.draw(st.integers(0, len(actions)))
    half = apply(actions[:cut], changed, done, POLICY)
    healed = apply(plan(changed, half, {}, POLICY), changed, half, POLICY)
    assert plan(changed, healed, {}, POLICY) == []


def test_a_room_with_a_past_is_looked_at_before_it_is_left_alone() -> None:
    agent = Agent(AgentId("agent-1"), "Ada")
    adopted = replace(
        new_mapping(agent, "hs.test"), room_id=RoomId("!old"), ghost_ready=True, hub_joined=True,
        display_name="Ada", invited=frozenset(POLICY.invite),
    )  # fmt: skip
    kinds = [a.kind for a in plan([agent], {agent.id: adopted}, {}, POLICY)]
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
    done = apply(plan([agent], {}, {}, POLICY), [agent], {}, POLICY)
    wider = replace(POLICY, invite=(*POLICY.invite, "@c:hs.test"))
    assert [(a.kind, a.value) for a in plan([agent], done, {}, wider)] == [
        ("invite_person", "@c:hs.test")
    ]


def test_a_refused_invitation_is_asked_again_only_when_a_person_asks() -> None:
    """Rivals retried forbidden invites for ever, which stopped all relaying."""
    agent = Agent(AgentId("agent-1"), "Ada")
    done = apply(plan([agent], {}, {}, POLICY), [agent], {}, POLICY)
    refused = (("@b:hs.test", "no"),)
    row = replace(done[agent.id], invited=frozenset(["@a:hs.test"]), refused=refused)
    assert plan([agent], {agent.id: row}, {}, POLICY) == []
    asked = plan([agent], {agent.id: row}, {}, replace(POLICY, ask_again=True))
    assert [a.value for a in asked] == ["@b:hs.test"]


people_sets = st.sets(st.sampled_from([f"@{name}:hs.test" for name in "abcd"]))


@given(agents_lists, people_sets, people_sets, people_sets, st.data())
def test_nobody_outside_the_list_is_invited_and_nobody_twice_unless_they_ask_or_it_changes(
    agents: list[Agent], old: set[str], new: set[str], asking: set[str], data: st.DataObject
) -> None:
    before = replace(POLICY, invite=tuple(sorted(old)))
    after = replace(POLICY, invite=tuple(sorted(new)))
    done = apply(plan(agents, {}, {}, before), agents, {}, before)
    rows = done | observe_list(done, after.invite)
    there = {agent.id: data.draw(people_sets) for agent in agents}
    rooms = {row.room_id: there[row.agent_id] for row in rows.values()}
    rows = rows | ask_again(rows, asking & new, lambda room, who: who in rooms[room])
    actions = plan(agents, rows, {}, after)
    invited = {(a.agent_id, a.value) for a in actions}
    assert {a.kind for a in actions} <= {"invite_person"}
    assert invited == {
        (agent.id, who)
        for agent in agents
        for who in new
        if who not in old or (who in asking and who not in there[agent.id])
    }
    cut = data.draw(st.integers(0, len(actions)))
    half = apply(actions[:cut], agents, rows, after)
    healed = apply(plan(agents, half, {}, after), agents, half, after)
    assert plan(agents, healed, {}, after) == []
    assert observe_list(healed, after.invite) == {}, "what agrees is not touched"


@given(people_sets)
def test_who_leaves_the_list_and_comes_back_to_it_is_invited_anew(people: set[str]) -> None:
    agent = Agent(AgentId("agent-1"), "Ada")
    policy = replace(POLICY, invite=tuple(sorted(people)))
    done = apply(plan([agent], {}, {}, policy), [agent], {}, policy)
    emptied = done | observe_list(done, ())
    assert {a.value for a in plan([agent], emptied, {}, policy)} == people
    refused = {agent.id: replace(done[agent.id], refused=(("@a:hs.test", "no"),))}
    assert observe_list(refused, ())[agent.id].refused == ()


HOUR_MS = 3_600_000


def seen_missing(
    agents: list[Agent], mappings: dict[AgentId, Mapping], *times_ms: int
) -> dict[AgentId, Mapping]:
    """The rows after complete lists of ``agents`` at these times."""
    for now_ms in times_ms:
        mappings = mappings | observe_missing({a.id for a in agents}, mappings, now_ms)
    return mappings


def settled(count: int, policy: Policy = POLICY) -> tuple[list[Agent], dict[AgentId, Mapping]]:
    agents = [Agent(AgentId(f"agent-{n:02}"), f"Agent {n}") for n in range(count)]
    return agents, apply(plan(agents, {}, {}, policy), agents, {}, policy)


@given(agents_lists, st.data())
def test_retiring_and_coming_back_converge_after_a_crash_anywhere(
    agents: list[Agent], data: st.DataObject
) -> None:
    sure = replace(POLICY, confirm_removals=True)
    done = apply(plan(agents, {}, {}, sure), agents, {}, sure)
    staying = [agent for agent in agents if data.draw(st.booleans())]
    gone = {agent.id for agent in agents} - {agent.id for agent in staying}
    rows, now = seen_missing(staying, done, 1, 2), 3 * HOUR_MS
    actions = plan(staying, rows, {}, sure, now)
    assert {(a.kind, a.agent_id) for a in actions} == {("retire_agent", name) for name in gone}
    cut = data.draw(st.integers(0, len(actions)))
    half = apply(actions[:cut], staying, rows, sure)
    retired = apply(plan(staying, half, {}, sure, now), staying, half, sure)
    assert retired == apply(actions, staying, rows, sure)
    assert plan(staying, retired, {}, sure, now) == [], "and nobody is retired twice"

    back = seen_missing(agents, retired, now + 1)
    actions = plan(agents, back, {}, sure, now + 1)
    assert {(a.kind, a.agent_id) for a in actions} == {("restore_agent", name) for name in gone}
    assert apply(actions, agents, back, sure) == done, "as if it had never been away"


@given(
    st.lists(st.booleans(), max_size=4), st.integers(0, 3 * HOUR_MS), st.integers(0, 3 * HOUR_MS)
)
def test_nobody_is_retired_who_was_not_missing_twice_and_for_the_whole_grace_period(
    lists: list[bool], gap_ms: int, wait_ms: int
) -> None:
    agents, rows = settled(1)
    now = missing_from = 0
    misses = 0
    for there in lists:
        now += gap_ms + 1
        rows = seen_missing(agents if there else [], rows, now)
        misses = 0 if there else misses + 1
        missing_from = now if misses == 1 else missing_from
    now += wait_ms
    present = agents if lists and lists[-1] else []
    actions = plan(present, rows, {}, POLICY, now)
    due = misses >= 2 and now - missing_from >= POLICY.retire_after_ms
    assert [a.kind for a in actions] == (["retire_agent"] if due else [])


@given(st.integers(0, 30), st.data())
def test_more_than_a_quarter_and_at_least_three_are_never_retired_without_a_word(
    count: int, data: st.DataObject
) -> None:
    agents, done = settled(count)
    left = data.draw(st.integers(0, count))
    rows, now = seen_missing(agents[:left], done, 1, 2), 3 * HOUR_MS
    actions = plan(agents[:left], rows, {}, POLICY, now)
    assert len(actions) == count - left, "held back or not, the drift is shown"
    braked = count - left >= 3 and (count - left) / count > 0.25
    assert all(bool(action.held) == braked for action in actions)
    assert not braked or "--confirm-removals" in actions[0].held
    sure = plan(agents[:left], rows, {}, replace(POLICY, confirm_removals=True), now)
    assert [a.agent_id for a in sure] == [a.agent_id for a in actions]
    assert not any(action.held for action in sure)


@given(st.integers(0, 20), st.lists(st.tuples(st.integers(0, 5), st.integers(1, 30)), max_size=12))
def test_the_brake_holds_over_any_day_however_few_vanish_at_a_time(
    count: int, steps: list[tuple[int, int]]
) -> None:
    agents, rows = settled(count)
    there, now_ms = list(agents), HOUR_MS
    retired_at: list[int] = []
    for vanish, hours in steps:
        there = there[: max(0, len(there) - vanish)]
        rows = seen_missing(there, rows, now_ms, 2)
        now_ms += hours * HOUR_MS
        free = [a for a in plan(there, rows, {}, POLICY, now_ms) if not a.held]
        for action in free:
            row = apply([action], agents, rows, POLICY)[action.agent_id]
            rows[action.agent_id] = replace(row, retired_ms=now_ms)
        retired_at += [now_ms] * len(free)
        living = sum(not row.retired for row in rows.values())
        lately = sum(at_ms > now_ms - 24 * HOUR_MS for at_ms in retired_at)
        assert lately < 3 or lately <= 0.25 * (living + lately)


def joined_by(
    rows: dict[AgentId, Mapping], agents: list[Agent], now_ms: int
) -> dict[AgentId, Mapping]:
    """The rows after those of the agents who were not known have got theirs."""
    fresh = [agent for agent in agents if agent.id not in rows]
    made = apply(plan(fresh, {}, {}, POLICY), fresh, {}, POLICY)
    return rows | {name: replace(row, made_ms=now_ms) for name, row in made.items()}


@given(st.integers(3, 12), st.integers(0, 100), st.lists(st.integers(0, 48), max_size=6))
def test_another_letta_at_the_same_address_retires_nobody_however_many_agents_it_has(
    there_were: int, others: int, hours: list[int]
) -> None:
    agents, rows = settled(there_were)
    foreign = [Agent(AgentId(f"agent-other-{n:03}"), f"Other {n}") for n in range(others)]
    now_ms = HOUR_MS
    for wait in [0, *hours, 3, 0]:
        now_ms += wait * HOUR_MS
        rows = seen_missing(foreign, rows, now_ms)
        planned = plan(foreign, rows, {}, POLICY, now_ms)
        retirements = [a for a in planned if a.kind == "retire_agent"]
        assert all(a.held for a in retirements)
        rows = joined_by(rows, foreign, now_ms)
    assert {a.agent_id for a in retirements} == {agent.id for agent in agents}
    assert f"{there_were} of {there_were}" in retirements[0].held


@given(st.integers(1, 30), st.integers(0, 30), st.integers(0, 30))
def test_whoever_came_before_anybody_went_missing_counts_and_whoever_came_later_does_not(
    there_were: int, before: int, later: int
) -> None:
    agents, rows = settled(there_were)
    early = [Agent(AgentId(f"agent-early-{n:02}"), f"Early {n}") for n in range(before)]
    late = [Agent(AgentId(f"agent-late-{n:02}"), f"Late {n}") for n in range(later)]
    rows = joined_by(rows, [*agents, *early], HOUR_MS)
    left = [*agents[3:], *early, *late]
    rows = joined_by(seen_missing(left, rows, 2 * HOUR_MS, 3 * HOUR_MS), left, 3 * HOUR_MS)
    retirements = plan(left, rows, {}, POLICY, 9 * HOUR_MS)
    gone = min(3, there_were)
    assert [a.kind for a in retirements] == ["retire_agent"] * gone
    braked = gone >= 3 and gone / (there_were + before) > 0.25
    assert all(bool(a.held) == braked for a in retirements)
    assert not braked or f"3 of {there_were + before} agents" in retirements[0].held


def test_who_was_retired_by_a_persons_word_does_not_count_any_more() -> None:
    agents, done = settled(8)
    rows = seen_missing(agents[2:], done, 1, 2)
    for agent in agents[:3]:
        rows[agent.id] = replace(rows[agent.id], retired=True, retired_ms=5 * HOUR_MS)
    rows = seen_missing(agents[4:], rows, 1, 2)
    (held,) = plan(agents[4:], rows, {}, POLICY, 9 * HOUR_MS)
    assert "4 of 8" in held.held and "within a day" in held.held
    cleared = replace(POLICY, removals_confirmed_ms=6 * HOUR_MS)
    (free,) = plan(agents[4:], rows, {}, cleared, 9 * HOUR_MS)
    assert not free.held


def test_a_retired_room_is_marked_and_keeps_everything_else() -> None:
    agents, done = settled(2)
    rows = seen_missing(agents[:1], done, 1, 2)
    actions = plan(agents[:1], rows, {}, POLICY, 3 * HOUR_MS)
    assert [a.value for a in actions] == ["Agent 1 - Letta Agent Chat (retired)"]
    row = apply(actions, agents, rows, POLICY)[agents[1].id]
    home = done[agents[1].id]
    assert (row.room_id, row.ghost, row.invited) == (home.room_id, home.ghost, home.invited)
    assert row.retired and row.hub_joined


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


@given(agents_lists, st.sets(st.sampled_from(["rename", "invites", "retire"])), st.data())
def test_what_is_switched_off_is_never_planned_after_the_start_and_the_laws_hold(
    agents: list[Agent], off: set[str], data: st.DataObject
) -> None:
    policy = replace(
        POLICY, rename="rename" not in off, invites="invites" not in off, retire="retire" not in off
    )
    done = apply(plan(agents, {}, {}, policy), agents, {}, policy)
    assert plan(agents, done, {}, policy) == []
    assert policy.invites or not any(row.invited for row in done.values())
    there = [replace(agent, name="New name") for agent in agents if data.draw(st.booleans())]
    rows = seen_missing(there, done, 1, 2)
    wider = replace(policy, invite=(*POLICY.invite, "@c:hs.test"), confirm_removals=True)
    kinds = {a.kind for a in plan(there, rows, {}, wider, 3 * HOUR_MS)}
    if "rename" in off:
        assert not kinds & {"set_display_name", "set_room_name", "set_topic"}
    if "invites" in off:
        assert "invite_person" not in kinds
    if "retire" in off:
        assert "retire_agent" not in kinds


def test_agents_are_selected_by_tag_name_pattern_or_id_and_by_any_of_them() -> None:
    ada = Agent(AgentId("agent-1"), "Ada", tags=("team",))
    brook = Agent(AgentId("agent-2"), "Support Brook")
    cleo = Agent(AgentId("agent-3"), "Cleo")
    everybody = [ada, brook, cleo]

    def chosen(**how: tuple[str, ...]) -> set[str]:
        return {a.agent_name for a in plan(everybody, {}, {}, replace(POLICY, **how))}  # type: ignore[arg-type]

    assert chosen() == {"Ada", "Support Brook", "Cleo"}
    assert chosen(select_tags=("team", "x")) == {"Ada"}
    assert chosen(select_names=("support *",)) == {"Support Brook"}
    assert chosen(select_ids=("agent-3",)) == {"Cleo"}
    assert chosen(select_tags=("team",), select_names=("c?eo",)) == {"Ada", "Cleo"}
    assert chosen(select_names=("nobody",)) == set()


@given(st.text(max_size=12), st.sampled_from(["[v2]", "[!a]", "[", "]", "[]", "[a-z]*", "x?["]))
def test_a_name_with_brackets_is_selected_by_itself_and_brackets_mean_nothing_more(
    text: str, brackets: str
) -> None:
    name = f"{text} {brackets}".replace("*", "").replace("?", "")
    policy = replace(POLICY, select_names=(name,))
    assert is_selected(Agent(AgentId("agent-1"), name), policy)
    longer, bare = Agent(AgentId("agent-1"), f"{name}!"), re.sub(r"[][]", "", name)
    assert is_selected(longer, replace(policy, select_names=(f"{name}?",)))
    assert not is_selected(Agent(AgentId("agent-1"), bare), policy)


def test_who_is_not_selected_any_more_is_left_alone_and_not_retired() -> None:
    agents, done = settled(5)
    narrow = replace(POLICY, select_ids=("agent-00",))
    rows = seen_missing(agents, done, 1, 2)
    assert plan(agents, rows, {}, narrow, 9 * HOUR_MS) == []
    renamed = [replace(agent, name="New") for agent in agents]
    assert {a.agent_id for a in plan(renamed, rows, {}, narrow)} == {"agent-00"}


# --- rooms that were adopted, and what was said before -------------------------------------------


def adopted(agent: Agent) -> Mapping:
    """The row as an import leaves it."""
    return replace(
        new_mapping(agent, "hs.test"), ghost=GhostId(f"@old_{len(agent.id)}:hs.test"),
        room_id=RoomId(f"!old{agent.id}"), marked=False, heard_from_ms=1,
    )  # fmt: skip


@given(agents_lists, st.data())
def test_an_adopted_room_gets_everything_but_another_room_whatever_crash_comes_between(
    agents: list[Agent], data: st.DataObject
) -> None:
    rows = {agent.id: adopted(agent) for agent in agents}
    actions = plan(agents, rows, {}, POLICY)
    kinds = {action.kind for action in actions}
    assert "create_room" not in kinds and "write_history" not in kinds
    assert {a.agent_id for a in actions if a.kind == "mark_room"} == {agent.id for agent in agents}
    cut = data.draw(st.integers(0, len(actions)))
    half = apply(actions[:cut], agents, rows, POLICY)
    done = apply(plan(agents, half, {}, POLICY), agents, half, POLICY)
    assert plan(agents, done, {}, POLICY) == []
    for agent in agents:
        row = done[agent.id]
        assert (row.ghost, row.room_id) == (rows[agent.id].ghost, rows[agent.id].room_id)
        assert row.marked and row.heard_from_ms == 1


@given(agents_lists, st.data())
def test_the_past_is_planned_for_a_new_room_once_and_for_no_other(
    agents: list[Agent], data: st.DataObject
) -> None:
    old = apply(plan(agents, {}, {}, POLICY), agents, {}, POLICY)
    wanted = replace(POLICY, history=True)
    assert plan(agents, old, {}, wanted) == [], "rooms from before are not new"
    actions = plan(agents, {}, {}, wanted)
    assert [a.agent_id for a in actions if a.kind == "write_history"] == sorted(
        agent.id for agent in agents
    )
    cut = data.draw(st.integers(0, len(actions)))
    half = apply(actions[:cut], agents, {}, wanted)
    rest = plan(agents, half, {}, wanted)
    for agent in agents:
        last = [a.kind for a in rest if a.agent_id == agent.id][-1:]
        assert last in ([], ["write_history"]), "nothing waits for it"
    done = apply(rest, agents, half, wanted)
    assert plan(agents, done, {}, wanted) == []
    assert plan(agents, half, {}, POLICY) == [a for a in rest if a.kind != "write_history"]
