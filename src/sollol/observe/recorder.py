"""Record each finished request once: in the metrics, and, for the sampled share, in the history and for subscribers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from sollol.core.actions import Complete
from sollol.core.types import Micros, Task
from sollol.observe.attempt_log import AttemptLog
from sollol.observe.batch_report import BatchReport
from sollol.observe.history import BatchLog, FinishedRequest, History
from sollol.observe.metrics import Metrics
from sollol.observe.record_builder import record_of_batch, record_of_call
from sollol.observe.request_record import RequestRecord
from sollol.observe.subscription import MOST, Subscription
from sollol.observe.tracing import Tracing

MULTIPLIER: Final = 0x9E3779B1  # spreads consecutive numbers evenly


class Recorder:
    """Distribute the records of finished requests.

    Args:
        now: Return the present on the clock of the attempts.
    """

    def __init__(self, now: Callable[[], Micros]) -> None:
        self.history = History()
        self.metrics = Metrics()
        self.tracing: Tracing | None = None
        self._now = now
        self._share = 1.0
        self._subscriptions: list[Subscription[RequestRecord]] = []

    def sample(self, share: float) -> None:
        """Record this share of the requests, 0.0 to 1.0, in history, store and exporters. Counters count all."""
        self._share = share

    def subscribe(self, name: str, most: int = MOST, *, sampled: bool = True) -> Subscription[RequestRecord]:
        """Return a queue that receives each record, or each of the sampled share, until `unsubscribe`."""
        subscription: Subscription[RequestRecord] = Subscription(name, most, sampled=sampled)
        self._subscriptions.append(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription[RequestRecord]) -> None:
        """Send no more records to a queue."""
        self._subscriptions.remove(subscription)

    def lost(self) -> dict[str, int]:
        """Return the number of lost records by subscriber."""
        lost = {subscription.name: subscription.lost for subscription in self._subscriptions}
        if self.tracing is not None:
            lost[self.tracing.finished.name] = self.tracing.finished.lost
        return lost

    def add_call(self, settled: Complete, log: AttemptLog) -> None:
        """Record a finished single request."""
        record = record_of_call(settled, log, self._now(), time.time())
        self._add(record, FinishedRequest(record, log, settled.attempt, settled.tried))

    def add_batch(self, settled: Complete, task: Task, report: BatchReport, wait_us: int | None) -> None:
        """Record a finished batch; `wait_us` is the time until its first request."""
        record = record_of_batch(settled, task, report, wait_us, time.time())
        self._add(record, FinishedRequest(record, BatchLog(task, report, wait_us), None, settled.tried))

    def _add(self, record: RequestRecord, finished: FinishedRequest) -> None:
        self.metrics.count(record)
        if self.tracing is not None:
            self.tracing.finish(record, self._now())
        is_sampled = self.is_sampled(record.id)
        if is_sampled:
            self.history.add(finished)
        for subscription in self._subscriptions:
            if is_sampled or not subscription.sampled:
                subscription.put(record)

    def is_sampled(self, task: int) -> bool:
        """Check whether a request belongs to the sample: by its number, so that all parts agree."""
        return self._share >= 1.0 or (task * MULTIPLIER & 0xFFFFFFFF) < self._share * 0x100000000
