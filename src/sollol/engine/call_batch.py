"""Job of a batch of chats or completions: many single calls, each counted, a bounded number of them open.

Each item is a call of its own, so queue, failover and predictions are those of single calls. Enough of them wait in the
queue that a slow node takes one only if it ends before the others do; the rest is read from the caller when needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from sollol.core.types import OK, SECOND, Micros
from sollol.engine.engine import Engine
from sollol.engine.inference_request import InferenceRequest
from sollol.engine.jobs import CallJob
from sollol.errors import BadInput, DeadlineExceeded, SollolError
from sollol.observe.batch_report import BatchAccount, BatchReport
from sollol.workload.call_options import CallOptions

QUEUED: Final = 64  # calls of a batch that wait for a node, as many as the scheduler compares for a free slot


class CallEnded(NamedTuple):
    """The end of an item's call; `error`: it was never sent, without a request if it cannot be."""

    item: int
    job: CallJob | None
    request: InferenceRequest | None
    error: SollolError | None = None


class CallsRequested(NamedTuple):
    """Request for up to `calls` more calls."""

    calls: int


class CallsEnded(NamedTuple):
    """End of a batch of calls."""

    report: BatchReport


CallMessage = CallEnded | CallsRequested | CallsEnded


class CallBatch:
    """Submit the calls of a batch on the event loop, and post a message for the end of each.

    Args:
        call: The constraints of the batch. Its timeout is for the batch as a whole.
        width: Most calls in flight, or None for as many as the nodes have room for.
    """

    def __init__(
        self, engine: Engine, call: CallOptions, width: int | None, post: Callable[[CallMessage], None]
    ) -> None:
        self._engine = engine
        self._width = width
        self._post = post
        now = engine.dispatcher.now()
        self._deadline: Micros | None = None if call.timeout_s is None else now + round(call.timeout_s * SECOND)
        self._timeout_s = call.timeout_s
        self._account = BatchAccount(now, engine.available)
        self._open: dict[int, CallJob | None] = {}  # item -> its call; None while it is submitted
        self._queued: set[int] = set()  # items whose call was never sent to a node
        self._fed = 0
        self._requested = False
        self._closed = False

    def begin(self) -> None:
        """Request the first calls."""
        self._request_more()

    def add(self, requests: Sequence[InferenceRequest | BadInput], closed: bool) -> None:
        """Submit more calls, or the errors of items that cannot be sent; `closed`: there are no others."""
        self._requested, self._closed = False, closed
        first, self._fed = self._fed, self._fed + len(requests)
        for item in range(first, self._fed):
            self._open[item] = None
            self._queued.add(item)
        for item, request in enumerate(requests, first):
            self._submit(item, request)
        self._go_on()

    def cancel(self) -> None:
        """Cancel what is under way; no further message is posted."""
        self._post = _drop
        self._closed = True
        for job in list(self._open.values()):
            if job is not None:
                self._engine.dispatcher.cancel(job.task.id)

    def _submit(self, item: int, request: InferenceRequest | BadInput) -> None:
        if isinstance(request, BadInput):
            self._leave(item, CallEnded(item, None, None, request), str(request))
            return
        if self._deadline is not None:
            left_us = self._deadline - self._engine.dispatcher.now()
            if left_us <= 0:
                why = f"the batch was not done in {self._timeout_s:g} s: this item was not sent"
                self._leave(item, CallEnded(item, None, request, DeadlineExceeded(why)), why)
                return
            request = request._replace(call=request.call._replace(timeout_s=left_us / SECOND))

        def launched() -> None:
            self._queued.discard(item)
            self._request_more()

        def done(job: CallJob) -> None:
            self._ended(item, job, request)

        job = self._engine.call(request, done, launched)
        if item in self._open:
            self._open[item] = job

    def _ended(self, item: int, job: CallJob, request: InferenceRequest) -> None:
        settled = job.settled
        assert settled is not None
        for start, outcome, began, at in job.attempt_log.attempts:
            self._account.ended(start.node, start.cause, outcome, began, at)
        why: str | None = settled.outcome.message or settled.outcome.status.value
        for start, *_ in job.attempt_log.attempts:
            if settled.outcome.status is OK and start.attempt == settled.attempt:
                self._account.answered(start.node, 1)
                why = None
        self._leave(item, CallEnded(item, job, request), why)

    def _leave(self, item: int, ended: CallEnded, why: str | None) -> None:
        if why is not None:
            self._account.refused([item], why)
        del self._open[item]
        self._queued.discard(item)
        self._post(ended)
        self._go_on()

    def _go_on(self) -> None:
        if self._closed and not self._open:
            self._post(CallsEnded(self._account.report(self._engine.dispatcher.now())))
            self._post = _drop
        else:
            self._request_more()

    def _request_more(self) -> None:
        room = self._room()
        if room > 0 and not self._requested and not self._closed:
            self._requested = True
            self._post(CallsRequested(room))

    def _room(self) -> int:
        if self._width is not None:
            return self._width - len(self._open)
        return QUEUED - len(self._queued)


def _drop(message: CallMessage) -> None:
    """Ignore a message after the end."""
