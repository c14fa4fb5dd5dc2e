"""What failed requests prove about the server's life, and what they do not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from homeroom.letta.absence import GATEWAY_S, Absence

START = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


class Case:
    """A server whose clock is ``ahead`` of ours, and our two clocks."""

    def __init__(self, ahead: timedelta = timedelta()) -> None:
        self.passed_s, self.ahead = 0.0, ahead
        self.absence = Absence(lambda: 1000.0 + self.passed_s, lambda: self.our_ms / 1000)

    @property
    def server_time(self) -> datetime:
        return START + timedelta(seconds=self.passed_s) + self.ahead

    @property
    def our_ms(self) -> int:
        return round((START.timestamp() + self.passed_s) * 1000)

    def refuse(self) -> None:
        error = httpx.ConnectError("All connection attempts failed")
        error.__cause__ = OSError("no")
        both = ExceptionGroup("both", [OSError("v6"), ConnectionRefusedError()])
        error.__cause__.__cause__ = both
        self.absence.note_lost(error)

    def answer(self, *, dated: bool = True) -> None:
        date = format_datetime(self.server_time, usegmt=True) if dated else ""
        self.absence.note_answer(200, is_json=True, date=date)

    def page(self, status: int) -> None:
        self.absence.note_answer(status, is_json=False)


@pytest.mark.parametrize("hours", [-5, 0, 5])
def test_what_began_before_a_refusal_is_over_whatever_the_servers_clock_says(hours: int) -> None:
    case = Case(timedelta(hours=hours))
    case.answer()
    before, sent_ms = case.server_time, case.our_ms
    case.passed_s = 4.0
    case.refuse()
    case.passed_s = 12.0
    after, resent_ms = case.server_time, case.our_ms
    case.passed_s = 15.7
    case.answer()
    assert case.absence.ended(before.isoformat())
    assert not case.absence.ended(after.isoformat())
    assert case.absence.is_after(sent_ms) and not case.absence.is_after(resent_ms)


def test_a_run_of_the_moment_before_the_refusal_is_not_spared_by_the_rounding_of_dates() -> None:
    for fraction in (0.0, 0.3, 0.99):
        case = Case()
        case.passed_s = 5.0
        began = case.server_time
        case.passed_s = 5.1
        case.refuse()
        case.passed_s = 20.0 + fraction
        case.answer()
        assert case.absence.ended(began.isoformat())


def test_nothing_is_over_as_long_as_the_server_has_not_answered_again() -> None:
    case = Case()
    case.refuse()
    assert not case.absence.ended(START.isoformat())


def test_a_server_that_tells_no_time_is_taken_to_have_ours() -> None:
    case = Case()
    case.passed_s = 5.0
    case.refuse()
    case.answer(dated=False)
    assert case.absence.ended((START + timedelta(seconds=4)).isoformat())
    assert not case.absence.ended((START + timedelta(seconds=7)).isoformat())


@pytest.mark.parametrize(
    "error",
    [
        httpx.ReadError("broken"),
        httpx.RemoteProtocolError("cut"),
        httpx.ConnectTimeout("silent"),
        httpx.ConnectError("[Errno -2] Name or service not known"),
        httpx.ProxyError("no"),
    ],
)
def test_a_connection_that_breaks_or_cannot_be_made_proves_nothing(error: Exception) -> None:
    case = Case()
    case.passed_s = 5.0
    case.absence.note_lost(error)
    case.answer()
    assert not case.absence.ended(START.isoformat()) and not case.absence.is_after(case.our_ms - 1)


@pytest.mark.parametrize("status", [502, 503])
def test_a_gateway_must_miss_its_server_for_a_while(status: int) -> None:
    case = Case()
    case.page(status)
    case.passed_s = GATEWAY_S - 0.1
    case.page(status)
    case.answer()
    assert not case.absence.ended(START.isoformat()), "too soon"
    case.page(status)
    case.passed_s += GATEWAY_S - 0.1
    case.answer()
    case.passed_s += 1.0
    case.page(status)
    case.answer()
    assert not case.absence.ended(START.isoformat()), "it answered in between"
    case.page(status)
    case.passed_s += GATEWAY_S
    case.page(status)
    case.answer()
    assert case.absence.ended(START.isoformat())


@pytest.mark.parametrize("status", [401, 404, 429, 500, 504, 524])
def test_other_pages_prove_neither_life_nor_death(status: int) -> None:
    case = Case()
    case.page(status)
    case.passed_s = GATEWAY_S * 2
    case.page(status)
    case.answer()
    assert not case.absence.ended(START.isoformat())


def test_the_servers_own_503_is_a_sign_of_life() -> None:
    case = Case()
    for _ in range(3):
        case.absence.note_answer(503, is_json=True)
        case.passed_s += GATEWAY_S
    assert not case.absence.ended(START.isoformat())


@pytest.mark.parametrize("created", ["", "yesterday", "None"])
def test_what_tells_no_time_is_not_over(created: str) -> None:
    case = Case()
    case.passed_s = 5.0
    case.refuse()
    case.answer()
    assert not case.absence.ended(created)


def test_a_time_without_a_zone_is_utc() -> None:
    case = Case()
    case.passed_s = 5.0
    case.refuse()
    case.answer()
    assert case.absence.ended(START.replace(tzinfo=None).isoformat())
