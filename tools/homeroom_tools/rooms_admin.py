"""The tool that looks at the rooms: ``diagnose_rooms``, and the shape of its result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from mcp.server.mcpserver.tools import Tool
from pydantic import Field

from homeroom.residence import Fault, Refusal, RoomsReport, RoomState
from homeroom.times import utc_iso
from homeroom_tools.text import ERROR_CHARS, NAME_CHARS, clean_line
from homeroom_tools.toolkit import UNTRUSTED, Result, make_tool

if TYPE_CHECKING:
    from homeroom.app import App

MAX_ROOMS = 100
MAX_REFUSALS = 20

Fix = Annotated[bool, Field(description="Mend it.")]
All = Annotated[bool, Field(description="Also sound rooms.")]
AgentName = Annotated[str, Field(description=UNTRUSTED + "its name")]
RefusedLine = Annotated[str, Field(description=UNTRUSTED + "who, where, why")]


class RoomFault(Result):
    kind: str = Field(description="what is wrong")
    detail: str = Field(description=UNTRUSTED + "what to do")
    ghost: str | None = Field(default=None, description=UNTRUSTED + "its Matrix id")
    fixed: bool = Field(description="just now")


class RoomEntry(Result):
    room: str = Field(description=UNTRUSTED + "Matrix id")
    kind: Literal["home", "further", "none"] = Field(description="none: not served")
    agents: list[AgentName] = Field(description=UNTRUSTED + "who serves it")
    since: str | None = Field(default=None, description="UTC")
    people: int = Field(description="in it")
    faults: list[RoomFault] = Field(description="What is wrong.")


class RoomsDiagnosis(Result):
    rooms: list[RoomEntry] = Field(description="Faults first.")
    total: int = Field(description="rooms")
    truncated: bool | None = Field(default=None, description="doctor rooms has all")
    faults: int = Field(description="left")
    refused: list[RefusedLine] = Field(description=UNTRUSTED + "not entered")
    declined: int = Field(description="invitations")
    conflicts: int = Field(description="agents turned away")


def diagnosis_tools(app: App) -> list[Tool]:
    """The tools of this module, bound to ``app``."""

    async def diagnose_rooms(fix: Fix = False, all: All = False) -> RoomsDiagnosis:  # noqa: A002
        """Tells who serves which room and what is wrong: if no agent answers, or two.
        fix ends stale claims and stray memberships, invites the hub; deletes nothing.
        """
        return rooms_diagnosis(await app.diagnose_rooms(fix), everything=all)

    return [
        make_tool(
            diagnose_rooms,
            title="Diagnose rooms",
            read_only=False,
            destructive=False,
            idempotent=True,
            open_world=True,
        )
    ]


def rooms_diagnosis(report: RoomsReport, *, everything: bool) -> RoomsDiagnosis:
    """The report as a model reads it."""
    rooms = sorted(report.rooms, key=lambda room: not room.faults)
    shown = [room for room in rooms if everything or room.faults]
    return RoomsDiagnosis(
        rooms=[_room(room) for room in shown[:MAX_ROOMS]],
        total=len(report.rooms),
        truncated=len(shown) > MAX_ROOMS or len(report.refusals) > MAX_REFUSALS or None,
        faults=report.fault_count,
        refused=[_refused(refusal) for refusal in report.refusals[:MAX_REFUSALS]],
        declined=report.refused_count,
        conflicts=report.conflict_count,
    )


def _room(room: RoomState) -> RoomEntry:
    since_ms = min((server.since_ms for server in room.served_by), default=0)
    return RoomEntry(
        room=clean_line(room.room_id, NAME_CHARS),
        kind=room.kind,
        agents=[clean_line(server.agent_name, NAME_CHARS) for server in room.served_by],
        since=utc_iso(since_ms),
        people=room.people_count,
        faults=[_fault(fault) for fault in room.faults],
    )


def _fault(fault: Fault) -> RoomFault:
    detail = f"{fault.detail}; {fault.remedy}" if not fault.fixed else fault.detail
    return RoomFault(
        kind=fault.kind,
        detail=clean_line(detail, ERROR_CHARS),
        ghost=clean_line(fault.ghost, NAME_CHARS) or None,
        fixed=fault.fixed,
    )


def _refused(refusal: Refusal) -> str:
    by = f" invited by {refusal.who}" if refusal.who else ""
    line = f"{refusal.ghost} in {refusal.room_id}{by}: {refusal.reason} ({refusal.count} times)"
    return clean_line(line, ERROR_CHARS)
