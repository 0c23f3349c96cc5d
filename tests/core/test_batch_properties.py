"""The state of a batch under random cuts, takeovers, answers and failures: nothing is lost, nothing counted twice."""

from __future__ import annotations

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from sollol.core.endpoint import Endpoint
from sollol.core.state.batch import Batch, joined
from sollol.core.state.cluster import ClusterState
from sollol.core.state.pending_items import PendingItems
from sollol.core.state.ranges import Ranges
from sollol.core.state.replica import Attempt, ModelReplicas, Node, Replica
from sollol.core.types import Decision, Kind, Task
from sollol.policies.breaker import ConsecutiveBreaker
from sollol.policies.concurrency import LearnedLimit
from sollol.policies.model_concurrency import ModelConcurrency

FIXED = settings(derandomize=True, deadline=None, max_examples=120)


def replicas(count: int) -> list[Replica]:
    group = ModelReplicas("m:latest", ClusterState())
    nodes = [Node(Endpoint(f"10.0.0.{i + 1}"), ModelConcurrency()) for i in range(count)]
    return [Replica(node, group, LearnedLimit(), ConsecutiveBreaker()) for node in nodes]


@FIXED
@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 4))
def test_each_item_is_answered_or_refused_exactly_once(seed: int, items: int, nodes: int) -> None:
    rng = random.Random(seed)
    task = Task(1, Kind.EMBED, "m:latest", batch=True)
    batch = Batch(task)
    places = replicas(nodes)
    answered: list[int] = []
    refused: list[int] = []
    fed = serial = 0
    while fed < items or not batch.done:
        roll = rng.random()
        if fed < items and roll < 0.3:
            count = min(items - fed, rng.randint(1, 9))
            fed += count
            batch.feed([rng.randint(1, 50) for _ in range(count)], fed == items)
        elif batch.pending_count and roll < 0.6:
            replica = rng.choice(places)
            cost, number = rng.randint(1, 200), rng.randint(1, 8)
            cut = batch.cut(replica.node.key, cost, number, lambda: frozenset(place.node.key for place in places))
            if cut is not None:
                ranges, piece = cut
                assert ranges.total() >= 1
                if not piece.alone:
                    assert ranges.total() <= number
                    assert ranges.total() == 1 or batch.cost_of(ranges) <= cost
                serial += 1
                attempt = Attempt(serial, task, replica, batch.cost_of(ranges), 0, 0, Decision(replica.node.key, 0, ""))
                attempt.tries, attempt.failed_on = piece.tries, piece.failed_on
                batch.begin(attempt, ranges)
        elif batch.live and roll < 0.7:
            victim = rng.choice(list(batch.live.values()))
            free = [i for i in Ranges(victim.uncovered).items() if batch.contested.get(i) != []]
            if free:
                part = joined(rng.sample(free, rng.randint(1, len(free))))
                serial += 1
                replica = rng.choice(places)
                thief = Attempt(serial, task, replica, batch.cost_of(part), 0, 0, Decision(replica.node.key, 0, ""))
                batch.contest(thief, victim, part)
                victim.uncovered = list(joined(set(Ranges(victim.uncovered).items()) - set(part.items())))
        elif batch.live:
            attempt = rng.choice(list(batch.live.values()))
            if rng.random() < 0.6:
                fresh, idle = batch.accept(attempt)
                answered += fresh.items()
                for loser in idle:
                    assert not batch.drop(loser), "a loser has nothing of its own"
            else:
                orphans = batch.drop(attempt)
                if orphans and rng.random() < 0.2:
                    refused += orphans.items()
                    batch.refused += orphans.total()
                elif orphans:
                    batch.put_back(PendingItems(orphans, attempt.tries + 1, frozenset(), alone=rng.random() < 0.5))
        batch.invariants(in_line=True)
    assert sorted(answered + refused) == list(range(items))


@FIXED
@given(st.sets(st.integers(0, 200)))
def test_joined_ranges_are_the_items_in_order_without_touching_neighbours(items: set[int]) -> None:
    ranges = joined(items)
    assert ranges.items() == sorted(items)
    assert ranges.total() == len(items)
    assert all(left[1] < right[0] for left, right in itertools.pairwise(ranges))
