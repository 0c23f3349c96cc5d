"""When a failed request is tried again."""

from __future__ import annotations

import pytest

from sollol.core.types import (
    Kind,
    Outcome,
    Status,
    Task,
)
from sollol.policies import retry

CHAT = Task(1, Kind.CHAT, "m:latest", 400)


def test_retries_are_a_share_of_the_traffic() -> None:
    budget = retry.BudgetRetrier()
    granted = 0
    for _ in range(10_000):
        budget.deposit(CHAT)
        granted += budget.again(CHAT, Outcome(Status.FAILED), 1, 0) is not None
    assert granted == pytest.approx(10_000 * retry.SHARE + retry.RESERVE, abs=2)


def test_waiting_for_a_busy_node_costs_no_budget_and_pauses_longer_each_time() -> None:
    budget = retry.BudgetRetrier()
    pauses = [budget.again(CHAT, Outcome(Status.BUSY), tried, 0) for tried in range(retry.BUSY_TRIES)]
    assert None not in pauses
    assert pauses == sorted(p for p in pauses if p is not None)
    assert budget.again(CHAT, Outcome(Status.BUSY), retry.BUSY_TRIES, 0) is None
    assert budget.again(CHAT, Outcome(Status.FAILED), 1, 0) == 0


def test_one_call_does_not_try_for_ever() -> None:
    assert retry.BudgetRetrier().again(CHAT, Outcome(Status.FAILED), retry.MAX_TRIES, 0) is None
