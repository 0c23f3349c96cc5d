"""Hours in which no plan loads more than fits, nor unloads a model that is pinned or at work; the bench has 10,000."""

from __future__ import annotations

import pytest
from bench.placement_hours import controlled_hours, paper_hours


@pytest.mark.parametrize("seed", range(8))
def test_no_plan_goes_wrong_on_paper(seed: int) -> None:
    found = paper_hours(seed, 60)
    assert found["steps"] > 0
    assert found["over-commit"] == found["eviction"] == 0


@pytest.mark.thorough
def test_the_controller_evicts_nothing_over_simulated_nodes() -> None:
    found = controlled_hours(0, 1.5) + controlled_hours(1, 1.5) + controlled_hours(3, 1.5)
    assert found["steps"] > 10
    assert found["over-commit"] == found["eviction"] == 0


@pytest.mark.thorough
def test_a_wrong_belief_about_the_memory_is_counted() -> None:
    assert sum((paper_hours(seed, 60, believed=2.0) for seed in range(4)), start=paper_hours(0, 1))["over-commit"] > 0
    assert sum((controlled_hours(seed, 2, believed=2.0) for seed in range(2)), start=paper_hours(0, 1))["over-commit"]
