"""What follows from an event: each test compares the list of actions."""

from __future__ import annotations

from typing import Any

import pytest

from sollol.core.actions import Accept
from sollol.core.events import Cancelled, Configure, NodeDrained, NodeLost, NodeRemoved, Refresh
from sollol.core.state.ranges import Ranges
from sollol.core.types import (
    MILLISECOND,
    SECOND,
    Cause,
    Kind,
    Outcome,
    RoutingStrategy,
    Status,
)
from sollol.engine.engine import default_policies
from sollol.policies.concurrency import LearnedLimit
from sollol.policies.strategies import LatencyRouter
from tests.core.virtual import MODEL, Aborted, Completed, HedgeSoon, Started, VirtualCluster

FAST, SLOW = SECOND // 10, 2 * SECOND
FAILED = Outcome(Status.FAILED, "out of memory", 500)


def embed(cluster: VirtualCluster, costs: list[int], **fields: Any) -> tuple[int, list[Any]]:
    """Submit a batch with all its items."""
    task = cluster.submit(kind=Kind.EMBED, batch=True, **fields)
    return task, cluster.items(task, costs)


# --- late binding ---


def test_a_request_starts_on_the_node_that_finishes_it_first(cluster: VirtualCluster) -> None:
    cluster.add("slow", SLOW)
    cluster.add("fast", FAST)
    task = cluster.submit()
    assert cluster.seen == [Started(task, "fast")]
    (start,) = cluster.running.values()
    assert [one.node for one in start.decision.candidates] == ["fast:11434", "slow:11434"]


def test_it_waits_for_the_fast_node_instead_of_starting_on_the_slow_one(cluster: VirtualCluster) -> None:
    cluster.add("fast", FAST)
    cluster.add("slow", SLOW)
    first = cluster.submit()
    second = cluster.submit()
    assert cluster.seen == []
    assert cluster.finish(first, after=FAST) == [Completed(first), Started(second, "fast")]


def test_an_urgent_request_goes_before_those_that_came_first(cluster: VirtualCluster) -> None:
    cluster.add("node", FAST)
    running, usual, urgent = cluster.submit(), cluster.submit(priority=5), cluster.submit(priority=10)
    assert cluster.finish(running, after=FAST) == [Completed(running), Started(urgent, "node")]
    assert cluster.finish(urgent, after=FAST) == [Completed(urgent), Started(usual, "node")]


def test_a_task_beyond_the_bound_of_the_queue_is_refused(cluster: VirtualCluster) -> None:
    cluster.add("node", FAST)
    cluster.feed(Configure(queue_bound=1))
    cluster.submit(), cluster.submit()
    refused = cluster.submit()
    assert cluster.seen == [Completed(refused, Status.QUEUE_FULL)]


def test_the_node_that_is_named_is_the_only_one(cluster: VirtualCluster) -> None:
    cluster.add("fast", FAST)
    slow = cluster.add("slow", SLOW)
    task = cluster.submit(only=(slow,))
    assert cluster.seen == [Started(task, "slow")]


# --- ends ---


def test_a_caller_who_leaves_frees_the_slot_for_the_next(cluster: VirtualCluster) -> None:
    cluster.add("node", FAST)
    first, second = cluster.submit(), cluster.submit()
    cluster.first_token(first)
    assert cluster.feed(Cancelled(first)) == [
        Aborted(first, "node"),
        Completed(first, Status.LEFT),
        Started(second, "node"),
    ]


def test_a_deadline_ends_a_task_that_waits(cluster: VirtualCluster) -> None:
    cluster.add("node", FAST)
    cluster.submit()
    waiting = cluster.submit(deadline_us=cluster.now + SECOND)
    assert Completed(waiting, Status.DEADLINE) in cluster.pass_time(SECOND)


def test_without_a_node_that_has_the_model_a_task_ends_once_all_were_probed(cluster: VirtualCluster) -> None:
    key = cluster.add("node", models={"other:latest": 1})
    cluster.pass_time(SECOND)
    task = cluster.submit()
    assert cluster.seen == []
    assert cluster.probes == {key}
    assert cluster.see(key) == [Completed(task, Status.NO_NODE)]


# --- causes ---


def test_a_failed_attempt_is_retried_elsewhere(cluster: VirtualCluster) -> None:
    cluster.add("fast", FAST)
    cluster.add("slow", SLOW)
    task = cluster.submit()
    assert cluster.finish(task, outcome=FAILED) == [Started(task, "slow", Cause.RETRY)]
    assert cluster.finish(task, after=SLOW) == [Completed(task)]


