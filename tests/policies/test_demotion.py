"""Slow answers and slow replicas, without a scheduler."""

from __future__ import annotations

from sollol.core.types import SECOND
from sollol.policies.demotion import DemotionByRate


def test_two_answers_in_a_row_that_are_many_times_slower_demote() -> None:
    policy = DemotionByRate()
    assert policy.is_slow(20 * SECOND, SECOND)
    assert not policy.is_slow(2 * SECOND, SECOND)
    assert [policy.demotes(in_row) for in_row in (0, 1, 2)] == [False, False, True]


def test_an_answer_must_be_slower_by_more_than_a_busy_machine_delays_it() -> None:
    policy = DemotionByRate()
    assert policy.is_slow(200_000, 10_000)
    assert not policy.is_slow(15_000, 1_000), "it may have waited for a processor"
    assert not policy.is_slow(300_000, 100_000)


def test_a_test_is_due_once_a_minute() -> None:
    policy = DemotionByRate(retest_us=60 * SECOND)
    assert not policy.is_due(59 * SECOND)
    assert policy.is_due(60 * SECOND)
