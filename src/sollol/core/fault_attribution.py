"""Charge the failures of chunks to an item, to the length of a list, or to the node (see `core.suspicion`)."""

from __future__ import annotations

from typing import Final

from sollol.core.state.attempt import Attempt
from sollol.core.state.batch import Batch, PendingItems
from sollol.core.state.pending import PendingTask
from sollol.core.state.ranges import Ranges
from sollol.core.state.replica import Replica
from sollol.core.state.scheduler_state import SchedulerState
from sollol.core.suspicion import CONTROL_AFTER, TRIES_MOST, tries_needed
from sollol.core.types import SECOND, Cause, Decision, Micros, Outcome, Status

HOPELESS: Final = 24  # failures before a batch that never succeeded is given up, or fewer that take its patience
HOPELESS_LEAST: Final = 6
OPENED_BY: Final = 16  # faults that open any breaker


class FaultAttribution:
    """Decide what a failed chunk tells of its items and of its node."""

    __slots__ = ("_state",)

    def __init__(self, state: SchedulerState) -> None:
        self._state = state

    def failed(
        self, pending: PendingTask, batch: Batch, attempt: Attempt, count: int, outcome: Outcome, now: Micros
    ) -> None:
        """A chunk of `count` items has failed on a node that answered."""
        replica = attempt.replica
        if not attempt.suspect:
            replica.list_limit.failed(count)
        if count > 1 or outcome.status is Status.REFUSED:
            return
        replica.single_faults += 1
        if replica.single_faults < CONTROL_AFTER:
            return
        if batch.known_good is None:  # nothing tells a bad item from a bad node yet
            replica.record(now, outcome)
            replica.flag_off_nominal()
        elif replica.breaker.closed:
            self.control(pending, batch, replica, now)

    def is_hopeless(self, batch: Batch, attempt: Attempt, patience_us: Micros, now: Micros) -> bool:
        """Count a failed chunk. Return True if nothing of the batch ever succeeded, and nothing is likely to."""
        batch.failures_in_a_row += 1
        batch.failed_on.add(attempt.replica.key)
        batch.fresh_failures += not attempt.tries
        if batch.failures_in_a_row == 1:
            batch.failing_since = now
        if batch.answered:
            return False
        # As long as some items were not tried at all, only first tries count: many of the first may be bad.
        untried = not batch.closed or any(piece.clean for piece in batch.pending)
        failures = batch.fresh_failures if untried else batch.failures_in_a_row
        return failures >= HOPELESS or (failures >= HOPELESS_LEAST and now - batch.failing_since > patience_us)

    def share(self, batch: Batch, attempt: Attempt, outcome: Outcome, now: Micros) -> None:
        """Count a failure for the other attempts that have the same items, after a takeover."""
        others = {id for item in attempt.items.items() for id in batch.contested.get(item, ())}
        replica, count = attempt.replica, attempt.items.total()
        for id in sorted(others):
            other = batch.live[id]
            other.tries += 1
            other.failed_on |= {replica.node.key}
            other.evidence = other.evidence.and_failed(replica.node.key, replica.last_good_us, count, outcome, now)

    def control(self, pending: PendingTask, batch: Batch, replica: Replica, now: Micros) -> bool:
        """Send a node a text that was answered before; True if it was sent."""
        item = batch.known_good
        if item is None or any(attempt.control for attempt in replica.attempts.values()):
            return False
        items = Ranges([(item, item + 1)])
        decision = Decision(replica.node.key, 5 * SECOND, "control: a text that was answered before")
        attempt = self._state.start(pending, replica, batch.costs.mean, decision, now, items, Cause.CONTROL)
        attempt.control = True
        return True

    def control_failed(self, attempt: Attempt, outcome: Outcome, now: Micros) -> None:
        """The node fails a text that is known to be good: it is broken."""
        replica = attempt.replica
        if outcome.status is not Status.FAILED:
            return
        for _ in range(OPENED_BY):
            replica.record(now, outcome)
            if not replica.breaker.closed:
                break
        replica.flag_off_nominal()

    def vanished(self, attempt: Attempt, now: Micros) -> None:
        """The only item left that could have made requests fail was answered: it was not the item."""
        group = attempt.replica.group
        for node, count in attempt.evidence.least.items():
            replica = group.replicas.get(node)
            if replica is None:
                continue
            if count > 1:
                replica.list_limit.too_long(count)
            elif attempt.evidence.outcome is not None:
                replica.record(now, attempt.evidence.outcome)
                replica.flag_off_nominal()

    def is_bad(self, batch: Batch, nodes: frozenset[str], piece: PendingItems, count: int) -> bool:
        """Check that a single item has failed often enough, on two of `nodes` if it may go to more than one."""
        evidence, outcome = piece.evidence, piece.evidence.outcome
        if count > 1 or outcome is None:
            return False
        if not evidence.alone:
            return False
        if not nodes <= piece.failed_on and len(piece.failed_on) < 2:
            return False
        if outcome.status is Status.REFUSED or evidence.alone >= TRIES_MOST:
            return True
        # Where requests fail at random, one that had other items too proves nothing of this one.
        tries = evidence.alone if batch.vanished else evidence.tries
        return evidence.witnessed and tries >= tries_needed(batch.good, batch.vanished)
