"""Plans of placement, without a scheduler: never more than fits, never a model that must stay, never for nothing."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sollol.policies.placement import GreedyPlacement, ModelNeed, NodeRoom
from sollol.policies.placement_check import arrivals, try_placement

GB = 10**9
ROOT = Path(__file__).parents[2]


def room(name: str, gb: int, models: dict[str, int], held: tuple[str, ...] = (), **more: Any) -> NodeRoom:
    service, load = dict.fromkeys(models, 1.0), {model: float(size) for model, size in models.items()}
    return NodeRoom(name, gb * GB, service, load, {model: models[model] * GB for model in held}, **more)


def need(model: str, gb: int, per_min: float, least: int = 0) -> ModelNeed:
    return ModelNeed(model, gb * GB, per_min / 60, least)


def done(needs: list[ModelNeed], nodes: list[NodeRoom]) -> list[tuple[str, str, str]]:
    plan = GreedyPlacement().plan(needs, nodes)
    return [("load" if step.load else "unload", step.node, step.model) for step in plan.steps]


def test_what_is_wanted_most_is_loaded_and_makes_room() -> None:
    models = {"a": 4, "b": 4}
    nodes = [room("n1", 4, models, held=("b",))]
    assert done([need("a", 4, 10), need("b", 4, 0.01)], nodes) == [("unload", "n1", "b"), ("load", "n1", "a")]


def test_nothing_moves_for_nothing() -> None:
    models = {"a": 4, "b": 4}
    assert done([need("a", 4, 10), need("b", 4, 10)], [room("n1", 8, models, held=("a", "b"))]) == []
    assert done([need("a", 4, 0.001)], [room("n1", 4, models, held=("b",))]) == [], "a load would not pay"
    assert done([], [room("n1", 4, models, held=("b",))]) == []


def test_what_is_pinned_or_in_use_stays() -> None:
    nodes = [room("n1", 4, {"a": 4, "b": 4}, held=("b",), kept=frozenset("b"))]
    assert done([need("a", 4, 100)], nodes) == []


def test_priority_models_are_loaded_without_demand() -> None:
    nodes = [room("n1", 8, {"a": 4}), room("n2", 8, {"a": 4})]
    assert done([need("a", 4, 0, least=1)], nodes) == [("load", "n1", "a")]
    assert len(done([need("a", 4, 0, least=2)], nodes)) == 2


def test_a_hot_model_gets_a_second_node() -> None:
    nodes = [room("n1", 8, {"a": 4}, held=("a",)), room("n2", 8, {"a": 4})]
    assert done([need("a", 4, 50)], nodes) == [("load", "n2", "a")]
    assert done([need("a", 4, 1)], nodes) == []


SIZES = st.integers(1, 40)


@given(
    st.lists(SIZES, min_size=1, max_size=8),
    st.lists(st.integers(1, 60), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
)
def test_no_plan_overcommits_or_touches_what_must_stay(sizes: list[int], rooms: list[int], rng: random.Random) -> None:
    models = {f"m{number}": size for number, size in enumerate(sizes)}
    nodes = []
    for number, gb in enumerate(rooms):
        held: list[str] = []
        for model in rng.sample(sorted(models), len(models)):
            if sum(models[name] for name in [*held, model]) <= gb and rng.random() < 0.6:
                held.append(model)
        kept = frozenset(model for model in held if rng.random() < 0.3)
        on_disk = {model: size for model, size in models.items() if model in held or rng.random() < 0.8}
        nodes.append(room(f"n{number}", gb, on_disk, tuple(held), kept=kept, most=max(len(held), rng.randrange(1, 5))))
    needs = [need(model, size, rng.choice([0, 0.1, 5, 80]), rng.choice([0, 0, 0, 2])) for model, size in models.items()]
    plan = GreedyPlacement().plan(needs, nodes)
    warm = {node.node: set(node.held) for node in nodes}
    by_name = {node.node: node for node in nodes}
    for step in plan.steps:
        node = by_name[step.node]
        assert step.reason
        if step.load:
            assert step.model in node.service_s
            warm[step.node].add(step.model)
        else:
            assert step.model not in node.kept
            warm[step.node].remove(step.model)
        assert sum(models[model] * GB for model in warm[step.node]) <= node.room
        assert len(warm[step.node]) <= node.most
    again = [node._replace(held={model: models[model] * GB for model in warm[node.node]}) for node in nodes]
    second = GreedyPlacement().plan(needs, again)
    assert len(second.steps) <= len(plan.steps) + 1, "a plan that was carried out is not undone"


def test_a_trial_on_paper_prefers_the_warm_model() -> None:
    nodes = [room("n1", 4, {"a": 4, "b": 4}, held=("b",))]
    needs = [need("a", 4, 5), need("b", 4, 0.1)]
    requests = arrivals(needs, 600, random.Random(1))
    cold = try_placement(needs, nodes, {"n1": frozenset("b")}, requests)
    warm = try_placement(needs, nodes, {"n1": frozenset("a")}, requests)
    assert warm.mean_s < cold.mean_s
    assert warm.loads <= cold.loads
    assert try_placement(needs, nodes, {"n1": frozenset()}, []).mean_s == 0.0


def test_a_plan_does_not_depend_on_the_order_of_sets() -> None:
    """Two processes hash strings otherwise; equal demand and equal last use leave the order to names."""
    script = (
        "import random\n"
        "from sollol.policies.placement import GreedyPlacement\n"
        "from sollol.policies.placement_check import arrivals, try_placement\n"
        "from tests.policies.test_placement import need, room\n"
        "models = {f'model-{n}': 1 + n % 3 for n in range(12)}\n"
        "nodes = [room(f'n{n}', 6, models, tuple(models)[3 * n : 3 * n + 3]) for n in range(4)]\n"
        "needs = [need(model, size, 0.01 if n < 9 else 20) for n, (model, size) in enumerate(models.items())]\n"
        "plan = GreedyPlacement().plan(needs, nodes)\n"
        "trial = try_placement(needs, nodes, plan.warm, arrivals(needs, 3_600, random.Random(1)))\n"
        "print([step[:4] for step in plan.steps], plan.before_s, plan.after_s, trial)\n"
    )
    found = set()
    for seed in ("1", "2", "3"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, check=True)
        found.add(done.stdout)
    assert len(found) == 1
    assert b"True" in next(iter(found))
