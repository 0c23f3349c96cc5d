"""How many requests a replica gets at once, from its answers."""

from __future__ import annotations

import pytest

from sollol.core.types import (
    SECOND,
)
from sollol.policies import concurrency


def learn(slots: int, gain: float, answers: int, wanted: bool = True) -> concurrency.LearnedLimit:
    """A node whose throughput grows by `gain` for each further slot, up to `slots`."""
    limiter = concurrency.LearnedLimit()
    for _ in range(answers):
        used = min(limiter.limit, slots)
        rate = 1 + gain * (used - 1)
        limiter.sample(100.0, round(100_000 / rate), limiter.limit, False, wanted)
    return limiter


def test_the_limiter_stays_near_one_on_a_node_with_one_slot() -> None:
    assert learn(slots=1, gain=0.9, answers=400).limit <= 2
    assert max(learn(1, 0.9, n).limit for n in range(0, 400, 7)) <= 2


def test_the_limiter_finds_four_slots() -> None:
    assert learn(slots=4, gain=0.9, answers=400).limit in (4, 5)


def test_a_slot_on_trial_is_not_proven_until_two_windows_agree() -> None:
    assert max(learn(1, 0.9, n).proven for n in range(0, 400, 7)) == 1
    assert learn(slots=4, gain=0.9, answers=400).proven == 4
    lucky = concurrency.LearnedLimit()  # one window in which the answers happened to be short
    while lucky.limit == 1:
        lucky.sample(100.0, SECOND, lucky.limit, False, True)
    for _ in range(2 * concurrency.WINDOW):
        lucky.sample(130.0, SECOND, lucky.limit, False, True)
    assert lucky.limit > lucky.proven == 1


def test_first_tokens_beside_each_other_double_the_limit() -> None:
    limiter = concurrency.LearnedLimit()
    limiter.answered(1.0, SECOND, 0, 50e-6, SECOND)
    limiter.reopen(SECOND)
    limits_seen = [limiter.limit]
    while limiter.limit < 64:
        for responding in range(limiter.proven + 1, limiter.limit + 1):
            limiter.responded(responding, True, SECOND)
        limits_seen.append(limiter.limit)
    assert limits_seen == [2, 4, 8, 16, 32, 64]


def test_a_call_that_begins_only_when_another_ends_closes_the_trial_for_a_while() -> None:
    limiter = concurrency.LearnedLimit()
    limiter.answered(1.0, SECOND, 0, 50e-6, 0)
    limiter.reopen(0)
    assert limiter.limit == 2
    limiter.responded(1, True, SECOND)
    assert limiter.limit == limiter.proven == 1
    limiter.reopen(5 * SECOND)
    assert limiter.limit == 1, "no answer has come since: the node may hang"
    limiter.answered(1.0, SECOND, 0, 50e-6, 2 * SECOND)
    limiter.reopen(SECOND + round((concurrency.HOLD - 0.1) * SECOND))
    assert limiter.limit == 1
    limiter.reopen(SECOND + round((concurrency.HOLD + 0.1) * SECOND))
    assert limiter.limit == 2


def test_answers_that_waited_inside_the_node_lower_the_limit() -> None:
    limiter = concurrency.LearnedLimit()
    limiter.responded(8, True, 0)
    assert limiter.proven == 8
    limiter.answered(8.0, 4 * SECOND, 3 * SECOND, 50e-6, SECOND)
    assert limiter.limit == limiter.proven == 2


@pytest.mark.parametrize(("total_of_four", "kept"), [(4.0, 4), (2.0, 4), (1.4, 4), (1.167, 1)])
def test_slots_that_share_one_rate_are_not_kept(total_of_four: float, kept: int) -> None:
    limiter = concurrency.LearnedLimit()
    alone = 50e-6
    limiter.answered(1.0, SECOND, 0, alone, SECOND)
    limiter.responded(4, True, SECOND)
    for number in range(4):
        limiter.answered(4.0, SECOND, 0, alone * total_of_four / 4, (2 + number) * SECOND)
    assert limiter.proven == kept
    if kept == 1:
        limiter.responded(2, True, 6 * SECOND)
        assert limiter.proven == 1, "two answers at once are no news"
        assert limiter.slots == 4


def test_a_distant_node_gets_what_covers_the_way_there() -> None:
    limiter = concurrency.LearnedLimit()
    limiter.embedded(1.0, 70_000, 10_000, 100.0, SECOND)
    assert limiter.proven == 7
    for _ in range(10):
        limiter.embedded(7.0, 100_000, 40_000, 100.0, SECOND)
    assert limiter.proven < 7, "they wait in the node"


def test_the_limiter_tries_nothing_while_nobody_waits() -> None:
    assert learn(slots=4, gain=0.9, answers=400, wanted=False).limit == 1


def test_a_node_that_refuses_the_load_is_given_half() -> None:
    limiter = learn(slots=4, gain=0.9, answers=400)
    before = limiter.limit
    limiter.sample(0.0, 0, 0, True, False)
    assert limiter.limit == before // 2
