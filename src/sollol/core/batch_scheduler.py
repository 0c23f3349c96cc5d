"""Schedule batches: cut chunks for free slots, accept answers, and retry failed items."""

from __future__ import annotations

from sollol.core import takeover
from sollol.core.actions import Accept, ItemsRequested, Refuse
from sollol.core.batch_replicas import is_limited, suitable_replicas, undisturbed
from sollol.core.demotion import Demotion
from sollol.core.fault_attribution import FaultAttribution
from sollol.core.gpu_proof import prove_gpu
from sollol.core.model_versions import FOR_EMBED, review
from sollol.core.policy import BatchView, ChunkRetry
from sollol.core.state.batch import Batch, joined
from sollol.core.state.pending import PendingTask
from sollol.core.state.pending_items import PendingItems
from sollol.core.state.ranges import Ranges
from sollol.core.state.replica import Attempt, ModelReplicas, Replica
from sollol.core.state.scheduler_state import SchedulerState
from sollol.core.takeover import Takeover
from sollol.core.types import OK, SECOND, TRANSIENT, Cause, Decision, Micros, Outcome, Status, Task
from sollol.core.value import replaced

NODE_WAIT: Micros = 10 * SECOND  # for a node, while none can take the rest of a batch: it outlives a restart
PREFETCH_TIME: Micros = 2 * SECOND  # of work that is read ahead from an iterator, so that no node waits for texts
PREFETCH_ITEMS = 256  # texts that are read ahead at least, until rates are known
REFUSED_ALONE = 8  # single items refused before anything succeeded: the call is wrong, not the items
SAMPLE_AFTER = 3  # failures before anything succeeded: from then on items are taken from all over the batch
CALL_IS_WRONG = (400, 413, 422, 500)  # status of a refusal that may be about one item only


