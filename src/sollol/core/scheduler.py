"""The scheduler: events in, actions out. It is the only writer of its state.

Late binding: a task waits in its model's queue until a node has a free slot, and the choice is made then. Batches stand
in the same queue and are cut into chunks as slots free. When nothing waits, an idle node takes over what is expected to
finish last (`core.takeover`). Every task ends in exactly one Complete.

Over 400 lines, because each event has its handler here: callers, answers, nodes, time.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final

from sollol.core.actions import Action, WakeAt
from sollol.core.batch_scheduler import BatchScheduler
from sollol.core.events import (
    Cancelled,
    Configure,
    Event,
    Finished,
    FirstToken,
    ItemsAdded,
    LearnedRestored,
    NodeAdded,
    NodeDrained,
    NodeLost,
    NodeRemoved,
    NodeSeen,
    Refresh,
    Responding,
    Silent,
    Submitted,
    TaskFailed,
    Tick,
)
from sollol.core.exception_recovery import ExceptionRecovery, exception_outcome
from sollol.core.learned import Learned
from sollol.core.load_watch import LoadWatch
from sollol.core.measurements import Measurements
from sollol.core.model_events import ModelEvents
from sollol.core.policy import Policies
from sollol.core.request_scheduler import Dispatched, RequestScheduler
from sollol.core.sleep import Sleep
from sollol.core.slot_binding import SlotBinding
from sollol.core.slot_discovery import SlotDiscovery
from sollol.core.stall_detection import StallDetection
from sollol.core.state.memory import load_not_ended
from sollol.core.state.pending import PendingTask
from sollol.core.state.replica import Attempt, ModelReplicas, Node
from sollol.core.state.scheduler_state import LEFT, SchedulerState
from sollol.core.timing_check import with_checked_timing
from sollol.core.types import NEVER, OK, SECOND, Micros, Outcome, Status
from sollol.core.view import SchedulerView

BUSY_DOUBLINGS: Final = 6  # of the pause after an answer "busy"; then it stays the same
QUEUE_BOUND: Final = 10_000  # waiting tasks; more are refused, rather than kept for ever
LATE_CHECK_EVERY: Final[Micros] = SECOND  # between two checks of the single tasks
RETRY_AFTER_MAX: Final[Micros] = 600 * SECOND  # longest pause that a node may request
OURS_PAUSE: Final[Micros] = SECOND // 4  # until this process may have a file descriptor again

CANCELLED_STATUS: Final = 410  # HTTP status for a request that an operator has cancelled: not to be tried again


class Scheduler:
    """Turn events into actions. It never raises (`core.exception_recovery`)."""

    def __init__(self, policies: Policies, rng: random.Random, queue_bound: int = QUEUE_BOUND) -> None:
        self._queue_bound = queue_bound
        self._router = policies.router
        self._state = state = SchedulerState(policies, rng)
        self._cluster = state.cluster
        self._health = state.health
        self._tasks = state.tasks
        self._attempts = state.attempts
        self._view = SchedulerView(state)
        self._requests = RequestScheduler(state)
        self._hang_detection = self._requests.hang_detection
        self._load_watch = LoadWatch(state, self._hang_detection, self._requests.failover)
        # Parts call each other through the state, so that their modules do not import each other in a circle.
        state.check_loads = self._load_watch.check_all
        state.load_lost = self._load_watch.lost
        state.fail_chunk = self._fail_overdue
        self._batches = BatchScheduler(state)
        self._stall_detection = StallDetection(state)
        self._binding = SlotBinding(state, self._requests, self._batches)
        state.bind_model = self._binding.bind_model
        self._slot_discovery = SlotDiscovery(state, self._binding)
        self._measurements = Measurements(state, self._requests, self._slot_discovery)
        self._sleep = Sleep(state, self._view)
        self._recovery = ExceptionRecovery(state, self._binding)
        self._wake_at: Micros = NEVER
        self._late_check_planned = False
        self._restore_node: Callable[[Node], None] = Learned().restore_node
        self._handlers: dict[type, Callable[[Any, Micros], None]] = {
            ItemsAdded: self._items_added,
            Cancelled: self._cancelled,
            TaskFailed: self._task_failed,
            Responding: self._responding,
            NodeAdded: self._node_added,
            NodeRemoved: self._node_removed,
            NodeSeen: self._node_seen,
            NodeLost: self._node_lost,
            NodeDrained: self._node_drained,
            Silent: self._silent,
            Refresh: self._refresh,
            Configure: self._configure,
            LearnedRestored: self._restored,
            Tick: self._tick,
            **ModelEvents(state, self._load_watch, self._requests.demotion, self._sleep).handlers(),
        }

    def handle(self, event: Event, now: Micros) -> list[Action]:
        """Return the actions that follow from an event. `now` never goes back.

        The handlers append to `state.out`. They set `state.current_task`, which an exception of theirs ends.
        """
        out: list[Action] = []
        state = self._state
        state.out = out
        state.now = now
        state.current_task = None
        try:
            if isinstance(event, Submitted):  # every request brings these three; direct calls are faster than the table
                self._submitted(event, now)
            elif isinstance(event, Finished):
                self._finished(event, now)
            elif isinstance(event, FirstToken):
                self._first_token(event, now)
            else:
                self._handlers[type(event)](event, now)
        except Exception as error:  # a fault of ours: it ends the task that it concerns, and no other
            self._recovery.event_failed(event, error, now)
        if state.next_at < self._wake_at or self._health.next_at < self._wake_at:
            self._wake_at = due = min(state.next_at, self._health.next_at)
            out.append(WakeAt(due))
        return out

    def view(self) -> SchedulerView:
        """Return a read-only view of the state."""
        return self._view

    def invariants(self) -> None:
        """Check what must hold between events.

        Raises AssertionError.
        """
        self._state.invariants()

    # --- callers ----------------------------------------------------------------------------------------

    def _submitted(self, event: Submitted, now: Micros) -> None:
        """Refuse a task while the queue is full; else start or queue it, or cut it into chunks."""
        task, state = event.task, self._state
        pending = PendingTask(task, now)
        state.tasks[pending.key] = state.current_task = pending
        if len(state.tasks) > self._queue_bound and state.waiting() >= self._queue_bound:
            wait = self._view.expected_wait_us(len(state.queues.get(task.model, ())), task.model, now)
            message = f"{self._queue_bound} tasks are waiting already; a place should be free in {wait / SECOND:.1f} s"
            state.settle(pending, Outcome(Status.QUEUE_FULL, message, retry_us=wait))
            return
        state.retrier.deposit(task)  # each task adds to the budget of retries
        if task.hedge is not None or task.mode is not None:
            self._requests.hedging.choose_hedger(pending)
        if now >= self._health.record_from:  # after a long idle time all nodes are probed
            self._health.record_submit(now, state.out)
        if task.deadline_us is not None:
            state.call_at(task.deadline_us, lambda later: self._deadline(task.id, later), pending.key)
        group = pending.group = self._cluster.groups.get(task.model) or state.group(task.model, now)
        group.tasks += 1
        if pending.batch is not None:
            state.batches.setdefault(task.model, {})[task.id] = pending.batch
            group.batches = len(state.batches[task.model])
            state.enqueue(pending, group, now, now)
            self._binding.bind(group, now)
        else:
            self._single_submitted(pending, group, now)

    def _single_submitted(self, pending: PendingTask, group: ModelReplicas, now: Micros) -> None:
        """Start a request at once if its best replica is free and none waits before it; else queue it."""
        if not self._late_check_planned:
            self._late_check_planned = True
            self._state.call_at(now + LATE_CHECK_EVERY, self._check_single_tasks)
        result = Dispatched.UNDECIDED
        if group.with_capacity and not group.queue.waiting:
            result = self._requests.start_now(pending, group, now)
            if result is Dispatched.STARTED:
                return
        self._state.enqueue(pending, group, now, now)
        if result is Dispatched.WAITING:
            return
        if group.with_capacity or not group.replicas:
            self._binding.bind_new(pending, group, now)
        else:  # every slot is taken: the next answer binds it
            self._binding.probe_slots(group, now)

    def _items_added(self, event: ItemsAdded, now: Micros) -> None:
        pending = self._state.current_task = self._tasks.get(event.task)
        if pending is not None and pending.batch is not None:
            self._batches.fed(pending, list(event.costs), event.closed, now)
            self._binding.bind_model(pending.task.model, now)

    def _first_token(self, event: FirstToken, now: Micros) -> None:
        attempt = self._attempts.get(event.attempt)
        if attempt is not None:
            self._state.current_task = self._tasks.get(attempt.task.id)
            attempt.movable = event.movable
            if not attempt.delivering:
                attempt.delivering = True
                self._requests.record_first_token(self._tasks[attempt.task.id], attempt, now)
                self._slot_discovery.responds(attempt, now)

    def _responding(self, event: Responding, now: Micros) -> None:
        attempt = self._attempts.get(event.attempt)
        if attempt is not None:
            self._state.current_task = self._tasks.get(attempt.task.id)
            self._slot_discovery.responds(attempt, now)

    def _task_failed(self, event: TaskFailed, now: Micros) -> None:
        pending = self._tasks.get(event.task)
        if pending is not None:
            self._recovery.expel(pending, exception_outcome(event.error), now)
            self._binding.bind_all(now)

    def _cancelled(self, event: Cancelled, now: Micros) -> None:
        pending = self._state.current_task = self._tasks.get(event.task)
        if pending is not None:
            self._hang_detection.record_departure(pending, now)
            replicas = self._state.abort_all(pending, now)
            if event.why:
                self._state.settle(pending, Outcome(Status.REFUSED, event.why, CANCELLED_STATUS))
            else:
                self._state.settle(pending, Outcome(Status.LEFT, "the caller left"))
            self._binding.bind_model(pending.task.model, now, replicas)

    def _deadline(self, task_id: int, now: Micros) -> None:
        pending = self._state.current_task = self._tasks.get(task_id)
        if pending is not None:
            where = ", ".join(a.replica.node.key for a in pending.attempts.values())
            self._hang_detection.record_departure(pending, now)
            replicas = self._state.abort_all(pending, now)
            message = f"no answer in {(now - pending.since) / SECOND:.1f} s"
            message += f" (running on {where})" if where else " (waiting for a free node)"
            self._state.settle(pending, Outcome(Status.DEADLINE, message))
            self._binding.bind_model(pending.task.model, now, replicas)

    # --- answers ----------------------------------------------------------------------------------------

    def _finished(self, event: Finished, now: Micros) -> None:
        """Free the slot of an attempt, learn from it, settle or move its task, and offer the slot."""
        attempt = self._attempts.get(event.attempt)
        if attempt is None:  # aborted meanwhile
            return
        replica, pending = attempt.replica, self._tasks[attempt.task.id]
        self._state.current_task = pending
        outcome = event.outcome
        if outcome.status is OK:
            outcome = with_checked_timing(outcome, now - attempt.started_us, attempt.cost)
        inflight = len(replica.attempts)  # with this one
        busy_us = now - max(attempt.started_us, replica.last_end_us)
        self._state.end(attempt, now)
        replica.node.attempted += 1
        if pending.batch is not None and outcome.status is Status.FAILED:
            replica.breaker.record(now, LEFT)  # no fault of the node: an item may be (`core.fault_attribution`)
        else:
            replica.record(now, outcome)
        if outcome.status is OK:
            if attempt.loads:
                self._load_watch.ended(replica.node, now)
            self._measurements.answered(attempt, outcome.timing, busy_us, inflight, now)
            if pending.batch is not None:
                self._batches.answered(pending, attempt, now)
            else:
                self._requests.answered(pending, attempt, outcome, now)
        else:
            if attempt.loads:
                load_not_ended(replica, attempt)
            self._record_failure(attempt, outcome, now)
            self._failed(pending, attempt, outcome, now)
        if outcome.status is Status.UNREACHABLE:  # other models of that node have lost work too
            self._binding.bind_all(now)
            return
        if len(replica.node.replicas) > 1 and self._binding.others_wait(replica):
            self._binding.bind_node(replica, outcome.status is OK, now)
        elif replica.group.queue.waiting or self._state.batches or self._requests.hedging.late:
            self._binding.bind(replica.group, now, [replica] if outcome.status is OK else None)

    def _failed(self, pending: PendingTask, attempt: Attempt, outcome: Outcome, now: Micros) -> None:
        if pending.batch is not None:
            self._batches.failed(pending, attempt, outcome, now)
        else:
            self._requests.failed(pending, attempt, outcome, now)

    def _record_failure(self, attempt: Attempt, outcome: Outcome, now: Micros) -> None:
        """Count a failed attempt; pause its replica, remove the model from the node, or take the node as down.

        A failure counts as a slow answer. Otherwise a node that fails at once would seem the fastest. A refused or
        cancelled request is no failure of the node.
        """
        replica = attempt.replica
        replica.flag_off_nominal()
        if outcome.status in (Status.REFUSED, Status.LEFT, Status.UNABLE):
            return
        if outcome.status is Status.NOT_SENT:
            self._state.pause(replica, now + OURS_PAUSE)
            return
        if outcome.status in (Status.UNSUITED, Status.LOCKED, Status.TOO_LARGE):
            self._cluster.learn_unable(replica.node, attempt.task, outcome, now)
            return
        replica.node.failed += 1
        replica.failed += 1
        replica.reliability.add(0.0)
        replica.penalised(now - attempt.started_us)
        if outcome.status in (Status.BUSY, Status.TIMEOUT):
            replica.sample(0.0, 0, 0, dropped=True, wanted=False)
        if outcome.status is Status.BUSY:
            doublings = min(replica.busy_answers, BUSY_DOUBLINGS)
            pause = self._state.retrier.again(attempt.task, outcome, doublings, now) or 0
            replica.busy_answers += 1
            if outcome.retry_us:  # the node's own time; 0 would use up all tries in a few milliseconds
                pause = min(outcome.retry_us, RETRY_AFTER_MAX)
            self._state.pause(replica, now + pause)
        elif outcome.status is Status.MISSING:
            self._state.forget_model(replica)
            if replica.model in replica.node.denied:  # it was listed again in between
                self._cluster.learn_unable(replica.node, attempt.task, outcome, now)
            replica.node.denied.add(replica.model)
        elif outcome.status is Status.UNREACHABLE:
            self._node_down(replica.node, outcome.message, now)

    # --- nodes ------------------------------------------------------------------------------------------

    def _node_added(self, event: NodeAdded, now: Micros) -> None:
        if event.endpoint.key not in self._cluster.nodes:
            self._cluster.nodes[event.endpoint.key] = node = Node(event.endpoint, self._state.policies.model_limiter())
            node.faults.breaker = self._state.policies.breaker()
            self._restore_node(node)
            self._health.added(node, now, self._state.out)

    def _node_removed(self, event: NodeRemoved, now: Micros) -> None:
        node = self._cluster.nodes.pop(event.node, None)
        self._cluster.incapable.pop(event.node, None)
        if node is None:
            return
        node.up = False
        self._lose_attempts(node, Outcome(Status.UNREACHABLE, "the node was removed"), now)
        for group in self._cluster.groups.values():
            group.drop(node.key)
        self._binding.bind_all(now)

    def _node_seen(self, event: NodeSeen, now: Micros) -> None:
        node = self._cluster.nodes.get(event.node)
        if node is None:
            return
        came_up = node.up is not True
        if came_up or node.version != event.facts.version:
            node.incapable.clear()
            self._cluster.incapable.pop(node.key, None)
            self._load_watch.ended(node, now)
        elif not node.incapable.is_empty:
            for model in [name for name, digest in node.digests.items() if event.facts.digests.get(name) != digest]:
                node.incapable.forget(model)
        if node.denied:
            node.denied.intersection_update(event.facts.models)
        changed = self._health.seen(node, event.facts, now)
        self._health.ask_again(node, now, self._state.out)
        if node.asleep or node.waking_us:
            self._sleep.awake(node, now)
        if event.facts.late:
            self._hang_detection.record_slow_probe(node, now)
        if came_up or changed:
            for group in self._cluster.groups.values():
                self._state.join(group, node)
                group.recount(now)
        self._binding.bind_all(now)  # also tasks that have tried all other nodes

    def _node_lost(self, event: NodeLost, now: Micros) -> None:
        node = self._cluster.nodes.get(event.node)
        if node is None:
            return
        if not event.certain and node.up:
            self._hang_detection.record_slow_probe(node, now)
        if self._health.lost(node, event.why, event.certain, now):
            if not event.certain and node.up:
                self._hang_detection.record_silent_node(node, now)
            self._node_down(node, event.why, now)
        elif node.up is False:
            self._sleep.falls_asleep(node, now)
        self._binding.bind_all(now)

    def _node_drained(self, event: NodeDrained, now: Micros) -> None:
        node = self._cluster.nodes.get(event.node)
        if node is None or (event.why in node.drained_for) is event.drained:
            return
        if event.drained:
            node.drained_for.append(event.why)
        else:
            node.drained_for.remove(event.why)
        node.drained = bool(node.drained_for)
        for replica in node.replicas.values():
            replica.flag_off_nominal()
            replica.group.recount(now)
        self._binding.bind_all(now)

    def _node_down(self, node: Node, why: str, now: Micros) -> None:
        if node.up is not False:
            self._health.down(node, why, now)
            self._sleep.falls_asleep(node, now)
            self._lose_attempts(node, Outcome(Status.UNREACHABLE, why), now)
            for replica in node.replicas.values():
                replica.group.recount(now)

    def _lose_attempts(self, node: Node, outcome: Outcome, now: Micros) -> None:
        """Move the attempts of a lost node. Those that cannot move end by themselves."""
        for replica in node.replicas.values():
            for attempt in [a for a in replica.attempts.values() if a.movable]:
                if attempt.id in self._attempts:  # else its batch was given up meanwhile
                    self._lose(attempt, outcome, now)

    def _lose(self, attempt: Attempt, outcome: Outcome, now: Micros) -> None:
        self._state.current_task = self._tasks.get(attempt.task.id)
        try:
            self._state.abort(attempt, now)
            self._failed(self._tasks[attempt.task.id], attempt, outcome, now)
        except Exception as error:  # it ends this task; the other tasks of the node are moved all the same
            self._state.recover(error, now)

    # --- the operator ---------------------------------------------------------------------------------------

    def _refresh(self, event: Refresh, now: Micros) -> None:
        """Probe all nodes now."""
        for node in self._cluster.nodes.values():
            node.next_probe_us = 0
        self._health.next_at = 0
        self._tick(Tick(), now)

    def _configure(self, event: Configure, now: Micros) -> None:
        cluster = self._cluster
        if event.queue_bound is not None:
            self._queue_bound = event.queue_bound
        if event.strategy is not None:
            policies = self._state.policies
            self._state.use(policies._replace(router=policies.strategies.get(event.strategy, self._router)))
        if event.one_digest is not None:
            cluster.one_digest = event.one_digest
        if event.pinned_digests is not None:
            cluster.pinned = dict(event.pinned_digests)
        if event.used_digests is not None:
            cluster.used = dict(event.used_digests)
        if (event.one_digest, event.pinned_digests, event.used_digests) != (None, None, None):
            for group in cluster.groups.values():
                group.checked = 0

    def _restored(self, event: LearnedRestored, now: Micros) -> None:
        learned = Learned(event.values)
        learned.restore_settings(self._cluster)
        for node in self._cluster.nodes.values():
            learned.restore_node(node)
            for replica in node.replicas.values():
                learned.restore_replica(replica, now)
        self._state.restore = learned.restore_replica
        self._restore_node = learned.restore_node

    # --- time -------------------------------------------------------------------------------------------

    def _tick(self, event: Tick, now: Micros) -> None:
        self._wake_at = NEVER
        self._state.run_timers(now)
        self._state.current_task = None
        for attempt in self._health.tick(now, busy=bool(self._tasks), out=self._state.out):
            self._state.current_task = self._tasks.get(attempt.task.id)
            self._fail_overdue(attempt, now)

    def _check_single_tasks(self, now: Micros) -> None:
        """Look, once a second while requests are open, for those that hang, load too long, or wait too long."""
        self._late_check_planned = any(pending.batch is None for pending in self._tasks.values())
        if self._late_check_planned:
            self._state.call_at(now + LATE_CHECK_EVERY, self._check_single_tasks)
            self._record_hanging(now)
            self._load_watch.check_all(now)
            self._bind_waiting(now)

    def _record_hanging(self, now: Micros) -> None:
        """Record as failures the attempts whose runners hang; their requests were repeated or moved."""
        for attempt in self._hang_detection.check_all(now):
            self._state.current_task = self._tasks.get(attempt.task.id)
            outcome = Outcome(Status.TIMEOUT, "silent far beyond what was predicted")
            attempt.replica.breaker.record(now, outcome)
            self._record_failure(attempt, outcome, now)
        self._state.current_task = None

    def _bind_waiting(self, now: Micros) -> None:
        """Load models and open slots for tasks that have waited long."""
        self._sleep.check(now)
        for model in self._view.waited_for():
            self._requests.preload(model, LATE_CHECK_EVERY, now)
            self._binding.rescan(model, now)

    def _silent(self, event: Silent, now: Micros) -> None:
        """Move the requests whose streams fell silent in the middle of an answer."""
        for attempt, why in self._stall_detection.judge(event.streams, now):
            if attempt.id in self._attempts:
                self._state.current_task = self._tasks.get(attempt.task.id)
                outcome = Outcome(Status.TIMEOUT, why)
                attempt.replica.breaker.trip(now)
                self._record_failure(attempt, outcome, now)
                self._hang_detection.move(attempt, outcome, now)
                self._binding.bind(attempt.replica.group, now)

    def _fail_overdue(self, attempt: Attempt, now: Micros) -> None:
        """End a chunk that took far longer than predicted, and offer its items to others."""
        why = f"no answer in {(now - attempt.started_us) / SECOND:.1f} s, far beyond what was predicted"
        outcome = Outcome(Status.TIMEOUT, why)
        attempt.replica.breaker.record(now, outcome)
        self._record_failure(attempt, outcome, now)
        if attempt.id in self._attempts:
            self._state.abort(attempt, now)
            self._failed(self._tasks[attempt.task.id], attempt, outcome, now)
        self._binding.bind(attempt.replica.group, now)
