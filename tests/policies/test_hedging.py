"""When a slow request gets a second attempt."""

from __future__ import annotations

import random

import pytest

from sollol.core.types import (
    SECOND,
    Decision,
    Kind,
    Task,
)
from sollol.core.value import replaced
from sollol.policies import hedging

CHAT = Task(1, Kind.CHAT, "m:latest", 400)


DECISION = Decision("n", SECOND, "")


def test_there_is_no_second_copy_before_something_was_learned() -> None:
    hedger = hedging.QuantileHedger()
    for number in range(hedging.SAMPLES_LEAST - 1):
        expected = None if number < hedging.EARLY_LEAST else pytest.approx(hedging.EARLY_TIMES * SECOND, rel=0.01)
        assert hedger.after(CHAT, DECISION) == expected
        hedger.learn(CHAT, DECISION, SECOND)
    hedger.learn(CHAT, DECISION, SECOND)
    assert hedger.after(CHAT, DECISION) == pytest.approx(hedging.LATE_TIMES * SECOND, rel=0.01)


def test_the_delay_follows_the_prediction_and_is_beyond_the_learned_p95() -> None:
    hedger = hedging.QuantileHedger()
    dice = random.Random(1)
    ratios = [dice.uniform(0.8, 2.0) for _ in range(200)]
    for ratio in ratios:
        hedger.learn(CHAT, DECISION, round(ratio * SECOND))
    short, long = hedger.after(CHAT, DECISION), hedger.after(CHAT, Decision("n", 10 * SECOND, ""))
    assert short is not None
    assert long is not None
    assert short > sorted(ratios)[189] * SECOND
    assert long == pytest.approx(10 * short, rel=0.05)


def test_second_copies_are_a_share_of_the_calls() -> None:
    hedger = hedging.QuantileHedger()
    granted = 0
    for _ in range(2_000):
        hedger.deposit(CHAT)
        granted += hedger.withdraw()
    assert granted <= 2_000 * hedging.BUDGET + hedging.RESERVE


def test_embeddings_have_no_second_copy() -> None:
    hedger = hedging.QuantileHedger()
    task = replaced(CHAT, kind=Kind.EMBED)
    for _ in range(hedging.SAMPLES_LEAST):
        hedger.learn(task, DECISION, SECOND)
    assert hedger.after(task, DECISION) is None
