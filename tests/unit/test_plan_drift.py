"""The laws of the reconciler's brain about rooms that others have changed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeroom.drift import (
    PUT_BACK_LIMIT,
    followed,
    is_deserted,
    with_gone_room,
    with_put_back,
    without_fight,
)
from homeroom.model import (
    Action,
    Agent,
    AgentId,
    Detail,
    Mapping,
    RoomId,
    RoomView,
)
from homeroom.plan import (
    Keep,
    Policy,
    apply_to_mapping,
    new_mapping,
    plan,
    room_name,
    room_topic,
    with_new_room,
)

POLICY = Policy("hs.test", invite=("@a:hs.test", "@b:hs.test"))
ADA = Agent(AgentId("agent-1"), "Ada")
PERSON, MINUTE_MS = "@a:hs.test", 60_000

Rows = dict[AgentId, Mapping]
Views = dict[RoomId, RoomView]


def apply(
    actions: list[Action], agents: list[Agent], rows: Rows, views: Views, policy: Policy = POLICY
) -> tuple[Rows, Views]:
    """The rows and the rooms after what was planned; the hub's sync has told everything."""
    rows, views = dict(rows), dict(views)
    by_id = {agent.id: agent for agent in agents}
    for action in actions:
        if action.held:
            continue
        agent = by_id[action.agent_id]
        row = rows.get(agent.id) or new_mapping(agent, policy.server_name)
        old = row.room_id
        if action.kind == "create_room":
            made = RoomId(f"{old or '!' + agent.id}+")
            assert made not in views
            row = with_new_room(row, agent, policy, made)
            views[made] = room_of(row)
        elif action.kind == "follow_room":
            assert old
            row = followed(row, views[old], RoomId(action.value))
        else:
            row = apply_to_mapping(row, action, agent, policy)
            if row.room_id in views:
                views[row.room_id] = room_of(row, views[row.room_id])
        rows[agent.id] = row
    return rows, views


def room_of(row: Mapping, view: RoomView | None = None) -> RoomView:
    assert row.room_id
    view = view or RoomView(row.room_id, known=True, members={row.ghost: "join"})
    name = Detail(row.room_name, row.ghost) if row.room_name else view.name
    topic = Detail(row.topic, row.ghost) if row.topic else view.topic
    return replace(view, name=name, topic=topic)


def settled(*agents: Agent, policy: Policy = POLICY) -> tuple[list[Agent], Rows, Views]:
    them = list(agents)
    return them, *apply(plan(them, {}, {}, policy), them, {}, {}, policy)


agents_lists = st.lists(
    st.builds(Agent, id=st.text(min_size=1, max_size=9).map(AgentId), name=st.text(max_size=20)),
    max_size=5,
    unique_by=lambda agent: agent.id,
)
harms = st.sampled_from(["none", "deleted", "replaced", "renamed", "topic", "hub out", "alias"])


def harm(how: str, row: Mapping, views: Views) -> Mapping:
    """What somebody did to the home, as audit and sync tell it."""
    assert row.room_id
    view = views[row.room_id]
    if how == "deleted":
        del views[row.room_id]
        return with_gone_room(row)
    if how == "replaced":
        new = RoomId(f"{row.room_id}->")
        views[row.room_id] = replace(view, closed=True, replacement=new)
        views[new] = RoomView(new, known=True, name=Detail("theirs", PERSON))
    if how == "renamed":
        views[row.room_id] = replace(view, name=Detail("theirs", PERSON))
    if how == "topic":
        views[row.room_id] = replace(view, topic=Detail("theirs", PERSON))
    if how == "hub out":
        return replace(row, hub_joined=False)
    if how == "alias":
        return replace(row, alias_room="")
    return row


