"""The arithmetic of waiting."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from homeroom.retry import BASE_S, CAP_S, SKIP_CAP_S, pause_s, skip_pause_s


@given(st.integers(1, 10_000))
def test_a_pause_lies_within_its_ceiling_and_the_cap(attempt: int) -> None:
    assert 0 <= pause_s(attempt) <= min(CAP_S, BASE_S * 2.0 ** min(attempt - 1, 64))


@given(st.integers(1, 20), st.floats(0.1, 1e6))
def test_a_service_that_asks_for_more_gets_it(attempt: int, asked_s: float) -> None:
    assert pause_s(attempt, asked_s) >= asked_s


@given(st.integers(1, 10_000), st.floats(0.1, 1e6))
def test_what_is_skipped_waits_longer_each_time_up_to_an_hour(times: int, asked_s: float) -> None:
    assert 0 < skip_pause_s(times) <= SKIP_CAP_S
    assert skip_pause_s(times) <= 2 * skip_pause_s(times + 1)
    assert skip_pause_s(times, asked_s) >= asked_s
