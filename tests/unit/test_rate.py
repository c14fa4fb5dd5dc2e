"""The bucket of each caller, with a clock as an argument."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from homeroom_tools.rate import BURST_S, MAX_NAMES, Failures, Rates


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_burst_passes_then_one_has_to_wait_and_others_do_not() -> None:
    clock = Clock()
    rates = Rates(5, clock)
    assert [rates.wait_s("a") for _ in range(int(5 * BURST_S))] == [0.0] * 20
    wait_s = rates.wait_s("a")
    assert 0 < wait_s <= 0.2
    assert rates.wait_s("b") == 0.0
    clock.now_s += wait_s + 1e-6
    assert rates.wait_s("a") == 0.0 and rates.wait_s("a") > 0


def test_no_rate_is_no_limit() -> None:
    rates = Rates(0, Clock())
    assert not any(rates.wait_s("a") for _ in range(10_000))


@given(
    st.floats(0.1, 100),
    st.lists(st.floats(0, 10), min_size=1, max_size=200),
)
def test_never_more_than_the_burst_and_the_rate_allow(per_s: float, pauses: list[float]) -> None:
    clock = Clock()
    rates, passed = Rates(per_s, clock), 0
    for pause in pauses:
        clock.now_s += pause
        passed += rates.wait_s("a") == 0.0
    assert passed <= max(1.0, per_s * BURST_S) + sum(pauses) * per_s + 1


@given(st.floats(0.1, 100), st.integers(1, 50))
def test_whoever_waits_as_told_gets_through(per_s: float, times: int) -> None:
    clock = Clock()
    rates = Rates(per_s, clock)
    for _ in range(times):
        while wait_s := rates.wait_s("a"):
            clock.now_s += wait_s + 1e-6


def test_failures_are_free_at_first_and_forgiven_with_time() -> None:
    now = [0.0]
    failures = Failures(3, 0.5, lambda: now[0])
    for _ in range(3):
        assert failures.wait_s("a") == 0
        failures.count("a")
    assert failures.wait_s("a") == 2 and failures.wait_s("b") == 0
    now[0] = 2.0
    assert failures.wait_s("a") == 0
    failures.count("a")
    assert failures.wait_s("a") == 2
    now[0] = 1_000.0
    assert failures.wait_s("a") == 0


def test_no_more_names_are_remembered_than_there_is_room_for() -> None:
    failures = Failures(1, 0.5, lambda: 0.0)
    for number in range(MAX_NAMES + 1):
        failures.count(str(number))
    assert failures.wait_s("0") == 0 and failures.wait_s("1") == 2
