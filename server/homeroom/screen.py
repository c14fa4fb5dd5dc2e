"""What ``homeroom sync`` shows: its progress while it runs, and the report at its end.

A terminal gets a bar that moves, anything else plain lines, one per action. What others wrote
(names, reasons) is made harmless before either sees it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from homeroom.model import Action, Failure, SyncProgress, SyncReport
from homeroom_tools.text import ERROR_CHARS, NAME_CHARS, clean_line

PIPE_WIDTH = 10_000
"""Columns where nobody said how many there are: no row is that long, so none is cut."""


class SyncScreen(Protocol):
    """Hears of a reconciliation while it runs."""

    def on_action(self, action: Action, failure: Failure | None) -> None: ...

    def on_progress(self, progress: SyncProgress) -> None: ...


@contextmanager
def open_sync_screen() -> Iterator[SyncScreen]:
    """The screen on stderr: live on a terminal, plain lines in a pipe."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines()
        return
    bar = Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), console=console, transient=True,
    )  # fmt: skip
    with bar:
        yield _Bar(bar)


class _Lines:
    def __init__(self) -> None:
        self._by_us = False
        self._last = ""

    def on_action(self, action: Action, failure: Failure | None) -> None:
        self._by_us = True
        click.echo(_line(action, failure), err=True)

    def on_progress(self, progress: SyncProgress) -> None:
        line = f"{progress.done} of {progress.total} actions"
        # Where another process does the work, this is all that is told.
        if not self._by_us and progress.total and line != self._last:
            self._last = line
            name = clean_line(progress.agent_name, NAME_CHARS)
            click.echo(f"{line}, {name}" if name else line, err=True)


class _Bar:
    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("looking at Letta and Matrix", total=None)

    def on_action(self, action: Action, failure: Failure | None) -> None:
        if failure:
            self._bar.console.print(Text(_line(action, failure), "red"))

    def on_progress(self, progress: SyncProgress) -> None:
        name = clean_line(progress.agent_name, NAME_CHARS) or "…"
        self._bar.update(
            self._task, description=name, completed=progress.done, total=progress.total or None
        )


def _line(action: Action, failure: Failure | None) -> str:
    name, value = clean_line(action.agent_name, NAME_CHARS), clean_line(action.value, ERROR_CHARS)
    why = f": {clean_line(failure.reason, ERROR_CHARS)}" if failure else ""
    return f"{'FAILED' if failure else 'done':6} {action.kind} {name} {value}{why}"


def print_report(report: SyncReport) -> None:
    """The plan as a table, with what became of each action, and the sum of it."""
    applied = set(report.applied)
    reasons = {failure.action: failure.reason for failure in report.failures}
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_WIDTH)
    table = Table()
    for title in ("agent", "action", "value", "why", "result"):
        table.add_column(title, overflow="fold")
    for action in report.planned:
        if action in reasons:
            result, style = f"failed: {reasons[action]}", "red"
        elif action.held:
            result, style = f"held back: {action.held}", "yellow"
        else:
            result, style = ("done", "green") if action in applied else ("to do", "")
        row = (action.agent_name, action.kind, action.value, action.reason)
        cells = [Text(clean_line(cell, ERROR_CHARS)) for cell in row]
        table.add_row(*cells, Text(clean_line(result, ERROR_CHARS), style))
    if report.planned:
        console.print(table)
    for unread in report.unread:
        console.print(Text(f"could not be looked at: {clean_line(unread, ERROR_CHARS)}", "red"))
    agents, actions = count(report.agent_count, "agent"), count(len(report.planned), "action")
    planned = f"{agents}, {actions} planned, "
    done = f"{len(report.applied)} done, {len(report.left)} left, {report.duration_s:.1f} s"
    console.print(planned + done, highlight=False)


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
