"""Serving single tasks: which node, when it is free, and what follows when an attempt fails."""

from __future__ import annotations

from sollol.core.fleet import Attempt, Market
from sollol.core.ledger import Ledger, OpenTask
from sollol.core.types import TRANSIENT, How, Micros, Outcome


class Singles:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def serve(self, opened: OpenTask, market: Market, ahead: dict[str, Micros], at: Micros) -> bool:
        """True if the task left the line: started, or settled for want of any node."""
        ledger = self._ledger
        lanes = [lane for lane in market.lanes.values() if lane.node.key not in opened.tried]
        admitted = [lane for lane in lanes if lane.usable(at)]
        if not admitted:
            # A node behind an open breaker is still better than no answer, if nothing else is left.
            admitted = [lane for lane in lanes if lane.node.usable and not lane.attempts]
        if not admitted:
            if ledger.may_yet_come(opened, at):
                return False
            ledger.settle_no_node(opened, "no node can serve it")
            return True
        decision = ledger.policies.router.choose(opened.task, admitted, ahead, at, ledger.rng)
        lane = market.lanes[decision.node]
        if lane.free(at) or (not lane.attempts and not lane.breaker.admits(at)):
            ledger.start(opened, lane, opened.task.cost, decision, at)
            return True
        own = sum(t.us for c in decision.candidates if c.node == decision.node for t in c.terms if t.name != "wait")
        ahead[decision.node] = ahead.get(decision.node, 0) + (own or decision.predicted_us)
        return False

    def failed(self, opened: OpenTask, attempt: Attempt, outcome: Outcome, at: Micros) -> None:
        """Another node, the line, or the end."""
        ledger, task, node = self._ledger, opened.task, attempt.lane.node.key
        if outcome.how not in TRANSIENT or attempt.started:
            ledger.settle(opened, outcome, attempt.id)
            return
        why = outcome.message or outcome.how.value
        if outcome.how is How.BUSY:
            opened.busy += 1
            tries = opened.busy
        else:
            opened.tries += 1
            tries = opened.tries
            opened.tried[node] = why
        if ledger.policies.retrier.again(task, outcome, tries, at) is None:
            opened.tried.setdefault(node, why)
            ledger.settle_no_node(opened, "every attempt failed")
            return
        ledger.line(task.model).push(task.id, task.priority, opened.since)
