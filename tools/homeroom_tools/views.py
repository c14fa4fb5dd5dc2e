"""What a model reads back: the results of the tools, every field described.

Owns the trust boundary as a *shape*: foreign text (what agents, people and back ends wrote) stands
only in fields whose description begins with ``UNTRUSTED``; every other field holds ids and
constants of ours. No field tells a model what to do, but for ``hint``, which is one of ours.
Every model reads every description before its first word, so they are short.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from homeroom.items import (
    CaughtUp,
    ItemKind,
    Parked,
    ParkedPage,
    ReplyView,
    Step,
    Story,
    StoryState,
)
from homeroom.model import Action, Block, Failure, Outage, SyncReport
from homeroom.reading import AgentPage, AgentView
from homeroom.reports import SyncStatus, held_reasons
from homeroom.times import utc_iso, utc_text
from homeroom_tools.text import LINE_CHARS, NAME_CHARS, clean, clean_line
from homeroom_tools.toolkit import UNTRUSTED, ListPage, LongText, Result, Row

STEPS_KEPT = 40
"""Steps of a story that are kept at its beginning, and as many at its end."""
MAX_ACTIONS = 100
"""Actions that one sync result lists; the counts are always of all."""
DO_NOT_RESEND = "Do not resend; call get_reply with this reply_id."

AgentName = Annotated[str, Field(description=UNTRUSTED + "its name")]
AgentIdField = Annotated[str, Field(description=UNTRUSTED + "of Letta")]
"""Where Letta is a proxy an agent's id is its name: whatever somebody called it."""
PURPOSE_CHARS = 120
"""Longest description in a concise list, in characters."""
TAGS = 20
"""Most tags of an agent that are shown."""
LABELS = 100
"""Most labels of memory blocks that are shown."""


class AgentEntry(Row):
    id: str = Field(description=UNTRUSTED + "survives renames")
    name: AgentName
    description: str | None = Field(default=None, description=UNTRUSTED + "purpose")
    state: Literal["home", "moving_in", "no_matrix", "not_synced", "not_selected", "failing"] = (
        Field(description="its Matrix home")
    )
    room: str | None = Field(default=None, description=UNTRUSTED + "Matrix id")
    tags: list[str] | None = Field(default=None, description=UNTRUSTED + "in Letta")
    problem: str | None = Field(default=None, description=UNTRUSTED + "why failing")


class AgentList(ListPage):
    rows_field: ClassVar[str] = "agents"

    agents: list[AgentEntry] = Field(description="By name.")


class AgentDetail(AgentEntry):
    ghost: str | None = Field(default=None, description=UNTRUSTED + "its Matrix id")
    blocks: list[str] | None = Field(default=None, description=UNTRUSTED + "memory labels")


class SyncAction(Result):
    kind: str = Field(description="what it does")
    agent_id: str = Field(description=UNTRUSTED + "of Letta")
    agent: AgentName
    outcome: Literal["applied", "failed", "left"] = Field(description="left is not done")
    value: str | None = Field(default=None, description=UNTRUSTED + "new value")
    reason: str | None = Field(default=None, description=UNTRUSTED + "why, or why not")
    needs_person: bool | None = Field(default=None, description="must act")


class SyncResult(Result):
    dry_run: bool = Field(description="nothing was done")
    in_step: bool = Field(description="nothing is left")
    agents: int = Field(description="in Letta")
    planned: int = Field(description="actions")
    applied: int = Field(description="done")
    failed: int = Field(description="not")
    left: int = Field(description="not done")
    duration_s: float = Field(description="it took")
    actions: list[SyncAction] = Field(description=f"First {MAX_ACTIONS}: failed, left, applied.")
    truncated: bool | None = Field(default=None, description="more left")


class FailingAgent(Result):
    agent_id: AgentIdField
    agent: AgentName
    kind: str = Field(description="what failed")
    reason: str = Field(description=UNTRUSTED + "why")
    needs_person: bool = Field(description="must act")
    next_try: str | None = Field(default=None, description="UTC, else on sync_agents")


class SyncState(Result):
    last_run: str | None = Field(default=None, description="UTC")
    error: str | None = Field(
        default=None,
        description=UNTRUSTED + "what is wrong",
    )
    in_step: bool = Field(description="nothing is left")
    agents: int | None = Field(default=None, description="in Letta")
    applied: int | None = Field(default=None, description="actions")
    duration_s: float | None = Field(default=None, description="it took")
    left: int | None = Field(default=None, description="not done")
    failing: list[FailingAgent] = Field(description="First 100.")
    truncated: bool | None = Field(default=None, description="see sync --status")
    held: str | None = Field(default=None, description=UNTRUSTED + "what waits for a person")


