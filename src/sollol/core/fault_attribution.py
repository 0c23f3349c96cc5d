"""Attribute the failures of chunks to an item, to the length of a list, or to the node (`policies.suspicion`)."""

from __future__ import annotations

from typing import Final

from sollol.core.state.batch import Batch
from sollol.core.state.pending import PendingTask
from sollol.core.state.pending_items import PendingItems
from sollol.core.state.ranges import Ranges
from sollol.core.state.replica import Attempt, Replica
from sollol.core.state.scheduler_state import SchedulerState
from sollol.core.types import SECOND, Cause, Decision, Micros, Outcome, Status

OPENED_BY: Final = 16  # faults that open any breaker


class FaultAttribution:
    """Count the failures of chunks where they belong, and send controls."""

    __slots__ = ("_state",)

    def __init__(self, state: SchedulerState) -> None:
        self._state = state

    def failed(
        self, pending: PendingTask, batch: Batch, attempt: Attempt, count: int, outcome: Outcome, now: Micros
    ) -> None:
        """Record a failed chunk of `count` items on a node that answered."""
        replica = attempt.replica
        if not attempt.suspect:
            replica.list_limit.failed(count)
        if count > 1 or outcome.status is Status.REFUSED:
            return
        replica.single_faults += 1
        if replica.single_faults < self._state.policies.suspicion.control_after:
            return
        if batch.known_good is None:  # a bad item and a bad node look alike until something was answered
            replica.record(now, outcome)
            replica.flag_off_nominal()
        elif replica.breaker.closed:
            self.control(pending, batch, replica, now)

    def is_hopeless(self, batch: Batch, attempt: Attempt, patience_us: Micros, now: Micros) -> bool:
        """Count a failed chunk. Return True if a batch without any success is to be given up."""
        batch.failures_in_a_row += 1
        batch.failed_on.add(attempt.replica.key)
        batch.fresh_failures += not attempt.tries
        if batch.failures_in_a_row == 1:
            batch.failing_since = now
        if batch.answered:
            return False
        # While some items were not tried at all, only first tries count: many of the first may be bad.
        untried = not batch.closed or any(items.clean for items in batch.pending)
        failures = batch.fresh_failures if untried else batch.failures_in_a_row
        return self._state.policies.suspicion.is_hopeless(failures, now - batch.failing_since, patience_us)

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
        """Send a node a text that was answered before. Return whether it was sent."""
        item = batch.known_good
        if item is None or any(attempt.control for attempt in replica.attempts.values()):
            return False
        items = Ranges([(item, item + 1)])
        decision = Decision(replica.node.key, 5 * SECOND, "control: a text that was answered before")
        attempt = self._state.start(pending, replica, batch.costs.mean, decision, now, items, Cause.CONTROL)
        attempt.control = True
        return True

    def control_failed(self, attempt: Attempt, outcome: Outcome, now: Micros) -> None:
        """Open the breaker of a node that failed a text known to be good."""
        replica = attempt.replica
        if outcome.status is not Status.FAILED:
            return
        for _ in range(OPENED_BY):
            replica.record(now, outcome)
            if not replica.breaker.closed:
                break
        replica.flag_off_nominal()

    def acquit(self, attempt: Attempt, now: Micros) -> None:
        """Attribute earlier failures to the nodes, since the last suspect item was answered."""
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

    def is_bad(self, batch: Batch, nodes: frozenset[str], items: PendingItems, count: int) -> bool:
        """Check that a single item has failed often enough, on two of `nodes` if there are two."""
        if count > 1 or (not nodes <= items.failed_on and len(items.failed_on) < 2):
            return False
        return self._state.policies.suspicion.is_bad(items.evidence, batch.good, batch.vanished)
