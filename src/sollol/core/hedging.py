"""Second copies of single calls that are late: when one is sent, and what is learned of whether it pays."""

from __future__ import annotations

from typing import Final, NamedTuple

from sollol.core.policy import Hedger, Router
from sollol.core.state.attempt import Attempt
from sollol.core.state.estimators import Mean
from sollol.core.state.model_replicas import ModelReplicas
from sollol.core.state.pending import PendingTask
from sollol.core.state.replica import Replica
from sollol.core.state.scheduler_state import SchedulerState
from sollol.core.types import EMBED, MILLISECOND, Cause, Micros, RoutingMode, Task, Timing
from sollol.core.value import replaced

HEDGE_AGAIN: Final[Micros] = 50 * MILLISECOND  # a late call for whose second copy there was no room
COPY_WEIGHT: Final = 0.1  # of the newest copy in the share of those that came first
COPY_FIRST: Final = 0.5  # and that share before anything is known of it
HANG_TWICE: Final = 0.2  # of the copies of calls that hang: those that hang, too
RESTART_TIMES: Final = 3  # the delay after which a copy is due: then a call that found no room for one begins anew
RESTARTS: Final = 2  # of one call
RESTART_SHARE: Final = 0.4  # of the copies that came first: else it is the calls that are long
NO_RESERVATIONS: Final[dict[str, Micros]] = {}


class LateCall(NamedTuple):
    """A call whose second copy found no room."""

    pending: PendingTask
    attempt: Attempt
    hedger: Hedger