class Reply(LongText):
    long_field: ClassVar[str] = "reply"

    status: Literal["complete", "pending", "failed"] = Field(description="of the answer")
    reply_id: str = Field(description="for get_reply, yours alone")
    agent_id: AgentIdField
    reply: str | None = Field(default=None, description=UNTRUSTED + "the answer")
    reason: str | None = Field(default=None, description=UNTRUSTED + "why it failed")
    ahead: int | None = Field(default=None, description="before it")
    hint: str | None = Field(default=None, description="what to do")


class DeliveryStep(Result):
    at: str = Field(description="UTC")
    text: str = Field(description=UNTRUSTED + "what happened")


class DeliveryStory(Result):
    state: StoryState = Field(description="held: late, until asked for")
    now: str = Field(description="in words")
    steps: list[DeliveryStep] = Field(description="Oldest first.")
    reply_id: str | None = Field(default=None, description="for replay_parked")
    event_id: str | None = Field(default=None, description=UNTRUSTED + "Matrix event")
    room: str | None = Field(default=None, description=UNTRUSTED + "Matrix id")
    sender: str | None = Field(default=None, description=UNTRUSTED + "who")


class ParkedEntry(Row):
    id: str = Field(description="for replay_parked")
    what: Literal["message", "post"] = Field(description="to it, or of it")
    parked_at: str = Field(description="UTC")
    delivered: Literal["no", "maybe"] = Field(description="arrived")
    agent_id: str | None = Field(default=None, description=UNTRUSTED + "of Letta")
    room: str | None = Field(default=None, description=UNTRUSTED + "Matrix id")
    sender: str | None = Field(default=None, description=UNTRUSTED + "who")
    reason: str = Field(description=UNTRUSTED + "why")


class LateRoom(Result):
    room: str = Field(description=UNTRUSTED + "Matrix id")
    messages: int = Field(description="waiting")


class ParkedList(ListPage):
    rows_field: ClassVar[str] = "items"

    items: list[ParkedEntry] = Field(description="Newest first.")
    late: list[LateRoom] | None = Field(default=None, description="By id.")
    late_total: int | None = Field(default=None, description="rooms")


class Replayed(Result):
    id: str = Field(description=UNTRUSTED + "of it")
    ahead: int | None = Field(default=None, description="before it")
    dropped: bool | None = Field(default=None, description="for good")
    answered: int | None = Field(default=None, description="late ones, now")
    left: int | None = Field(default=None, description="late ones")


def agent_list(page: AgentPage, *, full: bool) -> AgentList:
    return AgentList(
        total=page.total,
        next_cursor=page.next_cursor or None,
        agents=[
            AgentEntry.model_validate(_agent_fields(view, full=full)).leading_to(view.cursor)
            for view in page.agents
        ],
    )


def agent_detail(view: AgentView, *, full: bool, blocks: Sequence[Block] = ()) -> AgentDetail:
    labels = [clean_line(block.label, NAME_CHARS) for block in blocks[:LABELS]]
    # One agent is not a list: its whole purpose is worth its place.
    fields = _agent_fields(view, full=full) | {"description": _purpose(view, LINE_CHARS)}
    if full:
        fields |= {"ghost": clean_line(view.ghost, LINE_CHARS) or None, "blocks": labels or None}
    return AgentDetail.model_validate(fields)


def sync_result(report: SyncReport) -> SyncResult:
    reasons = {failure.action: failure for failure in report.failures}
    left = report.left
    actions = [
        *(_action(a, "failed", reasons[a].reason, reasons[a].final) for a in reasons),
        *(_action(a, "left", a.held or a.reason, bool(a.held)) for a in left if a not in reasons),
        *(_action(a, "applied", a.reason) for a in report.applied),
    ]
    return SyncResult(
        dry_run=report.dry_run,
        in_step=not left,
        agents=report.agent_count,
        planned=len(report.planned),
        applied=len(report.applied),
        failed=len(report.failures),
        left=len(left),
        duration_s=round(report.duration_s, 3),
        actions=actions[:MAX_ACTIONS],
        truncated=len(actions) > MAX_ACTIONS or None,
    )


def sync_state(status: SyncStatus) -> SyncState:
    report = status.report
    held = held_reasons(report) if report else []
    error = status.error or "; ".join(map(_away, status.outages))
    failures = report.failures if report else ()
    return SyncState(
        last_run=utc_iso(status.finished_ms),
        error=clean_line(error, LINE_CHARS) or None,
        in_step=status.in_step,
        agents=report.agent_count if report else None,
        applied=len(report.applied) if report else None,
        duration_s=round(report.duration_s, 3) if report else None,
        left=len(report.left) if report else None,
        failing=[_failing(failure) for failure in failures[:MAX_ACTIONS]],
        truncated=max(len(failures), len(held)) > MAX_ACTIONS or None,
        held=clean_line("; ".join(held[:MAX_ACTIONS]), LINE_CHARS) or None,
    )


