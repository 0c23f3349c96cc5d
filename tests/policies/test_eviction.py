"""The price of an eviction, without a scheduler."""

from __future__ import annotations

import pytest

from sollol.policies.eviction import FADES, KEPT, PUT_OUT, EvictionByUse


@pytest.mark.parametrize(
    ("alone", "replaceable", "waiting", "loads"),
    [
        (False, False, 0, 1 + PUT_OUT),
        (True, False, 0, 1 + KEPT),
        (False, True, 0, 1 + KEPT),
        (True, False, 5, 6 + KEPT),
        (False, False, 5, 1 + PUT_OUT),  # those who wait have another node
    ],
)
def test_a_model_in_use_costs_more_where_it_has_no_other_node(
    alone: bool, replaceable: bool, waiting: int, loads: float
) -> None:
    assert EvictionByUse().loads(0, alone, replaceable, waiting) == loads


def test_a_model_that_is_not_used_any_more_costs_its_own_load() -> None:
    policy = EvictionByUse()
    assert policy.loads(FADES, False, False, 0) == pytest.approx(1 + PUT_OUT / 2.71828, rel=0.001)
    assert policy.loads(100 * FADES, False, False, 0) == pytest.approx(1)


def test_the_knobs_decide() -> None:
    assert EvictionByUse(put_out=0, kept=0).loads(0, True, True, 0) == 1
