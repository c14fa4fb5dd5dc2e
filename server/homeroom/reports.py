"""Reports of reconciliations as text: how they are kept in the store and read by every process.

Pure. Invariant: whatever a version of Homeroom has written, a later one reads.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from homeroom.errors import HomeroomError, Misuse, Unavailable
from homeroom.model import SyncReport

FAILURES_SHOWN = 20
"""How many failing agents health lists: monitors want the fact, not the novel."""

_report = TypeAdapter(SyncReport)


@dataclass(frozen=True, slots=True)
class SyncStatus:
    """How the last reconciliation of whichever process runs the bridge ended."""

    finished_ms: int = 0
    """0: there was none yet."""
    error: str = ""
    """Why it could not begin; ``report`` is then of an earlier run, if there is one."""
    report: SyncReport | None = None
    report_ms: int = 0
    """When the run of ``report`` ended."""

    @property
    def in_step(self) -> bool:
        """Whether Matrix agreed with Letta when it was last looked at, and that was just now."""
        return not self.error and self.report is not None and not self.report.left


def dump_report(report: SyncReport) -> str:
    return _report.dump_json(report).decode()


def dump_error(error: HomeroomError) -> str:
    """What stands in the place of a report when a reconciliation could not even begin."""
    if isinstance(error, Unavailable):
        return json.dumps({"unavailable": error.service, "reason": error.reason})
    return json.dumps({"refused": str(error)})


def read_report(text: str) -> SyncReport:
    """Raises what the reconciliation raised: Unavailable, or Misuse with its words."""
    data = json.loads(text)
    if "unavailable" in data:
        raise Unavailable(data["unavailable"], data["reason"])
    if "refused" in data:
        raise Misuse(data["refused"])
    return _report.validate_python(data)


def read_status(last: tuple[int, str] | None, good: tuple[int, str] | None) -> SyncStatus:
    """The status from when (ms) and how the last run ended, and the last one that could begin."""
    if last is None:
        return SyncStatus()
    error = ""
    try:
        report, report_ms = read_report(last[1]), last[0]
    except (Unavailable, Misuse) as problem:
        error = str(problem)
        if good is None:
            return SyncStatus(last[0], error)
        report, report_ms = read_report(good[1]), good[0]
    return SyncStatus(last[0], error, report, report_ms)


def health_of(status: SyncStatus) -> dict[str, Any]:
    """The status as /health shows it; empty if there was no run yet."""
    if not status.finished_ms:
        return {}
    said: dict[str, Any] = {"at_s": round(status.finished_ms / 1000)}
    if status.error:
        said["error"] = status.error
    report = status.report
    if report is None:
        return said
    failures = report.failures[:FAILURES_SHOWN]
    return said | {
        "report_at_s": round(status.report_ms / 1000),
        "agents": report.agent_count,
        "applied": len(report.applied),
        "failures": [failure.reason for failure in failures],
        "failing": [
            {
                "agent_id": failure.action.agent_id,
                "action": failure.action.kind,
                "next_try_s": round(failure.next_try_ms / 1000) or None,
            }
            for failure in failures
        ],
        "left": len(report.left),
        "held": next((action.held for action in report.left if action.held), ""),
        "duration_s": report.duration_s,
    }