def test_what_ran_on_a_lost_node_is_retried(cluster: VirtualCluster) -> None:
    fast = cluster.add("fast", FAST)
    cluster.add("slow", SLOW)
    task = cluster.submit()
    assert cluster.feed(NodeLost(fast, "connection refused")) == [
        Aborted(task, "fast"),
        Started(task, "slow", Cause.RETRY),
    ]


def test_a_stream_is_resumed_on_another_node(cluster: VirtualCluster) -> None:
    fast = cluster.add("fast", FAST)
    cluster.add("slow", SLOW)
    task = cluster.submit(stream=True)
    cluster.first_token(task, movable=True)
    assert cluster.feed(NodeRemoved(fast)) == [Aborted(task, "fast"), Started(task, "slow", Cause.RESUME)]


def test_a_late_request_gets_a_second_attempt_and_the_first_response_wins() -> None:
    policies = default_policies({"soon": HedgeSoon()})._replace(limiter=lambda: LearnedLimit(1, 1))
    cluster = VirtualCluster(policies)
    cluster.add("fast", FAST)
    cluster.add("slow", 2 * FAST)
    task = cluster.submit(hedge="soon")
    assert cluster.pass_time(50 * MILLISECOND) == [Started(task, "slow", Cause.HEDGE)]
    assert cluster.finish(task, after=FAST, node="slow") == [Aborted(task, "fast"), Completed(task)]


def test_a_hedging_policy_that_is_not_registered_is_an_error_of_this_task_alone(cluster: VirtualCluster) -> None:
    cluster.add("node", FAST)
    task = cluster.submit(hedge="unheard of")
    assert Completed(task, Status.REFUSED) in cluster.seen
    assert "no hedging policy" in cluster.completed[task].outcome.message
    assert cluster.submit() == task + 1
    assert cluster.seen == [Started(task + 1, "node")]


# --- batches ---


def test_a_batch_is_cut_for_all_nodes_and_ends_with_its_last_item(cluster: VirtualCluster) -> None:
    cluster.add("one")
    cluster.add("two")
    task, seen = embed(cluster, [100] * 4)
    assert seen == [Started(task, "one"), Started(task, "two")]
    one, two = (cluster.attempt_of(task, name) for name in ("one", "two"))
    assert cluster.finish(task, after=SECOND, node="one") == [Accept(task, one, Ranges([(0, 1)])), Started(task, "one")]
    assert cluster.running[two].items == Ranges([(1, 2)])
    while task not in cluster.completed:
        cluster.finish(task, after=SECOND, node=next(iter(cluster.running.values())).node)
    assert cluster.completed[task].outcome.status is Status.OK