class BatchScheduler:
    """Cut batches into chunks and follow each chunk to its end."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        self.attribution = FaultAttribution(state)
        self._demotion = Demotion(state)

    # --- feeding ---

    def fed(self, pending: PendingTask, costs: list[int], closed: bool, now: Micros) -> None:
        """Add items to a batch and queue it."""
        assert pending.batch is not None
        had_pending = pending.batch.pending_count > 0
        pending.batch.feed(costs, closed)
        if not self._ended(pending, now) and not had_pending:
            self._enqueue(pending, now)

    def _enqueue(self, pending: PendingTask, now: Micros) -> None:
        queue = self._state.queue(pending.task.model)
        if pending.batch is not None and pending.batch.pending_count and pending.task.id not in queue:
            self._state.enqueue(pending, self._state.group(pending.task.model, now), now, now)

    # --- serving ---

    def bind(
        self, pending: PendingTask, batch: Batch, group: ModelReplicas, only: list[Replica] | None, now: Micros
    ) -> None:
        """Cut chunks for free slots.

        Args:
            only: Replicas that can have changed; None for all.
        """
        width = pending.task.width
        if not self._has_begun(pending.task, batch, group, now):
            return
        if batch.closed and batch.pending_count <= 2 * len(group.replicas):
            only = None  # so little is left that other idle replicas matter
        limited = is_limited(batch, group)
        if only is None or width:
            replicas = suitable_replicas(self._state, batch, group, now)
        elif limited:
            suitable = suitable_replicas(self._state, batch, group, now)
            replicas = [replica for replica in only if replica in suitable]
        else:
            replicas = [replica for replica in only if replica.usable(now)]
        if not replicas and (only is None or not suitable_replicas(self._state, batch, group, now)):
            self._no_replica(pending, batch, group, now)
            return
        batch.stuck_since = None
        replicas = undisturbed(self._state, pending, group, replicas, now)
        per_replica = -(-width // max(1, len(replicas))) if width else 0
        fruitless: set[str] = set()
        cost_before = batch.pending_cost
        while batch.pending_count:
            free = [
                replica
                for replica in replicas
                if replica.node.key not in fruitless
                and not replica.delays_reload(pending.task, now)
                and (replica.free(now) or (width and len(replica.attempts) < per_replica and replica.usable(now)))
            ]
            if not free or (width and len(batch.live) >= width):
                break
            for replica in sorted(free, key=lambda replica: len(replica.attempts)):
                if width and len(batch.live) >= width:
                    break
                if not self._cut(pending, batch, group, replica, limited, now):
                    fruitless.add(replica.node.key)
        if batch.pending_count and not batch.live and only is not None:
            # The freed replicas leave it to others, and no event will come for these: try them now.
            self.bind(pending, batch, group, None, now)
            return
        self._after_cutting(pending, batch, group, cost_before - batch.pending_cost, now)
        self._ended(pending, now)

    def _has_begun(self, task: Task, batch: Batch, group: ModelReplicas, now: Micros) -> bool:
        """Bind a batch to one version of its model. Return False while new nodes are awaited."""
        state = self._state
        if batch.digest is None and now < state.health.newcomers_until:
            settled_at = state.health.settles_at(now)
            if settled_at is not None:
                state.bind_at(task.model, settled_at)
                return False
        if group.checked < FOR_EMBED:
            review(state, group, FOR_EMBED)
        if batch.digest is None:
            batch.digest = group.digest_for(task) or None
        return True

    def _cut(
        self, pending: PendingTask, batch: Batch, group: ModelReplicas, replica: Replica, limited: bool, now: Micros
    ) -> bool:
        if not batch.pending_count:
            return False
        if not replica.breaker.closed and self.attribution.control(pending, batch, replica, now):
            return True  # a text that was answered before is the surest test of the node
        total_rate, best_rate, count_of_replicas = group.total_rate, group.best_rate, len(group.replicas)
        if limited:
            suitable = suitable_replicas(self._state, batch, group, now)
            count_of_replicas = max(1, len(suitable))
            rates = [each.work.read() or 0.0 for each in suitable]
            total_rate, best_rate = sum(rates), max(rates, default=0.0)
        view = BatchView(
            pending_cost=batch.pending_cost,
            pending_count=batch.pending_count,
            inflight_cost=group.inflight_cost,
            closed=batch.closed,
            replica_rate=replica.work.read() or None,
            replica_backlog=replica.backlog(now),
            replica_startup_us=pending.startup_us(replica),
            slots=pending.task.width or replica.limiter.limit,
            total_rate=total_rate,
            best_rate=best_rate,
            replicas=count_of_replicas,
        )
        cost, count = self._state.policies.batcher.item_budget(view)
        if count == 0 and batch.live:  # the others do it sooner, if there are any
            return False

        def others() -> frozenset[str]:
            return frozenset(other.node.key for other in suitable_replicas(self._state, batch, group, now))

        longest = replica.list_limit.limit if replica.breaker.closed else 1
        sample = not batch.answered and batch.failures_in_a_row >= SAMPLE_AFTER
        cut = batch.cut(replica.node.key, max(cost, 1), max(count, 1), others, longest, sample)
        if cut is None:
            return False
        ranges, segment = cut
        if segment.suspect and not segment.ranges and self.attribution.is_bad(batch, others(), segment, ranges.total()):
            assert segment.evidence.outcome is not None
            self._refuse(pending, batch, ranges, segment.evidence.outcome)
            return True
        cause = Cause.RETRY if segment.tries else Cause.FIRST
        attempt = self._start(pending, batch, replica, ranges, view.replica_backlog, now, cause=cause)
        attempt.tries, attempt.failed_on = segment.tries, segment.failed_on
        attempt.evidence, attempt.suspect = segment.evidence, segment.suspect
        attempt.other_half = segment if segment.suspect and segment.ranges else None
        batch.begin(attempt, ranges)
        return True

    def _start(
        self,
        pending: PendingTask,
        batch: Batch,
        replica: Replica,
        ranges: Ranges,
        backlog: float,
        now: Micros,
        reason: str = "free slot",
        cause: Cause = Cause.FIRST,
    ) -> Attempt:
        cost = batch.cost_of(ranges)
        rate = replica.work.read() or replica.group.total_rate / max(1, len(replica.group.replicas))
        predicted = pending.startup_us(replica) + round((backlog + cost) / rate) if rate else 5 * SECOND
        decision = Decision(replica.node.key, predicted, reason)
        return self._state.start(pending, replica, cost, decision, now, ranges, cause)

    def _after_cutting(self, pending: PendingTask, batch: Batch, group: ModelReplicas, taken: int, now: Micros) -> None:
        task = pending.task
        queue = self._state.queue(task.model)
        if group.demoted:
            self._demotion.retest(group, now)
        if taken and task.id in queue:
            queue.charge(task.id, now, taken * group.tokens_per_cost)
            self._enqueue(pending, now)
        if not batch.pending_count:
            queue.remove(task.id)
        else:
            self._wake_for_replicas(group, now)
        if not batch.closed:
            want = max(PREFETCH_ITEMS, round(group.total_rate * PREFETCH_TIME / batch.costs.mean))
            if batch.pending_count < want and batch.wanted_upto <= batch.costs.end:
                batch.wanted_upto = batch.costs.end + 1
                self._state.out.append(ItemsRequested(task.id, 2 * want - batch.pending_count))

    def _wake_for_replicas(self, group: ModelReplicas, now: Micros) -> None:
        """Plan a look when the first breaker admits a trial, if no other event may come."""
        if any(replica.attempts for replica in group.replicas.values()):
            return
        times = [replica.breaker.retry_at() for replica in group.replicas.values() if replica.node.usable]
        due = min((t for t in times if t is not None and t > now), default=None)
        if due is not None:
            self._state.bind_at(group.model, due)

    def _no_replica(self, pending: PendingTask, batch: Batch, group: ModelReplicas, now: Micros) -> None:
        """Wait for a node that may come, up to NODE_WAIT, or settle the batch."""
        if batch.stuck_since is None:
            batch.stuck_since = now
            pending.since = now
        task = pending.task
        excluded = self._state.cluster.excluded_for(task, now)
        if task.gpu and prove_gpu(self._state, group, task, excluded, now):
            return
        if self._state.may_yet_come(pending, now):
            return
        replicas = [
            replica
            for replica in group.replicas.values()
            if replica.key not in excluded and group.suits(replica, task, batch.digest or "")
        ]
        hope = any(replica.node.succeeded or replica.node.usable for replica in replicas)
        if hope and now - batch.stuck_since < NODE_WAIT:
            self._state.bind_at(group.model, batch.stuck_since + NODE_WAIT)
            self._wake_for_replicas(group, now)
            return
        left = "the rest of the batch" if batch.answered else "the batch"
        self._state.settle_no_node(pending, f"no node can take {left}", now)

    # --- the tail ---

    def take_over(self, batch: Batch, group: ModelReplicas, now: Micros) -> None:
        """Let idle replicas repeat items that others have in flight."""
        if batch.task.hedge is False:
            return
        pending, replicas = self._state.tasks[batch.task.id], suitable_replicas(self._state, batch, group, now)
        replicas = undisturbed(self._state, pending, group, replicas, now)
        takeovers, some_idle = takeover.plan(self._state, batch, replicas, group, now)
        for each in takeovers:
            self._start_takeover(batch, each, now)
        takeover.look_again(self._state, batch, group, some_idle, now)

    def _start_takeover(self, batch: Batch, planned: Takeover, now: Micros) -> None:
        victim = planned.victim
        pending = self._state.tasks[batch.task.id]
        reason = f"takes over from {victim.replica.node.key}"
        attempt = self._start(pending, batch, planned.replica, planned.items, 0.0, now, reason, Cause.TAKEOVER)
        attempt.tries, attempt.failed_on = victim.tries, victim.failed_on
        attempt.evidence, attempt.suspect = victim.evidence, victim.suspect
        batch.contest(attempt, victim, planned.items)

    # --- answers ---

    def answered(self, pending: PendingTask, attempt: Attempt, now: Micros) -> None:
        """Accept the items of an answer that are the first to arrive, and abort attempts without work left."""
        batch = pending.batch
        assert batch is not None
        attempt.replica.single_faults = 0
        if attempt.control:
            return
        attempt.replica.list_limit.succeeded(attempt.items.total())
        alone = attempt.suspect and attempt.other_half is None and attempt.items.total() == 1
        fresh, idle = batch.accept(attempt)
        batch.good += 1
        batch.failures_in_a_row = 0
        if fresh:
            if batch.known_good is None:
                batch.known_good = fresh[0][0]
            self._state.out.append(Accept(pending.task.id, attempt.id, fresh))
        batch.release(attempt, suspect=True)
        if alone:
            batch.vanished += attempt.evidence.tries
            self.attribution.acquit(attempt, now)
        for loser in idle:
            if loser.loads:
                self._state.load_lost(loser, attempt, now)
            batch.drop(loser)
            batch.release(loser, suspect=True)
            self._overtaken(loser, now)
            self._state.abort(loser, now)
        batch.forget()
        if not self._ended(pending, now):
            self._enqueue(pending, attempt.started_us)

    def _overtaken(self, loser: Attempt, now: Micros) -> None:
        """Record that an overdue attempt lost a takeover: its node is slower than predicted."""
        if now > loser.due_us:
            loser.replica.work.add(0, now - max(loser.started_us, loser.replica.last_end_us))
            loser.replica.breaker.record(now, Outcome(Status.TIMEOUT))
            self._state.health.ask(loser.replica.node, now, self._state.out)

    def failed(self, pending: PendingTask, attempt: Attempt, outcome: Outcome, now: Micros) -> None:
        """Queue the items of a failed chunk again, or fail the batch."""
        batch = pending.batch
        assert batch is not None
        if attempt.control:
            self.attribution.control_failed(attempt, outcome, now)
            return
        count = attempt.items.total()
        orphans = batch.drop(attempt)
        tested = outcome.status in (Status.FAILED, Status.REFUSED)
        if tested:
            batch.release(attempt, suspect=False)  # the fault is in the half that was tried
        elif attempt.other_half is not None:  # nothing was learned: both halves again
            orphans = joined([*orphans.items(), *Ranges(attempt.other_half.ranges).items()])
            batch.held -= attempt.other_half.total()
            attempt.other_half = None
        if outcome.status in TRANSIENT:
            pending.tried[attempt.replica.node.key] = outcome.message or outcome.status.value
        if self._is_hopeless(batch, attempt, outcome, now):
            self._state.abort_all(pending, now)
            if outcome.status in (Status.REFUSED, Status.UNSUITED):
                self._state.settle(pending, replaced(outcome, status=Status.REFUSED))
            else:
                self._state.settle_no_node(pending, "nothing of the batch succeeded anywhere", now)
            return
        if tested:
            self.attribution.failed(pending, batch, attempt, count, outcome, now)
            self.attribution.share(batch, attempt, outcome, now)
        if orphans:
            self._put_back(pending, batch, attempt, orphans, outcome, now)
            self._enqueue(pending, attempt.started_us)
        elif batch.pending_count:
            self._enqueue(pending, attempt.started_us)
        self._ended(pending, now)

    def _is_hopeless(self, batch: Batch, attempt: Attempt, outcome: Outcome, now: Micros) -> bool:
        """Check that the request itself is wrong, not an item or a node: nothing ever succeeded."""
        if outcome.status is Status.FAILED:
            if not self.attribution.is_hopeless(batch, attempt, NODE_WAIT, now):
                return False
            return all(
                replica.key in batch.failed_on
                for replica in suitable_replicas(self._state, batch, attempt.replica.group, now)
            )
        if batch.answered:
            return False
        group = attempt.replica.group
        if outcome.status is Status.REFUSED:
            batch.refused_alone += attempt.items.total() == 1
            batch.refused_on.add(attempt.replica.key)
            if outcome.http_status in CALL_IS_WRONG and batch.refused_alone < REFUSED_ALONE:
                return False
            others = {replica.key for replica in suitable_replicas(self._state, batch, group, now)}
            return len(batch.refused_on) > 1 or others <= batch.refused_on
        unsuited = outcome.status in (Status.UNSUITED, Status.LOCKED, Status.TOO_LARGE) or (
            outcome.status is Status.MISSING and attempt.replica.key in self._state.cluster.unable_for(batch.task, now)
        )
        return unsuited and not batch.live and not suitable_replicas(self._state, batch, group, now)

    def _put_back(
        self, pending: PendingTask, batch: Batch, attempt: Attempt, orphans: Ranges, outcome: Outcome, now: Micros
    ) -> None:
        node, count = attempt.replica.node.key, orphans.total()
        counts = outcome.status in (Status.FAILED, Status.REFUSED, Status.TIMEOUT)
        tries = attempt.tries + counts
        avoided = counts or outcome.status in (Status.UNSUITED, Status.LOCKED, Status.TOO_LARGE)
        failed_on = attempt.failed_on | {node} if avoided else attempt.failed_on
        evidence = attempt.evidence
        if counts:
            evidence = evidence.and_failed(node, attempt.replica.last_good_us, attempt.items.total(), outcome, now)
        suspect = attempt.suspect
        if counts:
            again = self._state.policies.batcher.again(outcome, tries, count)
            if again is ChunkRetry.REFUSE:
                self._refuse(pending, batch, orphans, outcome)
                return
            suspect = suspect or again is ChunkRetry.SPLIT
        segment = PendingItems(orphans, tries, failed_on, alone=tries > 1, evidence=evidence, suspect=suspect)
        if counts and suspect and count == 1:
            suitable = suitable_replicas(self._state, batch, attempt.replica.group, now)
            others = frozenset(replica.node.key for replica in suitable)
            if self.attribution.is_bad(batch, others, segment, count):
                self._refuse(pending, batch, orphans, outcome)
                return
            # Later more is known of how often good items fail, and of whether the node works.
            batch.put_back(segment, front=not batch.closed and not batch.pending_count)
            return
        batch.put_back(segment)

    def _refuse(self, pending: PendingTask, batch: Batch, items: Ranges, outcome: Outcome) -> None:
        batch.refused += items.total()
        self._state.out.append(Refuse(pending.task.id, items, outcome))

    def _ended(self, pending: PendingTask, now: Micros) -> bool:
        if pending.task.id in self._state.tasks and pending.batch is not None and pending.batch.done:
            self._state.abort_all(pending, now)  # a control
            self._state.settle(pending, Outcome(OK))
        return pending.task.id not in self._state.tasks