@given(agents_lists, st.sampled_from(["nothing", "name", "topic", "both"]), st.data())
def test_whatever_was_done_to_rooms_heals_after_a_crash_anywhere_and_nobody_gets_a_second_one(
    agents: list[Agent], keep: Keep, data: st.DataObject
) -> None:
    policy = replace(POLICY, keep_edits=keep)
    agents, rows, views = settled(*agents, policy=policy)
    assert plan(agents, rows, views, policy) == []
    done = {agent.id: data.draw(harms) for agent in agents}
    rows = {name: harm(done[name], row, views) for name, row in rows.items()}
    actions = plan(agents, rows, views, policy)
    made = {action.agent_id for action in actions if action.kind == "create_room"}
    assert made == {name for name, how in done.items() if how == "deleted"}
    assert not {a.agent_id for a in actions} & {n for n, how in done.items() if how == "none"}
    cut = data.draw(st.integers(0, len(actions)))
    half, seen = apply(actions[:cut], agents, rows, views, policy)
    rest = plan(agents, half, seen, policy)
    healed, seen = apply(rest, agents, half, seen, policy)
    assert plan(agents, healed, seen, policy) == []
    rooms = [row.room_id for row in healed.values()]
    assert len(set(rooms)) == len(rooms) == len(agents)


def test_a_room_that_was_deleted_is_made_anew_with_everybody_and_the_reason_says_so() -> None:
    agents, rows, _ = settled(ADA)
    gone = with_gone_room(rows[ADA.id])
    (create, join) = plan(agents, {ADA.id: gone}, {}, POLICY)
    assert (create.kind, join.kind) == ("create_room", "join_hub")
    assert create.reason == f"its room {gone.room_id} was deleted"
    again, _ = apply([create], agents, {ADA.id: gone}, {})
    assert again[ADA.id].invited == set(POLICY.invite) and not again[ADA.id].room_gone


def test_a_closed_room_without_a_successor_waits_for_a_person_and_nothing_else_is_done_to_it() -> (
    None
):
    agents, rows, views = settled(ADA)
    room = rows[ADA.id].room_id
    assert room
    for replacement in (None, room):
        closed = replace(views[room], closed=True, replacement=replacement)
        row = replace(rows[ADA.id], hub_joined=False, alias_room="")
        (action,) = plan(agents, {ADA.id: row}, {room: closed}, POLICY)
        assert action.kind == "follow_room" and "names no room" in action.held


@given(st.integers(1, 4), st.booleans())
def test_rooms_that_name_each_other_as_successors_are_not_gone_round(
    count: int, closed: bool
) -> None:
    agents, rows, views = settled(ADA)
    home = rows[ADA.id].room_id
    assert home
    ring = [home, *(RoomId(f"!{number}") for number in range(count))]
    for room, after in zip(ring, [*ring[1:], home], strict=True):
        views[room] = replace(views[home], room_id=room, closed=True, replacement=after)
    if not closed:  # the last one of them is open: that is where it goes, step by step
        views[ring[-1]] = replace(views[ring[-1]], closed=False)
    for room in ring[1:]:
        actions = plan(agents, rows, views, POLICY)
        if closed:
            assert [a.kind for a in actions] == ["follow_room"] and "leads back" in actions[0].held
            return
        assert (actions[0].kind, actions[0].value) == ("follow_room", room)
        rows, _ = apply(actions[:1], agents, rows, views)
    assert "follow_room" not in [a.kind for a in plan(agents, rows, views, POLICY)]


def test_who_had_left_the_old_room_is_not_invited_into_the_one_that_replaces_it() -> None:
    _, rows, views = settled(ADA)
    room = rows[ADA.id].room_id
    assert room
    old = replace(views[room], members={"@a:hs.test": "join", "@b:hs.test": "leave"})
    assert followed(rows[ADA.id], old, RoomId("!new")).invited == {"@b:hs.test"}


@pytest.mark.parametrize(
    ("keep", "healed"),
    [("nothing", {"name", "topic"}), ("topic", {"name"}), ("name", {"topic"}), ("both", set())],
)
def test_an_edit_is_put_back_or_kept_as_the_policy_says_and_only_what_differs_is_written(
    keep: Keep, healed: set[str]
) -> None:
    policy = replace(POLICY, keep_edits=keep)
    agents, rows, views = settled(ADA)
    room = rows[ADA.id].room_id
    assert room
    theirs = Detail("theirs", PERSON)
    edited = {room: replace(views[room], name=theirs, topic=theirs)}
    actions = plan(agents, rows, edited, policy)
    wanted = {"name": ("set_room_name", room_name(ADA)), "topic": ("set_topic", room_topic(ADA))}
    assert {(a.kind, a.value) for a in actions} == {wanted[word] for word in healed}
    assert all(PERSON in a.reason for a in actions)
    off = replace(policy, rename=False)
    assert plan(agents, rows, edited, off) == []


