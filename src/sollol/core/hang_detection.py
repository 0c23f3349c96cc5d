"""Find requests whose runner hangs, and send them to another node: a second attempt, or a move.

A node may answer every probe while its runner is frozen. The evidence is how late its requests are, whether the node is
late with its lists, and callers who leave after a long wait. `policies.lateness` sets the bounds.
"""

from __future__ import annotations

from sollol.core.hedging import Hedging
from sollol.core.state.pending import PendingTask
from sollol.core.state.replica import Attempt, Node
from sollol.core.state.scheduler_state import SchedulerState
from sollol.core.state.shortlist import shortlist
from sollol.core.types import EMBED, Micros, Outcome, Status, TaskPriority


class HangDetection:
    """Check attempts in flight against their predictions."""

    def __init__(self, state: SchedulerState, hedging: Hedging) -> None:
        self._state = state
        self._hedging = hedging

    def check_all(self, now: Micros) -> list[Attempt]:
        """Probe the nodes of late attempts. Return the attempts that were repeated or moved."""
        state, lateness = self._state, self._state.policies.lateness
        hung = []
        for attempt in list(state.attempts.values()):
            if attempt.task.batch:  # see `core.takeover`
                continue
            state.current_task = state.tasks.get(attempt.task.id)
            node, overdue_us = attempt.replica.node, now - attempt.due_us
            if lateness.probes(overdue_us, attempt.due_us - attempt.started_us, now - node.asked_us):
                state.health.ask(node, now, state.out)
            waited_us = now - attempt.started_us
            hangs = not attempt.delivering and lateness.hangs(
                waited_us, attempt.first_response_us(), overdue_us, attempt.resumed
            )
            if hangs and self.rescue(attempt, now):
                hung.append(attempt)
        return hung

    def record_departure(self, pending: PendingTask, now: Micros) -> None:
        """Count a caller who left after a long wait against the node."""
        lateness = self._state.policies.lateness
        for attempt in pending.attempts.values():
            if attempt.task.batch or attempt.delivering:
                continue
            waited_us = now - attempt.started_us
            if lateness.suspects(waited_us, attempt.first_response_us(), pending.task.stream):
                attempt.replica.breaker.record(now, Outcome(Status.TIMEOUT))

    def record_silent_node(self, node: Node, now: Micros) -> None:
        """Open the breakers of replicas with unanswered attempts, on a node that stopped answering probes.

        Ollama waits for a hanging runner before it answers `/api/ps`. It answers again when our request is gone, and
        would otherwise get the next one.
        """
        for replica in node.replicas.values():
            if any(not attempt.delivering for attempt in replica.attempts.values()):
                replica.breaker.trip(now)
                replica.flag_off_nominal()

    def record_slow_probe(self, node: Node, now: Micros) -> None:
        """Repeat the late attempts of a node that is slow to answer a probe, and open their breakers."""
        for replica in node.replicas.values():
            late = [attempt for attempt in replica.attempts.values() if self.is_late(attempt, now)]
            if not late or any(attempt.delivering for attempt in replica.attempts.values()):
                continue
            rescued = [attempt for attempt in late if self.rescue(attempt, now)]
            if rescued:
                replica.breaker.trip(now)
                replica.flag_off_nominal()

    def is_late(self, attempt: Attempt, now: Micros) -> bool:
        """Check that an attempt is overdue and its replica has answered nothing since it began."""
        if attempt.task.batch or attempt.delivering or attempt.replica.last_end_us > attempt.started_us:
            return False
        return self._state.policies.lateness.is_late(now - attempt.started_us, attempt.first_response_us())

    def accompany(self, pending: PendingTask, attempt: Attempt, now: Micros) -> None:
        """Send a second attempt along with one that tests a node behind an open breaker."""
        replica, task = attempt.replica, pending.task
        if replica.nominal or replica.breaker.closed or pending.delivering or task.kind is EMBED or task.hedge is False:
            return
        tried = {*pending.avoids(), replica.node.key}
        replicas = [
            other
            for other in shortlist(replica.group, task, tried, False, now)
            if other.free(now) and other.breaker.closed and not other.startup_for(task)
        ]
        if replicas:
            self._hedging.send(pending, attempt, replicas, "on trial", now)

    def move(self, attempt: Attempt, outcome: Outcome, now: Micros) -> None:
        """Abort an attempt and queue its task for another node. It costs no retry."""
        state = self._state
        pending = state.tasks[attempt.task.id]
        pending.tried[attempt.replica.node.key] = outcome.message
        state.abort(attempt, now, outcome)
        if not pending.attempts:
            urgent = int(TaskPriority.CRITICAL) if pending.delivering else None
            state.enqueue(pending, attempt.replica.group, pending.since, now, urgent)

    def rescue(self, attempt: Attempt, now: Micros) -> bool:
        """Send one more attempt if a node is idle; move a resumed answer, which cannot have two.

        The first attempt goes on, since it may be late for a good reason.
        """
        pending, group = self._state.tasks[attempt.task.id], attempt.replica.group
        self._state.current_task = pending
        if len(pending.attempts) > 1:
            return False
        tried = {*pending.avoids(), attempt.replica.node.key}
        if pending.delivering:
            if not shortlist(group, pending.task, tried, False, now):
                return False
            self.move(attempt, Outcome(Status.TIMEOUT, "did not go on with the answer"), now)
            self._state.bind_at(group.model, now)
            return True
        replicas = [replica for replica in shortlist(group, pending.task, tried, False, now) if replica.ready(now)]
        if replicas:
            self._hedging.send(pending, attempt, replicas, "silent", now)
        return bool(replicas)