def _away(outage: Outage) -> str:
    return f"{outage.service} ({outage.reason}), asked again at {utc_iso(outage.next_try_ms)}"


def _failing(failure: Failure) -> FailingAgent:
    return FailingAgent(
        agent_id=clean_line(failure.action.agent_id, LINE_CHARS),
        agent=clean_line(failure.action.agent_name, NAME_CHARS),
        kind=failure.action.kind,
        reason=clean_line(failure.reason, LINE_CHARS),
        needs_person=failure.final,
        next_try=utc_iso(failure.next_try_ms),
    )


def reply(view: ReplyView, offset: int = 0) -> Reply:
    pending = view.status == "pending"
    return Reply(
        status=view.status,
        reply_id=view.reply_id,
        agent_id=clean_line(view.agent_id, LINE_CHARS),
        reply=clean(view.reply)[offset:] if view.status == "complete" else None,
        reason=clean_line(view.reason, LINE_CHARS) or None,
        ahead=view.place_in_lane if pending else None,
        hint=DO_NOT_RESEND if pending else None,
    )


def delivery_story(story: Story) -> DeliveryStory:
    steps = story.steps
    if (left_out := len(steps) - 2 * STEPS_KEPT) > 0:
        gap = Step(steps[STEPS_KEPT].at_ms, f"({left_out} steps are left out here)")
        steps = (*steps[:STEPS_KEPT], gap, *steps[-STEPS_KEPT:])
    return DeliveryStory(
        state=story.state,
        now=story.now,
        steps=[
            DeliveryStep(at=utc_text(step.at_ms), text=clean_line(step.text, LINE_CHARS))
            for step in steps
        ],
        reply_id=story.item_id or None,
        event_id=clean_line(story.event_id, LINE_CHARS) or None,
        room=clean_line(story.room_id, LINE_CHARS) or None,
        sender=clean_line(story.sender, LINE_CHARS) or None,
    )


def parked_list(page: ParkedPage, *, full: bool) -> ParkedList:
    late = [
        LateRoom(room=clean_line(room, LINE_CHARS), messages=count)
        for room, count in page.late.items()
    ]
    return ParkedList(
        total=page.total,
        next_cursor=page.next_cursor or None,
        items=[_parked_entry(parked, full=full).leading_to(parked.cursor) for parked in page.items],
        late=late or None,
        late_total=page.late_total or None,
    )


def caught_up(room: str, done: CaughtUp | None) -> Replayed:
    """What became of the late messages of a room."""
    return Replayed(
        id=clean_line(room, LINE_CHARS),
        answered=done.answered if done else None,
        left=done.left if done else None,
    )


def _agent_fields(view: AgentView, *, full: bool) -> dict[str, object]:
    fields: dict[str, object] = {
        "id": clean_line(view.agent.id, LINE_CHARS),
        "name": clean_line(view.agent.name, NAME_CHARS),
        "description": _purpose(view, LINE_CHARS if full else PURPOSE_CHARS),
        "state": view.state,
        "room": clean_line(view.room_id, LINE_CHARS) or None,
    }
    if not full:
        return fields
    tags = [clean_line(tag, NAME_CHARS) for tag in view.agent.tags[:TAGS]]
    return fields | {
        "tags": tags or None,
        "problem": clean_line(view.problem, LINE_CHARS) or None,
    }


def _purpose(view: AgentView, limit_chars: int) -> str | None:
    return clean_line(view.agent.description, limit_chars) or None


def _action(
    action: Action,
    outcome: Literal["applied", "failed", "left"],
    reason: str,
    needs_person: bool = False,
) -> SyncAction:
    return SyncAction(
        kind=action.kind,
        agent_id=clean_line(action.agent_id, LINE_CHARS),
        agent=clean_line(action.agent_name, NAME_CHARS),
        outcome=outcome,
        value=clean_line(action.value, NAME_CHARS) or None,
        reason=clean_line(reason, LINE_CHARS) or None,
        needs_person=needs_person or None,
    )


def _parked_entry(parked: Parked, *, full: bool) -> ParkedEntry:
    item, payload = parked.item, parked.item.payload
    room = payload.get("room_id") or payload.get("mirror_room_id") or ""
    sender = payload.get("sender") or payload.get("client") or payload.get("ghost") or ""
    return ParkedEntry(
        id=item.id,
        what="message" if item.kind is ItemKind.TURN else "post",
        parked_at=utc_text(parked.parked_ms),
        delivered="maybe" if item.begun else "no",
        agent_id=clean_line(payload.get("agent_id") or "", LINE_CHARS) or None,
        room=(clean_line(room, LINE_CHARS) or None) if full else None,
        sender=clean_line(sender, NAME_CHARS) or None,
        reason=clean_line(item.reason, LINE_CHARS if full else PURPOSE_CHARS),
    )
