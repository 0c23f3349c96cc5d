"""Decide what follows when a request fails on a node: another node, the queue, or the end.

A refusal is the caller's fault only when a second node, where one can serve the request, refuses it too. An error in
the same words is the request's fault only when no node is left that has not failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sollol.core.state.incapability import CONTRADICTED
from sollol.core.state.pending import FallbackAnswer, PendingTask
from sollol.core.state.replica import Attempt, Replica
from sollol.core.state.scheduler_state import SchedulerState
from sollol.core.types import TRANSIENT, Micros, Outcome, Status, Task, TaskPriority
from sollol.core.value import replaced

TRIES_HERE: Final = 60  # of a call for which this process has no file descriptor left: some 15 s
FREE: Final = frozenset(
    (Status.UNABLE, Status.UNSUITED, Status.LOCKED, Status.REFUSED, Status.TOO_LARGE)
)  # attempts that cost the node no work


class Failover:
    """Queue failed requests again, or settle them."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state

    def failed(self, pending: PendingTask, attempt: Attempt, outcome: Outcome, now: Micros) -> bool:
        """Settle the request or queue it again. Return True if it is settled."""
        state, node = self._state, attempt.replica.node.key
        why = outcome.message or outcome.status.value
        agreed = self._weigh(pending, attempt, outcome, why)
        if outcome.status is Status.BUSY:
            pending.busy = {*(pending.busy or ()), node}
            # As long as one node was not busy that often, it may take it.
            replicas = [replica for replica in attempt.replica.group.usable(now) if replica.suits(pending.task)]
            tries = min((replica.busy_answers for replica in replicas), default=attempt.replica.busy_answers)
            if all_paused(pending.task, [replica for replica in replicas if replica.key not in pending.tried]):
                tries = NEVER_AGAIN
        elif outcome.status is Status.NOT_SENT:
            pending.tries_here += 1
            tries = pending.tries_here
        else:
            pending.tries += outcome.status not in FREE
            tries = pending.tries
            pending.tried[node] = why
        if agreed:
            self.give_up(pending, "every attempt failed", now)
            return True
        if pending.attempts:  # the other attempt is still in flight
            return False
        if outcome.status is Status.REFUSED and not self._others(pending, attempt, now):
            self.give_up(pending, "every attempt failed", now)
            return True
        if self._is_last(pending, attempt, outcome, tries, now):
            pending.tried |= {
                replica.node.key: "busy" for replica in attempt.replica.group.usable(now) if replica.busy_answers
            }
            pending.tried[node] = why
            self.give_up(pending, "every attempt failed", now)
            return True
        urgent = int(TaskPriority.CRITICAL) if pending.delivering or pending.fallback is not None else None
        state.enqueue(pending, attempt.replica.group, pending.since, now, urgent)
        return False

    def is_final(self, attempt: Attempt, outcome: Outcome) -> bool:
        """Check that no other node is tried after this outcome."""
        if attempt.delivering and (not attempt.movable or outcome.status is Status.REFUSED):
            return True
        # Without a status it is a fault of ours, or of the caller's own objects.
        return outcome.status not in TRANSIENT and not (outcome.status is Status.REFUSED and outcome.http_status)

    def _weigh(self, pending: PendingTask, attempt: Attempt, outcome: Outcome, why: str) -> bool:
        """Update the fallback answer. Return True if two nodes have refused the request."""
        before: FallbackAnswer | None = pending.fallback
        if outcome.status is Status.REFUSED:
            pending.fallback = FallbackAnswer(attempt, outcome)
            return before is not None and before.outcome.status is Status.REFUSED
        if outcome.status in (Status.BUSY, Status.NOT_SENT) or (
            before is not None and before.outcome.status is Status.REFUSED
        ):
            return False
        answered = not attempt.delivering and outcome.http_status
        if outcome.status is Status.UNSUITED:
            same = before is not None and before.outcome.http_status == outcome.http_status
            pending.fallback = FallbackAnswer(attempt, outcome) if same or not pending.tried else None
        elif outcome.status is Status.FAILED and answered and why in pending.tried.values():
            pending.fallback = FallbackAnswer(attempt, outcome)
        elif before is not None and before.outcome.status is Status.UNSUITED:
            pending.fallback = None
        return False

    def _others(self, pending: PendingTask, attempt: Attempt, now: Micros) -> bool:
        """Check that an untried node can serve it."""
        task, group = pending.task, attempt.replica.group
        digest = group.digest_for(task)
        return any(
            replica.usable(now)
            and replica.key not in pending.tried
            and group.suits(replica, task, digest)
            and not replica.node.incapable.stops(task, now)
            for replica in group.replicas.values()
        )

    def _is_last(self, pending: PendingTask, attempt: Attempt, outcome: Outcome, tries: int, now: Micros) -> bool:
        """Check that the request has had its tries. A healthy node is always worth another."""
        if outcome.status in FREE:
            return False
        if outcome.status is Status.NOT_SENT:
            return tries >= TRIES_HERE
        if outcome.status is not Status.BUSY and self._well(pending, attempt, now):
            return False
        return self._state.retrier.again(pending.task, outcome, tries, now) is None

    def _well(self, pending: PendingTask, attempt: Attempt, now: Micros) -> bool:
        """Check that an untried node is left whose last answer was good, or that had none to give."""
        task, group = pending.task, attempt.replica.group
        digest = group.digest_for(task)
        return any(
            not replica.faults
            and not replica.node.faults.count
            and replica.usable(now)
            and group.suits(replica, task, digest)
            for replica in group.replicas.values()
            if replica.key not in pending.tried
        )

    def give_up(self, pending: PendingTask, message: str, now: Micros) -> None:
        """Settle a request for which no node is left."""
        state, fallback = self._state, pending.fallback
        state.abort_all(pending, now)
        if fallback is None:
            state.settle_no_node(pending, message, now)
            return
        if fallback.outcome.status is Status.FAILED:
            self._absolve(pending, fallback.attempt.replica, now)
        state.settle(pending, replaced(fallback.outcome, status=Status.REFUSED), fallback.attempt.id)

    def _absolve(self, pending: PendingTask, last: Replica, now: Micros) -> None:
        """Close the breakers that a request has opened: its failure went with it from node to node."""
        for key in pending.tried:
            replica = last.group.replicas.get(key)
            if replica is not None and replica.last_good_us >= 0:
                replica.record(now, Outcome(Status.REFUSED))
                replica.flag_off_nominal()

    def answered(self, pending: PendingTask, now: Micros) -> None:
        """Record that a node answered what another refused. After CONTRADICTED times that one counts as incapable."""
        fallback = pending.fallback
        if fallback is not None and fallback.outcome.status is Status.REFUSED:
            replica = fallback.attempt.replica
            replica.contradicted += 1
            if replica.contradicted >= CONTRADICTED:
                replica.contradicted = 0
                self._state.cluster.learn_unable(
                    replica.node, pending.task, replaced(fallback.outcome, http_status=0), now
                )


NEVER_AGAIN: Final = 1 << 30  # tries after which no policy goes on


def all_paused(task: Task, replicas: Sequence[Replica]) -> bool:
    """Check that each of these replicas is paused beyond the caller's deadline."""
    deadline_us = task.deadline_us
    if deadline_us is None or not replicas:
        return False
    for replica in replicas:  # noqa: SIM110  compiled, a generator expression is slow
        if replica.paused_until <= deadline_us:
            return False
    return True
