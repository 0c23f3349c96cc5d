"""What was learned comes back as it was, and only where it belongs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sollol.core.events import LearnedRestored, NodeSeen
from sollol.core.learned import learned_values
from sollol.core.types import LoadedModel, NodeFacts
from tests.core.virtual import MODEL, VirtualCluster

FAST, SLOW = 200_000, 900_000  # µs of an answer


def trained() -> VirtualCluster:
    cluster = VirtualCluster()
    cluster.add("fast", FAST)
    cluster.add("slow", SLOW)
    return cluster


def values(cluster: VirtualCluster) -> dict[str, Any]:
    """As they come back from a file."""
    found: dict[str, Any] = json.loads(json.dumps(learned_values(cluster.scheduler.view())))
    return found


def restored(learned: Any, digest: str = "") -> VirtualCluster:
    cluster = VirtualCluster()
    cluster.feed(LearnedRestored(learned))
    for name in ("fast", "slow"):
        key = cluster.add(name)
        if digest:
            facts = NodeFacts("0.33.0", {MODEL: 10**9}, {MODEL: LoadedModel(1, 1)}, {MODEL: digest})
            cluster.feed(NodeSeen(key, facts))
    return cluster


def prediction(cluster: VirtualCluster, node: str) -> int:
    task = cluster.submit(only=(f"{node}:11434",))
    start = cluster.running[cluster.attempt_of(task)]
    return start.decision.predicted_us


def test_the_first_prediction_after_a_restart_is_the_last_one_of_before() -> None:
    before = trained()
    after = restored(values(before))
    for node in ("fast", "slow"):
        assert prediction(after, node) == pytest.approx(prediction(before, node), rel=0.02)


def test_the_first_request_goes_to_the_faster_node() -> None:
    cluster = restored(values(trained()))
    task = cluster.submit()
    assert cluster.running[cluster.attempt_of(task)].node == "fast:11434"


def test_what_was_learned_after_a_restart_is_kept_too() -> None:
    first = values(trained())
    cluster = restored(first)
    cluster.finish(cluster.submit(), after=FAST)
    again = values(cluster)
    assert {row[0] for row in again["replicas"]} == {"fast:11434"}


def test_another_version_of_a_model_starts_anew() -> None:
    cluster = VirtualCluster()
    cluster.feed(LearnedRestored(values(trained())))
    for name in ("fast", "slow"):
        key = f"{name}:11434"
        cluster.add(name, models={})
        cluster._models[key] = {MODEL: 10**9}
        facts = NodeFacts("0.33.0", {MODEL: 10**9}, {MODEL: LoadedModel(1, 1)}, {MODEL: "another"})
        cluster.feed(NodeSeen(key, facts))
    cluster.submit()
    replicas = [node.replicas[MODEL] for node in cluster.scheduler.view().nodes.values()]
    assert all(replica.decode.read() is None for replica in replicas)


def test_a_learned_limit_is_proven_again_without_a_trial() -> None:
    learned = values(trained())
    for row in learned["replicas"]:
        row[2]["limit"] = 4
    cluster = restored(learned)
    tasks = [cluster.submit(only=("fast:11434",)) for _ in range(6)]
    assert len(cluster.running) == 4
    assert tasks


BAD: list[Any] = [
    {}, {"form": 99}, {"form": 1}, {"form": 1, "nodes": 5, "replicas": 7, "lengths": "x"}, {"form": 1, "replicas": [3]},
    {"form": 1, "nodes": {"fast:11434": []}, "replicas": [["fast:11434", MODEL, []]], "lengths": [[1]]}, [], "x", None,
    {"form": 1, "lengths": [[["m"], -1, -5]]},
]  # fmt: skip


@pytest.mark.parametrize("learned", BAD, ids=range(len(BAD)))
def test_values_that_cannot_be_read_are_left_out(learned: Any) -> None:
    cluster = restored(learned)
    task = cluster.submit()
    cluster.finish(task, after=FAST)
    assert task in cluster.completed


@pytest.mark.parametrize("wrong", [-1.0, 1e400, float("nan"), "x", None, [], 10**400])
def test_each_number_may_be_wrong(wrong: Any) -> None:
    learned = values(trained())
    for row in learned["replicas"]:
        for name, held in row[2].items():
            row[2][name] = [wrong, wrong] if isinstance(held, list) else wrong
        row[2]["digest"] = ""
    for node in learned["nodes"].values():
        node.update(load_time=[wrong] * 4, memory=[[wrong, wrong], [[wrong, wrong]]], speed=[wrong, wrong])
    learned["lengths"] = [[["m"], wrong, wrong]]
    cluster = restored(learned)
    task = cluster.submit()
    cluster.finish(task, after=FAST)
    assert task in cluster.completed
