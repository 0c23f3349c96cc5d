"""Decide what follows when a single call fails on a node: another node, the line, or the end.

A refusal is the caller's fault only when a second node, where one can serve the call, refuses it too. An error in the
same words is the request's fault only when no node is left that has not failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sollol.core.attempt import Attempt
from sollol.core.lane import Lane
from sollol.core.ledger import Ledger, OpenTask
from sollol.core.types import TRANSIENT, How, Micros, Outcome, Task, TaskPriority
from sollol.core.unable import CONTRADICTED
from sollol.core.value import replaced

TRIES_HERE: Final = 60  # of a call for which this process has no file descriptor left: some 15 s
FREE: Final = frozenset((How.UNABLE, How.UNSUITED, How.LOCKED, How.REFUSED))  # attempts that cost the node no work


class Verdict:
    """An answer that may be passed on to the caller when no node is left."""

    __slots__ = ("attempt", "outcome")

    def __init__(self, attempt: Attempt, outcome: Outcome) -> None:
        self.attempt = attempt
        self.outcome = outcome


class Verdicts:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def failed(self, opened: OpenTask, attempt: Attempt, outcome: Outcome, at: Micros) -> bool:
        """Settle the call, or put it in line again. Return True if it is over."""
        ledger, node = self._ledger, attempt.lane.node.key
        why = outcome.message or outcome.how.value
        agreed = self._weigh(opened, attempt, outcome, why)
        if outcome.how is How.BUSY:
            opened.busy = {*(opened.busy or ()), node}
            # As long as one node was not busy that often, it may take it.
            lanes = [lane for lane in attempt.lane.market.usable(at) if lane.suits(opened.task)]
            tries = min((lane.busy_answers for lane in lanes), default=attempt.lane.busy_answers)
            if all_paused(opened.task, [lane for lane in lanes if lane.key not in opened.tried]):
                tries = NEVER_AGAIN
        elif outcome.how is How.OURS:
            opened.tries_here += 1
            tries = opened.tries_here
        else:
            opened.tries += outcome.how not in FREE
            tries = opened.tries
            opened.tried[node] = why
        if agreed:
            self.give_up(opened, "every attempt failed", at)
            return True
        if opened.attempts:  # the other copy is still under way
            return False
        if outcome.how is How.REFUSED and not self._others(opened, attempt, at):
            self.give_up(opened, "every attempt failed", at)
            return True
        if self._is_last(opened, attempt, outcome, tries, at):
            opened.tried |= {lane.node.key: "busy" for lane in attempt.lane.market.usable(at) if lane.busy_answers}
            opened.tried[node] = why
            self.give_up(opened, "every attempt failed", at)
            return True
        urgent = int(TaskPriority.CRITICAL) if opened.begun or opened.verdict is not None else None
        ledger.enqueue(opened, attempt.lane.market, opened.since, at, urgent)
        return False

    def is_final(self, attempt: Attempt, outcome: Outcome) -> bool:
        """Check whether no other node is asked after this outcome, whatever others would say."""
        if attempt.started and (not attempt.movable or outcome.how is How.REFUSED):
            return True
        # Without a status it is a fault of ours, or of the caller's own objects.
        return outcome.how not in TRANSIENT and not (outcome.how is How.REFUSED and outcome.status)

    def _weigh(self, opened: OpenTask, attempt: Attempt, outcome: Outcome, why: str) -> bool:
        """Note what may be passed on in the end. Return True if two nodes have refused the call."""
        before: Verdict | None = opened.verdict
        if outcome.how is How.REFUSED:
            opened.verdict = Verdict(attempt, outcome)
            return before is not None and before.outcome.how is How.REFUSED
        if outcome.how in (How.BUSY, How.OURS) or (before is not None and before.outcome.how is How.REFUSED):
            return False
        told = not attempt.started and outcome.status
        if outcome.how is How.UNSUITED:
            same = before is not None and before.outcome.status == outcome.status
            opened.verdict = Verdict(attempt, outcome) if same or not opened.tried else None
        elif outcome.how is How.FAILED and told and why in opened.tried.values():
            opened.verdict = Verdict(attempt, outcome)
        elif before is not None and before.outcome.how is How.UNSUITED:
            opened.verdict = None
        return False

    def _others(self, opened: OpenTask, attempt: Attempt, at: Micros) -> bool:
        """Check whether a node that has not had the call can serve it."""
        task, market = opened.task, attempt.lane.market
        digest = market.digest_for(task)
        return any(
            lane.usable(at)
            and lane.key not in opened.tried
            and market.suits(lane, task, digest)
            and not lane.node.unable.stops(task, at)
            for lane in market.lanes.values()
        )

    def _is_last(self, opened: OpenTask, attempt: Attempt, outcome: Outcome, tries: int, at: Micros) -> bool:
        """Check whether the call has had its tries. A node that works now is always worth another."""
        if outcome.how in FREE:
            return False
        if outcome.how is How.OURS:
            return tries >= TRIES_HERE
        if outcome.how is not How.BUSY and self._well(opened, attempt, at):
            return False
        return self._ledger.retrier.again(opened.task, outcome, tries, at) is None

    def _well(self, opened: OpenTask, attempt: Attempt, at: Micros) -> bool:
        """Check whether a node is left whose last answer was good, or that had nothing to answer yet."""
        task, market = opened.task, attempt.lane.market
        digest = market.digest_for(task)
        return any(
            not lane.faults and not lane.node.faults.count and lane.usable(at) and market.suits(lane, task, digest)
            for lane in market.lanes.values()
            if lane.key not in opened.tried
        )

    def give_up(self, opened: OpenTask, message: str, at: Micros) -> None:
        """Settle a call for which no node is left."""
        ledger, verdict = self._ledger, opened.verdict
        ledger.abort_all(opened, at)
        if verdict is None:
            ledger.settle_no_node(opened, message, at)
            return
        if verdict.outcome.how is How.FAILED:
            self._absolve(opened, verdict.attempt.lane, at)
        ledger.settle(opened, replaced(verdict.outcome, how=How.REFUSED), verdict.attempt.id)

    def _absolve(self, opened: OpenTask, last: Lane, at: Micros) -> None:
        """The failure went with the call from node to node: it opens no breaker for other calls."""
        for key in opened.tried:
            lane = last.market.lanes.get(key)
            if lane is not None and lane.last_good_us >= 0:
                lane.record(at, Outcome(How.REFUSED))
                lane.unsettle()

    def answered(self, opened: OpenTask, at: Micros) -> None:
        """A node has answered what another one refused: that one may be unable, if it happens again and again."""
        verdict = opened.verdict
        if verdict is not None and verdict.outcome.how is How.REFUSED:
            lane = verdict.attempt.lane
            lane.contradicted += 1
            if lane.contradicted >= CONTRADICTED:
                lane.contradicted = 0
                self._ledger.fleet.learn_unable(lane.node, opened.task, replaced(verdict.outcome, status=0), at)


NEVER_AGAIN: Final = 1 << 30  # tries after which no policy goes on


def all_paused(task: Task, lanes: Sequence[Lane]) -> bool:
    """Check whether every one of these lanes asks for more patience than the caller has."""
    deadline_us = task.deadline_us
    if deadline_us is None or not lanes:
        return False
    for lane in lanes:  # noqa: SIM110  compiled, a generator expression would ask all of them
        if lane.paused_until <= deadline_us:
            return False
    return True
