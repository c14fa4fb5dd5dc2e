"""Reports of reconciliations as text: how they are kept in the store and read by every process.

Pure. Invariant: whatever a version of Homeroom has written, a later one reads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from homeroom.errors import HomeroomError, Misuse, Unavailable
from homeroom.model import Outage, SyncReport

FAILURES_SHOWN = 20
"""How many failing agents health lists: monitors want the fact, not the novel."""

_report = TypeAdapter(SyncReport)
_outages = TypeAdapter(tuple[Outage, ...])


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
    outages: tuple[Outage, ...] = ()
    """The services that the last run left alone, or found away."""

    @property
    def in_step(self) -> bool:
        """Whether Matrix agreed with Letta when it was last looked at, and that was just now."""
        return not self.error and self.report is not None and not self.report.left


def dump_report(report: SyncReport) -> str:
    return _report.dump_json(report).decode()


def dump_error(error: HomeroomError, outages: Sequence[Outage] = ()) -> str:
    """What stands in the place of a report when a reconciliation could not even begin."""
    away = {"outages": _outages.dump_python(tuple(outages), mode="json")} if outages else {}
    if isinstance(error, Unavailable):
        return json.dumps({"unavailable": error.service, "reason": error.reason} | away)
    return json.dumps({"refused": str(error), "own_words": error.own_words} | away)


def raise_refusal(text: str) -> Any:
    """The data in a report's text; raises what stands in its place, see ``dump_error``."""
    data = json.loads(text)
    if isinstance(data, dict) and "unavailable" in data:
        raise Unavailable(data["unavailable"], data["reason"], foreign=True)
    if isinstance(data, dict) and "refused" in data:
        raise Misuse(data["refused"], data.get("own_words", "The sync was refused."))
    return data


def read_report(text: str) -> SyncReport:
    """Raises what the reconciliation raised: Unavailable, or Misuse with its words."""
    return _report.validate_python(raise_refusal(text))


def read_status(last: tuple[int, str] | None, good: tuple[int, str] | None) -> SyncStatus:
    """The status from when (ms) and how the last run ended, and the last one that could begin."""
    if last is None:
        return SyncStatus()
    error, outages = "", _outages.validate_python(json.loads(last[1]).get("outages") or ())
    try:
        report, report_ms = read_report(last[1]), last[0]
    except (Unavailable, Misuse) as problem:
        error = str(problem)
        if good is None:
            return SyncStatus(last[0], error, outages=outages)
        report, report_ms = read_report(good[1]), good[0]
    return SyncStatus(last[0], error, report, report_ms, outages)


def held_reasons(report: SyncReport) -> list[str]:
    """Why actions wait for a person, each reason once; with the agent where it is about one. And
    what an audit could not look at."""
    held = [action for action in report.left if action.held]
    reasons = [
        a.held if a.kind == "retire_agent" else f"{a.agent_name}: {a.kind}: {a.held}" for a in held
    ]
    return [*dict.fromkeys(reasons), *(f"could not be looked at: {why}" for why in report.unread)]


def health_of(status: SyncStatus) -> dict[str, Any]:
    """The status as /health shows it; empty if there was no run yet."""
    if not status.finished_ms:
        return {}
    said: dict[str, Any] = {"at_s": round(status.finished_ms / 1000)}
    if status.error:
        said["error"] = status.error
    said["away"] = {
        outage.service: {
            "reason": outage.reason,
            "since_s": round(outage.since_ms / 1000),
            "next_try_s": round(outage.next_try_ms / 1000),
        }
        for outage in status.outages
    }
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
                "times": failure.failures,
                "next_try_s": round(failure.next_try_ms / 1000) or None,
            }
            for failure in failures
        ],
        "left": len(report.left),
        "held": "; ".join(held_reasons(report)[:FAILURES_SHOWN]),
        "duration_s": report.duration_s,
    }
