"""Find single calls whose runner hangs, and get them answered elsewhere: a second copy, or a move.

A node may answer every question about itself while its runner is frozen. What tells is how late its calls are, whether
the node is late with its lists, and callers who leave after they waited in vain.
"""

from __future__ import annotations

from typing import Final

from sollol.core.hedging import Hedging
from sollol.core.state.attempt import Attempt
from sollol.core.state.node import Node
from sollol.core.state.pending import PendingTask
from sollol.core.state.scheduler_state import SchedulerState
from sollol.core.types import EMBED, SECOND, Micros, Outcome, Status, TaskPriority

LATE_LEAST: Final[Micros] = 1 * SECOND  # beyond its prediction, before its node is asked whether it lives
# A call whose node is silent for so many times its prediction, but never before HUNG_LEAST, gets another copy.
HUNG_TIMES: Final = 20
HUNG_LEAST: Final[Micros] = 60 * SECOND
RESUMED_LEAST: Final[Micros] = 8 * SECOND  # of one that goes on with an answer: its caller has seen it stop
# What a caller must have waited before he left, for it to be held against the node: so many times the prediction (how
# long a whole answer takes is known less well than when a stream begins), and never less than SUSPECT_LEAST.
SUSPECT_TIMES: Final = 5
SUSPECT_TIMES_WHOLE: Final = 10
SUSPECT_LEAST: Final[Micros] = 5 * SECOND


class HangDetection:
    def __init__(self, state: SchedulerState, hedging: Hedging) -> None:
        self._state = state
        self._copies = hedging

    def look_after(self, now: Micros) -> list[Attempt]:
        """Ask the nodes of attempts that are clearly later than predicted whether they live. A node may live and its
        runner hang: those attempts that have another copy now, because nothing was heard of them for far too long."""
        hung = []
        for attempt in list(self._state.attempts.values()):
            if attempt.task.batch:  # its tail looks after itself
                continue
            self._state.current_task = attempt.pending
            node = attempt.replica.node
            late = now - attempt.due_us
            if late > max(LATE_LEAST, (attempt.due_us - attempt.started_us) // 2) and now - node.asked_us > LATE_LEAST:
                self._state.health.ask(node, now, self._state.out)
            least = RESUMED_LEAST if attempt.resumed else HUNG_LEAST
            if late > least and self._hang_detection(attempt, now, HUNG_TIMES) and self._rescue(attempt, now):
                hung.append(attempt)
        return hung

    def suspect(self, pending: PendingTask, now: Micros) -> None:
        """A caller who leaves is no fault of the node; one who has waited in vain for many times the prediction is a
        sign of one. A runner may hang for good while its node answers all probes, and nobody waits to the end."""
        times = SUSPECT_TIMES if pending.task.stream else SUSPECT_TIMES_WHOLE
        for attempt in pending.attempts.values():
            waited_us = now - attempt.started_us
            if not attempt.task.batch and waited_us > SUSPECT_LEAST and self._hang_detection(attempt, now, times):
                attempt.replica.breaker.record(now, Outcome(Status.TIMEOUT))

    def blame(self, node: Node, now: Micros) -> None:
        """A node no longer answers its probes: what it was given and says nothing of may be why. Ollama asks a runner
        that hangs before it answers `/api/ps`; once our call is gone it answers again, and would get the next."""
        for replica in node.replicas.values():
            if any(not attempt.started for attempt in replica.attempts.values()):
                replica.breaker.trip(now)
                replica.flag_off_nominal()

    def evidence(self, node: Node, now: Micros) -> None:
        """A node is slow to answer what takes milliseconds. Where a model of it says nothing of calls that are late,
        its runner may be frozen: each of them gets another copy, and the next call goes elsewhere."""
        for replica in node.replicas.values():
            late = [attempt for attempt in replica.attempts.values() if self.is_late(attempt, now)]
            if not late or any(attempt.started for attempt in replica.attempts.values()):
                continue
            rescued = [attempt for attempt in late if self._rescue(attempt, now)]
            if rescued:
                replica.breaker.trip(now)
                replica.flag_off_nominal()

    def is_late(self, attempt: Attempt, now: Micros) -> bool:
        """Nothing was heard of it when it should have been, nor of its lane since it began."""
        if attempt.task.batch or attempt.started or attempt.replica.last_end_us > attempt.started_us:
            return False
        return now - attempt.started_us > attempt.first_response_us() + LATE_LEAST

    def accompany(self, pending: PendingTask, attempt: Attempt, now: Micros) -> None:
        """A call that tries a node again which failed or hung carries a copy to a good one, so as not to wait."""
        replica, task = attempt.replica, pending.task
        if replica.nominal or replica.breaker.closed or pending.delivering or task.kind is EMBED or task.hedge is False:
            return
        tried = {*pending.avoids(), replica.node.key}
        replicas = [
            other
            for other in replica.group.shortlist(task, tried, False, now)
            if other.free(now) and other.breaker.closed and not other.startup_us(task.options)
        ]
        if replicas:
            self._copies.send(pending, attempt, replicas, "on trial", now)

    def move(self, attempt: Attempt, outcome: Outcome, now: Micros) -> None:
        """Give an attempt up so that another node goes on. Costs no retry: it has not failed by itself."""
        state, pending = self._state, attempt.pending
        pending.tried[attempt.replica.node.key] = outcome.message
        state.abort(attempt, now, outcome)
        if not pending.attempts:
            urgent = int(TaskPriority.CRITICAL) if pending.delivering else None
            state.enqueue(pending, attempt.replica.group, pending.since, now, urgent)

    def _hang_detection(self, attempt: Attempt, now: Micros, times: int) -> bool:
        return not attempt.started and now - attempt.started_us > times * attempt.first_response_us()

    def _rescue(self, attempt: Attempt, now: Micros) -> bool:
        """Another copy, once, if a node is idle; the first is not given up, for it may be late for a reason. Of an
        answer that goes on here there is no second copy: it is moved."""
        pending, group = self._state.tasks[attempt.task.id], attempt.replica.group
        self._state.current_task = pending
        if len(pending.attempts) > 1:
            return False
        tried = {*pending.avoids(), attempt.replica.node.key}
        if pending.delivering:
            if not group.shortlist(pending.task, tried, False, now):
                return False
            self.move(attempt, Outcome(Status.TIMEOUT, "did not go on with the answer"), now)
            self._state.serve_at(group.model, now)
            return True
        replicas = [replica for replica in group.shortlist(pending.task, tried, False, now) if replica.ready(now)]
        if replicas:
            self._copies.send(pending, attempt, replicas, "silent", now)
        return bool(replicas)
