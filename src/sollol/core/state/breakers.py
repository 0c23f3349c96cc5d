"""Combine the breaker of a replica with one that all models of its node share.

A node with a dead GPU has one fault, not one for each of its 40 models. The shared breaker counts faults in a row of
two models or more.
"""

from __future__ import annotations

from typing import Final

from sollol.core.capacity import Breaker
from sollol.core.types import OK, Micros, Outcome, Status

MODELS_LEAST: Final = 2  # that fail in a row, before it is the node
FAULTS: Final = frozenset((Status.FAILED, Status.TIMEOUT))


class NodeFaults:
    """Count the faults in a row of one node, over all its models.

    Attributes:
        breaker: Shared by the models of the node.
    """

    __slots__ = ("breaker", "count", "models")

    def __init__(self) -> None:
        self.breaker: Breaker | None = None
        self.models: set[str] = set()  # that failed since the last good answer
        self.count = 0

    def record(self, model: str, now: Micros, outcome: Outcome) -> bool:
        """Record an outcome. Return True if the shared breaker has opened or closed."""
        breaker = self.breaker
        if breaker is None:
            return False
        before = breaker.closed
        if outcome.status in FAULTS:
            self.count += 1
            self.models.add(model)
            if len(self.models) >= MODELS_LEAST or not before:
                breaker.record(now, outcome)
            return breaker.closed is not before
        if outcome.status is OK or outcome.status is Status.REFUSED:
            self.count = 0
            if self.models:
                self.models.clear()
        if not before or outcome.status is OK:
            breaker.record(now, outcome)
        return breaker.closed is not before


class ReplicaBreaker:
    """Admit what both breakers admit."""

    __slots__ = ("node", "own")

    def __init__(self, own: Breaker, node: NodeFaults) -> None:
        self.own = own
        self.node = node

    @property
    def closed(self) -> bool:
        """Return whether both are closed."""
        shared = self.node.breaker
        return self.own.closed and (shared is None or shared.closed)

    def admits(self, now: Micros) -> bool:
        """Check that both admit a request."""
        shared = self.node.breaker
        return self.own.admits(now) and (shared is None or shared.admits(now))

    def retry_at(self) -> Micros | None:
        """Return when both admit a trial; None while closed, or during a trial."""
        shared = self.node.breaker
        times = [] if self.own.closed else [self.own.retry_at()]
        if shared is not None and not shared.closed:
            times.append(shared.retry_at())
        known = [time for time in times if time is not None]
        return max(known) if known and len(known) == len(times) else None

    def begin(self, now: Micros) -> None:
        """Record that an attempt starts."""
        self.own.begin(now)
        if self.node.breaker is not None:
            self.node.breaker.begin(now)

    def trip(self, now: Micros) -> None:
        """Open the replica's own breaker."""
        self.own.trip(now)

    def postpone(self, now: Micros, longer: bool) -> None:
        """End the trial of each open breaker: another node was sooner."""
        for breaker in (self.own, self.node.breaker):
            if breaker is not None and not breaker.closed:
                breaker.postpone(now, longer)

    def record(self, now: Micros, outcome: Outcome) -> None:
        """Record an outcome in the replica's own breaker."""
        self.own.record(now, outcome)
        if outcome.status is Status.LEFT and self.node.breaker is not None:
            self.node.breaker.record(now, outcome)
