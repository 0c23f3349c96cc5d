"""Protocols of the policies that the state holds: a limiter and a breaker for each replica, an order for nodes."""

from __future__ import annotations

from typing import Protocol

from sollol.core.types import Micros, Outcome


class Limiter(Protocol):
    """Limit the requests in flight on one (node, model).

    Each method records one kind of evidence. An implementation may ignore some.
    """

    @property
    def limit(self) -> int:
        """Return the requests that may be in flight."""
        ...

    @property
    def proven(self) -> int:
        """Return how many of them the node works on at once. More are a trial, and may wait inside the node."""
        ...

    @property
    def slots(self) -> int:
        """Return the requests that the node worked on at once, even where only short ones gain by it."""
        ...

    def sample(self, amount: float, busy_us: Micros, inflight: int, dropped: bool, wanted: bool) -> None:
        """Record the end of a request: `amount` of work in `busy_us`, with `inflight` in flight.

        Args:
            dropped: The node refused the load, or did not answer in time.
            wanted: Others wait for a slot.
        """
        ...

    def responded(self, responding: int, waited: bool, now: Micros) -> None:
        """Record that an answer began while `responding` requests, itself included, were being answered.

        Args:
            waited: It was sent beyond the proven limit, and its first token came late.
        """
        ...

    def refused(self, responding: int, trial: bool, now: Micros) -> None:
        """Record that a request waited inside the node while `responding` others were being answered."""
        ...

    def restore(self, limit: int, now: Micros) -> None:
        """Restore a limit that was proven before a restart."""
        ...

    def reopen(self, now: Micros) -> None:
        """Allow the next trial if its time has come. Called while tasks wait."""
        ...

    def answered(
        self, inflight: float, elapsed_us: Micros, wait_us: Micros, rate: float, now: Micros, concurrent: int = 0
    ) -> None:
        """Record an answer that came with timings.

        Args:
            inflight: Mean number of requests in flight while it ran.
            elapsed_us: Time from sending to the end of the answer.
            wait_us: Time it waited inside the node for a slot.
            rate: Its tokens per µs of decoding, 0 if unknown.
            now: The present moment.
            concurrent: Requests in flight when it was sent, itself included, if it did not wait; else 0.
        """
        ...

    def embedded(self, inflight: float, elapsed_us: Micros, inside_us: Micros, cost: float, now: Micros) -> None:
        """Record an embedding of `cost` units that took the node `inside_us`."""
        ...


class Breaker(Protocol):
    """Decide whether a (node, model) may be used."""

    closed: bool
    """It admits everything. An attribute, because each decision reads it for every replica."""

    def admits(self, now: Micros) -> bool:
        """Check that a request may be sent now."""
        ...

    def retry_at(self) -> Micros | None:
        """Return when the next trial is admitted, or None while closed."""
        ...

    def begin(self, now: Micros) -> None:
        """Record that an attempt starts: an open breaker admits one trial."""
        ...

    def record(self, now: Micros, outcome: Outcome) -> None:
        """Record the outcome of an attempt."""
        ...

    def trip(self, now: Micros) -> None:
        """Open at once: more than one request shows that it hangs."""
        ...

    def postpone(self, now: Micros, longer: bool) -> None:
        """Record that a trial was given up because another node was sooner.

        Args:
            longer: It was long overdue.
        """
        ...


class ModelLimiter(Protocol):
    """Limit and order the models that work on one node. See `policies.model_concurrency`."""

    limit: int
    maximum: int
    unordered: bool

    def try_another(self, waited_us: Micros, now: Micros) -> bool:
        """Raise the limit as a trial, for a model that has waited so long. Return whether it was raised."""
        ...

    def record_overlap(self, ratio: float, now: Micros) -> None:
        """Record the decode rate of an answer, as a share of the usual one, while models overlapped."""
        ...

    def charge(self, priority: int, app: str, model: str, us: Micros, now: Micros) -> None:
        """Charge an attempt that is expected to take `us` of this node."""
        ...

    def age_us(self, priority: int, since: Micros, now: Micros) -> Micros:
        """Return the µs that a priority has waited on this node."""
        ...

    def waits_for_load(self, waited_us: Micros, load_us: Micros) -> bool:
        """Check that a model which is not in memory lets those in use go first."""
        ...

    def goes_before(self, app: str, model: str, other_app: str, other_model: str) -> bool:
        """Compare two heads of the same priority by the time that was given to each."""
        ...
