"""Follow which models a node holds in memory: listed, loaded by our requests, evicted by a load."""

from __future__ import annotations

from sollol.core.state.replica import Attempt, Node, Replica
from sollol.core.types import LoadedModel, Micros


def sizes_loaded(node: Node) -> dict[str, int]:
    """Return the bytes of each model in memory, as listed or by our own answers; else those on disk."""
    sizes = _sizes_listed(node)
    for model, replica in node.replicas.items():
        if replica.loaded_by_us and model not in sizes:
            sizes[model] = node.models.get(model, 0)
    return sizes


def remember(node: Node, now: Micros) -> None:
    """Learn what fits together, from the present list of models in memory and the last one."""
    current = _sizes_listed(node)
    before = dict(node.listed)
    for model, replica in node.replicas.items():
        if replica.answers and replica.last_end_us > node.listed_us:
            before.setdefault(model, node.models.get(model, 0))
    for model in node.put_out:
        before.pop(model, None)
    node.put_out = node.put_out & current.keys()  # those that are still on their way out
    loading = {model: node.models.get(model, 0) for model, replica in node.replicas.items() if replica.is_loading}
    node.memory.seen(node.listed, before, current, loading, node.used(now))
    node.listed, node.listed_us = current, now


def expect(node: Node, model: str) -> None:
    """Expect a model in memory from now on, without those that do not fit beside it."""
    loaded, held = sizes_loaded(node), dict(node.loaded)
    size = node.models.get(model, 0)
    for name in sorted(loaded, key=node.last_use):
        if name == model or node.memory.risk(loaded, size) < 1.0:
            continue
        del loaded[name]
        held.pop(name, None)
        replica = node.replicas.get(name)
        if replica is not None:
            replica.loaded_by_us = False
            replica.flag_off_nominal()
    held.setdefault(model, LoadedModel())
    node.loaded = held


def expect_no_longer(node: Node) -> None:
    """Take back what was expected in memory and was neither listed nor has answered."""
    node.loaded = {
        model: held
        for model, held in node.loaded.items()
        if held.size or ((replica := node.replicas.get(model)) is not None and replica.loaded_by_us)
    }


def put_out(node: Node, model: str) -> None:
    """Record that a model is unloaded by us, which is no evidence of what fits."""
    node.put_out.add(model)
    node.loaded = {name: held for name, held in node.loaded.items() if name != model}
    replica = node.replicas.get(model)
    if replica is not None:
        replica.gone()
        replica.flag_off_nominal()


def load_not_ended(replica: Replica, attempt: Attempt) -> None:
    """Expect a model no longer whose load lost its attempt; an attempt behind it loads the model then."""
    held = replica.node.loaded.get(replica.model)
    if attempt.delivering or replica.loaded_by_us or held is None or held.size:
        return
    for other in replica.attempts.values():
        other.loads = True
        return
    replica.node.loaded = {model: each for model, each in replica.node.loaded.items() if model != replica.model}
    replica.flag_off_nominal()


def learn_from_load(node: Node, replica: Replica, since: Micros) -> None:
    """Learn from an unexpected load: models that answered since did not fit beside this one."""
    others = [
        other.model
        for other in node.replicas.values()
        if other is not replica and other.answers and other.last_end_us > since
    ]
    sizes = [node.models.get(model, 0) for model in (replica.model, *others)]
    if others and since:
        node.memory.note(len(sizes), sum(sizes))


def expect_loads(node: Node, model: str = "") -> None:
    """Expect in memory what was loaded now, and what attempts in flight must load."""
    if model:
        expect(node, model)
    for other, replica in node.replicas.items():
        if other != model and replica.is_loading:
            expect(node, other)


def _sizes_listed(node: Node) -> dict[str, int]:
    """Return the bytes of each listed model; without a size, those on disk."""
    return {model: held.size or node.models.get(model, 0) for model, held in node.loaded.items()}
