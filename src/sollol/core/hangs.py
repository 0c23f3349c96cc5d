"""Find single calls whose runner hangs, and get them answered elsewhere: a second copy, or a move.

A node may answer every question about itself while its runner is frozen. What tells is how late its calls are, whether
the node is late with its lists, and callers who leave after they waited in vain.
"""

from __future__ import annotations

from typing import Final

from sollol.core.attempt import Attempt
from sollol.core.copies import Copies
from sollol.core.fleet import NodeState
from sollol.core.ledger import Ledger, OpenTask
from sollol.core.types import EMBED, SECOND, How, Micros, Outcome, TaskPriority

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


class Hangs:
    def __init__(self, ledger: Ledger, copies: Copies) -> None:
        self._ledger = ledger
        self._copies = copies

    def look_after(self, at: Micros) -> list[Attempt]:
        """Ask the nodes of attempts that are clearly later than predicted whether they live. A node may live and its
        runner hang: those attempts that have another copy now, because nothing was heard of them for far too long."""
        hung = []
        for attempt in list(self._ledger.attempts.values()):
            if attempt.task.batch:  # its tail looks after itself
                continue
            self._ledger.concern = attempt.opened
            node = attempt.lane.node
            late = at - attempt.due_us
            if late > max(LATE_LEAST, (attempt.due_us - attempt.started_us) // 2) and at - node.asked_us > LATE_LEAST:
                self._ledger.health.ask(node, at, self._ledger.out)
            least = RESUMED_LEAST if attempt.resumed else HUNG_LEAST
            if late > least and self._hangs(attempt, at, HUNG_TIMES) and self._rescue(attempt, at):
                hung.append(attempt)
        return hung

    def suspect(self, opened: OpenTask, at: Micros) -> None:
        """A caller who leaves is no fault of the node; one who has waited in vain for many times the prediction is a
        sign of one. A runner may hang for good while its node answers all probes, and nobody waits to the end."""
        times = SUSPECT_TIMES if opened.task.stream else SUSPECT_TIMES_WHOLE
        for attempt in opened.attempts.values():
            waited_us = at - attempt.started_us
            if not attempt.task.batch and waited_us > SUSPECT_LEAST and self._hangs(attempt, at, times):
                attempt.lane.breaker.record(at, Outcome(How.TIMEOUT))

    def blame(self, node: NodeState, at: Micros) -> None:
        """A node no longer answers its probes: what it was given and says nothing of may be why. Ollama asks a runner
        that hangs before it answers `/api/ps`; once our call is gone it answers again, and would get the next."""
        for lane in node.lanes.values():
            if any(not attempt.started for attempt in lane.attempts.values()):
                lane.breaker.trip(at)
                lane.unsettle()

    def doubt(self, node: NodeState, at: Micros) -> None:
        """A node is slow to answer what takes milliseconds. Where a model of it says nothing of calls that are late,
        its runner may be frozen: each of them gets another copy, and the next call goes elsewhere."""
        for lane in node.lanes.values():
            late = [attempt for attempt in lane.attempts.values() if self.is_late(attempt, at)]
            if not late or any(attempt.started for attempt in lane.attempts.values()):
                continue
            rescued = [attempt for attempt in late if self._rescue(attempt, at)]
            if rescued:
                lane.breaker.trip(at)
                lane.unsettle()

    def is_late(self, attempt: Attempt, at: Micros) -> bool:
        """Nothing was heard of it when it should have been, nor of its lane since it began."""
        if attempt.task.batch or attempt.started or attempt.lane.last_end_us > attempt.started_us:
            return False
        return at - attempt.started_us > attempt.heard_us() + LATE_LEAST

    def accompany(self, opened: OpenTask, attempt: Attempt, at: Micros) -> None:
        """A call that tries a node again which failed or hung carries a copy to a good one, so as not to wait."""
        lane, task = attempt.lane, opened.task
        if lane.steady or lane.breaker.closed or opened.begun or task.kind is EMBED or task.hedge is False:
            return
        tried = {*opened.avoids(), lane.node.key}
        lanes = [
            other
            for other in lane.market.shortlist(task, tried, False, at)
            if other.free(at) and other.breaker.closed and not other.startup_us(task.options)
        ]
        if lanes:
            self._copies.send(opened, attempt, lanes, "on trial", at)

    def move(self, attempt: Attempt, outcome: Outcome, at: Micros) -> None:
        """Give an attempt up so that another node goes on. Costs no retry: it has not failed by itself."""
        ledger, opened = self._ledger, attempt.opened
        opened.tried[attempt.lane.node.key] = outcome.message
        ledger.abort(attempt, at, outcome)
        if not opened.attempts:
            urgent = int(TaskPriority.CRITICAL) if opened.begun else None
            ledger.enqueue(opened, attempt.lane.market, opened.since, at, urgent)

    def _hangs(self, attempt: Attempt, at: Micros, times: int) -> bool:
        return not attempt.started and at - attempt.started_us > times * attempt.heard_us()

    def _rescue(self, attempt: Attempt, at: Micros) -> bool:
        """Another copy, once, if a node is idle; the first is not given up, for it may be late for a reason. Of an
        answer that goes on here there is no second copy: it is moved."""
        opened, market = self._ledger.open[attempt.task.id], attempt.lane.market
        self._ledger.concern = opened
        if len(opened.attempts) > 1:
            return False
        tried = {*opened.avoids(), attempt.lane.node.key}
        if opened.begun:
            if not market.shortlist(opened.task, tried, False, at):
                return False
            self.move(attempt, Outcome(How.TIMEOUT, "did not go on with the answer"), at)
            self._ledger.serve_at(market.model, at)
            return True
        lanes = [lane for lane in market.shortlist(opened.task, tried, False, at) if lane.ready(at)]
        if lanes:
            self._copies.send(opened, attempt, lanes, "silent", at)
        return bool(lanes)
