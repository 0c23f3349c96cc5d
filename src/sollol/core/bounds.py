"""Bound what callers can invent: names of models and applications, options, deadlines."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sollol.core.state.model_replicas import ModelReplicas
    from sollol.core.state.scheduler_state import SchedulerState


def forget_model(state: SchedulerState, group: ModelReplicas) -> None:
    """Remove a model that no node has, once its last task is complete."""
    model = group.model
    if group.replicas or group.tasks or state.cluster.groups.get(model) is not group:
        return
    for node in state.cluster.nodes.values():
        if model in node.replicas:
            return
    del state.cluster.groups[model]
    state.queues.pop(model, None)
    state.batches.pop(model, None)


def keep_largest(values: dict[str, float], most: int) -> dict[str, float]:
    """Return the `most` largest of these values."""
    return values if len(values) <= most else dict(sorted(values.items(), key=_value)[-most:])


def _value(item: tuple[str, float]) -> float:
    return item[1]
