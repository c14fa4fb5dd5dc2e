"""The laws of what surrounds the rooms: one space that holds them all, and the pictures."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from homeroom.avatar import avatar_digest
from homeroom.model import (
    SPACE_AGENT,
    Action,
    Agent,
    AgentId,
    Detail,
    Mapping,
    RoomId,
    RoomView,
    Space,
    StateEvent,
    ghost_localpart,
)
from homeroom.plan import Policy, apply_to_mapping, new_mapping, plan, with_new_room
from homeroom.plan_space import (
    AVATAR_KINDS,
    HUB_SEED,
    SIDE_KINDS,
    absent_from,
    apply_to_space,
    is_there,
    new_space,
    old_spaces,
    with_link,
    with_refusal,
)

POLICY = Policy("hs.test", invite=("@a:hs.test",), space_name="Letta Agents", avatars=True)
HUB = "@agent_hub:hs.test"
VIA = {"via": ["hs.test"]}

agents_lists = st.lists(
    st.builds(
        Agent,
        id=st.text(min_size=1, max_size=20).map(AgentId),
        name=st.text(max_size=20),
    ),
    max_size=5,
    unique_by=lambda agent: agent.id,
)
off = st.sampled_from([POLICY, replace(POLICY, avatars=False), replace(POLICY, space_name="")])


@dataclass
class World:
    """Letta's agents, the rows, and the rooms as they are, which all hear of at once."""

    agents: list[Agent]
    mappings: dict[AgentId, Mapping] = field(default_factory=dict)
    rooms: dict[RoomId, RoomView] = field(default_factory=dict)
    space: Space = field(default_factory=Space)
    made: int = 0

    def plan(self, policy: Policy = POLICY) -> list[Action]:
        return plan(self.agents, self.mappings, self.rooms, policy, 0, self.space)

    def copy(self) -> World:
        return replace(self, mappings=dict(self.mappings), rooms=dict(self.rooms))

    def apply(self, actions: list[Action], policy: Policy = POLICY) -> World:
        """What the hands make of it."""
        for action in actions:
            if action.agent_id == SPACE_AGENT:
                self._apply_to_space(action, policy)
            else:
                self._apply_to_agent(action, policy)
        return self

    def _apply_to_space(self, action: Action, policy: Policy) -> None:
        if action.kind != "make_space":
            self.space = apply_to_space(self.space, action)
            if action.kind == "set_space_name":
                assert self.space.room_id
                view = self.rooms[self.space.room_id]
                self.rooms[view.room_id] = replace(view, name=Detail(action.value, HUB))
            return
        self.made += 1
        room_id = RoomId(f"!space{self.made}")
        self.rooms[room_id] = RoomView(
            room_id, True, name=Detail(policy.space_name, HUB), room_type="m.space",
            marker={"space": True}, marked_by=HUB, members={HUB: "join"},
        )  # fmt: skip
        self.space = new_space(self.space, room_id, policy.surroundings)

    def _apply_to_agent(self, action: Action, policy: Policy) -> None:
        agent = next((a for a in self.agents if a.id == action.agent_id), None)
        agent = agent or Agent(action.agent_id, action.agent_name)
        row = self.mappings.get(agent.id) or new_mapping(agent, policy.server_name)
        if action.kind == "create_room":
            room_id = RoomId(f"!{agent.id}")
            there = is_there(self.space, self.rooms, HUB) and policy.space_name
            self.rooms[room_id] = RoomView(
                room_id, marked_by=row.ghost, marker={"agent_id": agent.id},
                parents=frozenset({self.space.room_id} if there and self.space.room_id else ()),
            )  # fmt: skip
            row = with_new_room(row, agent, policy, room_id)
        self.mappings[agent.id] = apply_to_mapping(row, action, agent, policy)
        if action.kind in ("add_to_space", "remove_from_space", "set_parent"):
            assert self.space.room_id and row.room_id
            home = self.rooms[row.room_id]
            if action.kind == "set_parent":
                self._link(row.room_id, "m.space.parent", self.space.room_id, VIA)
                for gone in old_spaces(home, self.space, self.rooms):
                    self._link(row.room_id, "m.space.parent", gone, {})
            else:
                child = row.room_id if action.kind == "add_to_space" else action.value
                content = VIA if action.kind == "add_to_space" else {}
                self._link(self.space.room_id, "m.space.child", child, content)

    def _link(self, room_id: RoomId, kind: str, key: str, content: dict[str, list[str]]) -> None:
        event = StateEvent(room_id, kind, key, content, HUB)
        self.rooms[room_id] = with_link(self.rooms[room_id], event)

    def settle(self, policy: Policy = POLICY) -> World:
        return self.apply(self.plan(policy), policy)