def test_an_idle_node_takes_over_what_a_frozen_one_has(cluster: VirtualCluster) -> None:
    cluster.add("one")
    cluster.add("two")
    warm_up, _ = embed(cluster, [1000] * 8)
    while warm_up not in cluster.completed:
        cluster.finish(warm_up, after=SECOND // 10, node=next(iter(cluster.running.values())).node)
    task, _ = embed(cluster, [1000] * 8)
    seen: list[Any] = []
    for _ in range(20):
        if any(start.node == "one:11434" for start in cluster.running.values()):
            seen += cluster.finish(task, after=SECOND // 10, node="one")
        else:
            seen += cluster.pass_time(SECOND)
        if Started(task, "one", Cause.TAKEOVER) in seen:
            break
    assert Started(task, "one", Cause.TAKEOVER) in seen
    end = cluster.finish(task, after=SECOND // 10, node="one")
    assert end[-2:] == [Aborted(task, "two"), Completed(task)], "the frozen attempt is closed"


# --- settings ---


def test_refresh_probes_every_node(cluster: VirtualCluster) -> None:
    keys = {cluster.add("one"), cluster.add("two")}
    assert not cluster.probes
    cluster.feed(Refresh())
    assert cluster.probes == keys


def test_configure_changes_the_router_of_tasks_without_a_mode(cluster: VirtualCluster) -> None:
    cluster.add("fast", FAST)
    cluster.add("slow", SLOW)
    cluster.feed(Configure(strategy=RoutingStrategy.ROUND_ROBIN))
    nodes = []
    for _ in range(4):
        task = cluster.submit()
        nodes.append(cluster.seen[0].node)
        cluster.finish(task, after=FAST)
    assert sorted(nodes) == ["fast", "fast", "slow", "slow"]


def test_the_intelligent_strategy_is_the_router_of_the_policies() -> None:
    cluster = VirtualCluster(policies=default_policies()._replace(router=LatencyRouter()))
    cluster.add("fast", FAST)
    cluster.add("slow", SLOW)
    cluster.feed(Configure(strategy=RoutingStrategy.ROUND_ROBIN))
    cluster.feed(Configure(strategy=RoutingStrategy.INTELLIGENT))
    cluster.submit()
    (start,) = cluster.running.values()
    assert start.decision.reason == "least latency so far"


def test_the_view_shows_what_waits_and_what_runs(cluster: VirtualCluster) -> None:
    cluster.add("node", FAST)
    running, waiting = cluster.submit(), cluster.submit()
    view = cluster.scheduler.view()
    assert set(view.tasks) == {running, waiting}
    assert [attempt.task.id for attempt in view.attempts.values()] == [running]
    assert view.waited_for() == [MODEL]
    assert [task for task, _ in view.queue_of(MODEL, cluster.now)] == [waiting]


# --- a node that lists a model and lacks it ---

MISSING = Outcome(Status.MISSING, "model 'm' not found", 404)


def deny(cluster: VirtualCluster, task: int, node: str) -> int:
    """Let a node say at each request of a task that it lacks the model, and list it at each probe; the requests."""
    requests = 0
    for _ in range(50):
        if not any(start.task == task and start.node == node for start in cluster.running.values()):
            for key in list(cluster.probes):
                cluster.see(key)
            cluster.pass_time(SECOND)
            continue
        cluster.finish(task, after=1000, outcome=MISSING, node=node)
        requests += 1
    return requests


@pytest.mark.parametrize("answered", [False, True])
def test_a_batch_ends_where_the_only_node_denies_the_model_that_it_lists(
    cluster: VirtualCluster, answered: bool
) -> None:
    node = cluster.add("node", FAST)
    task, _ = embed(cluster, [100] * 40)
    if answered:
        cluster.finish(task, after=FAST)
    assert deny(cluster, task, node) <= 3
    assert cluster.completed[task].outcome.status is Status.NO_NODE


def test_a_batch_goes_to_the_node_that_has_the_model(cluster: VirtualCluster) -> None:
    liar, honest = cluster.add("liar", FAST), cluster.add("honest", FAST)
    task, _ = embed(cluster, [100] * 200)
    denied = 0
    while task not in cluster.completed:
        busy = {start.node for start in cluster.running.values() if start.task == task}
        if liar in busy:
            cluster.finish(task, outcome=MISSING, node=liar)
            cluster.see(liar)
            denied += 1
        elif honest in busy:
            cluster.finish(task, after=FAST, node=honest)
        else:
            cluster.pass_time(SECOND)
    assert cluster.completed[task].outcome.status is Status.OK
    assert denied <= 3


def test_a_model_that_comes_later_is_used(cluster: VirtualCluster) -> None:
    node = cluster.add("node", FAST)
    task, _ = embed(cluster, [100] * 4)
    cluster.finish(task, outcome=MISSING)  # deleted since the last probe
    cluster._models[node] = {}
    cluster.see(node)
    cluster.pass_time(60 * SECOND)
    assert cluster.completed[task].outcome.status is Status.NO_NODE
    cluster._models[node] = {MODEL: 10**9}  # pulled again
    cluster.see(node)
    task, started = embed(cluster, [100] * 4)
    assert started == [Started(task, "node")]


def test_a_drained_node_gets_no_new_work_and_ends_what_it_has() -> None:
    cluster = VirtualCluster()
    cluster.add("fast", 200_000)
    cluster.add("slow", 900_000)
    first = cluster.submit()
    assert cluster.running[cluster.attempt_of(first)].node == "fast:11434"
    cluster.feed(NodeDrained("fast:11434", True))
    second = cluster.submit()
    assert cluster.running[cluster.attempt_of(second)].node == "slow:11434"
    assert Completed(first) in cluster.finish(first, after=200_000)
    cluster.finish(second, after=900_000)
    third = cluster.submit()
    assert cluster.running[cluster.attempt_of(third)].node == "slow:11434"
    cluster.feed(NodeDrained("fast:11434", False))
    fourth = cluster.submit()
    assert cluster.running[cluster.attempt_of(fourth)].node == "fast:11434"


def test_with_all_nodes_drained_a_request_is_refused_in_words() -> None:
    cluster = VirtualCluster()
    for name in ("a", "b"):
        cluster.add(name, 200_000)
        cluster.feed(NodeDrained(f"{name}:11434", True))
    task = cluster.submit()
    for key in list(cluster.probes):
        cluster.see(key)
    completed = cluster.completed[task]
    assert completed.outcome.status is Status.NO_NODE
    assert completed.tried[0][1] == "is drained: an operator keeps new work away"


def test_an_operator_cancels_a_request() -> None:
    cluster = VirtualCluster()
    cluster.add("a", 200_000)
    task = cluster.submit()
    cluster.feed(Cancelled(task, "an operator has cancelled it"))
    outcome = cluster.completed[task].outcome
    assert (outcome.status, outcome.message, outcome.http_status) == (
        Status.REFUSED,
        "an operator has cancelled it",
        410,
    )
