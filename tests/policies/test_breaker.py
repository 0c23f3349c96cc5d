"""When a replica is not used, and when it is tried again."""

from __future__ import annotations

import pytest

from sollol.core.types import (
    Outcome,
    Status,
)
from sollol.policies import breaker


def fail(one: breaker.ConsecutiveBreaker, at: int, times: int = breaker.THRESHOLD) -> None:
    for _ in range(times):
        one.begin(at)
        one.record(at, Outcome(Status.FAILED))


def test_the_breaker_opens_after_faults_in_a_row_only() -> None:
    one = breaker.ConsecutiveBreaker()
    fail(one, 0, breaker.THRESHOLD - 1)
    one.record(0, Outcome(Status.OK))
    fail(one, 0, breaker.THRESHOLD - 1)
    assert one.admits(0)
    fail(one, 0, 1)
    assert not one.admits(0)


def test_an_open_breaker_admits_one_trial_and_waits_longer_after_each_that_fails() -> None:
    one = breaker.ConsecutiveBreaker()
    fail(one, 0)
    at, pauses = 0, []
    for _ in range(6):
        due = one.retry_at()
        assert due is not None
        pauses.append(due - at)
        at = due
        assert one.admits(at)
        one.begin(at)
        assert not one.admits(at), "a second trial beside the first"
        one.record(at, Outcome(Status.FAILED))
    assert pauses == sorted(pauses)
    assert pauses[0] == breaker.PAUSE
    assert pauses[-1] == breaker.PAUSE_MAX


@pytest.mark.parametrize("status", [Status.BUSY, Status.LEFT, Status.REFUSED, Status.MISSING])
def test_what_is_no_fault_of_the_node_does_not_open_the_breaker(status: Status) -> None:
    one = breaker.ConsecutiveBreaker()
    for _ in range(50):
        one.record(0, Outcome(status))
    assert one.admits(0)


def test_a_good_trial_closes_the_breaker() -> None:
    one = breaker.ConsecutiveBreaker()
    fail(one, 0)
    one.begin(breaker.PAUSE)
    one.record(breaker.PAUSE, Outcome(Status.OK))
    assert one.admits(breaker.PAUSE)
    assert one.retry_at() is None
