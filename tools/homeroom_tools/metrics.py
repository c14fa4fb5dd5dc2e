"""The state of the process as Prometheus reads it, from what /health says.

Nothing is counted twice: whoever scrapes sees what a person sees, at the same moment.
Source: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["CONTENT_TYPE_LATEST", "metrics_text"]

_SERVICES = ("letta", "matrix")


def metrics_text(report: Mapping[str, Any]) -> bytes:
    """``report`` of /health in the text format. Facts that it lacks are left out."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Health(report))
    return generate_latest(registry)


class _Health(Collector):
    def __init__(self, report: Mapping[str, Any]) -> None:
        self._report = report

    def collect(self) -> Iterable[Metric]:
        report = self._report
        yield _gauge(
            "homeroom_ok", "1 if a message could pass right now.", _is_ok(report, "status")
        )
        services = [name for name in _SERVICES if report.get(name, "not configured")[:3] != "not"]
        if services:
            one = GaugeMetricFamily(
                "homeroom_service_ok", "1 if the service answers.", labels=["service"]
            )
            for name in services:
                one.add_metric([name], _is_ok(report, name))
            yield one
        if isinstance(bridge := report.get("bridge"), Mapping):
            here = float(bool(bridge.get("runs_here")))
            yield _gauge("homeroom_bridge_here", "1 if this process runs the bridge.", here)
        if isinstance(items := report.get("items"), Mapping):
            count = GaugeMetricFamily(
                "homeroom_items", "Messages and posts in the store, by state.", labels=["state"]
            )
            for state, number in items.items():
                count.add_metric([state], number)
            yield count
        yield from self._plain()

    def _plain(self) -> Iterator[Metric]:
        if "uptime_s" in self._report:
            yield _gauge(
                "homeroom_uptime_seconds", "Since the start.", float(self._report["uptime_s"])
            )
        last = self._report.get("last_sync")
        for name, value in (last if isinstance(last, Mapping) else {}).items():
            if isinstance(value, bool | int | float):
                about = f"{name} of the last sync."
                yield _gauge(f"homeroom_last_sync_{name}", about, float(value))


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(name, about, value=value)


def _is_ok(report: Mapping[str, Any], name: str) -> float:
    return float(report.get(name) == "ok")
