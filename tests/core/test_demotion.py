"""Replicas that become many times slower.

Embeddings: a test after the first slow one, a demotion by the test or by the second.
"""

from __future__ import annotations

import pytest

from sollol.core.actions import Retest
from sollol.core.events import Retested
from sollol.core.state.replica import Replica
from sollol.core.types import MILLISECOND, SECOND, Kind, Outcome, Status, Timing
from tests.core.virtual import MODEL, VirtualCluster

COST, TOOK = 2_000, 100 * MILLISECOND


def embed(cluster: VirtualCluster, took_us: int) -> None:
    cluster.now += SECOND
    task = cluster.submit(kind=Kind.EMBED, cost=COST)
    cluster.finish(task, after=took_us, outcome=Outcome(Status.OK, "", 200, Timing(1_000, 100, total_us=took_us)))


@pytest.fixture
def cluster() -> VirtualCluster:
    found = VirtualCluster()
    found.add("a")
    for _ in range(5):
        embed(found, TOOK)
    return found


def replica(cluster: VirtualCluster) -> Replica:
    return cluster.scheduler.view().nodes["a:11434"].replicas[MODEL]


def retests(cluster: VirtualCluster) -> list[Retest]:
    return [action for action in cluster.actions if isinstance(action, Retest)]


def test_one_slow_list_is_followed_by_a_test_and_a_fast_one_clears_it(cluster: VirtualCluster) -> None:
    before = replica(cluster).work.value
    assert before
    embed(cluster, 20 * TOOK)
    (test,) = retests(cluster)
    assert test.kind is Kind.EMBED
    assert test.cost == pytest.approx(before * 50 * MILLISECOND, rel=0.01)
    assert (replica(cluster).work.value or before) < before / 2
    cluster.feed(Retested(test.node, test.model, COST / TOOK * SECOND, TOOK // 2))
    assert replica(cluster).work.value == pytest.approx(before)
    assert not replica(cluster).demoted_us


def test_a_slow_test_demotes_and_a_later_one_restores(cluster: VirtualCluster) -> None:
    embed(cluster, 20 * TOOK)
    cluster.feed(Retested("a:11434", MODEL, COST / TOOK / 20 * SECOND, 10 * TOOK))
    assert replica(cluster).demoted_us
    assert replica(cluster).is_on_gpu() is False
    assert replica(cluster).work.value == pytest.approx(COST / TOOK / 20)
    cluster.now += 61 * SECOND
    task = cluster.submit(kind=Kind.EMBED, cost=COST)
    assert not retests(cluster), "not while it works"
    cluster.finish(task, after=20 * TOOK, outcome=Outcome(Status.OK, "", 200, Timing(1_000, 100)))
    cluster.feed(Retested("a:11434", MODEL, COST / TOOK * SECOND, TOOK // 2))
    assert not replica(cluster).demoted_us


def test_two_slow_lists_demote_without_a_test(cluster: VirtualCluster) -> None:
    for _ in range(2):
        embed(cluster, 20 * TOOK)
    assert replica(cluster).demoted_us
    assert replica(cluster).rate_before == pytest.approx(COST / TOOK, rel=0.05)


def test_a_node_that_does_not_answer_its_test_stays_as_it_is(cluster: VirtualCluster) -> None:
    embed(cluster, 20 * TOOK)
    cluster.feed(Retested("a:11434", MODEL, 0.0))
    assert not replica(cluster).demoted_us


def test_short_texts_are_slow_only_beyond_the_cost_of_a_request(cluster: VirtualCluster) -> None:
    cluster.now += SECOND
    task = cluster.submit(kind=Kind.EMBED, cost=80)
    cluster.finish(task, after=30 * MILLISECOND, outcome=Outcome(Status.OK, "", 200, Timing(1_000, 10)))
    assert not replica(cluster).slow_in_row


def write(cluster: VirtualCluster, tokens: int, decode_us: int) -> None:
    cluster.now += SECOND
    timing = Timing(0, 10, MILLISECOND, tokens, decode_us, total_us=decode_us + MILLISECOND)
    cluster.finish(cluster.submit(), after=decode_us + MILLISECOND, outcome=Outcome(Status.OK, "", 200, timing))


def writer(tokens: int, decode_us: int) -> VirtualCluster:
    found = VirtualCluster()
    found.add("a")
    for _ in range(5):
        write(found, tokens, decode_us)
    return found


def test_a_busy_machine_that_delays_short_answers_is_no_slow_replica() -> None:
    cluster = writer(4, MILLISECOND)
    for _ in range(5):
        write(cluster, 4, 20 * MILLISECOND)
    assert not replica(cluster).demoted_us


def test_answers_at_a_twentieth_of_the_rate_demote_and_a_few_tokens_do_not_restore() -> None:
    cluster = writer(50, SECOND)
    for _ in range(2):
        write(cluster, 50, 20 * SECOND)
    assert replica(cluster).demoted_us
    write(cluster, 2, 41 * MILLISECOND)
    assert replica(cluster).demoted_us
    cluster.feed(Retested("a:11434", MODEL, 50.0, 160 * MILLISECOND))
    assert not replica(cluster).demoted_us
