"""The report of a batch, by node and in total."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from sollol.core.types import SECOND, Cause, Micros, Outcome, Status

ERROR_MOST = 1_000  # characters kept of an error in a report
ERRORS_KEPT = 20  # failed items with an error in a report


class NodeShare(NamedTuple):
    """The work of one node for a batch."""

    items: int
    share: float
    items_per_s: float
    requests: int
    failed: int
    overtaken: int
    error: str = ""  # error of the last failed request


class BatchReport(NamedTuple):
    """The report of a batch.

    `fluid_bound_s` is the time that the nodes would have needed if all had been busy, at the rates measured in this
    run, until the same last moment; `efficiency` is that bound ÷ the seconds of the batch.
    """

    items: int
    failed: int
    seconds: float
    items_per_s: float
    nodes: dict[str, NodeShare]
    requests: int
    retries: int
    takeovers: int
    fluid_bound_s: float
    efficiency: float
    digest: str = ""  # version of the model for all vectors; "" if no node sends one
    left_out: Mapping[str, str] = {}  # node -> its version, for nodes with another version
    errors: Mapping[int, str] = {}  # position -> error, of the first failed items
    id: int = 0  # for `pool.explain`


class NodeWork:
    """Counters of one node during a batch."""

    __slots__ = ("busy_us", "error", "failed", "items", "last_end", "overtaken", "requests")

    def __init__(self) -> None:
        self.items = 0
        self.requests = 0
        self.failed = 0
        self.error = ""
        self.overtaken = 0
        self.busy_us = 0
        self.last_end: Micros = 0


class BatchAccount:
    """Count the work of each node for a batch.

    Args:
        now: The begin of the batch, in microseconds.
        available: (node, since, until) -> share of that time in which it was up.
    """

    def __init__(self, now: Micros, available: Callable[[str, Micros, Micros], float]) -> None:
        self.nodes: dict[str, NodeWork] = {}
        self.wait_us: Micros | None = None  # time until its first request, in microseconds
        self._began = now
        self._available = available
        self._failed = 0
        self._errors: dict[int, str] = {}
        self._takeovers = 0

    def ended(self, node: str, cause: Cause, outcome: Outcome, began: Micros, at: Micros) -> None:
        """Count the end of an attempt."""
        work = self.nodes.setdefault(node, NodeWork())
        work.requests += 1
        if self.wait_us is None or began - self._began < self.wait_us:
            self.wait_us = began - self._began
        self._takeovers += cause is Cause.TAKEOVER
        if outcome.status is Status.OK:
            work.busy_us += max(0, at - max(began, work.last_end))
        elif outcome.status is Status.LEFT:
            work.overtaken += 1
        else:
            work.failed += 1
            work.error = outcome.message[:ERROR_MOST] or outcome.status.value
        work.last_end = max(at, work.last_end)

    def answered(self, node: str, count: int) -> None:
        """Count delivered items of a node."""
        self.nodes[node].items += count

    def refused(self, items: Iterable[int], message: str) -> None:
        """Count failed items and keep the errors of the first."""
        for item in items:
            self._failed += 1
            if len(self._errors) < ERRORS_KEPT:
                self._errors[item] = message[:ERROR_MOST]

    def report(
        self, at: Micros, id: int = 0, digest: str = "", left_out: Mapping[str, str] | None = None
    ) -> BatchReport:
        """Return the report of the batch that ended at `at`."""
        seconds = max(at - self._began, 1) / SECOND
        done = sum(work.items for work in self.nodes.values())
        rates = {node: work.items / (work.busy_us / SECOND) for node, work in self.nodes.items() if work.busy_us}
        capacity = sum(rate * self._available(node, self._began, at) for node, rate in rates.items())
        bound = done / capacity if capacity else 0.0
        shares = {
            node: NodeShare(
                work.items,
                work.items / max(done, 1),
                rates.get(node, 0.0),
                work.requests,
                work.failed,
                work.overtaken,
                work.error,
            )
            for node, work in sorted(self.nodes.items())
        }
        return BatchReport(
            items=done,
            failed=self._failed,
            seconds=seconds,
            items_per_s=done / seconds,
            nodes=shares,
            requests=sum(work.requests for work in self.nodes.values()),
            retries=sum(work.failed for work in self.nodes.values()),
            takeovers=self._takeovers,
            fluid_bound_s=bound,
            efficiency=bound / seconds,
            digest=digest,
            left_out=left_out or {},
            errors=dict(self._errors),
            id=id,
        )
