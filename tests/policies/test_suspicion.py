"""Whether an item of a batch is bad, without a scheduler."""

from __future__ import annotations

import pytest

from sollol.core.state.evidence import NO_EVIDENCE, FailureEvidence
from sollol.core.types import SECOND, Outcome, Status
from sollol.policies.suspicion import HOPELESS, HOPELESS_LEAST, TRIES_LEAST, TRIES_MOST, ItemSuspicion

FAILED = Outcome(Status.FAILED)
SUSPICION = ItemSuspicion()


def evidence(failures: int, worked_between: bool, count: int = 1) -> FailureEvidence:
    """An item that failed so often on one node, which answered others in between or did not."""
    found = NO_EVIDENCE
    for number in range(failures):
        found = found.and_failed("a:1", number * SECOND if worked_between else -1, count, FAILED, number * SECOND + 1)
    return found


def test_an_item_that_fails_alone_on_a_node_that_works_is_bad() -> None:
    assert SUSPICION.is_bad(evidence(TRIES_LEAST, worked_between=True), good=1_000_000, random=0)
    assert not SUSPICION.is_bad(evidence(TRIES_LEAST, worked_between=False), good=1_000_000, random=0)
    assert not SUSPICION.is_bad(evidence(TRIES_LEAST, worked_between=True, count=2), good=1_000_000, random=0)


def test_an_item_is_bad_at_last_whatever_its_nodes_do() -> None:
    assert not SUSPICION.is_bad(evidence(TRIES_MOST - 1, worked_between=False), good=0, random=0)
    assert SUSPICION.is_bad(evidence(TRIES_MOST, worked_between=False), good=0, random=0)


@pytest.mark.parametrize(("good", "random", "tries"), [(1_000_000, 0, 2), (96, 0, 4), (70, 30, 12)])
def test_more_failures_are_needed_where_requests_fail_at_random(good: int, random: int, tries: int) -> None:
    assert SUSPICION.tries_needed(good, random) == tries


def test_a_batch_is_hopeless_after_many_failures_or_after_a_long_time() -> None:
    assert SUSPICION.is_hopeless(HOPELESS, 0, SECOND)
    assert not SUSPICION.is_hopeless(HOPELESS - 1, 0, SECOND)
    assert SUSPICION.is_hopeless(HOPELESS_LEAST, SECOND + 1, SECOND)
    assert not SUSPICION.is_hopeless(HOPELESS_LEAST - 1, SECOND + 1, SECOND)
