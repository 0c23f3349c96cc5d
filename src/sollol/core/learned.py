"""Convert what the scheduler has learned to plain values and back.

A program that restarts restores it with the event `LearnedRestored`, so that its first predictions are as good as its
last. Values of another version of a model are left out. A value that cannot be read is left out, too: it comes from a
file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sollol.core.state.estimators import positive
from sollol.core.state.model_settings import ModelSettings
from sollol.core.state.replica import Node, Replica
from sollol.core.types import Micros
from sollol.core.view import SchedulerView

FORM: Final = 1  # of these values; others are left out
RATES: Final = ("work", "prefill", "decode")
MEANS: Final = ("overhead", "latency", "good_latency", "reliability")
ANSWERS_LEAST: Final = 1  # answers of a replica of which anything was learned


def learned_values(view: SchedulerView) -> dict[str, Any]:
    """Return what was learned of each node, replica and kind of answer, as values that JSON can hold."""
    nodes, replicas = {}, []
    for key, node in view.nodes.items():
        nodes[key] = {
            "load_time": node.load_time.values(),
            "memory": node.memory.values(),
            "speed": node.speed.values(),
            "held_bytes": node.held_bytes,
            "reads_on": node.reads_on,
        }
        for model, replica in node.replicas.items():
            if replica.answers >= ANSWERS_LEAST:
                replicas.append([key, model, _replica_values(replica)])
    return {"form": FORM, "nodes": nodes, "replicas": replicas, "lengths": view.lengths.values()}


def _replica_values(replica: Replica) -> dict[str, Any]:
    found: dict[str, Any] = {name: getattr(replica, name).values() for name in (*RATES, *MEANS)}
    found |= {"digest": replica.digest, "limit": replica.limiter.proven, "slowness": replica.measured_slowness}
    return found


class Learned:
    """Hold restored values until the nodes and replicas that they belong to appear."""

    def __init__(self, values: Mapping[str, Any] = {}) -> None:
        good = isinstance(values, Mapping) and values.get("form") == FORM
        self._nodes: dict[str, Any] = _mapping(values.get("nodes")) if good else {}
        self._replicas: dict[tuple[str, str], Any] = {}
        self._lengths: Any = values.get("lengths") if good else None
        for row in values.get("replicas") or () if good else ():
            if isinstance(row, list | tuple) and len(row) == 3:
                self._replicas[str(row[0]), str(row[1])] = row[2]

    def restore_settings(self, settings: ModelSettings) -> None:
        """Restore the usual lengths of answers."""
        _try(lambda: settings.lengths.restore(self._lengths))

    def restore_node(self, node: Node) -> None:
        """Restore what belongs to a node of which nothing was learned yet."""
        values = self._nodes.pop(node.key, None)
        if not isinstance(values, Mapping) or node.succeeded:
            return
        _try(lambda: node.load_time.restore(values["load_time"]))
        _try(lambda: node.memory.restore(values["memory"]))
        _try(lambda: node.speed.restore(values["speed"]))
        if isinstance(values.get("held_bytes"), int):
            node.held_bytes = max(node.held_bytes, values["held_bytes"])
            node.gpu_seen = node.held_bytes > 0
        if isinstance(values.get("reads_on"), bool):
            node.reads_on = values["reads_on"]

    def restore_replica(self, replica: Replica, now: Micros) -> None:
        """Restore what belongs to a replica without answers, if it has the same version of the model."""
        values = self._replicas.pop((replica.node.key, replica.model), None)
        if not isinstance(values, Mapping) or replica.answers or values.get("digest") != replica.digest:
            return
        for name in (*RATES, *MEANS):
            estimator = getattr(replica, name)
            _try(lambda estimator=estimator, name=name: estimator.restore(values[name]))
        limit = values.get("limit")
        _try(lambda: _restore_slowness(replica, values["slowness"]))
        if isinstance(limit, int) and limit > 1:
            replica.limiter.restore(limit, now)
            replica.limit, replica.proven = replica.limiter.limit, replica.limiter.proven
        replica.group.samples += 1  # typical rates are computed again


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _restore_slowness(replica: Replica, value: Any) -> None:
    slowness = positive(value)
    if slowness >= 1.0:
        replica.measured_slowness = slowness


def _try(restore: Any) -> None:
    """Restore one value; leave it out if it cannot be read."""
    try:
        restore()
    except (TypeError, ValueError, KeyError, IndexError, OverflowError):
        pass
