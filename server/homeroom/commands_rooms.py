"""The command that looks at the rooms: ``homeroom doctor rooms``.

It judges by what the hub knows, beside a running bridge or without one. What others wrote (names,
reasons) is made harmless before a terminal sees it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import click

from homeroom.commands import Option, Start
from homeroom_tools.text import harmless

if TYPE_CHECKING:
    from homeroom.config import Config
    from homeroom.residence import RoomsReport, RoomState


def add_room_commands(doctor: click.Group, start: Start, config_option: Option) -> None:
    """Adds it to ``doctor``; ``start`` reads the configuration that ``config_option`` names."""

    @doctor.command()
    @click.option("--fix", is_flag=True, help="Mend what can be mended; nothing is deleted.")
    @config_option
    def rooms(fix: bool, config_path: Path | None) -> int:
        """Tell who serves which room and what is wrong there. Exit code 0 only if nothing is."""
        report = anyio.run(_diagnose, start(config_path), fix)
        _print(report)
        return 1 if report.fault_count else 0


async def _diagnose(config: Config, fix: bool) -> RoomsReport:
    from homeroom.app import open_app

    async with open_app(config, bridge=False) as app:
        return await app.diagnose_rooms(fix)


def _print(report: RoomsReport) -> None:
    from homeroom.times import utc_text

    for room in report.rooms:
        sound = all(fault.fixed for fault in room.faults)
        click.echo(f"{'✓' if sound else '✗'} {harmless(room.room_id)}  {_what(room)}")
        for server in room.served_by:
            since = utc_text(server.since_ms) if server.since_ms else "the beginning"
            click.echo(f"    {harmless(server.agent_name)} ({server.ghost}) since {since}")
        for fault in room.faults:
            who = f" {harmless(fault.ghost)}:" if fault.ghost else ""
            state = "fixed " if fault.fixed else ""
            click.echo(f"    {state}{fault.kind}:{who} {harmless(fault.detail)}")
            if not fault.fixed:
                click.echo(f"      → {harmless(fault.remedy)}")
    for refusal in report.refusals:
        who = f" by {harmless(refusal.who)}" if refusal.who else ""
        what = "declined" if refusal.kind == "invitation" else "turned away"
        click.echo(
            f"{utc_text(refusal.last_ms)}  {what}: {harmless(refusal.ghost)} in"
            f" {harmless(refusal.room_id)}{who}, {refusal.count} times:"
            f" {harmless(refusal.reason)}"
        )
    click.echo(
        f"{len(report.rooms)} rooms, {report.fault_count} faults;"
        f" {report.refused_count} invitations declined and {report.conflict_count} conflicts so far"
    )


def _what(room: RoomState) -> str:
    kind = {"home": "home", "further": "further room", "none": "served by nobody"}[room.kind]
    kind = "direct chat" if room.is_direct and len(room.served_by) == 1 else kind
    kind = "shared room" if len(room.served_by) > 1 else kind
    people = "1 person" if room.people_count == 1 else f"{room.people_count} people"
    return f"{kind}, {people}"
