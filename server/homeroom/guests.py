"""Agents as guests: their invitations into other rooms, and the rooms they were taken into.

Owns noticing, accepting and declining, and every step until ghost and hub are in a room or have
left it again. What is to be done stands in the store before it is done, so that a crash between
two steps changes nothing. Invariants: nobody comes in whom the policy does not let in; a refusal of
the homeserver is final, and is told.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace

import anyio

from homeroom.config import Config
from homeroom.errors import Rejected, Unavailable
from homeroom.guest_words import away_notice, needs_hub_notice
from homeroom.matrix import OUR_FAULT, Matrix
from homeroom.model import GhostId, Mapping, RoomId
from homeroom.people import guest_policy_of, why_declined
from homeroom.residence import Claim, Fault, Invitation, Refusal, RoomState
from homeroom.retry import pause_s
from homeroom.rooms_report import dump_fixed, examine_rooms
from homeroom.store import Decide, Store
from homeroom.store.claims import Intruder, Unsettled

log = logging.getLogger(__name__)

ASKED_PER_S = 10.0
"""At most so many ghosts are asked for invitations in a second, however many there are."""
PUSHED_FACTOR = 10.0
"""Where pushes arrive, ghosts are asked so much more rarely: a restarting homeserver loses some."""
HINTS_KEPT = 1000
NEITHER_IS_IN = "neither the agent's user nor the hub is in the room any more"
PATIENCE = 20
"""So often a room may be out of reach (a homeserver that is gone) before it is given up."""


class Guests:
    """Takes agents into further rooms and out of them, while its process runs the bridge."""

    def __init__(
        self, config: Config, store: Store, matrix: Matrix, decide: Decide, *, fence: int
    ) -> None:
        self._config, self._store, self._matrix = config, store, matrix
        self._decide, self._fence = decide, fence
        self._policy = guest_policy_of(config)
        self._is_off = "accept_invites" in config.switch_off
        self._since: dict[GhostId, str] = {}
        """Where each ghost's sync goes on. Lost with the process: the first answer of a sync has
        every invitation that stands, so nothing is missed."""
        self._hints: dict[str, None] = {}
        self._hinted = anyio.Event()
        self._is_pushed = False
        self._put_off: dict[tuple[RoomId, str], tuple[int, float]] = {}
        """Rooms out of reach: how often they were tried, and when (monotonic) they are next."""

    def hint(self, ghosts: Collection[str], *, pushed: bool = False) -> None:
        """Has these ghosts asked soon, if they are ours. A hint proves nothing."""
        self._is_pushed = self._is_pushed or pushed
        for ghost in ghosts:
            if len(self._hints) < HINTS_KEPT:
                self._hints[ghost] = None
        if self._hints:
            self._hinted.set()

    async def run(self) -> None:
        """Runs until cancelled. Raises LeaseLost."""
        async with anyio.create_task_group() as loops:
            loops.start_soon(self._run_settling)
            if not self._is_off:
                loops.start_soon(self._run_asking)

    # --- noticing --------------------------------------------------------------------------------

    async def _run_asking(self) -> None:
        """Asks one ghost after the other, those first for whom there is a hint."""
        ghosts: dict[str, Mapping] = {}
        turn: deque[str] = deque()
        next_s, failures = time.monotonic(), 0
        while True:
            hinted = next(iter(self._hints), None)
            if hinted is None and time.monotonic() < next_s:
                self._hinted = anyio.Event()
                with anyio.move_on_after(next_s - time.monotonic()):
                    await self._hinted.wait()
                continue
            if (hinted is not None and hinted not in ghosts) or not turn:
                ghosts = await self._list_ghosts()
                turn = turn or deque(ghosts)
            if hinted is not None:
                self._hints.pop(hinted, None)
            else:
                next_s = time.monotonic() + self._pause_s(len(ghosts))
            name = hinted if hinted is not None else (turn.popleft() if turn else "")
            if (mapping := ghosts.get(name)) is None:
                continue
            try:
                await self._ask(mapping)
                failures = 0
            except (Unavailable, Rejected) as error:
                failures += 1
                if isinstance(error, Unavailable):
                    self.hint([name])
                log.info("invitations_unknown", extra={"ghost": name, "reason": str(error)})
                await anyio.sleep(pause_s(failures))

    async def _list_ghosts(self) -> dict[str, Mapping]:
        mappings = (await self._store.list_mappings()).values()
        return {mapping.ghost: mapping for mapping in mappings if mapping.ghost_ready}

    def _pause_s(self, count: int) -> float:
        round_s = self._config.invite_poll_s * (PUSHED_FACTOR if self._is_pushed else 1.0)
        return max(round_s / max(count, 1), 1 / ASKED_PER_S)

    async def _ask(self, mapping: Mapping) -> None:
        ghost = mapping.ghost
        invitations, since = await self._matrix.invitations(ghost, self._since.get(ghost, ""))
        for invitation in invitations:
            await self._answer(mapping, invitation)
        self._since[ghost] = since

    async def _answer(self, mapping: Mapping, invitation: Invitation) -> None:
        rows = await self._store.list_mappings()
        mapping = rows.get(mapping.agent_id, mapping)  # it may have moved since
        if mapping.room_id in (invitation.room_id, invitation.predecessor) and mapping.room_id:
            return  # back home, or to the room that replaces it: the sync's business
        host = next((row for row in rows.values() if row.room_id == invitation.room_id), None)
        if host and host.hub_joined:
            return  # the hub sees it there, too, and then it is turned away with a notice
        why = why_declined(
            invitation, self._policy, is_retired=mapping.retired,
            inviter_is_ghost=self._matrix.is_ghost(invitation.inviter),
        )  # fmt: skip
        if not why:
            claim = Claim(
                invitation.room_id, mapping.agent_id, invited_by=invitation.inviter,
                is_direct=invitation.is_direct,
            )  # fmt: skip
            try:
                await self._store.open_claim(claim, self._fence)
            except Rejected as taken:
                why = taken.reason
            else:
                log.info(
                    "invitation_accepted",
                    extra={"ghost": mapping.ghost, "room": invitation.room_id},
                )
                return
        told = "This agent does not accept the invitation."
        await self._leave(mapping.ghost, invitation.room_id, told)
        log.info(
            "invitation_declined",
            extra={"ghost": mapping.ghost, "room": invitation.room_id, "reason": why},
        )
        await self._store.note_refusal(
            Refusal(
                "conflict" if host else "invitation", invitation.room_id, mapping.ghost,
                invitation.inviter, why, 1, 0,
            ),
            self._fence,
        )  # fmt: skip

    # --- settling --------------------------------------------------------------------------------

    async def _run_settling(self) -> None:
        """Does what stands in the store to be done, whenever that may have become more."""
        is_checked, seen, failures = False, -1, 0
        due_s = math.inf
        while True:
            changed = self._store.changed
            errands = await self._store.pending_errands("fix_rooms")
            is_due = time.monotonic() >= due_s
            if errands or is_due or self._store.people_version != seen:
                seen = self._store.people_version
                try:
                    if not is_checked:
                        await self._check_claims()
                        is_checked = True
                    if errands:
                        fixed = await self.fix()
                        await self._store.finish_errands(errands, dump_fixed(fixed), self._fence)
                    due_s, failures = await self._settle_all(), 0
                except (Unavailable, Rejected) as error:
                    seen, failures = -1, failures + 1
                    log.info("rooms_unsettled", extra={"reason": str(error)})
                    await anyio.sleep(pause_s(failures))
                continue
            with anyio.move_on_after(due_s - time.monotonic()):
                await changed.wait()
                await anyio.sleep(0.25)  # one look for a burst of commits

    async def _check_claims(self) -> None:
        """Ends what is not so any more: at the start, before anything is obeyed."""
        rooms = await self._matrix.joined_rooms(self._matrix.hub)
        for claim, ghost in await self._store.list_guests():
            is_settling = claim.stage == "joining" and not claim.problem
            if is_settling or (claim.stage == "open" and claim.room_id in rooms):
                continue
            if claim.room_id not in await self._matrix.joined_rooms(ghost):
                await self._end(claim, NEITHER_IS_IN)
            elif claim.stage == "open":
                await self._store.note_hub_out(claim.room_id, self._fence)
        await self._store.end_stale_claims(self._fence)

    async def _settle_all(self) -> float:
        """Settles what can be settled; returns when (monotonic) to try the rest again. One room
        that is out of reach holds up no other."""
        for intruder in await self._store.list_intruders():
            await self._turn_away(intruder)
        if not self._is_off:
            self.hint(await self._store.list_invited_ghosts())
        for room_id, agent_id in await self._store.list_unclaimed(self._matrix.hub):
            # A store that was lost: what was there before it is not answered.
            born_ms = int(await self._store.get_meta("born_ms"))
            claim = Claim(room_id, agent_id, heard_from_ms=born_ms)
            await self._store.open_claim(claim, self._fence)
            log.info("room_found_again", extra={"room": room_id, "agent": agent_id})
        later: dict[tuple[RoomId, str], tuple[int, float]] = {}
        for work in await self._store.list_unsettled(self._matrix.hub):
            key = (work.claim.room_id, work.claim.agent_id)
            tries, next_s = self._put_off.get(key, (0, 0.0))
            if time.monotonic() < next_s:
                later[key] = (tries, next_s)
                continue
            try:
                await self._settle(work)
            except Unavailable as error:
                # Raises if it is the homeserver that is away: that is no fault of the room.
                await self._matrix.joined_rooms(self._matrix.hub)
                log.info("room_put_off", extra={"room": key[0], "reason": str(error)})
                later[key] = (tries + 1, time.monotonic() + pause_s(tries + 1))
                if tries + 1 >= PATIENCE and work.claim.stage == "joining":
                    await self._end(work.claim, f"the room is out of reach: {error.reason}")
        self._put_off = later
        return min((next_s for _, next_s in later.values()), default=math.inf)

    async def _settle(self, work: Unsettled) -> None:
        claim, hub = work.claim, self._matrix.hub
        if claim.stage == "leaving":
            await self._leave(work.ghost, claim.room_id, f"The agent leaves: {claim.end_reason}.")
            if work.is_last:
                await self._leave(hub, claim.room_id, "")
            await self._store.settle_claim_left(claim, self._fence)
            log.info("room_left", extra={"room": claim.room_id, "reason": claim.end_reason})
            return
        if not claim.opened_ms:
            try:
                await self._matrix.ensure_joined(work.ghost, claim.room_id)
            except Rejected as refusal:
                _raise_if_ours(refusal)
                await self._end(
                    claim, f"the homeserver does not let the agent in: {refusal.reason}"
                )
                return
            if claim.is_direct:
                with suppress(Rejected):  # a note for clients, no more
                    await self._note_direct(work.ghost, claim)
        if not await self._fetch_hub(work):
            return
        heard_ms = claim.heard_from_ms
        if not heard_ms:
            heard_ms = await self._matrix.invited_ms(work.ghost, claim.room_id) or claim.since_ms
        await self._store.settle_claim_open(claim, heard_ms, self._decide, self._fence)
        log.info("room_entered", extra={"room": claim.room_id, "agent": claim.agent_id})

    async def _fetch_hub(self, work: Unsettled) -> bool:
        """Whether the hub is in the room. Where it cannot be, the room is told what to do."""
        claim, hub = work.claim, self._matrix.hub
        try:
            try:
                await self._matrix.ensure_joined(hub, claim.room_id)
            except Rejected:
                # One that people have put out does not come back by itself.
                if claim.opened_ms or work.hub_is_invited:
                    raise
                await self._matrix.invite(work.ghost, claim.room_id, hub)
                await self._matrix.ensure_joined(hub, claim.room_id)
        except Rejected as refusal:
            _raise_if_ours(refusal)
            log.warning(
                "hub_not_let_in", extra={"room": claim.room_id, "reason": refusal.reason}
            )  # fmt: skip
            problem = f"{hub} is not in the room and has to be invited by somebody there"
            notice = needs_hub_notice(work.ghost, claim, hub, refusal.reason)
            await self._store.note_claim_problem(claim, hub, problem, self._fence, (notice,))
            return False
        return True

    async def _note_direct(self, ghost: GhostId, claim: Claim) -> None:
        """Source: https://spec.matrix.org/v1.16/client-server-api/#direct-messaging"""
        noted = await self._matrix.get_account_data(ghost, "m.direct")
        rooms = noted.get(claim.invited_by)
        rooms = rooms if isinstance(rooms, list) else []
        if claim.room_id not in rooms:
            noted[claim.invited_by] = [*rooms, claim.room_id]
            await self._matrix.put_account_data(ghost, "m.direct", noted)

    async def _end(self, claim: Claim, reason: str) -> None:
        log.warning("claim_ended", extra={"room": claim.room_id, "reason": reason})
        await self._store.end_claims(claim.room_id, reason, self._fence, claim.agent_id)

    async def _turn_away(self, intruder: Intruder) -> None:
        """Has a ghost leave the home of another agent, whose ghost says where to find it."""
        room_id = intruder.room_id
        await self._leave(intruder.ghost, room_id, "This room belongs to another agent.")
        reason = f"it is the home of {intruder.host_name}"
        log.warning("conflict_seen", extra={"ghost": intruder.ghost, "room": room_id})
        notice = away_notice(intruder, hour=int(time.time() // 3600))
        refusal = Refusal("conflict", room_id, intruder.ghost, "", reason, 1, 0)
        await self._store.note_refusal(refusal, self._fence, (notice,))

    async def _leave(self, ghost: GhostId, room_id: RoomId, why: str) -> None:
        try:
            await self._matrix.ensure_left(ghost, room_id, why)
        except Rejected as refusal:  # final, and harmless: whoever is there serves nobody
            _raise_if_ours(refusal)
            log.warning(
                "not_let_out", extra={"ghost": ghost, "room": room_id, "reason": refusal.reason}
            )

    # --- mending, when a person asks -------------------------------------------------------------

    async def fix(self) -> list[tuple[RoomId, Fault]]:
        """Mends what can be mended without deleting anything. Returns what was."""
        states = examine_rooms(
            await self._store.list_rooms(), await self._store.list_mappings(),
            await self._store.list_claims(), self._matrix.hub, self._matrix.is_ghost,
        )  # fmt: skip
        fixed = [
            (state.room_id, replace(fault, fixed=True))
            for state in states
            for fault in state.faults
            if fault.fixable and await self._fix(state, fault)
        ]
        await self._settle_all()
        return fixed

    async def _fix(self, state: RoomState, fault: Fault) -> bool:
        if fault.kind == "hub_missing":
            return await self._fix_hub(state)
        if fault.kind == "stale_claim":
            agent = next(s.agent_id for s in state.served_by if s.ghost == fault.ghost)
            reason = f"found to be stale: {fault.detail}"
            await self._store.end_claims(state.room_id, reason, self._fence, agent)
            return True
        ghost = GhostId(fault.ghost)
        await self._leave(ghost, state.room_id, "This agent does not serve this room.")
        refusal = Refusal("conflict", state.room_id, ghost, "", fault.detail, 1, 0)
        await self._store.note_refusal(refusal, self._fence)
        return True

    async def _fix_hub(self, state: RoomState) -> bool:
        """Whether the hub is in the room now, or nobody of ours has any business there."""
        ghost = state.served_by[0].ghost
        try:
            await self._matrix.invite(ghost, state.room_id, self._matrix.hub)
            await self._matrix.ensure_joined(self._matrix.hub, state.room_id)
        except Rejected as refusal:
            _raise_if_ours(refusal)
            log.warning("not_fixed", extra={"room": state.room_id, "reason": refusal.reason})
            if state.kind == "home" or state.room_id in await self._matrix.joined_rooms(ghost):
                return False
            agent_id = state.served_by[0].agent_id
            await self._store.end_claims(state.room_id, NEITHER_IS_IN, self._fence, agent_id)
            return True
        await self._store.retry_claims(state.room_id, self._fence)
        return True


def _raise_if_ours(refusal: Rejected) -> None:
    """A homeserver that does not know us any more says nothing about rooms."""
    if refusal.code in OUR_FAULT:
        raise Unavailable("matrix", refusal.reason) from refusal