def test_nothing_is_put_back_in_a_room_of_which_too_little_is_known() -> None:
    agents, rows, _ = settled(ADA)
    room = rows[ADA.id].room_id
    assert room
    partly = {room: RoomView(room, name=Detail("theirs", PERSON))}
    assert plan(agents, rows, partly, POLICY) == []
    unheard = {ADA.id: replace(rows[ADA.id], hub_joined=False)}
    kinds = [
        a.kind for a in plan(agents, unheard, {room: replace(partly[room], known=True)}, POLICY)
    ]
    assert kinds == ["join_hub"], "what the hub last heard may be long ago"


@given(st.lists(st.integers(0, 90), max_size=12))
def test_a_fight_over_a_name_ends_after_three_times_in_an_hour_until_a_person_asks(
    gaps_min: list[int],
) -> None:
    agents, rows, views = settled(ADA)
    room, now_ms, times = rows[ADA.id].room_id, 0, []
    assert room
    edited = {room: replace(views[room], name=Detail("theirs", PERSON))}
    row = rows[ADA.id]
    for gap in gaps_min:
        now_ms += gap * MINUTE_MS
        (action,) = plan(agents, {ADA.id: row}, edited, POLICY, now_ms)
        if action.held:
            last = times[-PUT_BACK_LIMIT:]
            assert len(last) == PUT_BACK_LIMIT and last[-1] - last[0] < 60 * MINUTE_MS
            (asked,) = plan(agents, {ADA.id: row}, edited, replace(POLICY, ask_again=True), now_ms)
            assert not asked.held
            row, times = without_fight(row), []
        else:
            assert len(times) < PUT_BACK_LIMIT or times[-1] - times[-PUT_BACK_LIMIT] >= 3_600_000
        row = with_put_back(row, "name", now_ms)
        times.append(now_ms)
    assert not any(word == "topic" for word, _ in row.put_back)


def test_what_one_room_refused_is_asked_of_the_next_and_what_the_ghost_was_refused_is_not() -> None:
    _, rows, views = settled(ADA)
    row = rows[ADA.id]
    assert row.room_id
    ghosts = (("set_avatar", "no pictures"), ("upload_avatar", "too large"))
    rooms = (("set_parent", "no power"), ("set_room_avatar", "no power"), ("add_to_space", "no"))
    refused = replace(row, refused_actions=ghosts + rooms)
    for healed in (with_gone_room(refused), followed(refused, views[row.room_id], RoomId("!new"))):
        assert healed.refused_actions == ghosts


def test_the_past_is_written_once_per_agent_even_if_its_room_is_made_anew() -> None:
    policy = replace(POLICY, history=True)
    agents, rows, _ = settled(ADA, policy=policy)
    written = replace(rows[ADA.id], history_written=True)
    gone = {ADA.id: with_gone_room(written)}
    actions = plan(agents, gone, {}, policy)
    assert [a.kind for a in actions] == ["create_room", "join_hub"]
    again, views = apply(actions, agents, gone, {}, policy)
    assert plan(agents, again, views, policy) == [] and not again[ADA.id].history_due
    never = {ADA.id: with_gone_room(rows[ADA.id])}
    assert "write_history" in [a.kind for a in plan(agents, never, {}, policy)]


def test_a_room_is_deserted_only_if_nobody_of_another_server_is_known_to_be_there() -> None:
    view = RoomView(RoomId("!r"), members={"@x:hs.test": "join", "@y:far.test": "leave"})
    assert is_deserted(None, "hs.test") and is_deserted(view, "hs.test")
    far = replace(view, members={"@y:far.test": "join"})
    assert not is_deserted(far, "hs.test")