class Hedging:
    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        self.late: dict[str, dict[int, LateCall]] = {}  # by model and attempt
        self._won: dict[tuple[str, bool], Mean] = {}  # by model, and whether streamed: see `_share`

    def may_have(self, pending: PendingTask) -> None:
        """Who decides on second copies of it; the budget for them grows with the calls that may have one."""
        task = pending.task
        wanted = task.mode is RoutingMode.FAST if task.hedge is None else task.hedge
        if wanted and task.kind is not EMBED:
            if isinstance(wanted, str):
                found = self._state.policies.hedgers.get(wanted)
                if found is None:
                    raise ValueError(f"no hedging policy is registered as {wanted!r}")
                pending.hedger = found
            else:
                pending.hedger = self._state.hedger
            pending.hedger.deposit(task)

    def plan(self, pending: PendingTask, hedger: Hedger, attempt: Attempt, now: Micros) -> None:
        delay = hedger.after(pending.task, attempt.decision)
        if delay is not None:
            self._state.call_at(now + delay, lambda later: self._hedge(pending, attempt, hedger, later))

    def _hedge(self, pending: PendingTask, late: Attempt, hedger: Hedger, now: Micros) -> None:
        """An attempt is later than 19 of 20 are: send another copy, if a node is idle and the budget allows.

        At most two at once: if the second is late, too, the first may be given up and its node tried anew."""
        state, task = self._state, pending.task
        if pending.attempts.get(late.id) is not late or pending.delivering:
            return
        state.current_task = pending
        oldest = next(iter(pending.attempts.values()))
        second = len(pending.attempts) > 1
        if second and oldest is late:
            return
        if not second:
            if not self._try_copy(pending, late, hedger, now) and not self._restart(pending, late, hedger, now):
                self.late.setdefault(task.model, {})[late.id] = LateCall(pending, late, hedger)
                state.call_at(now + HEDGE_AGAIN, lambda later: self._hedge(pending, late, hedger, later))
            return
        # Late twice: by bad luck twice, or because the answer is long.
        share = self._share(task).value or 0.0
        luck = share * HANG_TWICE / (1 - share + share * HANG_TWICE)
        replicas, spared_us = [oldest.replica], oldest.replica.wait_us(now)
        takes_us = self._takes(task, replicas, now) - spared_us
        if luck * oldest.remaining_us(now) < takes_us or not hedger.withdraw():
            state.call_at(now + HEDGE_AGAIN, lambda later: self._hedge(pending, late, hedger, later))
            return
        self._share(task).add(0.0)
        state.abort(oldest, now)
        another = self.send(pending, late, replicas, "late", now)
        self.plan(pending, hedger, another, now)

    def _restart(self, pending: PendingTask, late: Attempt, hedger: Hedger, now: Micros) -> bool:
        """Send a very late call to its own node anew, if tasks wait and all other replicas are late as well.

        Calls that hang at the same time would otherwise stop all nodes. What was done for it is lost, so it must be
        far later than answers ever are."""
        task, replica = pending.task, late.replica
        others = [other for other in replica.group.replicas.values() if other is not replica and other.usable(now)]
        if (
            not others
            or not replica.group.queue.waiting
            or replica.group.replicas.get(replica.key) is not replica
            or not replica.node.usable
        ):
            return False
        if not all(other.attempts and other.soonest_us < now for other in others):
            return False
        delay_us = hedger.after(task, late.decision)
        if delay_us is None or now - late.started_us < RESTART_TIMES * delay_us or pending.restarts >= RESTARTS:
            return False
        if (self._share(task).value or 0.0) < RESTART_SHARE or not replica.breaker.closed or not hedger.withdraw():
            return False
        pending.restarts += 1
        self._state.abort(late, now)
        another = self.send(pending, late, [replica], "late", now)
        self.plan(pending, hedger, another, now)
        return True

    def offer(self, group: ModelReplicas, now: Micros) -> None:
        """An answer came, so a slot may be free: late calls may have it before those who wait for their first one."""
        calls = self.late.pop(group.model)
        for late in list(calls.values()):
            pending, attempt = late.pending, late.attempt
            self._state.current_task = pending
            over = pending.attempts.get(attempt.id) is not attempt or pending.delivering or len(pending.attempts) > 1
            if over or self._try_copy(pending, attempt, late.hedger, now):
                del calls[attempt.id]
        if calls:
            self.late[group.model] = calls

    def _try_copy(self, pending: PendingTask, late: Attempt, hedger: Hedger, now: Micros) -> bool:
        """Send a second copy, if another node has a free slot and it pays."""
        task, group = pending.task, late.replica.group
        tried = {*pending.tried, late.replica.node.key, *self._state.cluster.unable_for(task, now)}
        ready = (replica for replica in group.shortlist(task, tried, False, now) if replica.ready(now))
        # A copy that must load the model first comes late itself, and may put out what others use.
        replicas = [replica for replica in ready if not replica.startup_us(task.options)]
        if not replicas or not self._pays(pending, late, replicas, hedger, now) or not hedger.withdraw():
            return False
        another = self.send(pending, late, replicas, "late", now)
        self.plan(pending, hedger, another, now)
        return True

    def _pays(self, pending: PendingTask, late: Attempt, replicas: list[Replica], hedger: Hedger, now: Micros) -> bool:
        """Should a copy take less than it saves?

        It saves what the late attempt will still need, if it comes first. It takes its own time from those who wait for
        a node; if nobody does, from one who will come while it runs, which is as likely as nodes are busy."""
        task, group = pending.task, late.replica.group
        busy = 1.0
        if not group.queue.waiting:
            if hedger is not self._state.hedger:
                return True  # whoever brings his own has decided
            busy -= sum(replica.ready(now) for replica in group.with_capacity.values()) / len(group.replicas)
        return (self._share(task).value or 0.0) * late.remaining_us(now) > busy * self._takes(task, replicas, now)

    def _takes(self, task: Task, replicas: list[Replica], now: Micros) -> Micros:
        """Until a copy would be heard."""
        decision = router_of(self._state, task).choose(task, replicas, NO_RESERVATIONS, now, self._state.rng)
        return decision.first_response_us(task.stream)

    def _share(self, task: Task) -> Mean:
        """Of such calls that take more than twice as long as expected: for how many a copy comes first."""
        kind = task.model, task.stream
        share = self._won.get(kind)
        if share is None:
            share = self._won[kind] = Mean(COPY_WEIGHT)
            share.add(COPY_FIRST)
        return share

    def send(self, pending: PendingTask, late: Attempt, replicas: list[Replica], what: str, now: Micros) -> Attempt:
        """Send the same to another node: the first to yield wins."""
        state, task = self._state, pending.task
        decision = router_of(self._state, task).choose(task, replicas, NO_RESERVATIONS, now, state.rng)
        reason = f"another copy: {late.replica.node.key} is {what}; {decision.reason}"
        replica = late.replica.group.replicas[decision.node]
        decision = replaced(decision, reason=reason)
        return state.start(pending, replica, task.cost, decision, now, cause=Cause.HEDGE)

    def learn_alone(self, attempt: Attempt, timing: Timing, usual: float, now: Micros) -> None:
        """If it was heard more than twice as late as expected: would a copy sent then have been heard first, at the
        usual pace? Not if it is the prompt or the answer that is long."""
        task, reads = attempt.task, attempt.replica.prefill.value
        if not reads or attempt.resumed or self._state.tasks[task.id].attempts:  # a copy under way tells by itself
            return
        late_us = 2 * attempt.first_response_us()
        took_us, copy_us = now - attempt.started_us, timing.prompt_tokens / reads
        if task.stream:
            took_us = timing.load_us + timing.prompt_us
        else:
            copy_us += timing.tokens / usual
        if took_us > late_us:
            self._share(task).add(1.0 if late_us + copy_us < took_us else 0.0)

    def learn_race(self, winner: Attempt, loser: Attempt, now: Micros) -> None:
        """One of two copies came first."""
        first = winner if winner.id < loser.id else loser
        if first.remaining_us(now) > first.first_response_us():
            self._share(first.task).add(0.0 if winner is first else 1.0)


def router_of(state: SchedulerState, task: Task) -> Router:
    return state.router if task.mode is None else state.policies.modes.get(task.mode, state.router)
