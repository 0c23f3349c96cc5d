"""The bounds that runs are held against."""

from __future__ import annotations

import math

import pytest

from sollol.sim import fluid_bound, percentile

ALWAYS = math.inf


@pytest.mark.parametrize(
    ("items", "rates", "bound"),
    [
        (100, [(10, 0, ALWAYS)], 10),
        (100, [(10, 0, ALWAYS), (40, 0, ALWAYS)], 2),
        (100, [(10, 0, 5), (10, 5, ALWAYS)], 10),
        (100, [(10, 0, 5)], ALWAYS),  # all are gone before the end
        (100, [(10, 0, 5), (50, 20, ALWAYS)], 21),  # nobody works between
        (100, [(10, 3, ALWAYS)], 13),
        (100, [], ALWAYS),
        (50, [(10, 0, 5)], 5),
        (0, [(10, 0, ALWAYS)], 0),
    ],
)
def test_fluid_bound(items: float, rates: list[tuple[float, float, float]], bound: float) -> None:
    assert fluid_bound(items, rates) == pytest.approx(bound)


def test_percentile() -> None:
    assert percentile(range(1, 101), 0.99) == 99
    assert percentile([5], 0.5) == 5
    assert math.isnan(percentile([], 0.5))
