"""What /metrics makes of what /health says."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from homeroom_tools.metrics import metrics_text

REPORT = {
    "status": "degraded",
    "letta": "Letta is not available (secret detail). Try again later.",
    "matrix": "ok",
    "bridge": {"runs_here": True, "owner": "machine/1"},
    "items": {"waiting": 3, "parked": 1},
    "last_sync": {"at_s": 1_700_000_000, "agents": 7, "error": "a reason", "failing": [{}]},
    "uptime_s": 12,
}


def samples(text: bytes) -> dict[tuple[str, str], float]:
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_every_number_of_the_state_is_a_metric_and_no_text_is() -> None:
    text = metrics_text(REPORT)
    assert samples(text) == {
        ("homeroom_ok", ""): 0,
        ("homeroom_service_ok", "letta"): 0,
        ("homeroom_service_ok", "matrix"): 1,
        ("homeroom_bridge_here", ""): 1,
        ("homeroom_items", "waiting"): 3,
        ("homeroom_items", "parked"): 1,
        ("homeroom_uptime_seconds", ""): 12,
        ("homeroom_last_sync_at_s", ""): 1_700_000_000,
        ("homeroom_last_sync_agents", ""): 7,
    }
    assert b"secret" not in text and b"reason" not in text and b"machine" not in text


def test_what_is_not_set_up_or_not_known_is_left_out() -> None:
    assert samples(metrics_text({"status": "ok", "letta": "ok", "matrix": "not configured"})) == {
        ("homeroom_ok", ""): 1,
        ("homeroom_service_ok", "letta"): 1,
    }
