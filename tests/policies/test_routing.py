"""Which replica a request goes to, and why."""

from __future__ import annotations

import random

import pytest

from sollol.core.endpoint import Endpoint
from sollol.core.prefix_cache import read_prompt
from sollol.core.state.cluster import ClusterState
from sollol.core.state.in_flight import begin
from sollol.core.state.measuring import measured_tokens
from sollol.core.state.replica import Attempt, ModelReplicas, Node, Replica
from sollol.core.types import (
    MILLISECOND,
    SECOND,
    Decision,
    Kind,
    RoutingStrategy,
    Task,
    TaskType,
    Timing,
)
from sollol.core.value import replaced
from sollol.policies import breaker, concurrency
from sollol.policies.model_concurrency import ModelConcurrency
from sollol.policies.routing import CompletionRouter
from sollol.policies.strategies import ReliableRouter, SparingRouter, router_of

CHAT = Task(1, Kind.CHAT, "m:latest", 400)


def cluster(*speeds: float) -> list[Replica]:
    """Replicas of one model in memory, of so many tokens/s; 0 is a node that was never tried."""
    group = ModelReplicas("m:latest", ClusterState())
    replicas = []
    for number, speed in enumerate(speeds):
        node = Node(Endpoint(f"10.0.0.{number + 1}"), ModelConcurrency())
        node.up, node.models = True, {"m:latest": 10**9}
        replica = Replica(node, group, concurrency.LearnedLimit(), breaker.ConsecutiveBreaker())
        node.replicas["m:latest"] = replica
        group.put(replica)
        replica.loaded_by_us = True
        if speed:
            measured_tokens(
                replica, Timing(0, 1000, round(1e8 / speed), 100, round(1e8 / speed)), 0.0, round(2e8 / speed)
            )
            replica.latency.add(2e8 / speed)
            replica.answers = node.attempted = 1
        replicas.append(replica)
    return replicas


def choose(replicas: list[Replica], router: CompletionRouter | None = None, task: Task = CHAT) -> Decision:
    return (router or CompletionRouter()).choose(task, replicas, {}, 0, random.Random(1))


def occupy(replica: Replica, us: int) -> None:
    begin(replica, Attempt(10_000 + us, CHAT, replica, 400, 0, us, Decision(replica.key, us, "")))


def test_the_fastest_free_node_is_chosen_and_its_terms_add_up() -> None:
    decision = choose(cluster(10, 100, 50))
    assert decision.node == "10.0.0.2:11434"
    best = next(c for c in decision.candidates if c.node == decision.node)
    assert best.finish_us == decision.predicted_us == pytest.approx(sum(best.terms.values()), abs=3)


def test_it_waits_for_a_fast_node_rather_than_take_a_slow_one_but_not_for_ever() -> None:
    replicas = cluster(10, 100)
    occupy(replicas[1], SECOND)
    assert choose(replicas).node == replicas[1].node.key
    occupy(replicas[1], 100 * SECOND)
    replicas[1].attempts.pop(10_000 + SECOND)
    assert choose(replicas).node == replicas[0].node.key


def test_behind_a_request_a_slot_on_trial_is_no_free_one() -> None:
    replicas = cluster(100, 60)
    limiter = replicas[0].limiter
    assert isinstance(limiter, concurrency.LearnedLimit)
    limiter.limit = 2
    occupy(replicas[0], 100 * SECOND)
    assert replicas[0].free(0)
    assert replicas[0].wait_us(0) == 100 * SECOND
    assert choose(replicas).node == replicas[1].node.key
    limiter.proven = 2
    assert choose(replicas).node == replicas[0].node.key


def test_a_node_that_was_never_tried_is_explored() -> None:
    replicas = cluster(10, 0)
    replicas[0].overhead.add(SECOND)
    assert choose(replicas).node == replicas[1].node.key


def test_a_model_that_must_be_loaded_costs_its_load() -> None:
    replicas = cluster(50, 60)
    replicas[1].loaded_by_us = False
    decision = choose(replicas)
    assert decision.node == replicas[0].node.key
    assert any("load" in c.terms for c in decision.candidates)


def test_other_options_are_a_reload_and_put_out_who_uses_the_model() -> None:
    replicas = cluster(50, 40)
    replicas[0].options_used_us = 0
    replicas[1].options = "num_ctx=8192"
    decision = choose(replicas, task=replaced(CHAT, options="num_ctx=8192"))
    assert decision.node == replicas[1].node.key
    other = next(c for c in decision.candidates if c.node == replicas[0].node.key)
    assert {"load", "displaces"} <= set(other.terms)


def test_a_conversation_goes_back_to_the_node_that_has_read_it() -> None:
    replicas = cluster(50, 51)
    read_prompt(replicas[0], ((7, 39_000),))
    long = replaced(CHAT, cost=40_000, prefix=((7, 39_000), (8, 40_000)))
    assert choose(replicas, task=long).node == replicas[0].node.key


def test_a_node_that_only_failed_is_not_taken_for_a_fast_one() -> None:
    replicas = cluster(10, 0)
    replicas[1].failed = replicas[1].node.attempted = 1
    replicas[1].latency.add(60 * SECOND)
    assert choose(replicas).node == replicas[0].node.key


def test_the_reliable_mode_prefers_a_node_that_does_not_fail() -> None:
    replicas = cluster(60, 50)
    for _ in range(100):
        replicas[0].reliability.add(0.5)
        replicas[1].reliability.add(1.0)
    assert choose(replicas).node == replicas[0].node.key
    assert choose(replicas, ReliableRouter()).node == replicas[1].node.key


def test_the_sparing_mode_leaves_the_fast_node_free() -> None:
    assert choose(cluster(100, 20, 50), SparingRouter()).node == "10.0.0.2:11434"
    assert choose(cluster(1000, 1, 50), SparingRouter()).node == "10.0.0.3:11434", "the slowest would take too long"


def test_strategies_ask_their_own_question() -> None:
    replicas = cluster(10, 100, 50)
    replicas[0].node.attempted, replicas[1].node.attempted, replicas[2].node.attempted = 5, 9, 2
    replicas[1].node.running = 2
    replicas[2].node.running = 1
    assert choose(replicas, router_of(RoutingStrategy.LATENCY_FIRST)).node == replicas[1].node.key
    assert choose(replicas, router_of(RoutingStrategy.LEAST_LOADED)).node == replicas[0].node.key
    assert choose(replicas, router_of(RoutingStrategy.FAIRNESS)).node == replicas[2].node.key
    concurrency = router_of(RoutingStrategy.ROUND_ROBIN)
    assert [choose(replicas, concurrency).node for _ in range(4)] == [replicas[i].node.key for i in (0, 1, 2, 0)]


def test_the_expected_answer_is_as_long_as_those_of_its_type() -> None:
    replicas = cluster(50, 50)
    group = replicas[0].group
    for _ in range(10):
        group.length(replaced(CHAT, type=TaskType.CODE)).add(900)
        group.length(replaced(CHAT, type=TaskType.CLASSIFY)).add(5)
    code, label = (choose(replicas, task=replaced(CHAT, type=kind)) for kind in (TaskType.CODE, TaskType.CLASSIFY))
    assert code.predicted_us > 10 * label.predicted_us
    assert choose(replicas, task=replaced(CHAT, type=TaskType.CODE, tokens_out=5)).predicted_us < code.predicted_us / 10


def test_the_first_token_is_predicted_without_the_rest_of_the_answer() -> None:
    decision = choose(cluster(50))
    assert 0 < decision.first_us < decision.predicted_us - 100 * MILLISECOND
