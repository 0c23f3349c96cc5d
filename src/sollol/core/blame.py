"""Charge the failures of chunks to an item, to the length of a list, or to the node (see `core.suspicion`)."""

from __future__ import annotations

from typing import Final

from sollol.core.attempt import Attempt
from sollol.core.batch import Batch, Piece
from sollol.core.lane import Lane
from sollol.core.ledger import Ledger, OpenTask
from sollol.core.ranges import Ranges
from sollol.core.suspicion import CONTROL_AFTER, TRIES_MOST, tries_needed
from sollol.core.types import SECOND, Decision, How, Micros, Outcome

HOPELESS: Final = 24  # failures before a batch that never succeeded is given up, or fewer that take its patience
HOPELESS_LEAST: Final = 6
OPENED_BY: Final = 16  # faults that open any breaker


class Blame:
    """Decide what a failed chunk tells of its items and of its node."""

    __slots__ = ("_ledger",)

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def failed(
        self, opened: OpenTask, batch: Batch, attempt: Attempt, count: int, outcome: Outcome, at: Micros
    ) -> None:
        """A chunk of `count` items has failed on a node that answered."""
        lane = attempt.lane
        if not attempt.suspect:
            lane.list_length.failed(count)
        if count > 1 or outcome.how is How.REFUSED:
            return
        lane.single_faults += 1
        if lane.single_faults < CONTROL_AFTER:
            return
        if batch.known_good is None:  # nothing tells a bad item from a bad node yet
            lane.record(at, outcome)
            lane.unsettle()
        elif lane.breaker.closed:
            self.control(opened, batch, lane, at)

    def is_hopeless(self, batch: Batch, attempt: Attempt, patience_us: Micros, at: Micros) -> bool:
        """Count a failed chunk. Return True if nothing of the batch ever succeeded, and nothing is likely to."""
        batch.failures_in_a_row += 1
        batch.failed_on.add(attempt.lane.key)
        batch.fresh_failures += not attempt.tries
        if batch.failures_in_a_row == 1:
            batch.failing_since = at
        if batch.answered:
            return False
        # As long as some items were not tried at all, only first tries count: many of the first may be bad.
        untried = not batch.closed or any(piece.clean for piece in batch.pending)
        failures = batch.fresh_failures if untried else batch.failures_in_a_row
        return failures >= HOPELESS or (failures >= HOPELESS_LEAST and at - batch.failing_since > patience_us)

    def share(self, batch: Batch, attempt: Attempt, outcome: Outcome, at: Micros) -> None:
        """Count a failure for the other attempts that have the same items, after a takeover."""
        others = {id for item in attempt.items.items() for id in batch.contested.get(item, ())}
        lane, count = attempt.lane, attempt.items.total()
        for id in sorted(others):
            other = batch.live[id]
            other.tries += 1
            other.failed_on |= {lane.node.key}
            other.doubt = other.doubt.and_failed(lane.node.key, lane.last_good_us, count, outcome, at)

    def control(self, opened: OpenTask, batch: Batch, lane: Lane, at: Micros) -> bool:
        """Send a node a text that was answered before; True if it was sent."""
        item = batch.known_good
        if item is None or any(attempt.control for attempt in lane.attempts.values()):
            return False
        items = Ranges([(item, item + 1)])
        decision = Decision(lane.node.key, 5 * SECOND, "control: a text that was answered before")
        attempt = self._ledger.start(opened, lane, batch.costs.mean, decision, at, items)
        attempt.control = True
        return True

    def control_failed(self, attempt: Attempt, outcome: Outcome, at: Micros) -> None:
        """The node fails a text that is known to be good: it is broken."""
        lane = attempt.lane
        if outcome.how is not How.FAILED:
            return
        for _ in range(OPENED_BY):
            lane.record(at, outcome)
            if not lane.breaker.closed:
                break
        lane.unsettle()

    def vanished(self, attempt: Attempt, at: Micros) -> None:
        """The only item left that could have made requests fail was answered: it was not the item."""
        market = attempt.lane.market
        for node, count in attempt.doubt.least.items():
            lane = market.lanes.get(node)
            if lane is None:
                continue
            if count > 1:
                lane.list_length.too_long(count)
            elif attempt.doubt.outcome is not None:
                lane.record(at, attempt.doubt.outcome)
                lane.unsettle()

    def is_bad(self, batch: Batch, nodes: frozenset[str], piece: Piece, count: int) -> bool:
        """Check that a single item has failed often enough, on two of `nodes` if it may go to more than one."""
        doubt, outcome = piece.doubt, piece.doubt.outcome
        if count > 1 or outcome is None:
            return False
        if not doubt.alone:
            return False
        if not nodes <= piece.failed_on and len(piece.failed_on) < 2:
            return False
        if outcome.how is How.REFUSED or doubt.alone >= TRIES_MOST:
            return True
        # Where requests fail at random, one that had other items too proves nothing of this one.
        tries = doubt.alone if batch.vanished else doubt.tries
        return doubt.witnessed and tries >= tries_needed(batch.good, batch.vanished)
