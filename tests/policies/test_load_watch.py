"""How late a load may be, without a scheduler."""

from __future__ import annotations

import pytest

from sollol.core.types import SECOND
from sollol.policies.load_watch import DEADLINE_MAX, HUNG_LEAST, PAUSE, PAUSE_MAX, LoadWatchByPrediction

GIB = 2**30


def test_another_node_loads_soon_after_the_prediction() -> None:
    policy = LoadWatchByPrediction()
    assert 10 * SECOND < policy.late_after_us(10 * SECOND) < 12 * SECOND


@pytest.mark.parametrize(("measured", "times"), [(True, 5), (False, 13)])
def test_a_load_hangs_after_many_times_its_prediction(measured: bool, times: int) -> None:
    policy = LoadWatchByPrediction()
    assert policy.hangs(times * 10 * SECOND, 10 * SECOND, measured)
    assert not policy.hangs((times - 2) * 10 * SECOND, 10 * SECOND, measured)
    assert not policy.hangs(HUNG_LEAST, 1, measured)


def test_a_late_load_hangs_if_another_node_was_much_faster() -> None:
    policy = LoadWatchByPrediction()
    assert policy.is_overtaken(20 * SECOND, 10 * SECOND, 10 * SECOND)
    assert not policy.is_overtaken(20 * SECOND, 10 * SECOND, 19 * SECOND)
    assert not policy.is_overtaken(10 * SECOND, 10 * SECOND, SECOND)


def test_pauses_double_and_deadlines_grow_with_the_size() -> None:
    policy = LoadWatchByPrediction()
    assert [policy.pause_us(hung) for hung in (1, 2, 3, 50)] == [PAUSE, 2 * PAUSE, 4 * PAUSE, PAUSE_MAX]
    assert policy.deadline_us(0, 0, True) == 300 * SECOND
    assert policy.deadline_us(10 * GIB, 0, True) == 500 * SECOND
    assert policy.deadline_us(10 * GIB, 0, False) == 1_000 * SECOND
    assert policy.deadline_us(10_000 * GIB, 0, True) == DEADLINE_MAX
    assert policy.deadline_us(GIB, 1_000 * SECOND, True) == 4_000 * SECOND
