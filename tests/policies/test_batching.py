"""How much of a batch a free slot takes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol.core.policy import BatchView, ChunkRetry
from sollol.core.types import (
    Outcome,
    Status,
)
from sollol.policies import batching

FIXED = settings(derandomize=True, deadline=None, max_examples=100)


def view(**change: object) -> BatchView:
    known = BatchView(100_000, 1_000, 0.0, True, 0.01, 0.0, 0, 1, 0.04, 0.02, 4)
    return known._replace(**change)  # type: ignore[arg-type]


@FIXED
@given(st.integers(1, 10**7), st.integers(1, 10**5), st.floats(1e-4, 1.0), st.floats(1e-4, 10.0), st.booleans())
def test_a_chunk_never_lasts_longer_than_the_target(
    cost: int, count: int, rate: float, total: float, closed: bool
) -> None:
    total = max(total, rate)
    seen = view(
        pending_cost=cost, pending_count=count, replica_rate=rate, total_rate=total, best_rate=rate, closed=closed
    )
    budget, items = batching.GuidedBatcher().item_budget(seen)
    assert budget >= 1
    assert items >= 1
    assert budget <= rate * batching.TARGET + 1


def test_chunks_become_smaller_towards_the_end() -> None:
    batcher = batching.GuidedBatcher()
    sizes = [
        batcher.item_budget(view(pending_cost=cost, pending_count=10))[0] for cost in (40_000, 8_000, 4_000, 1_500)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]


def test_a_node_of_unknown_speed_gets_a_few_items() -> None:
    assert batching.GuidedBatcher().item_budget(view(replica_rate=None))[1] <= batching.FIRST_ITEMS


def test_a_slow_node_leaves_the_end_to_the_fast_ones() -> None:
    slow = view(pending_cost=400, pending_count=4, replica_rate=0.0001, total_rate=0.0401, best_rate=0.02)
    assert batching.GuidedBatcher().item_budget(slow) == (0, 0)


@pytest.mark.parametrize(
    ("status", "tries", "count", "then"),
    [
        (Status.REFUSED, 1, 5, ChunkRetry.SPLIT),
        (Status.REFUSED, 1, 1, ChunkRetry.SPLIT),
        (Status.BUSY, 99, 5, ChunkRetry.RETRY),
        (Status.UNREACHABLE, 99, 5, ChunkRetry.RETRY),
        (Status.FAILED, 1, 5, ChunkRetry.SPLIT),
        (Status.TIMEOUT, 1, 5, ChunkRetry.RETRY),
        (Status.TIMEOUT, batching.RETRIES, 5, ChunkRetry.SPLIT),
        (Status.TIMEOUT, batching.TRIES_MAX, 1, ChunkRetry.REFUSE),
    ],
)
def test_what_becomes_of_a_chunk_that_failed(status: Status, tries: int, count: int, then: ChunkRetry) -> None:
    assert batching.GuidedBatcher().again(Outcome(status), tries, count) is then
