"""What a look at all rooms finds: who serves which, and what should not be so. Pure.

Judges by what the hub knows. Invariant: nothing is called fixable that could take an agent out of
a room which may be its home: after a loss of the store that is not known before the next sync.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from collections.abc import Mapping as Dict
from dataclasses import replace

from pydantic import TypeAdapter

from homeroom.model import AgentId, GhostId, Mapping, RoomId, RoomView, Unread
from homeroom.residence import Claim, Fault, FaultKind, RoomsReport, RoomState, ServedBy
from homeroom.times import utc_text

_INVITE_HUB = "invite {hub} there, or let --fix do it"
_faults = TypeAdapter(tuple[tuple[RoomId, Fault], ...])


def dump_fixed(fixed: Iterable[tuple[RoomId, Fault]]) -> str:
    return _faults.dump_json(tuple(fixed)).decode()


def read_fixed(text: str) -> tuple[tuple[RoomId, Fault], ...]:
    return _faults.validate_json(text)


def with_fixed(report: RoomsReport, fixed: Iterable[tuple[RoomId, Fault]]) -> RoomsReport:
    """The report with what was mended in its rooms."""
    done: dict[RoomId, list[Fault]] = defaultdict(list)
    for room_id, fault in fixed:
        done[room_id].append(fault)
    known = {room.room_id for room in report.rooms}
    gone = [RoomState(room_id, "none") for room_id in done if room_id not in known]
    rooms = [
        replace(room, faults=(*done.get(room.room_id, ()), *room.faults))
        for room in (*report.rooms, *gone)
    ]
    return replace(report, rooms=tuple(rooms))


def examine_rooms(
    views: Dict[RoomId, RoomView],
    mappings: Dict[AgentId, Mapping],
    claims: Iterable[Claim],
    hub: GhostId,
    is_ghost: Callable[[str], bool],
    unread: Iterable[Unread] = (),
) -> tuple[RoomState, ...]:
    """Every room that an agent serves, or one of ours is in without serving it; homes first.

    ``unread`` are the times in which none of ours could read a room, and that it was not told of.
    """
    by_room: dict[RoomId, list[Claim]] = defaultdict(list)
    for claim in claims:
        if claim.is_valid and claim.agent_id in mappings:
            by_room[claim.room_id].append(claim)
    look = _Look(views, mappings, hub, is_ghost, unread)
    found = [look.at(room_id, mine) for room_id, mine in by_room.items()]
    for room_id, view in views.items():
        # Of a room that the hub has left nothing newer is known; one that was replaced is history.
        is_known = hub in view.users("join") and not view.closed
        if room_id not in by_room and is_known and view.room_type != "m.space":
            state = look.at(room_id, [])
            found += [state] if state.faults else []
    order = {"home": 0, "further": 1, "none": 2}
    return tuple(sorted(found, key=lambda room: (order[room.kind], room.room_id)))


def _not_read(unread: Unread) -> Fault:
    when = f"between {utc_text(unread.from_ms)} and {utc_text(unread.to_ms)}"
    detail = f"what was said {when} could not be read: none of ours was in the room"
    return Fault("failing", detail, "have the agent's user let in: it tells the room then")


class _Look:
    def __init__(
        self,
        views: Dict[RoomId, RoomView],
        mappings: Dict[AgentId, Mapping],
        hub: GhostId,
        is_ghost: Callable[[str], bool],
        unread: Iterable[Unread],
    ) -> None:
        self._unread = tuple(unread)
        self._views, self._mappings, self._hub = views, mappings, hub
        self._is_ghost = is_ghost
        self._by_ghost = {mapping.ghost: mapping for mapping in mappings.values()}

    def at(self, room_id: RoomId, claims: list[Claim]) -> RoomState:
        view = self._views.get(room_id) or RoomView(room_id)
        inside = view.users("join", "invite")
        state = RoomState(
            room_id=room_id,
            kind=claims[0].kind if claims else "none",
            served_by=tuple(self._server(claim) for claim in claims),
            people_count=sum(not self._is_ghost(user) for user in view.users("join")),
            hub_is_in=self._hub in view.users("join"),
            is_direct=any(claim.is_direct for claim in claims),
        )
        faults = self._of_claims(state, view, claims) if claims else []
        faults += self._of_strangers(state, view, claims, inside)
        faults += [_not_read(one) for one in self._unread if one.room_id == room_id and claims]
        return replace(state, faults=tuple(faults))

    def _server(self, claim: Claim) -> ServedBy:
        mapping = self._mappings[claim.agent_id]
        return ServedBy(claim.agent_id, mapping.agent_name, mapping.ghost, claim.since_ms)

    def _of_claims(self, state: RoomState, view: RoomView, claims: list[Claim]) -> list[Fault]:
        faults = []
        is_home = state.kind == "home"
        if not state.hub_is_in:
            problem = next((claim.problem for claim in claims if claim.problem), "")
            detail = problem or "the hub is not in the room, so nothing said there is heard"
            faults.append(
                Fault("hub_missing", detail, _INVITE_HUB.format(hub=self._hub), fixable=True)
            )
        for claim in claims:
            mapping = self._mappings[claim.agent_id]
            if is_home and mapping.problem:
                remedy = "do what it says; homeroom sync tries again at once"
                faults.append(Fault("failing", mapping.problem, remedy, mapping.ghost))
            why = ""
            if state.hub_is_in and mapping.ghost not in view.users("join"):
                why = "its agent's user is not in the room"
            elif view.closed and not is_home:
                why = "the room was replaced by another one"
            elif state.hub_is_in and not is_home and not self._has_people(view):
                why = "nobody is in the room or invited any more"
            if why and not is_home:
                faults.append(
                    Fault("stale_claim", why, "--fix ends the claim", mapping.ghost, fixable=True)
                )
            elif why and not mapping.problem:
                remedy = f"invite {mapping.ghost} there again; the next sync accepts"
                faults.append(Fault("failing", why, remedy, mapping.ghost))
        if is_home and state.hub_is_in and not state.people_count:
            detail = "nobody is in the room but Homeroom"
            remedy = "have who belongs there accept the invitation, or homeroom sync --invite"
            faults.append(Fault("no_people", detail, remedy))
        return faults

    def _has_people(self, view: RoomView) -> bool:
        return any(not self._is_ghost(user) for user in view.users("join", "invite"))

    def _of_strangers(
        self, state: RoomState, view: RoomView, claims: list[Claim], inside: frozenset[str]
    ) -> list[Fault]:
        serving = {server.ghost for server in state.served_by}
        faults = []
        if rival := self._home_elsewhere(view, claims):
            where = rival.room_id or "another room"
            faults.append(
                Fault(
                    "duplicate",
                    f"it is marked as the home of {rival.agent_name}, who lives in {where}",
                    "let people go over to that room; nothing is deleted by Homeroom",
                    rival.ghost,
                )
            )
            serving.add(rival.ghost)
        for ghost in sorted(inside - serving):
            mapping = self._by_ghost.get(GhostId(ghost))
            # One that has no home yet may be about to find it here.
            if mapping is None or mapping.room_id is None or ghost == self._hub:
                continue
            kind: FaultKind = "conflict" if state.kind == "home" else "stray_ghost"
            of_whom = f"the home of {state.served_by[0].agent_name}" if kind == "conflict" else ""
            detail = f"{mapping.agent_name} is in {of_whom or 'a room that it does not serve'}"
            faults.append(Fault(kind, detail, "--fix has it leave", ghost, fixable=True))
        return faults

    def _home_elsewhere(self, view: RoomView, claims: list[Claim]) -> Mapping | None:
        """The agent whose home the room says it is, if that agent lives in another one."""
        agent_id = view.marker.get("agent_id")
        if not isinstance(agent_id, str) or not self._is_ghost(view.marked_by):
            return None
        mapping = self._mappings.get(AgentId(agent_id))
        if mapping is None or mapping.room_id in (None, view.room_id):
            return None
        ghosts_inside = mapping.ghost in view.users("join")
        return mapping if ghosts_inside and not claims else None
