"""Which runner in memory serves a call, and with which `num_ctx`: options compared as Ollama's `needsReload` does."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol.core.events import LoadEnded, LoadRequested, NodeSeen
from sollol.core.runner_options import context_for, parse, with_context
from sollol.core.types import Kind, LoadedModel, NodeFacts, Outcome, Status
from tests.core.virtual import MODEL, Started, VirtualCluster

LOAD = None


@pytest.mark.parametrize(
    ("requested", "held", "listed", "default", "expected"),
    [
        ("", "", 0, 0, 0),
        ("num_ctx=2048", "num_ctx=8192", 0, 0, 8192),
        ("num_ctx=8192", "num_ctx=2048", 0, 0, LOAD),
        ("num_ctx=2048,num_thread=4", "num_ctx=8192", 0, 0, LOAD),
        ("num_ctx=2048,num_thread=4", "num_ctx=8192,num_thread=4", 0, 0, 8192),
        ("num_ctx=2048,num_gpu=1", "num_ctx=8192", 0, 0, LOAD),
        ("num_ctx=2048", "num_ctx=8192,num_gpu=1", 0, 0, 8192),
        ("num_ctx=2048,num_gpu=-1", "num_ctx=2048,num_gpu=1", 0, 0, 0),
        ("num_ctx=2048", "", 4096, 4096, 4096),
        ("num_ctx=4096", "", 4096, 4096, 0),
        ("num_ctx=8192", "", 4096, 4096, LOAD),
        ("num_ctx=2048", "", 0, 0, LOAD),
        ("", "num_ctx=8192", 8192, 4096, 8192),
        ("", "num_ctx=8192", 8192, 0, LOAD),
        ("", "num_ctx=2048", 2048, 4096, LOAD),
        ("num_ctx=999999", "num_ctx=500000", 131072, 0, 0),  # both are capped by the model
        ("num_ctx=8192.0", "num_ctx=8192", 0, 0, 0),
        ("num_ctx=many", "num_ctx=8192", 0, 0, LOAD),
    ],
)
def test_a_runner_serves_what_needs_no_more_context(
    requested: str, held: str, listed: int, default: int, expected: int | None
) -> None:
    assert context_for(requested, held, listed, default, 0) == expected


@pytest.mark.parametrize(("longest", "expected"), [(0, 8192), (2048, 8192), (2049, LOAD), (-1, LOAD)])
def test_what_a_larger_context_would_cut_otherwise_needs_its_own(longest: int, expected: int | None) -> None:
    assert context_for("num_ctx=2048", "num_ctx=8192", 0, 0, longest) == expected


@given(st.integers(1, 1 << 20), st.integers(1, 1 << 20), st.integers(0, 1 << 20), st.integers(0, 1 << 20))
def test_nobody_gets_less_than_the_context_that_was_requested(want: int, has: int, listed: int, default: int) -> None:
    for requested, held in ((f"num_ctx={want}", f"num_ctx={has}"), (f"num_ctx={want}", ""), ("", f"num_ctx={has}")):
        found = context_for(requested, held, listed, default, 0)
        if found:
            assert found >= (parse(requested).context or default) > 0


def test_a_context_is_replaced_in_the_text_of_the_options() -> None:
    assert with_context(8192, "num_ctx=2048,num_thread=4") == "num_ctx=8192,num_thread=4"
    assert with_context(8192) == "num_ctx=8192"
    assert parse("num_ctx=0").context == 1, "a node takes it for a very small one, not for its default"


def sent(cluster: VirtualCluster, task: int) -> int:
    return cluster.running[cluster.attempt_of(task)].decision.num_ctx


def seen(cluster: VirtualCluster, key: str, context: int) -> None:
    """Let the node list its model with this context."""
    cluster.now += 1_000_000
    cluster.scheduler.view().nodes[key].asked_us = cluster.now
    facts = NodeFacts("0.33.0", {MODEL: 10**9}, {MODEL: LoadedModel(10**9, 10**9, "", context)})
    cluster.feed(NodeSeen(key, facts))


def test_the_decision_has_the_context_that_is_sent_and_why() -> None:
    cluster = VirtualCluster()
    cluster.add("a")
    cluster.finish(cluster.submit(options="num_ctx=8192"), after=1000)
    task = cluster.submit(options="num_ctx=2048")
    decision = cluster.running[cluster.attempt_of(task)].decision
    assert decision.num_ctx == 8192
    assert decision.reason.endswith("num_ctx 8192 is sent, since the model is loaded with it")
    assert decision.predictions[0].load_us == 0
    cluster.finish(task, after=1000)
    assert sent(cluster, cluster.submit(options="num_ctx=8192")) == 0


def test_the_default_of_a_node_is_learned_from_its_list() -> None:
    cluster = VirtualCluster()
    key = cluster.add("a")
    cluster.finish(cluster.submit(), after=1000)
    seen(cluster, key, 4096)
    task = cluster.submit(options="num_ctx=2048")
    assert sent(cluster, task) == 4096
    cluster.finish(task, after=1000)
    cluster.finish(cluster.submit(options="num_ctx=16384"), after=1000)
    assert sent(cluster, cluster.submit()) == 16384


def test_a_runner_that_others_have_loaded_is_known_by_its_list() -> None:
    cluster = VirtualCluster()
    key = cluster.add("a")
    seen(cluster, key, 8192)
    task = cluster.submit(options="num_ctx=2048")
    assert sent(cluster, task) == 8192
    cluster.finish(task, after=1000)
    seen(cluster, key, 16384)  # others loaded it again, meanwhile
    assert sent(cluster, cluster.submit(options="num_ctx=12000")) == 16384


def test_a_list_of_the_runner_before_proves_nothing() -> None:
    cluster = VirtualCluster()
    key = cluster.add("a")
    seen(cluster, key, 4096)
    task = cluster.submit(options="num_ctx=16384")
    seen(cluster, key, 4096)  # it is still loading
    cluster.finish(task, after=1000)
    assert sent(cluster, cluster.submit(options="num_ctx=8192")) == 16384


@pytest.mark.parametrize("fields", [{"exact_context": True}, {"kind": Kind.EMBED, "cost": 5000}])
def test_who_needs_the_exact_context_gets_it(fields: dict[str, Any]) -> None:
    cluster = VirtualCluster()
    cluster.add("a")
    cluster.finish(cluster.submit(options="num_ctx=8192"), after=1000)
    task = cluster.submit(options="num_ctx=2048", **fields)
    assert sent(cluster, task) == 0
    assert cluster.scheduler.view().attempts[cluster.attempt_of(task)].loads


def test_short_texts_are_embedded_in_a_larger_context() -> None:
    cluster = VirtualCluster()
    cluster.add("a")
    cluster.finish(cluster.submit(options="num_ctx=8192"), after=1000)
    task = cluster.submit(options="num_ctx=2048", kind=Kind.EMBED, cost=500)
    assert sent(cluster, task) == 8192
    batch = cluster.submit(options="num_ctx=2048", kind=Kind.EMBED, cost=0, batch=True)
    cluster.finish(task, after=1000)
    cluster.items(batch, [500] * 4)
    assert sent(cluster, batch) == 8192


def test_one_long_text_keeps_a_batch_in_its_own_context() -> None:
    cluster = VirtualCluster()
    cluster.add("a")
    cluster.finish(cluster.submit(options="num_ctx=8192"), after=1000)
    batch = cluster.submit(options="num_ctx=2048", kind=Kind.EMBED, cost=0, batch=True)
    cluster.items(batch, [500, 4000, 500])
    assert sent(cluster, batch) == 0


@pytest.mark.parametrize(("cost", "expected"), [(400, 16384), (7900, 8192)])
def test_a_resumed_answer_keeps_the_context_in_which_it_began(cost: int, expected: int) -> None:
    """A short prompt is cut in neither context; a long one may be, so it needs the very same."""
    cluster = VirtualCluster()
    cluster.add("a", took_us=1_000_000)
    cluster.finish(cluster.submit(options="num_ctx=8192", only=("a:11434",)), after=1000)
    cluster.add("b", took_us=2_000_000)
    cluster.finish(cluster.submit(options="num_ctx=16384", only=("b:11434",)), after=1000)
    task = cluster.submit(options="num_ctx=2048", stream=True, cost=cost, only=("a:11434", "b:11434"))
    assert sent(cluster, task) == 8192
    cluster.first_token(task, movable=True)
    actions = cluster.finish(task, outcome=Outcome(Status.FAILED, "cut", 200))
    assert next(action for action in actions if isinstance(action, Started)).node == "b"
    assert sent(cluster, task) == expected


def test_a_load_without_a_request_is_known_by_its_options() -> None:
    cluster = VirtualCluster()
    key = cluster.add("a")
    cluster.finish(cluster.submit(options="num_ctx=1024,num_thread=2"), after=1000)
    cluster.now += 1000
    cluster.scheduler.view().nodes[key].asked_us = cluster.now
    cluster.feed(NodeSeen(key, NodeFacts("0.33.0", {MODEL: 10**9}, {})))
    cluster.feed(LoadRequested(key, MODEL, Kind.CHAT, "num_ctx=8192,num_thread=2", "", "it is wanted"))
    seen(cluster, key, 8192)
    cluster.feed(LoadEnded(key, MODEL, Outcome(Status.OK)))
    assert sent(cluster, cluster.submit(options="num_ctx=2048,num_thread=2")) == 8192
