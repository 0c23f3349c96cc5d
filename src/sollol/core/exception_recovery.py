"""Limit an exception of the scheduler to one task: it is settled, all others go on.

Between two events the state is consistent. An exception in the middle of one may leave a task half bound. So the
current task is removed without the code that has just failed, and the counts of its replicas are rebuilt.
"""

from __future__ import annotations

from typing import Final

from sollol.core.actions import Abort, Complete, SchedulerException
from sollol.core.events import Event, NodeLost, NodeSeen, Submitted
from sollol.core.slot_binding import SlotBinding
from sollol.core.state.pending import PendingTask
from sollol.core.state.replica import Replica
from sollol.core.state.scheduler_state import LEFT, SchedulerState
from sollol.core.types import NEVER, SECOND, Micros, Outcome, Status

AGAIN: Final[Micros] = SECOND  # until waiting tasks are bound after an exception without a task
INTERNAL: Final = 500


def exception_outcome(error: Exception) -> Outcome:
    """Return the outcome of a task after an exception of this program."""
    cause = f"{type(error).__name__}: {error}"[:300]
    return Outcome(Status.REFUSED, f"SOLLOL failed at this call, which is no fault of its own: {cause}", INTERNAL)


class ExceptionRecovery:
    """Settle the tasks that exceptions concern, and report the exceptions."""

    __slots__ = ("_binding", "_planned", "_state")

    def __init__(self, state: SchedulerState, binding: SlotBinding) -> None:
        self._state = state
        self._binding = binding
        self._planned = False
        state.recover = self.recover

    def event_failed(self, event: Event, error: Exception, now: Micros) -> None:
        """Recover from an exception in the handling of an event."""
        state = self._state
        if isinstance(event, Submitted) and state.current_task is None and not self._is_known(event.task.id):
            self._report(event.task.id, error)
            state.out.append(Complete(event.task.id, exception_outcome(error)))
            return
        self._recount_all()
        if isinstance(event, NodeSeen | NodeLost):
            self._plan_probe(event.node, now)
        if state.health.next_at <= now:
            state.health.next_at = now + AGAIN
        self.recover(error, now)

    def _is_known(self, task: int) -> bool:
        """Check that a task is open, or was settled by this event."""
        settled = any(isinstance(action, Complete) and action.task == task for action in self._state.out)
        return settled or any(pending.task.id == task for pending in self._state.tasks.values())

    def _recount_all(self) -> None:
        """Rebuild the counts of all replicas."""
        for node in self._state.cluster.nodes.values():
            for replica in node.replicas.values():
                recount(replica)

    def _plan_probe(self, key: str, now: Micros) -> None:
        """Plan a new probe, since the exception may have lost the last one."""
        node = self._state.cluster.nodes.get(key)
        if node is not None:
            node.probing = False
            node.next_probe_us = now + AGAIN
            self._state.health.next_at = min(self._state.health.next_at, now + AGAIN)

    def recover(self, error: Exception, now: Micros) -> None:
        """Settle the current task, report the exception, and bind waiting tasks."""
        state = self._state
        while True:  # each turn settles a task
            pending, state.current_task = state.current_task, None
            self._report(0 if pending is None else pending.task.id, error)
            if pending is None:
                if not self._planned:
                    self._planned = True
                    state.call_at(now + AGAIN, self._bind_all)
                return
            self.expel(pending, exception_outcome(error), now)
            try:
                self._binding.bind_all(now)
            except Exception as another:
                error = another
                continue
            return

    def expel(self, pending: PendingTask, outcome: Outcome, now: Micros) -> None:
        """Remove a task from all state, whatever its condition, and settle it once."""
        state, task = self._state, pending.task
        is_over = any(isinstance(action, Complete) and action.task == task.id for action in state.out)
        state.tasks.pop(pending.key, None)
        self._leave_queue(pending)
        if pending.waits_for is not None:
            pending.waits_for.waiters -= 1
            pending.waits_for = None
        state.batches.get(task.model, {}).pop(task.id, None)
        if pending.group is not None:
            pending.group.batches = len(state.batches.get(task.model, ()))
        for replica in self._replicas_of(pending):
            for attempt in [attempt for attempt in replica.attempts.values() if attempt.task.id == pending.task.id]:
                replica.attempts.pop(attempt.key, None)
                pending.attempts[attempt.key] = attempt
            recount(replica)
        for attempt in pending.attempts.values():
            state.attempts.pop(attempt.key, None)
            state.out.append(Abort(attempt.id, LEFT))
        pending.attempts.clear()
        if not is_over:
            state.out.append(Complete(task.id, outcome))

    def _leave_queue(self, pending: PendingTask) -> None:
        queue = self._state.queues.get(pending.task.model)
        if queue is None:
            return
        queue.rebuild_without(pending.key)

    def _replicas_of(self, pending: PendingTask) -> list[Replica]:
        replicas = [replica for node in self._state.cluster.nodes.values() for replica in node.replicas.values()]
        replicas += [attempt.replica for attempt in pending.attempts.values()]
        touched: list[Replica] = []
        for replica in replicas:
            holds = any(attempt.task.id == pending.task.id for attempt in replica.attempts.values())
            named = any(attempt.replica is replica for attempt in pending.attempts.values())
            if (holds or named) and replica not in touched:
                touched.append(replica)
        return touched

    def _report(self, task: int, error: Exception) -> None:
        self._state.out.append(SchedulerException(task, error))

    def _bind_all(self, now: Micros) -> None:
        self._planned = False
        self._binding.bind_all(now)


def recount(replica: Replica) -> None:
    """Rebuild the counts of a replica, of its node and of its model."""
    node, group = replica.node, replica.group
    attempts = list(replica.attempts.values())
    replica.responding = sum(attempt.responding for attempt in attempts)
    replica.occupies_gpu = sum(attempt.occupies_gpu for attempt in attempts)
    replica.soonest_us = min([attempt.due_us for attempt in attempts], default=NEVER)
    replica.cost_inflight = sum([attempt.cost for attempt in attempts], 0.0)
    if group.replicas.get(replica.key) is replica:
        group.with_capacity[replica.key] = replica  # a full replica in there costs a check, no more
        group.off_nominal[replica.key] = replica
    replica.nominal = False
    node.running = sum(len(other.attempts) for other in node.replicas.values())
    node.active_models = sum(other.occupies_gpu > 0 for other in node.replicas.values())
    group.inflight_cost = sum([other.cost_inflight for other in group.replicas.values()], 0.0)
