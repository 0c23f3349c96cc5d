"""The state of the scheduler: open tasks, attempts, queues and timers.

It decides nothing. `core.request_scheduler` and `core.batch_scheduler` decide and write here.

Over 400 lines, because only here are attempts begun and ended, and each structure kept in step.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from typing import Final

from sollol.core.actions import Abort, Action, Complete, Start, Unload
from sollol.core.cancelled_prefill import taken_until
from sollol.core.health_checks import HealthChecks
from sollol.core.policy import Policies
from sollol.core.runner_options import parse, with_context
from sollol.core.state.batch import Batch
from sollol.core.state.cluster import ClusterState
from sollol.core.state.in_flight import begin, end
from sollol.core.state.memory import load_not_ended, put_out
from sollol.core.state.model_settings import short
from sollol.core.state.pending import PendingTask
from sollol.core.state.queue import FairShares, WaitQueue
from sollol.core.state.ranges import Ranges
from sollol.core.state.replica import Attempt, ModelReplicas, Node, Replica
from sollol.core.types import EMBED, NEVER, SECOND, Cause, Decision, Key, Micros, Outcome, Status, Task
from sollol.core.value import replaced

TIMERS: Final = 4_096  # kept without a look; beyond, those of settled tasks go when they are most
TIMERS_EACH: Final = 4
LEFT: Final = Outcome(Status.LEFT)


class SchedulerState:
    """Hold all state of one scheduler, and start and end attempts."""

    def __init__(self, policies: Policies, rng: random.Random) -> None:
        self.use(policies)
        self.rng = rng
        self.cluster = ClusterState()
        self.health = HealthChecks(self.cluster, policies.probing, policies.lateness)
        self.tasks: dict[Key, PendingTask] = {}
        self.attempts: dict[Key, Attempt] = {}
        self.queues: dict[str, WaitQueue] = {}
        self.shares = FairShares()
        self.batches: dict[str, dict[int, Batch]] = {}  # open ones, by model
        self.restore: Callable[[Replica, Micros], None] = _not_restored  # restores the learned values of a new replica
        self.out: list[Action] = []
        self.now: Micros = 0  # the moment of the event that is being handled, or was handled last
        self.bind_model: Callable[[str, Micros], None] = _nobody
        self.check_loads: Callable[[Micros], None] = _nothing
        self.wake_for: Callable[[Task, Micros], bool] = _not_woken
        self.load_lost: Callable[[Attempt, Attempt, Micros], None] = _not_lost
        self.unanswered: Callable[[Attempt, Micros], None] = _unanswered
        self.fail_chunk: Callable[[Attempt, Micros], None] = _unanswered
        self.recover: Callable[[Exception, Micros], None] = _not_recovered
        self.current_task: PendingTask | None = None  # the task being handled, which a fault would settle
        self._serial = 0
        self._timers: list[tuple[Micros, int, Callable[[Micros], None], Key]] = []
        self.next_at: Micros = NEVER  # the first of them

    def use(self, policies: Policies) -> None:
        """Replace the policies, except limiters and breakers of present replicas."""
        self.policies = policies
        # Used by every task: compiled, a field of a tuple is looked up by its name.
        self.router, self.retrier, self.hedger = policies.router, policies.retrier, policies.hedger

    # --- attempts and tasks ---

    def start(
        self,
        pending: PendingTask,
        replica: Replica,
        cost: float,
        decision: Decision,
        now: Micros,
        ranges: Ranges | None = None,
        cause: Cause | None = None,
    ) -> Attempt:
        """Start an attempt of a task on a replica."""
        self._serial = id = self._serial + 1
        task = pending.task
        if cause is None:
            cause = pending.cause()
        context = None
        if replica.is_loaded:  # most calls have the options of the runner: without the calls
            is_same = task.options == replica.options
            context = 0 if is_same else replica.context_for(task.options, pending.bytes_kept())
        if context or task.options != pending.requested:
            decision = _with_context(decision, task, context)
        attempt = Attempt(id, task, replica, cost, now, now + decision.predicted_us, decision, cause)
        attempt.loads = context is None
        if context:
            attempt.options = with_context(context, task.options)
        attempt.resumed = pending.delivering
        self.attempts[attempt.key] = pending.attempts[attempt.key] = attempt
        if pending.waits_for is not None:
            pending.wait_for(None)
        same_options = context is not None or not replica.answers
        begin(replica, attempt)
        if attempt.loads:
            if replica.node.budget:
                self._keep_budget(replica)
            late_us = self.policies.load_watch.late_after_us(replica.load_us())
            self.call_at(now + late_us, self.check_loads)
        observe = False
        if task.kind is not EMBED:
            attempt.behind_prefill = behind_prefill = now < replica.left_until
            observe = (attempt.trial or behind_prefill) and task.observable and not task.stream
            attempt.observed = observe or task.stream
            if not attempt.observed:
                attempt.responding = True
                replica.responding += 1
            elif same_options and (attempt.trial or behind_prefill or replica.responding):
                self.watch(attempt, now)
        if not replica.nominal and not replica.breaker.closed:
            replica.breaker.begin(now)
        self.out.append(Start(id, task.id, replica.key, decision, ranges, observe, cause))
        return attempt

    def _keep_budget(self, replica: Replica) -> None:
        """Unload what was used longest ago, so that a load keeps within the budget of the node's owner."""
        node = replica.node
        sizes = dict(node.listed)  # with the models that the load is expected to evict
        sizes |= {model: held.size or node.models.get(model, 0) for model, held in node.loaded.items()}
        sizes[replica.model] = node.models.get(replica.model, 0)
        total = sum(sizes.values())
        for model in sorted(sizes, key=node.last_use):
            other = node.replicas.get(model)
            if total <= node.budget or model == replica.model or (other is not None and other.attempts):
                continue
            total -= sizes[model]
            put_out(node, model)
            self.out.append(Unload(node.key, model))

    def watch(self, attempt: Attempt, now: Micros) -> None:
        """Plan a check whether the node has begun to answer: if not, the attempt waits for a slot there."""
        self.call_at(now + self.patience_us(attempt, attempt.trial), lambda later: self.unanswered(attempt, later))

    def patience_us(self, attempt: Attempt, trial: bool) -> Micros:
        """Return the µs without a response after which an attempt is taken to wait for a slot.

        Args:
            trial: All proven slots are answering. Otherwise the prompts before it may be long.
        """
        return self.policies.lateness.slot_wait_us(attempt.first_us(), attempt.due_us - attempt.started_us, trial)

    def end(self, attempt: Attempt, now: Micros) -> None:
        """Remove an attempt that has ended."""
        del self.attempts[attempt.key]
        pending = self.tasks.get(attempt.task.id)
        if pending is not None:
            del pending.attempts[attempt.key]
        end(attempt.replica, attempt, now)
        attempt.replica.last_end_us = now

    def abort(self, attempt: Attempt, now: Micros, outcome: Outcome = LEFT, withdrawn: bool = False) -> None:
        """End an attempt and close its connection."""
        self.end(attempt, now)
        replica = attempt.replica
        if attempt.loads:
            load_not_ended(replica, attempt)
        replica.breaker.record(now, LEFT)
        replica.flag_off_nominal()
        reading_until = attempt.started_us + attempt.decision.first_us
        if not withdrawn and not attempt.delivering and now < reading_until and replica.node.usable:
            until = taken_until(replica, attempt, self.policies.prefill, now)
            replica.draining.append(until)
            self.bind_at(replica.model, until)
        self.out.append(Abort(attempt.id, outcome, withdrawn))
        self.let_others(replica, now)

    def let_others(self, replica: Replica, now: Micros) -> None:
        """Plan to bind the other models of a node that has less to do."""
        if len(replica.node.replicas) > 1:
            for other in replica.node.replicas.values():
                if other is not replica and other.group.queue.waiting:
                    self.bind_at(other.model, now)

    def abort_all(self, pending: PendingTask, now: Micros) -> list[Replica]:
        """Abort all attempts of a task. Return their replicas."""
        attempts = list(pending.attempts.values())
        for attempt in attempts:
            self.abort(attempt, now)
        return [attempt.replica for attempt in attempts]

    def settle(self, pending: PendingTask, outcome: Outcome, attempt: int | None = None, tried: bool = False) -> None:
        """Complete a task.

        Args:
            tried: Report what each node answered, or why it got no attempt.
        """
        task = pending.task
        del self.tasks[pending.key]
        group = pending.group
        if group is not None and pending.key in group.queue.waiting:
            group.queue.remove(task.id)
        if group is not None:
            group.tasks -= 1
        if pending.waits_for is not None and (left := pending.wait_for(None)) is not None:
            self.let_others(left, self.now)
        if pending.batch is not None:
            self.batches.get(task.model, {}).pop(task.id, None)
            if group is not None:
                group.batches = len(self.batches.get(task.model, ()))
        reasons = tuple(self._reasons(pending, self.now)) if tried else ()
        if group is not None and not group.tasks and not group.replicas:
            self._forget_group(group)
        self.out.append(Complete(task.id, outcome, attempt, reasons))

    def settle_no_node(self, pending: PendingTask, message: str, now: Micros) -> None:
        """Complete a task that no node can serve, with the µs until a paused node is ready."""
        replicas = (
            self.cluster.groups[pending.task.model].replicas.values()
            if pending.task.model in self.cluster.groups
            else ()
        )
        ready = min(
            (replica.paused_until for replica in replicas if replica.paused_until > now and replica.node.usable),
            default=None,
        )
        retry_us = None if ready is None or not pending.busy else ready - now
        self.settle(pending, Outcome(Status.NO_NODE, message, retry_us=retry_us), tried=True)

    def _reasons(self, pending: PendingTask, now: Micros) -> Iterable[tuple[str, str]]:
        model = pending.task.model
        for node in self.cluster.nodes.values():
            if node.key in pending.tried:
                yield node.key, pending.tried[node.key]
            elif pending.task.only is not None and node.key not in pending.task.only:
                yield node.key, "not among the nodes that the call may go to"
            elif node.asleep or node.waking_us:
                yield node.key, "is asleep" if node.asleep else "was woken, and has not answered yet"
            elif node.up is not True:
                yield node.key, node.lost_why
            elif node.drained:
                yield node.key, f"is drained: {', '.join(node.drained_for)}"
            elif model not in node.models:
                have = ", ".join(sorted(node.models)) or "no models"
                yield node.key, f"does not have {model}; it has {have}"
            elif pending.task.gpu and not node.replicas[model].suits(pending.task):
                evidence = node.replicas[model].gpu_evidence()
                source = f" (by {evidence.source})" if evidence.source else ""
                yield node.key, f"a GPU is required for all of {model}: {evidence.why}{source}"
            elif (needed := self._needed_digest(pending)) and node.digests.get(model, needed) != needed:
                has, needs = short(node.digests[model]), short(needed)
                yield (
                    node.key,
                    f"has version {has} of {model}; {needs} is needed, and vectors of the two do not compare",
                )
            else:
                incapable = node.incapable.of(pending.task, now)
                replica = node.replicas.get(model)
                barred = replica is not None and (replica.is_barred(now) or replica.is_barred_for(pending.task, now))
                if incapable is None and barred:
                    is_large = node.budget and node.models.get(model, 0) > node.budget
                    why = f"loads hang there: {node.loads_barred_why}"
                    if is_large:
                        size, budget = node.models.get(model, 0) / 1e9, node.budget / 1e9
                        why = f"{model} has {size:.1f} GB, and the node's owner permits {budget:.1f} GB"
                    yield node.key, why
                    continue
                yield node.key, "not tried" if incapable is None else f"not tried again: {incapable.why}"

    def _needed_digest(self, pending: PendingTask) -> str:
        if pending.batch is not None and pending.batch.digest is not None:
            return pending.batch.digest
        group = pending.group
        return group.digest_for(pending.task) if group is not None and group.mixed else ""

    def may_yet_come(self, pending: PendingTask, now: Micros) -> bool:
        """Probe nodes whose lists are older than the task. Return True while one is awaited."""
        probing = False
        model = pending.task.model
        for node in self.cluster.nodes.values():
            if node.key in pending.tried and pending.batch is None:
                continue
            if pending.task.only is not None and node.key not in pending.task.only:
                continue
            if node.asked_us < pending.since:
                self.health.ask(node, now, self.out)
            replica = node.replicas.get(model)
            loading = replica is not None and replica.is_barred(now) and replica.is_loading
            if loading:  # its load may end yet
                self.bind_at(model, now + SECOND)
            probing = probing or node.probing or loading
        return probing or self.wake_for(pending.task, now)

    def able(self, task: Task, replicas: list[Replica], now: Micros) -> list[Replica]:
        """Return the replicas that can serve a task; if none, those that it has not tried."""
        incapable, tried = self.cluster.unable_for(task, now), self.tasks[task.id].tried
        able = [replica for replica in replicas if replica.key not in incapable]
        excluded = self.cluster.excluded_for(task, now) if incapable and not able else set()
        return able or [replica for replica in replicas if replica.key not in tried and replica.key not in excluded]

    # --- queues and replicas ---

    def queue(self, model: str) -> WaitQueue:
        """Return the queue of a model."""
        queue = self.queues.get(model)
        if queue is None:
            queue = self.queues[model] = WaitQueue(self.shares)
        return queue

    def enqueue(
        self, pending: PendingTask, group: ModelReplicas, since: Micros, now: Micros, priority: int | None = None
    ) -> None:
        """Queue a task. A resumed answer goes first (`priority`)."""
        if pending.delivering:
            pending.keep_context()
        task = pending.task
        tokens = task.cost * group.tokens_per_cost
        if not task.batch:
            tokens += group.expected_tokens(task)
        group.queue.push(pending.key, task.priority if priority is None else priority, since, now, task.app, tokens)

    def group(self, model: str, now: Micros) -> ModelReplicas:
        """Return the replicas of a model."""
        group = self.cluster.groups.get(model)
        if group is None:
            group = self.cluster.groups[model] = ModelReplicas(model, self.cluster, self.queue(model))
            for node in self.cluster.nodes.values():
                self.join(group, node)
            group.recount(now)
        return group

    def join(self, group: ModelReplicas, node: Node) -> None:
        """Add or remove the replica of a node, by the node's list of models."""
        replica = node.replicas.get(group.model)
        if group.model in node.models:
            if replica is None:
                replica = Replica(node, group, self.policies.limiter(), self.policies.breaker())
                node.replicas[group.model] = replica
                self.restore(replica, self.now)
            group.put(replica)
        elif replica is not None:
            self.forget_model(replica)

    def forget_model(self, replica: Replica) -> None:
        """Remove a replica whose node lacks the model."""
        replica.group.drop(replica.node.key)
        if replica.model in replica.node.models:
            replica.node.models = {m: size for m, size in replica.node.models.items() if m != replica.model}

    def _forget_group(self, group: ModelReplicas) -> None:
        """Remove a model that no node has, once its last task is complete."""
        model = group.model
        if self.cluster.groups.get(model) is not group:
            return
        if any(model in node.replicas for node in self.cluster.nodes.values()):
            return
        del self.cluster.groups[model]
        self.queues.pop(model, None)
        self.batches.pop(model, None)

    def waiting(self) -> int:
        """Return the number of queued tasks."""
        return sum(len(queue) for queue in self.queues.values())

    # --- time ---

    def call_at(self, when: Micros, then: Callable[[Micros], None], owner: Key = None) -> None:
        """Call `then` at the first tick from `when` on.

        Args:
            owner: The task without which the call is dropped.
        """
        self._serial += 1
        if len(self._timers) > TIMERS and len(self._timers) > TIMERS_EACH * len(self.tasks):
            self._drop_deadlines()
        heapq.heappush(self._timers, (when, self._serial, then, owner))
        if when < self.next_at:
            self.next_at = when

    def _drop_deadlines(self) -> None:
        """Remove the timers of completed tasks: a deadline may be a day away."""
        self._timers = [timer for timer in self._timers if timer[3] is None or timer[3] in self.tasks]
        heapq.heapify(self._timers)

    def bind_at(self, model: str, when: Micros) -> None:
        """Plan to bind the tasks of a model."""
        self.call_at(when, lambda later: self.bind_model(model, later))

    def pause(self, replica: Replica, until: Micros) -> None:
        """Send nothing to a replica until a moment."""
        replica.paused_until = max(replica.paused_until, until)
        replica.flag_off_nominal()
        self.bind_at(replica.model, until)

    def run_timers(self, now: Micros) -> None:
        """Run the timers that are due."""
        while self._timers and self._timers[0][0] <= now:
            then = heapq.heappop(self._timers)[2]
            self.current_task = None
            try:
                then(now)
            except Exception as error:  # of one timer: the others are due as well
                self.recover(error, now)
        self.next_at = self._timers[0][0] if self._timers else NEVER

    def invariants(self) -> None:
        """Check what must hold between events. Tests call it after each.

        Raises AssertionError.
        """
        for replica in (replica for node in self.cluster.nodes.values() for replica in node.replicas.values()):
            assert all(self.attempts.get(a.id) is a for a in replica.attempts.values()), (
                f"{replica} has a stray attempt"
            )
            assert not replica.nominal or replica.is_nominal(self.now), f"{replica} is wrongly nominal"
            if replica.group.replicas.get(replica.node.key) is replica:
                with_capacity = replica.node.key in replica.group.with_capacity
                assert with_capacity or len(replica.attempts) >= replica.limiter.limit, (
                    f"{replica} has room and is not listed"
                )
            soonest = min((a.due_us for a in replica.attempts.values()), default=NEVER)
            assert replica.soonest_us == soonest, f"{replica}: soonest"
            assert abs(replica.cost_inflight - sum(a.cost for a in replica.attempts.values())) < 1, f"{replica}: cost"
        for attempt in self.attempts.values():
            assert attempt.id in attempt.replica.attempts
            assert attempt.task.id in self.tasks, f"{attempt} outlives its task"
        for pending in self.tasks.values():
            queue, task = self.queue(pending.task.model), pending.task
            assert set(pending.attempts) <= set(self.attempts)
            if pending.batch is None:
                assert len(pending.attempts) <= 2, f"task {task.id} has too many attempts"
                assert (task.id in queue) != bool(pending.attempts), f"task {task.id} neither waits nor runs, or both"
            else:
                pending.batch.invariants(task.id in queue)
        assert self.waiting() <= len(self.tasks)


def _with_context(decision: Decision, task: Task, context: int | None) -> Decision:
    """Return the decision with the `num_ctx` that is sent in place of the caller's."""
    why = "the model is loaded with it" if context else "the answer began with it"
    num_ctx = context or parse(task.options).context
    return replaced(decision, num_ctx=num_ctx, reason=f"{decision.reason}; num_ctx {num_ctx} is sent, since {why}")


def _not_lost(loser: Attempt, winner: Attempt, now: Micros) -> None:
    raise RuntimeError("the state has no scheduler")


def _not_woken(task: Task, now: Micros) -> bool:
    raise RuntimeError("the state has no scheduler")


def _nothing(now: Micros) -> None:
    raise RuntimeError("the state has no scheduler")


def _nobody(model: str, now: Micros) -> None:
    raise RuntimeError("the state has no scheduler")


def _not_recovered(error: Exception, now: Micros) -> None:
    raise error


def _not_restored(replica: Replica, now: Micros) -> None:
    return None


def _unanswered(attempt: Attempt, now: Micros) -> None:
    raise RuntimeError("the state has no scheduler")
