"""When a service is left alone, and when it is asked again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeroom.breaker import THRESHOLD, Breaker
from homeroom.errors import Rejected, Unavailable, Uncertain
from homeroom.retry import CAP_S

AWAY = Unavailable("matrix", "nothing accepts connections")


class Clock:
    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


def opened(clock: Clock) -> Breaker:
    breaker = Breaker("matrix", clock)
    for number in range(THRESHOLD):
        assert breaker.outage is None
        breaker.failed(AWAY, f"agent-{number}")
    assert breaker.outage is not None
    return breaker


def is_open(breaker: Breaker) -> bool:
    try:
        breaker.check()
    except Unavailable:
        return True
    return False


@given(st.integers(1, 200))
def test_one_sick_agent_never_opens_it_however_often_it_fails(times: int) -> None:
    breaker = Breaker("matrix", Clock())
    for _ in range(times):
        breaker.failed(AWAY, "agent-1")
        breaker.check()


def test_success_in_between_keeps_it_closed() -> None:
    breaker = Breaker("matrix", Clock())
    for number in range(10 * THRESHOLD):
        breaker.failed(Uncertain("matrix", "k", "no answer in time"), f"agent-{number}")
        if number % 2:
            breaker.succeeded()
    assert breaker.outage is None


def test_refusals_and_the_troubles_of_others_never_open_it() -> None:
    breaker = Breaker("matrix", Clock())
    for number in range(10):
        breaker.failed(Rejected("matrix", "forbidden", "M_FORBIDDEN"), f"agent-{number}")
        breaker.failed(Unavailable("store", "locked"), f"agent-{number}")
    assert breaker.outage is None


def test_it_lets_one_probe_through_after_its_pause_and_closes_if_that_succeeds() -> None:
    clock = Clock()
    breaker = opened(clock)
    assert breaker.outage
    if breaker.outage.next_try_ms > clock.now_ms:
        with pytest.raises(Unavailable) as refused:
            breaker.check()
        assert "nothing accepts connections" in str(refused.value)
    clock.now_ms = breaker.outage.next_try_ms
    breaker.check()
    assert is_open(breaker), "a second one has to wait for what comes of the first"
    breaker.succeeded()
    assert breaker.outage is None and not is_open(breaker)


def test_a_probe_that_was_called_off_makes_room_for_the_next() -> None:
    clock = Clock()
    breaker = opened(clock)
    breaker.check(at_once=True)
    breaker.gave_up()
    breaker.check(at_once=True)


def test_the_pause_grows_within_its_cap_and_is_never_shorter_than_asked() -> None:
    clock = Clock()
    breaker = opened(clock)
    since_ms = clock.now_ms
    for number in range(40):
        assert breaker.outage and breaker.outage.since_ms == since_ms
        wait_ms = breaker.outage.next_try_ms - clock.now_ms
        assert 0 <= wait_ms <= min(CAP_S, 2.0**number) * 1000
        clock.now_ms = breaker.outage.next_try_ms
        breaker.check()
        breaker.failed(AWAY, "probe")
    breaker.check(at_once=True)
    breaker.failed(Unavailable("matrix", "busy", 300.0), "probe")
    assert breaker.outage and breaker.outage.next_try_ms - clock.now_ms >= 300_000


def test_after_a_mere_probe_one_failure_opens_it_again_and_a_success_ends_the_trial() -> None:
    clock = Clock()
    breaker = opened(clock)
    breaker.check(at_once=True)
    breaker.succeeded(by_probe=True)
    assert breaker.outage is None
    breaker.failed(AWAY, "agent-1")
    assert breaker.outage is not None
    breaker.check(at_once=True)
    breaker.succeeded(by_probe=True)
    breaker.succeeded()
    breaker.failed(AWAY, "agent-1")
    assert breaker.outage is None


def test_a_clock_that_is_set_back_does_not_keep_it_open() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now_ms -= 900_000
    breaker.check()
