"""What ``homeroom sync`` shows: on a terminal, in a pipe, and when another process works."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from homeroom import screen as screen_module
from homeroom.model import Action, AgentId, Failure, SyncProgress, SyncReport
from homeroom.screen import open_sync_screen, print_report

LONG = "https://example.org/" + "x" * 300
ACTION = Action("create_room", AgentId("agent-1"), "Ada\x1b[2J", "has no room", value=LONG)
FAILURE = Failure(ACTION, "refused \x1b]0;title", final=True)


def report(*failures: Failure) -> SyncReport:
    return SyncReport(1, (ACTION,), () if failures else (ACTION,), failures, 1.25)


def terminal(out: io.StringIO, width: int) -> Callable[..., Console]:
    """Makes consoles that take ``out`` for a terminal of that width."""

    def make(**how: object) -> Console:
        return Console(file=out, force_terminal=True, width=width, color_system=None)

    return make


def test_in_a_pipe_no_cell_is_cut_and_nothing_foreign_steers_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_report(report(FAILURE))
    said = capsys.readouterr().out
    assert LONG in said and "failed: refused" in said and "\x1b" not in said
    assert "1 agent, 1 action planned, 0 done, 1 left, 1.2 s" in said
    row = next(line for line in said.splitlines() if LONG in line)
    assert "Ada" in row and "failed: refused" in row, "one action, one line"


def test_on_a_narrow_terminal_long_values_are_folded_and_not_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(screen_module, "Console", terminal(out, 60))
    print_report(report())
    assert out.getvalue().count("x") >= 300 and "…" not in out.getvalue()


def test_in_a_pipe_every_action_is_a_line_and_progress_adds_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with open_sync_screen() as screen:
        screen.on_progress(SyncProgress(0, 2))
        screen.on_action(ACTION, None)
        screen.on_progress(SyncProgress(1, 2, "Ada"))
        screen.on_action(ACTION, FAILURE)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines[-2:]] == ["done", "FAILED"]
    assert lines[-1].endswith("refused ]0;title") and "\x1b" not in lines[-1]
    assert len([line for line in lines if "of 2 actions" in line]) <= 1


def test_when_another_process_does_the_work_its_progress_is_told_line_by_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with open_sync_screen() as screen:
        for done in (0, 3, 3, 7):
            screen.on_progress(SyncProgress(done, 9, "Ada\x1b"))
    assert capsys.readouterr().err.splitlines() == [
        "0 of 9 actions, Ada",
        "3 of 9 actions, Ada",
        "7 of 9 actions, Ada",
    ]


def test_on_a_terminal_a_bar_shows_who_is_at_hand_and_failures_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(screen_module, "Console", terminal(out, 100))
    with open_sync_screen() as screen:
        screen.on_progress(SyncProgress(3, 9, "Ada"))
        screen.on_action(ACTION, FAILURE)
        screen.on_progress(SyncProgress(4, 9, "Brook"))
    said = out.getvalue()
    assert "4/9" in said and "Brook" in said and "FAILED create_room" in said
