"""When a model is asked again: waits, breakers, and what a provider's refusal means."""

import asyncio
import time
from email.utils import formatdate

import pytest

from agent_service.errors import ModelFailedError, ModelRateLimitedError, ModelUnavailableError
from agent_service.llm.breaker import FAILURES_TO_OPEN, OPEN_S, Breaker
from agent_service.llm.failures import Kind, NoAnswerError, broke_off, not_understood, refused, retry_after_s
from agent_service.llm.patience import Patience


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# --- waits ---


@pytest.mark.parametrize(("chance", "waits"), [(0.0, [1.0, 2.0, 4.0, None]), (1.0, [0.75, 1.5, 3.0, None])])
def test_waits_double_with_up_to_a_quarter_off_and_end_after_three(chance: float, waits: list[float | None]) -> None:
    patience = Patience(clock=Clock(), chance=lambda: chance)

    assert [patience.wait_s(failed, None, 1000.0) for failed in (1, 2, 3, 4)] == waits


@pytest.mark.parametrize(("told", "wait"), [(7.0, 7.0), (0.05, 0.05), (0.0, 1.0), (60.0, 60.0), (61.0, None)])
def test_a_provider_is_left_alone_for_as_long_as_it_says_within_reason(told: float, wait: float | None) -> None:
    assert Patience(clock=Clock(), chance=lambda: 0.0).wait_s(1, told, 1000.0) == wait


def test_nobody_comes_back_sooner_than_told() -> None:
    assert Patience(clock=Clock(), chance=lambda: 1.0).wait_s(1, 10.0, 1000.0) == pytest.approx(11.0)


def test_a_wait_that_does_not_end_before_the_deadline_is_none() -> None:
    patience = Patience(clock=Clock(), chance=lambda: 0.0)

    assert patience.wait_s(1, None, 101.5) == 1.0
    assert patience.wait_s(1, None, 101.0) is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
        ({"retry-after": "Fri, 20 Nov 2020 10:00:00 GMT"}, 0.0),
        ({"retry-after": "Fri, 99 Nov 2020"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "-5"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers) == seconds


def test_retry_after_may_be_a_date() -> None:
    assert 55 < (retry_after_s({"retry-after": formatdate(time.time() + 60, usegmt=True)}) or 0) <= 60


# --- what a status means ---


@pytest.mark.parametrize(
    ("status", "code", "kind", "again", "elsewhere"),
    [
        (429, "", Kind.LIMITED, True, True),
        (429, "insufficient_quota", Kind.LIMITED, False, True),
        (408, "", Kind.DOWN, True, True),
        (409, "", Kind.DOWN, True, True),
        (500, "", Kind.DOWN, True, True),
        (529, "", Kind.DOWN, True, True),
        (308, "", Kind.WRONG, False, True),
        (401, "", Kind.WRONG, False, True),
        (403, "", Kind.WRONG, False, True),
        (404, "model_not_found", Kind.WRONG, False, True),
        (400, "", Kind.WRONG, False, False),
        (422, "", Kind.WRONG, False, False),
        (400, "content_filter", Kind.FILTERED, False, True),
    ],
)
def test_a_status_says_what_may_be_tried(status: int, code: str, kind: Kind, again: bool, elsewhere: bool) -> None:
    fault = refused(status, code)

    assert (fault.kind, fault.again, fault.elsewhere) == (kind, again, elsewhere)


def test_a_provider_may_overrule_what_is_tried_again() -> None:
    assert not refused(500, headers={"x-should-retry": "false"}).again
    assert refused(400, headers={"x-should-retry": "true"}).again


@pytest.mark.parametrize(("told", "kept"), [(None, 1.0), (0.01, 1.0), (30.0, 30.0), (9999.0, 600.0)])
def test_the_caller_is_told_when_to_come_back(told: float | None, kept: float) -> None:
    limited = NoAnswerError(Kind.LIMITED, "", retry_after_s=told).error()
    down = NoAnswerError(Kind.DOWN, "", retry_after_s=told).error()

    assert isinstance(limited, ModelRateLimitedError)
    assert isinstance(down, ModelUnavailableError)
    assert limited.retry_after_s == down.retry_after_s == kept
    assert isinstance(not_understood().error(), ModelFailedError)


# --- breakers ---


class Watched:
    """A breaker, its clock and what it told."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.told: list[bool] = []
        self.breaker = Breaker(self.told.append, self.clock)

    def fail(self, fault: NoAnswerError | None = None) -> None:
        fault = fault or broke_off()
        with pytest.raises(NoAnswerError) as caught, self.breaker.request():
            raise fault
        assert caught.value is fault

    def succeed(self) -> None:
        with self.breaker.request():
            pass

    def open(self) -> None:
        for _ in range(FAILURES_TO_OPEN):
            self.fail()

    def refuse(self) -> float:
        """How long it says that the model is left alone."""
        with pytest.raises(NoAnswerError) as caught, self.breaker.request():
            raise AssertionError("the model was asked")
        assert (caught.value.kind, caught.value.asked, caught.value.again) == (Kind.DOWN, False, False)
        return caught.value.retry_after_s or 0.0


def test_a_breaker_opens_after_failures_in_a_row_and_says_for_how_long() -> None:
    watched = Watched()
    for _ in range(FAILURES_TO_OPEN - 1):
        watched.fail()
    watched.succeed()
    assert watched.told == []

    watched.open()

    assert watched.told == [False]
    watched.clock.now += 10
    assert watched.refuse() == pytest.approx(OPEN_S - 10)


def test_after_a_while_one_request_finds_out_and_success_closes() -> None:
    watched = Watched()
    watched.open()
    watched.clock.now += OPEN_S

    with watched.breaker.request():
        assert watched.refuse() <= 0

    watched.succeed()
    assert watched.told == [False, True]


def test_a_probe_that_fails_opens_again_for_as_long() -> None:
    watched = Watched()
    watched.open()
    watched.clock.now += OPEN_S

    watched.fail()

    assert watched.refuse() == OPEN_S
    assert watched.told == [False]


async def test_a_probe_whose_caller_leaves_lets_another_one_find_out() -> None:
    watched = Watched()
    watched.open()
    watched.clock.now += OPEN_S

    with pytest.raises(asyncio.CancelledError), watched.breaker.request():
        raise asyncio.CancelledError

    watched.succeed()
    assert watched.told == [False, True]


def test_what_says_nothing_about_the_model_counts_neither_way() -> None:
    watched = Watched()
    for _ in range(FAILURES_TO_OPEN - 1):
        watched.fail()
    for _ in range(FAILURES_TO_OPEN):
        watched.fail(refused(400))
    assert watched.told == []

    watched.fail()

    assert watched.told == [False]
