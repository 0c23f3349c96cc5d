"""What a node says of its own work is believed where our clock and what we received allow it."""

from __future__ import annotations

import pytest

from sollol.core.timing_check import believed
from sollol.core.types import SECOND, Timing
from sollol.core.value import replaced

HONEST = Timing(1_000, 20, 50_000, 60, 900_000, 960_000, 8 * 60)


def told(**changes: int) -> Timing:
    return replaced(HONEST, **changes)


def test_an_honest_answer_is_believed() -> None:
    assert believed(HONEST, SECOND, 80.0) is HONEST


@pytest.mark.parametrize(
    "lie",
    [
        {"tokens": -1000}, {"tokens": 10**6}, {"tokens": 10**18}, {"prompt_tokens": -1}, {"prompt_tokens": 10**9},
        {"decode_us": -5}, {"decode_us": 60 * SECOND}, {"load_us": 3600 * SECOND}, {"prompt_us": 2**62},
        {"total_us": -1}, {"total_us": 60 * SECOND}, {"tokens": 1000},
    ],
    ids=str,
)  # fmt: skip
def test_what_contradicts_our_clock_or_what_came_is_not(lie: dict[str, int]) -> None:
    assert believed(told(**lie), SECOND, 80.0) == Timing()