def is_whole(world: World) -> bool:
    """One space, which holds every room, and which every room names as its only one."""
    space = world.space.room_id
    assert space
    rooms = {row.room_id for row in world.mappings.values()}
    named = all(world.rooms[room].parents == {space} for room in rooms if room)
    return world.rooms[space].children == rooms and named


@given(agents_lists, off)
def test_applying_a_plan_leaves_nothing_to_do(agents: list[Agent], policy: Policy) -> None:
    world = World(agents).settle(policy)
    assert world.plan(policy) == []
    if policy.space_name:
        assert world.made == 1 and is_whole(world)
    shown = {row.avatar.profile for row in world.mappings.values()}
    assert shown == ({avatar_digest(a.id) for a in agents} if policy.avatars else {""} & shown)


@given(agents_lists, off, st.data())
def test_a_crash_after_any_prefix_converges_with_one_space_and_the_same_rows(
    agents: list[Agent], policy: Policy, data: st.DataObject
) -> None:
    actions = World(agents).plan(policy)
    cut = data.draw(st.integers(0, len(actions)))
    healed = World(agents).apply(actions[:cut], policy).settle(policy)
    assert healed == World(agents).apply(actions, policy)


@given(agents_lists, st.randoms())
def test_the_order_of_the_agents_does_not_matter(agents: list[Agent], random: object) -> None:
    world = World(agents).settle()
    world.rooms[RoomId("!space1")] = replace(world.rooms[RoomId("!space1")], children=frozenset())
    shuffled = replace(world, agents=list(agents), mappings=dict(world.mappings))
    random.shuffle(shuffled.agents)  # type: ignore[attr-defined]
    shuffled.mappings = dict(sorted(shuffled.mappings.items(), reverse=True))
    assert shuffled.plan() == world.plan()


@given(agents_lists, st.booleans(), st.data())
def test_a_space_that_is_gone_is_made_again_once_and_every_room_hangs_in_it_alone(
    agents: list[Agent], closed: bool, data: st.DataObject
) -> None:
    world = World(agents).settle()
    old = world.rooms[RoomId("!space1")]
    world.rooms[old.room_id] = (
        replace(old, closed=True) if closed else replace(old, members={HUB: "leave"})
    )
    actions = world.plan()
    assert [a.kind for a in actions if a.agent_id == SPACE_AGENT] == ["make_space"]
    cut = data.draw(st.integers(0, len(actions)))
    world.apply(actions[:cut]).settle()
    assert world.made == 2 and is_whole(world) and world.plan() == []


@given(agents_lists, st.data())
def test_a_link_that_somebody_takes_away_comes_back_and_nothing_else_is_touched(
    agents: list[Agent], data: st.DataObject
) -> None:
    world = World(agents).settle()
    links = [("!space1", "m.space.child", f"!{a.id}") for a in agents]
    links += [(f"!{a.id}", "m.space.parent", "!space1") for a in agents]
    cut = [link for link in links if data.draw(st.booleans())]
    for room_id, kind, key in cut:
        world._link(RoomId(room_id), kind, key, {})
    actions = world.plan()
    assert len(actions) == len(cut) and {a.kind for a in actions} <= {"add_to_space", "set_parent"}
    assert is_whole(world.apply(actions))


def test_rooms_of_people_may_hang_in_the_space_and_former_homes_may_not() -> None:
    ada = Agent(AgentId("agent-1"), "Ada")
    world = World([ada]).settle()
    world._link(RoomId("!space1"), "m.space.child", "!theirs", VIA)
    assert world.plan() == []
    row = world.mappings[ada.id]
    world.mappings[ada.id] = replace(row, room_id=RoomId("!new"), alias_room=None)
    world.rooms[RoomId("!new")] = RoomView(RoomId("!new"))
    kinds = [(a.kind, a.value) for a in world.plan()]
    assert ("remove_from_space", "!agent-1") in kinds and len(kinds) == 4
    world.settle()
    assert world.rooms[RoomId("!space1")].children == {"!theirs", "!new"} and world.plan() == []


def test_a_room_stays_in_the_space_when_its_agent_is_gone_or_not_selected_any_more() -> None:
    agents = [Agent(AgentId(f"agent-{n}"), f"Agent {n}") for n in range(2)]
    world = World(agents).settle()
    world.agents = agents[:1]
    assert world.plan() == []
    world.rooms[RoomId("!space1")] = replace(world.rooms[RoomId("!space1")], closed=True)
    narrow = replace(POLICY, select_names=("nobody",))
    assert is_whole(world.settle(narrow)), "and follows when the space is made again"


@given(agents_lists)
def test_the_names_of_the_hub_and_of_the_space_are_nobodys(agents: list[Agent]) -> None:
    taken = {ghost_localpart(agent.id) for agent in agents}
    taken |= {ghost_localpart(AgentId(name)) for name in ("agent-space", "agent-hub", "space")}
    assert not taken & {"agent_space", "agent_hub"}


