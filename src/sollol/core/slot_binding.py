"""Bind waiting tasks to free slots."""

from __future__ import annotations

from typing import Final

from sollol.core.batch_scheduler import BatchScheduler
from sollol.core.request_scheduler import RequestScheduler
from sollol.core.state.pending import PendingTask
from sollol.core.state.replica import ModelReplicas, Replica
from sollol.core.state.scheduler_state import SchedulerState
from sollol.core.state.slot_evidence import reopen
from sollol.core.types import MILLISECOND, SECOND, Key, Micros

LONG_WAIT: Final[Micros] = 10 * SECOND  # of a task, after which its replica may have more slots than were known
LOOKAHEAD: Final = 64  # waiting tasks considered for a free slot when the first ones rather wait for a busy node
RESCAN_PAUSE: Final[Micros] = (
    10 * MILLISECOND
)  # between two passes over all waiting tasks, each of which may take milliseconds


class SlotBinding:
    """Offer free slots to waiting tasks, in their order."""

    __slots__ = ("_batches", "_requests", "_state")

    def __init__(self, state: SchedulerState, requests: RequestScheduler, batches_scheduler: BatchScheduler) -> None:
        self._state = state
        self._requests = requests
        self._batches = batches_scheduler

    def bind_all(self, now: Micros) -> None:
        """Bind the waiting tasks of all models."""
        for group in [m for m in self._state.cluster.groups.values() if m.queue.waiting]:
            self.bind(group, now)

    def others_wait(self, freed: Replica) -> bool:
        """Check that tasks wait for another model of the node."""
        for replica in freed.node.replicas.values():  # noqa: SIM110  compiled, a generator expression is slow
            if replica is not freed and replica.group.queue.waiting:
                return True
        return False

    def bind_node(self, freed: Replica, slot_only: bool, now: Micros) -> None:
        """Bind tasks of all models of a node that has less to do.

        Args:
            slot_only: Nothing about the freed replica has changed but its slot.
        """
        node = freed.node
        waited = [replica for replica in node.replicas.values() if replica is not freed and replica.group.queue.waiting]
        for replica in [freed, *waited]:
            self.bind(replica.group, now, [replica] if slot_only or replica is not freed else None)
        if node.active_models < node.concurrency.limit and node.usable:
            # The one whose turn it was has gone elsewhere: the node must not stand idle for it.
            node.concurrency.unordered = True
            for replica in [freed, *waited]:
                if replica.group.queue.waiting:
                    self.bind(replica.group, now, [replica])
            node.concurrency.unordered = False

    def rescan(self, model: str, now: Micros) -> None:
        """Look, once a second, for slots that long answers hide, and for models that need not take turns."""
        group = self._state.cluster.groups.get(model)
        if group is None or not group.queue.waiting:
            return
        for replica in list(group.replicas.values()):
            if len(replica.attempts) >= replica.limit:
                if now - group.queue.head(now)[3] >= LONG_WAIT:
                    reopen(replica, now)
            elif (
                not replica.occupies_gpu
                and replica.is_waited_for()
                and replica.node.active_models >= replica.node.concurrency.limit
            ):
                priority, _, _, arrived = group.queue.head(now)
                running = max(
                    a.task.priority for other in replica.node.replicas.values() for a in other.attempts.values()
                )
                if priority >= running and replica.is_loaded:
                    replica.node.concurrency.try_another(now - arrived, now)
        self.bind(group, now)

    def bind_model(self, model: str, now: Micros, freed: list[Replica] | None = None) -> None:
        """Bind the waiting tasks of a model."""
        group = self._state.cluster.groups.get(model)
        if group is not None:
            self.bind(group, now, freed)

    def bind_new(self, pending: PendingTask, group: ModelReplicas, now: Micros) -> None:
        """Bind a new request, while some replica has room."""
        if group.queue.peek(now) == pending.task.id:
            self.bind(group, now)
        elif now < group.rescan_after:
            self._plan_rescan(group)  # those before it were compared just before
        else:
            self.bind(group, now, [])

    def probe_slots(self, group: ModelReplicas, now: Micros) -> None:
        """Test for one more slot if the next task would wait very long and all slots are taken."""
        if now < group.full_until:
            return
        group.full_until = now + RESCAN_PAUSE
        head = group.queue.peek(now)
        assert head is not None
        pending = self._state.current_task = self._state.tasks[head]
        if pending.batch is None and (replica := self._requests.tries(pending, group, now)) is not None:
            self.bind(group, now, [replica])

    def bind(self, group: ModelReplicas, now: Micros, freed: list[Replica] | None = None) -> None:
        """Bind waiting tasks of a model to free slots.

        Args:
            freed: Replicas that can have changed; None for all.
        """
        self._state.current_task = None
        late, batches = self._requests.hedging.late, self._state.batches.get(group.model)
        if late and group.model in late:
            self._requests.hedging.offer(group, now)
        queue = group.queue
        while queue.waiting:
            if not batches and not group.with_capacity and group.replicas:
                return  # every slot is taken: the next answer brings us back
            head = queue.peek(now)
            assert head is not None
            reserved_us: dict[str, Micros] = {}
            if self._bind_task(head, group, reserved_us, freed, now):
                self._bind_behind_head(group, head, reserved_us, freed, now)
                break
        for batch in list(batches.values()) if batches else ():
            if batch.live and not batch.pending_count:
                self._state.current_task = self._state.tasks.get(batch.task.id)
                self._batches.take_over(batch, group, now)

    def _bind_behind_head(
        self, group: ModelReplicas, head: Key, reserved_us: dict[str, Micros], freed: list[Replica] | None, now: Micros
    ) -> None:
        """Offer free slots to tasks behind a head that waits for a busy replica."""
        queue = group.queue
        if len(queue.waiting) < 2 or not _any_free(group, now):
            return
        if now < group.rescan_after:
            self._plan_rescan(group)
            return
        group.rescan_planned = False
        group.rescan_after = now + RESCAN_PAUSE
        for task in queue.first(LOOKAHEAD, now):
            if task == head or task not in queue.waiting:
                continue
            self._bind_task(task, group, reserved_us, freed, now)
            if not _any_free(group, now):
                return

    def _plan_rescan(self, group: ModelReplicas) -> None:
        if not group.rescan_planned:
            group.rescan_planned = True
            self._state.bind_at(group.model, group.rescan_after)

    def _bind_task(
        self, task: Key, group: ModelReplicas, reserved_us: dict[str, Micros], freed: list[Replica] | None, now: Micros
    ) -> bool:
        """Bind one task. Return True if it still waits."""
        pending = self._state.current_task = self._state.tasks[task]
        if pending.batch is None:
            return self._requests.bind(pending, group, reserved_us, freed, now)
        self._batches.bind(pending, pending.batch, group, freed, now)
        return task in group.queue.waiting


def _any_free(group: ModelReplicas, now: Micros) -> bool:
    for replica in group.with_capacity.values():  # noqa: SIM110  compiled, a generator expression is slow
        if replica.free(now, False):
            return True
    return False
