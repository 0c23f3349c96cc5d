"""Each policy by itself, without I/O and without a scheduler."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol.core.endpoint import Endpoint
from sollol.core.policy import BatchView, ChunkRetry
from sollol.core.state.attempt import Attempt
from sollol.core.state.cluster import ClusterState
from sollol.core.state.model_replicas import ModelReplicas
from sollol.core.state.node import Node
from sollol.core.state.replica import Replica
from sollol.core.types import (
    MILLISECOND,
    SECOND,
    Decision,
    Kind,
    Outcome,
    RoutingStrategy,
    Status,
    Task,
    TaskType,
    Timing,
)
from sollol.core.value import replaced
from sollol.policies import batching, breaker, concurrency, hedging, retry
from sollol.policies.model_concurrency import ModelConcurrency
from sollol.policies.routing import CompletionRouter, ReliableRouter, SparingRouter, router_of

CHAT = Task(1, Kind.CHAT, "m:latest", 400)
FIXED = settings(derandomize=True, deadline=None, max_examples=100)


# --- limits ----------------------------------------------------------------------------------------------


def learn(slots: int, gain: float, answers: int, wanted: bool = True) -> concurrency.LearnedLimit:
    """A node whose throughput grows by `gain` for each further slot, up to `slots`."""
    limiter = concurrency.LearnedLimit()
    for _ in range(answers):
        used = min(limiter.limit, slots)
        rate = 1 + gain * (used - 1)
        limiter.sample(100.0, round(100_000 / rate), limiter.limit, False, wanted)
    return limiter


def test_the_limiter_stays_near_one_on_a_node_with_one_slot() -> None:
    assert learn(slots=1, gain=0.9, answers=400).limit <= 2
    assert max(learn(1, 0.9, n).limit for n in range(0, 400, 7)) <= 2


def test_the_limiter_finds_four_slots() -> None:
    assert learn(slots=4, gain=0.9, answers=400).limit in (4, 5)


def test_a_slot_on_trial_is_not_proven_until_two_windows_agree() -> None:
    assert max(learn(1, 0.9, n).proven for n in range(0, 400, 7)) == 1
    assert learn(slots=4, gain=0.9, answers=400).proven == 4
    lucky = concurrency.LearnedLimit()  # one window in which the answers happened to be short
    while lucky.limit == 1:
        lucky.sample(100.0, SECOND, lucky.limit, False, True)
    for _ in range(2 * concurrency.WINDOW):
        lucky.sample(130.0, SECOND, lucky.limit, False, True)
    assert lucky.limit > lucky.proven == 1


def test_first_tokens_beside_each_other_double_the_limit() -> None:
    limiter = concurrency.LearnedLimit()
    limiter.answered(1.0, SECOND, 0, 50e-6, SECOND)
    limiter.reopen(SECOND)
    limits_seen = [limiter.limit]
    while limiter.limit < 64:
        for responding in range(limiter.proven + 1, limiter.limit + 1):
            limiter.responded(responding, True, SECOND)
        limits_seen.append(limiter.limit)
    assert limits_seen == [2, 4, 8, 16, 32, 64]


def test_a_call_that_begins_only_when_another_ends_closes_the_trial_for_a_while() -> None:
    limiter = concurrency.LearnedLimit()
    limiter.answered(1.0, SECOND, 0, 50e-6, 0)
    limiter.reopen(0)
    assert limiter.limit == 2
    limiter.responded(1, True, SECOND)
    assert limiter.limit == limiter.proven == 1
    limiter.reopen(5 * SECOND)
    assert limiter.limit == 1, "no answer has come since: the node may hang"
    limiter.answered(1.0, SECOND, 0, 50e-6, 2 * SECOND)
    limiter.reopen(SECOND + round((concurrency.HOLD - 0.1) * SECOND))
    assert limiter.limit == 1
    limiter.reopen(SECOND + round((concurrency.HOLD + 0.1) * SECOND))
    assert limiter.limit == 2


def test_answers_that_waited_inside_the_node_lower_the_limit() -> None:
    limiter = concurrency.LearnedLimit()
    limiter.responded(8, True, 0)
    assert limiter.proven == 8
    limiter.answered(8.0, 4 * SECOND, 3 * SECOND, 50e-6, SECOND)
    assert limiter.limit == limiter.proven == 2


@pytest.mark.parametrize(("total_of_four", "kept"), [(4.0, 4), (2.0, 4), (1.4, 4), (1.167, 1)])
def test_slots_that_share_one_rate_are_not_kept(total_of_four: float, kept: int) -> None:
    limiter = concurrency.LearnedLimit()
    alone = 50e-6
    limiter.answered(1.0, SECOND, 0, alone, SECOND)
    limiter.responded(4, True, SECOND)
    for number in range(4):
        limiter.answered(4.0, SECOND, 0, alone * total_of_four / 4, (2 + number) * SECOND)
    assert limiter.proven == kept
    if kept == 1:
        limiter.responded(2, True, 6 * SECOND)
        assert limiter.proven == 1, "two answers at once are no news"
        assert limiter.slots == 4


def test_a_distant_node_gets_what_covers_the_way_there() -> None:
    limiter = concurrency.LearnedLimit()
    limiter.embedded(1.0, 70_000, 10_000, 100.0, SECOND)
    assert limiter.proven == 7
    for _ in range(10):
        limiter.embedded(7.0, 100_000, 40_000, 100.0, SECOND)
    assert limiter.proven < 7, "they wait in the node"


def test_the_limiter_tries_nothing_while_nobody_waits() -> None:
    assert learn(slots=4, gain=0.9, answers=400, wanted=False).limit == 1


def test_a_node_that_refuses_the_load_is_given_half() -> None:
    limiter = learn(slots=4, gain=0.9, answers=400)
    before = limiter.limit
    limiter.sample(0.0, 0, 0, True, False)
    assert limiter.limit == before // 2


# --- breaker ---------------------------------------------------------------------------------------------


def fail(one: breaker.ConsecutiveBreaker, at: int, times: int = breaker.THRESHOLD) -> None:
    for _ in range(times):
        one.begin(at)
        one.record(at, Outcome(Status.FAILED))


def test_the_breaker_opens_after_faults_in_a_row_only() -> None:
    one = breaker.ConsecutiveBreaker()
    fail(one, 0, breaker.THRESHOLD - 1)
    one.record(0, Outcome(Status.OK))
    fail(one, 0, breaker.THRESHOLD - 1)
    assert one.admits(0)
    fail(one, 0, 1)
    assert not one.admits(0)


def test_an_open_breaker_admits_one_trial_and_waits_longer_after_each_that_fails() -> None:
    one = breaker.ConsecutiveBreaker()
    fail(one, 0)
    at, pauses = 0, []
    for _ in range(6):
        due = one.retry_at()
        assert due is not None
        pauses.append(due - at)
        at = due
        assert one.admits(at)
        one.begin(at)
        assert not one.admits(at), "a second trial beside the first"
        one.record(at, Outcome(Status.FAILED))
    assert pauses == sorted(pauses)
    assert pauses[0] == breaker.PAUSE
    assert pauses[-1] == breaker.PAUSE_MAX


@pytest.mark.parametrize("status", [Status.BUSY, Status.LEFT, Status.REFUSED, Status.MISSING])
def test_what_is_no_fault_of_the_node_does_not_open_the_breaker(status: Status) -> None:
    one = breaker.ConsecutiveBreaker()
    for _ in range(50):
        one.record(0, Outcome(status))
    assert one.admits(0)


def test_a_good_trial_closes_the_breaker() -> None:
    one = breaker.ConsecutiveBreaker()
    fail(one, 0)
    one.begin(breaker.PAUSE)
    one.record(breaker.PAUSE, Outcome(Status.OK))
    assert one.admits(breaker.PAUSE)
    assert one.retry_at() is None


# --- retry -----------------------------------------------------------------------------------------------


def test_retries_are_a_share_of_the_traffic() -> None:
    budget = retry.BudgetRetrier()
    granted = 0
    for _ in range(10_000):
        budget.deposit(CHAT)
        granted += budget.again(CHAT, Outcome(Status.FAILED), 1, 0) is not None
    assert granted == pytest.approx(10_000 * retry.SHARE + retry.RESERVE, abs=2)


def test_waiting_for_a_busy_node_costs_no_budget_and_pauses_longer_each_time() -> None:
    budget = retry.BudgetRetrier()
    pauses = [budget.again(CHAT, Outcome(Status.BUSY), tried, 0) for tried in range(retry.BUSY_TRIES)]
    assert None not in pauses
    assert pauses == sorted(p for p in pauses if p is not None)
    assert budget.again(CHAT, Outcome(Status.BUSY), retry.BUSY_TRIES, 0) is None
    assert budget.again(CHAT, Outcome(Status.FAILED), 1, 0) == 0


def test_one_call_does_not_try_for_ever() -> None:
    assert retry.BudgetRetrier().again(CHAT, Outcome(Status.FAILED), retry.MAX_TRIES, 0) is None


# --- batching --------------------------------------------------------------------------------------------


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


# --- hedging ---------------------------------------------------------------------------------------------

DECISION = Decision("n", SECOND, "")


def test_there_is_no_second_copy_before_something_was_learned() -> None:
    hedger = hedging.QuantileHedger()
    for number in range(hedging.LEAST - 1):
        expected = None if number < hedging.EARLY else pytest.approx(hedging.EARLY_TIMES * SECOND, rel=0.01)
        assert hedger.after(CHAT, DECISION) == expected
        hedger.learn(CHAT, DECISION, SECOND)
    hedger.learn(CHAT, DECISION, SECOND)
    assert hedger.after(CHAT, DECISION) == pytest.approx(hedging.LATER * SECOND, rel=0.01)


def test_the_delay_follows_the_prediction_and_is_beyond_the_learned_p95() -> None:
    hedger = hedging.QuantileHedger()
    dice = random.Random(1)
    ratios = [dice.uniform(0.8, 2.0) for _ in range(200)]
    for ratio in ratios:
        hedger.learn(CHAT, DECISION, round(ratio * SECOND))
    short, long = hedger.after(CHAT, DECISION), hedger.after(CHAT, Decision("n", 10 * SECOND, ""))
    assert short is not None
    assert long is not None
    assert short > sorted(ratios)[189] * SECOND
    assert long == pytest.approx(10 * short, rel=0.05)


def test_second_copies_are_a_share_of_the_calls() -> None:
    hedger = hedging.QuantileHedger()
    granted = 0
    for _ in range(2_000):
        hedger.deposit(CHAT)
        granted += hedger.withdraw()
    assert granted <= 2_000 * hedging.BUDGET + hedging.RESERVE


def test_embeddings_have_no_second_copy() -> None:
    hedger = hedging.QuantileHedger()
    task = replaced(CHAT, kind=Kind.EMBED)
    for _ in range(hedging.LEAST):
        hedger.learn(task, DECISION, SECOND)
    assert hedger.after(task, DECISION) is None


# --- routing ---------------------------------------------------------------------------------------------


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
            replica.measured_tokens(
                Timing(0, 1000, round(1e8 / speed), 100, round(1e8 / speed)), 0.0, round(2e8 / speed)
            )
            replica.latency.add(2e8 / speed)
            replica.answers = node.attempted = 1
        replicas.append(replica)
    return replicas


def choose(replicas: list[Replica], router: CompletionRouter | None = None, task: Task = CHAT) -> Decision:
    return (router or CompletionRouter()).choose(task, replicas, {}, 0, random.Random(1))


def occupy(replica: Replica, us: int) -> None:
    replica.add(Attempt(10_000 + us, CHAT, replica, 400, 0, us, Decision(replica.key, us, "")))


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
    replicas[0].read(((7, 39_000),))
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
