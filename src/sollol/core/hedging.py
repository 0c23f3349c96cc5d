"""Start and end second attempts of late requests. `policies.hedging` decides when they pay."""

from __future__ import annotations

from typing import Final, NamedTuple

from sollol.core.policy import Hedger, Router
from sollol.core.state.pending import PendingTask
from sollol.core.state.replica import Attempt, ModelReplicas, Replica
from sollol.core.state.scheduler_state import SchedulerState
from sollol.core.state.shortlist import shortlist
from sollol.core.types import EMBED, Cause, Micros, RoutingMode, Task, Timing
from sollol.core.value import replaced

NO_RESERVATIONS: Final[dict[str, Micros]] = {}


class LateCall(NamedTuple):
    """A late attempt whose second attempt found no free node."""

    pending: PendingTask
    attempt: Attempt
    hedger: Hedger


class Hedging:
    """Send second attempts, at most two attempts of a request at once."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        self.late: dict[str, dict[int, LateCall]] = {}  # by model and attempt

    def choose_hedger(self, pending: PendingTask) -> None:
        """Set the hedging policy of a request, if it may have a second attempt, and add to its budget."""
        task = pending.task
        wanted = task.mode is RoutingMode.FAST if task.hedge is None else task.hedge
        if not wanted or task.kind is EMBED:
            return
        if isinstance(wanted, str):
            found = self._state.policies.hedgers.get(wanted)
            if found is None:
                raise ValueError(f"no hedging policy is registered as {wanted!r}")
            pending.hedger = found
        else:
            pending.hedger = self._state.hedger
        pending.hedger.deposit(task)

    def plan(self, pending: PendingTask, hedger: Hedger, attempt: Attempt, now: Micros) -> None:
        """Plan to check an attempt after the delay that the policy sets."""
        delay = hedger.after(pending.task, attempt.decision)
        if delay is not None:
            self._state.call_at(now + delay, lambda later: self._hedge(pending, attempt, hedger, later))

    def _hedge(self, pending: PendingTask, late: Attempt, hedger: Hedger, now: Micros) -> None:
        """Send a second attempt, or replace the first one if the second is late, too."""
        state, task = self._state, pending.task
        if pending.attempts.get(late.id) is not late or pending.delivering:
            return
        state.current_task = pending
        benefit = state.policies.hedge_benefit
        oldest = next(iter(pending.attempts.values()))
        second = len(pending.attempts) > 1
        if second and oldest is late:
            return
        if not second:
            if not self._try_hedge(pending, late, hedger, now) and not self._restart(pending, late, hedger, now):
                self.late.setdefault(task.model, {})[late.id] = LateCall(pending, late, hedger)
                state.call_at(now + benefit.check_us, lambda later: self._hedge(pending, late, hedger, later))
            return
        replicas, spared_us = [oldest.replica], oldest.replica.wait_us(now)
        takes_us = self._takes_us(task, replicas, now) - spared_us
        if not benefit.replaces(task, oldest.remaining_us(now), takes_us) or not hedger.withdraw():
            state.call_at(now + benefit.check_us, lambda later: self._hedge(pending, late, hedger, later))
            return
        benefit.record(task, False)
        state.abort(oldest, now)
        another = self.send(pending, late, replicas, "late", now)
        self.plan(pending, hedger, another, now)

    def _restart(self, pending: PendingTask, late: Attempt, hedger: Hedger, now: Micros) -> bool:
        """Send a very late request to its own node again, if all replicas are late and tasks wait.

        Requests that hang at the same time would otherwise stop all nodes. The work done for it is lost.
        """
        task, replica = pending.task, late.replica
        group = replica.group
        others = [other for other in group.replicas.values() if other is not replica and other.usable(now)]
        if not others or not group.queue.waiting:
            return False
        if group.replicas.get(replica.key) is not replica or not replica.node.usable:
            return False
        if not all(other.attempts and other.soonest_us < now for other in others):
            return False
        delay_us = hedger.after(task, late.decision)
        if delay_us is None:
            return False
        benefit = self._state.policies.hedge_benefit
        if not benefit.restarts(task, now - late.started_us, delay_us, pending.restarts):
            return False
        if not replica.breaker.closed or not hedger.withdraw():
            return False
        pending.restarts += 1
        self._state.abort(late, now)
        another = self.send(pending, late, [replica], "late", now)
        self.plan(pending, hedger, another, now)
        return True

    def offer(self, group: ModelReplicas, now: Micros) -> None:
        """Offer a free slot to late requests before the tasks that wait for their first attempt."""
        calls = self.late.pop(group.model)
        for late in list(calls.values()):
            pending, attempt = late.pending, late.attempt
            self._state.current_task = pending
            over = pending.attempts.get(attempt.id) is not attempt or pending.delivering or len(pending.attempts) > 1
            if over or self._try_hedge(pending, attempt, late.hedger, now):
                del calls[attempt.id]
        if calls:
            self.late[group.model] = calls

    def _try_hedge(self, pending: PendingTask, late: Attempt, hedger: Hedger, now: Micros) -> bool:
        """Send a second attempt, if another node has a free slot and it pays."""
        task, group = pending.task, late.replica.group
        tried = {*pending.tried, late.replica.node.key, *self._state.cluster.unable_for(task, now)}
        ready = (replica for replica in shortlist(group, task, tried, False, now) if replica.ready(now))
        # An attempt that must load the model first is late itself, and may evict what others use.
        replicas = [replica for replica in ready if not replica.startup_for(task)]
        if not replicas or not self._pays(pending, late, replicas, hedger, now) or not hedger.withdraw():
            return False
        another = self.send(pending, late, replicas, "late", now)
        self.plan(pending, hedger, another, now)
        return True

    def _pays(self, pending: PendingTask, late: Attempt, replicas: list[Replica], hedger: Hedger, now: Micros) -> bool:
        """Check that a second attempt pays. While no task waits, a caller's own policy has decided already."""
        task, group = pending.task, late.replica.group
        busy = 1.0
        if not group.queue.waiting:
            if hedger is not self._state.hedger:
                return True
            busy -= sum(replica.ready(now) for replica in group.with_capacity.values()) / len(group.replicas)
        takes_us = self._takes_us(task, replicas, now)
        return self._state.policies.hedge_benefit.pays(task, late.remaining_us(now), takes_us, busy)

    def _takes_us(self, task: Task, replicas: list[Replica], now: Micros) -> Micros:
        """Predict the µs to the first response of a second attempt."""
        decision = router_of(self._state, task).choose(task, replicas, NO_RESERVATIONS, now, self._state.rng)
        return decision.first_response_us(task.stream)

    def send(self, pending: PendingTask, late: Attempt, replicas: list[Replica], why: str, now: Micros) -> Attempt:
        """Start another attempt on the best of these replicas. The first response wins."""
        state, task = self._state, pending.task
        decision = router_of(state, task).choose(task, replicas, NO_RESERVATIONS, now, state.rng)
        reason = f"another copy: {late.replica.node.key} is {why}; {decision.reason}"
        replica = late.replica.group.replicas[decision.node]
        decision = replaced(decision, reason=reason)
        return state.start(pending, replica, task.cost, decision, now, cause=Cause.HEDGE)

    def learn_alone(self, attempt: Attempt, timing: Timing, usual: float, now: Micros) -> None:
        """Record whether a second attempt would have answered first, for a late request that had none.

        Args:
            usual: Tokens per µs at which the replica decodes. At this rate a second attempt is assumed to run.
        """
        task, prefill_rate = attempt.task, attempt.replica.prefill.value
        if not prefill_rate or attempt.resumed or self._state.tasks[task.id].attempts:
            return
        late_us = 2 * attempt.first_response_us()
        took_us, hedge_us = now - attempt.started_us, timing.prompt_tokens / prefill_rate
        if task.stream:
            took_us = timing.load_us + timing.prompt_us
        else:
            hedge_us += timing.tokens / usual
        if took_us > late_us:
            self._state.policies.hedge_benefit.record(task, late_us + hedge_us < took_us)

    def learn_race(self, winner: Attempt, loser: Attempt, now: Micros) -> None:
        """Record which of two attempts answered first, if the first one was late."""
        first = winner if winner.id < loser.id else loser
        if first.remaining_us(now) > first.first_response_us():
            self._state.policies.hedge_benefit.record(first.task, winner is not first)


def router_of(state: SchedulerState, task: Task) -> Router:
    """Return the router of the task's mode."""
    return state.router if task.mode is None else state.policies.modes.get(task.mode, state.router)
