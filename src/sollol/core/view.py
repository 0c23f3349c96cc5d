"""Read the scheduler's state from outside. Writing is left to events (`core.events`)."""

from __future__ import annotations

from collections.abc import Mapping

from sollol.core.policy import Policies
from sollol.core.state.estimators import Lengths
from sollol.core.state.pending import PendingTask
from sollol.core.state.replica import Attempt, ModelReplicas, Node
from sollol.core.state.scheduler_state import SchedulerState
from sollol.core.types import SECOND, Key, Micros


class SchedulerView:
    """Return the state of a scheduler as it is now. Nothing is copied, so read it between two events."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state

    @property
    def nodes(self) -> Mapping[str, Node]:
        """Return the nodes by "host:port"."""
        return self._state.cluster.nodes

    @property
    def groups(self) -> Mapping[str, ModelReplicas]:
        """Return the replicas of each model, by its canonical name."""
        return self._state.cluster.groups

    @property
    def tasks(self) -> Mapping[Key, PendingTask]:
        """Return the tasks that are not complete, by id."""
        return self._state.tasks

    @property
    def attempts(self) -> Mapping[Key, Attempt]:
        """Return the attempts in flight, by id."""
        return self._state.attempts

    @property
    def policies(self) -> Policies:
        """Return the policies in use."""
        return self._state.policies

    @property
    def lengths(self) -> Lengths:
        """Return the usual lengths of answers."""
        return self._state.cluster.lengths

    def waiting(self) -> int:
        """Return the number of tasks in all queues."""
        return self._state.waiting()

    # --- queues ---

    def waited_for(self) -> list[str]:
        """Return the models that at least one task waits for."""
        return [model for model, queue in self._state.queues.items() if queue]

    def queue_of(self, model: str, now: Micros) -> list[tuple[int, Micros]]:
        """Return the waiting tasks of a model in order, each with the expected µs until it starts."""
        queue = self._state.queues.get(model)
        if queue is None:
            return []
        waiting = queue.first(len(queue), now)
        return [(task, self.expected_wait_us(place, model, now)) for place, task in enumerate(waiting, 1)]

    def position(self, task: int, now: Micros) -> tuple[int, Micros] | None:
        """Return the place of a waiting task, from 1, and the expected µs until it starts; None if it runs."""
        pending = self._state.tasks.get(task)
        queue = self._state.queues.get(pending.task.model) if pending else None
        if pending is None or queue is None or task not in queue:
            return None
        place = queue.first(len(queue), now).index(task) + 1
        return place, self.expected_wait_us(place, pending.task.model, now)

    def expected_wait_us(self, place: int, model: str, now: Micros) -> Micros:
        """Predict the µs until the task at a place of a queue starts.

        Slots become free at the rate at which the replicas answer.
        """
        group = self._state.cluster.groups.get(model)
        replicas = group.usable(now) if group else []
        if not replicas:
            return 0
        soonest = min(replica.wait_us(now) for replica in replicas)
        rate = sum(replica.proven / max(1.0, replica.latency.read() or SECOND) for replica in replicas)
        return soonest + round((place - 1) / rate)
