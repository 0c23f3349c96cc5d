"""Handle the events about models without a request, and about the wishes of a node's owner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sollol.core.demotion import Demotion
from sollol.core.events import (
    GpuReported,
    LoadEnded,
    LoadRequested,
    NodeOwned,
    Retested,
    UnloadRequested,
    WakeRequested,
)
from sollol.core.load_watch import LoadWatch
from sollol.core.model_loading import load_requested, loaded, unload_requested
from sollol.core.sleep import Sleep
from sollol.core.state.replica import Replica
from sollol.core.state.scheduler_state import SchedulerState
from sollol.core.types import OK, SECOND, Micros, Status


class ModelEvents:
    """Hold the handlers of these events."""

    __slots__ = ("_demotion", "_load_watch", "_sleep", "_state")

    def __init__(self, state: SchedulerState, load_watch: LoadWatch, demotion: Demotion, sleep: Sleep) -> None:
        self._state = state
        self._load_watch = load_watch
        self._demotion = demotion
        self._sleep = sleep

    def handlers(self) -> dict[type, Callable[[Any, Micros], None]]:
        """Return the handler of each event."""
        return {
            NodeOwned: self._node_owned,
            GpuReported: self._gpu_reported,
            WakeRequested: self._wake_requested,
            Retested: self._retested,
            LoadRequested: self._load_requested,
            LoadEnded: self._load_ended,
            UnloadRequested: self._unload_requested,
        }

    def _replica(self, key: str, model: str) -> Replica | None:
        node = self._state.cluster.nodes.get(key)
        return None if node is None else node.replicas.get(model)

    def _node_owned(self, event: NodeOwned, now: Micros) -> None:
        node = self._state.cluster.nodes.get(event.node)
        if node is not None:
            node.budget = event.budget
            self._sleep.set_wakeable(node, event.wakeable, now)
            for replica in node.replicas.values():
                replica.flag_off_nominal()

    def _gpu_reported(self, event: GpuReported, now: Micros) -> None:
        node = self._state.cluster.nodes.get(event.node)
        if node is not None:
            node.gpu_total, node.gpu_free = event.total, event.free

    def _wake_requested(self, event: WakeRequested, now: Micros) -> None:
        node = self._state.cluster.nodes.get(event.node)
        if node is not None:
            self._sleep.wake(node, event.why, now)

    def _retested(self, event: Retested, now: Micros) -> None:
        replica = self._replica(event.node, event.model)
        if replica is not None:
            self._demotion.retested(replica, event.per_s / SECOND, event.took_us, now)
            self._state.bind_model(replica.model, now)

    def _load_requested(self, event: LoadRequested, now: Micros) -> None:
        load_requested(self._state, event, now)

    def _load_ended(self, event: LoadEnded, now: Micros) -> None:
        replica = self._replica(event.node, event.model)
        if replica is None:
            return
        replica.loading_until = 0
        if event.outcome.status is OK:
            loaded(replica, now)
            self._load_watch.ended(replica.node, now)
        elif event.outcome.status is Status.TOO_LARGE:
            self._state.cluster.learn_too_large(replica.node, event.model, event.outcome, now)
        self._state.bind_model(event.model, now)

    def _unload_requested(self, event: UnloadRequested, now: Micros) -> None:
        unload_requested(self._state, event)