def test_a_space_takes_the_name_of_the_setting_and_gets_it_back_from_people() -> None:
    world = World([]).settle()
    other = replace(POLICY, space_name="Crew")
    assert [(a.kind, a.value) for a in world.plan(other)] == [("set_space_name", "Crew")]
    assert world.settle(other).plan(other) == []
    view = world.rooms[RoomId("!space1")]
    world.rooms[view.room_id] = replace(view, name=Detail("Mine", "@a:hs.test"))
    assert [a.value for a in world.plan(other)] == ["Crew"]
    assert world.plan(replace(other, keep_edits="name")) == []


def test_a_space_gets_its_alias_back_wherever_that_leads_once_it_was_looked_at() -> None:
    world = World([]).settle()
    assert world.space.alias_room == world.space.room_id and world.plan() == []
    for elsewhere in ("", "!other"):
        world.space = replace(world.space, alias_room=elsewhere)
        (action,) = world.plan()
        assert (action.kind, action.value) == ("set_space_alias", "#agent_space:hs.test")
        assert (elsewhere or "no room") in action.reason
        assert world.settle().plan() == []
    world.space = replace(world.space, alias_room=None)
    assert world.plan() == [], "of a row that is older than that nothing is presumed"


def test_only_people_of_the_list_are_invited_to_the_space_each_once_and_never_without_invites() -> (
    None
):
    world = World([]).settle()
    wider = replace(POLICY, invite=("@a:hs.test", "@b:hs.test"))
    assert [a.value for a in world.plan(wider)] == ["@b:hs.test"]
    assert world.settle(wider).plan(wider) == []
    assert world.plan(replace(wider, invites=False, invite=("@c:hs.test",))) == []


def test_what_was_refused_for_good_is_shown_as_held_back_until_a_person_asks() -> None:
    ada = Agent(AgentId("agent-1"), "Ada")
    world = World([ada])
    world.apply([a for a in world.plan() if a.kind not in AVATAR_KINDS])
    upload = next(a for a in world.plan() if a.agent_id == ada.id)
    assert upload.kind == "upload_avatar" and not upload.held
    world.mappings[ada.id] = with_refusal(world.mappings[ada.id], upload, "too large")
    (held,) = [a for a in world.plan() if a.agent_id == ada.id]
    assert held.held.startswith("too large. homeroom sync asks again; avatars in")
    asked = replace(POLICY, ask_again=True)
    world.settle(asked)
    assert world.plan() == [] and world.mappings[ada.id].refused_actions == ()


@given(agents_lists)
def test_a_picture_that_is_drawn_anew_replaces_the_old_one_everywhere(agents: list[Agent]) -> None:
    world = World(agents).settle()
    world.space = replace(world.space, avatar=replace(world.space.avatar, digest="old"))
    for agent_id, row in world.mappings.items():
        world.mappings[agent_id] = replace(row, avatar=replace(row.avatar, digest="old"))
    assert {a.kind for a in world.plan()} == {"upload_avatar"}
    world.settle()
    assert world.plan() == [] and world.space.avatar.digest == avatar_digest(HUB_SEED)


@given(agents_lists)
def test_every_side_action_may_be_left_out_and_every_agent_still_gets_its_room(
    agents: list[Agent],
) -> None:
    world = World(agents)
    world.apply([a for a in world.plan() if a.kind not in SIDE_KINDS])
    assert all(row.room_id and row.hub_joined for row in world.mappings.values())
    assert is_whole(world.settle()) and world.plan() == []


memberships = st.dictionaries(
    st.sampled_from(["@a:hs.test", "@b:hs.test", "@c:hs.test", "@stranger:hs.test"]),
    st.sampled_from(["join", "invite", "leave", "ban", "knock"]),
)


@given(st.sets(st.sampled_from(["@a:hs.test", "@b:hs.test", "@c:hs.test"])), memberships)
def test_who_left_a_space_is_remembered_when_it_is_gone_and_nobody_else_is(
    invited: set[str], members: dict[str, str]
) -> None:
    home = RoomId("!space")
    row = Space(home, "Letta Agents", frozenset(invited))
    view = RoomView(home, known=True, members={HUB: "join", **members})
    absent = absent_from(row, {home: view}, HUB)
    assert absent == {p for p in invited if members.get(p, "leave") in ("leave", "ban")}
    noted = replace(row, absent=absent)
    everybody_out = dict.fromkeys([HUB, *invited, *members], "leave")
    for gone in ({home: replace(view, members=everybody_out)}, {}):
        assert absent_from(noted, gone, HUB) == absent
