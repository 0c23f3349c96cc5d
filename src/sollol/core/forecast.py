"""What waiting tasks can be told: their place in line, and when they should start. Reads, and changes nothing."""

from __future__ import annotations

from sollol.core.state.scheduler_state import SchedulerState
from sollol.core.types import SECOND, Micros


class QueueForecast:
    def __init__(self, state: SchedulerState) -> None:
        self._state = state

    def position(self, task: int, now: Micros) -> tuple[int, Micros] | None:
        """A waiting task's place in its line, from 1, and in how long it should start. None if it does not wait."""
        pending = self._state.tasks.get(task)
        queue = self._state.queues.get(pending.task.model) if pending else None
        if pending is None or queue is None or task not in queue:
            return None
        place = queue.first(len(queue), now).index(task) + 1
        return place, self.wait_for(place, pending.task.model, now)

    def line_up(self, model: str, now: Micros) -> list[tuple[int, Micros]]:
        """The tasks that wait for a model in their order, each with the time in which it should start."""
        queue = self._state.queues.get(model)
        if queue is None:
            return []
        waiting = queue.first(len(queue), now)
        return [(task, self.wait_for(place, model, now)) for place, task in enumerate(waiting, 1)]

    def models_waited_for(self) -> list[str]:
        return [model for model, queue in self._state.queues.items() if queue]

    def wait_for(self, place: int, model: str, now: Micros) -> Micros:
        """Slots free at the rate at which the lanes answer; before any answered, what they are predicted to take."""
        group = self._state.cluster.groups.get(model)
        replicas = group.usable(now) if group else []
        if not replicas:
            return 0
        soonest = min(replica.wait_us(now) for replica in replicas)
        rate = sum(replica.proven / max(1.0, replica.latency.read() or SECOND) for replica in replicas)
        return soonest + round((place - 1) / rate)
