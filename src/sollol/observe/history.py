"""History of finished requests: for `explain`, for displays, and for calibration."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Any

import msgspec

from sollol.answers import Answer
from sollol.core.state.estimators import Quantile
from sollol.core.types import Status, Task
from sollol.observe.attempt_log import AttemptLog
from sollol.observe.batch_report import BatchReport, NodeShare
from sollol.observe.request_record import RequestRecord
from sollol.observe.rows import AttemptRow, Calibration, FinishedRow

REMEMBERED = 1_000
SHOWN = 100
NODES_MOST = 64  # nodes kept with the reason of their failure
SHOWN_KEPT = 3_000  # shown calls kept: half a minute of a display with a frame a second


class BatchLog:
    """A finished batch in the form of an attempt log. It has no prediction in total."""

    __slots__ = ("report", "task", "wait_us")

    def __init__(self, task: Task, report: BatchReport, wait_us: int | None) -> None:
        self.task = task
        self.report = report
        self.wait_us = wait_us

    def record(self, attempt: int | None) -> Answer:
        """Return the routing record of the batch."""
        report = self.report
        queue_ms = report.seconds * 1000 if self.wait_us is None else self.wait_us / 1000
        summary = f"{report.items} texts in {report.requests} requests"
        summary += f", {report.retries} of them failed" if report.retries else ""
        summary += f", {report.takeovers} takeovers of late items" if report.takeovers else ""
        return Answer(
            id=self.task.id,
            node=", ".join(node for node, share in report.nodes.items() if share.items),
            reasons=[summary],
            predicted_ms=0.0,
            actual_ms=report.seconds * 1000 - queue_ms,
            queue_ms=queue_ms,
            attempts=report.requests,
            tried=[
                {"node": node, "outcome": Status.FAILED.value, "why": _failures(share), "ms": 0.0}
                for node, share in report.nodes.items()
                if share.failed
            ],
            candidates=[],
            task_type=self.task.type.value,
            mode=self.task.mode.value if self.task.mode else None,
            seams=[],
            digest=report.digest,
            left_out=dict(report.left_out),
            items=report.items,
            failed_items=report.failed,
            item_errors={str(item): error for item, error in report.errors.items()},
            items_per_s=report.items_per_s,
            efficiency=report.efficiency,
            nodes={node: share._asdict() for node, share in report.nodes.items()},
        )


def _failures(share: NodeShare) -> str:
    last = f", the last: {share.error}" if share.error else ""
    return f"{share.failed} {'request' if share.failed == 1 else 'requests'} failed{last}"


class FinishedRequest:
    """A finished request: its measurements, and the log from which it is explained."""

    __slots__ = ("attempt", "log", "nodes", "record")

    def __init__(
        self,
        record: RequestRecord,
        log: AttemptLog | BatchLog,
        attempt: int | None,
        nodes: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.record = record
        self.log = log
        self.attempt = attempt  # the attempt that answered
        self.nodes = nodes[:NODES_MOST]  # (node, reason) for each, if no node answered

    def row(self) -> FinishedRow:
        """Return what displays list of the request; times in milliseconds."""
        routing, row = self.log.record(self.attempt), row_of(self.record)
        row.node, row.attempts, row.reason = routing["node"], routing["attempts"], "; ".join(routing["reasons"])
        row.predicted_ms, row.actual_ms = routing["predicted_ms"], routing["actual_ms"]
        row.queue_ms = routing["queue_ms"]
        return row

    def explained(self) -> dict[str, Any]:
        """Return the record, with the failure of every node or the reason why it was not called."""
        routing = self.log.record(self.attempt)
        called = {row["node"] for row in routing["tried"]}
        others = [{"node": node, "outcome": "not asked", "why": why} for node, why in self.nodes if node not in called]
        return {
            **msgspec.to_builtins(self.row()),
            **routing,
            "status": self.record.http_status,
            "tried": [*routing["tried"], *others],
        }


def row_of(record: RequestRecord) -> FinishedRow:
    """Return what displays list of a request, from its record alone; times in milliseconds."""
    return FinishedRow(
        id=record.id,
        kind=record.kind,
        model=record.model,
        app=record.app,
        node=record.node,
        outcome=record.outcome,
        predicted_ms=record.predicted_s * 1000,
        actual_ms=record.actual_s * 1000,
        queue_ms=record.queue_s * 1000,
        attempts=len(record.attempts),
        reason="",
        error=record.error,
        task_type=record.task_type,
        priority=record.priority,
        at=record.at,
        total_ms=record.total_s * 1000,
        first_token_ms=None if record.first_token_s is None else record.first_token_s * 1000,
        load_ms=record.load_s * 1000,
        prefill_ms=record.prefill_s * 1000,
        decode_ms=record.decode_s * 1000,
        tokens_in=record.tokens_in,
        tokens_out=record.tokens_out,
        items=record.items,
        tries=[
            AttemptRow(
                node=attempt.node,
                cause=attempt.cause,
                outcome=attempt.outcome,
                error=attempt.error,
                started_ms=attempt.started_s * 1000,
                ms=attempt.duration_s * 1000,
                predicted_ms=attempt.predicted_s * 1000,
            )
            for attempt in record.attempts
        ],
    )


class History:
    """The last REMEMBERED calls, by id: single ones, and batches in total.

    On a fast cluster a call leaves this list before a user can request its details, so shown calls are kept longer.
    """

    def __init__(self) -> None:
        self._calls: deque[FinishedRequest] = deque(maxlen=REMEMBERED)
        self._shown: dict[int, FinishedRequest] = {}  # by task id, in the order of their first display

    def add(self, finished: FinishedRequest) -> None:
        """Record a finished call."""
        self._calls.append(finished)

    def records(self) -> list[RequestRecord]:
        """Return the records of the last calls, the oldest first."""
        return [past.record for past in self._calls]

    def find(self, task: int) -> dict[str, Any] | None:
        """Return the record of a task, None if it is not kept."""
        found = self._shown.get(task) or next((past for past in self._calls if past.record.id == task), None)
        return None if found is None else found.explained()

    def recent(self, app: str | None = None) -> list[FinishedRow]:
        """Return the last calls, newest first; `find` returns them until SHOWN_KEPT others were shown.

        `app`: only those of this application.
        """
        recent = list(islice((past for past in reversed(self._calls) if _is_of(past.record, app)), SHOWN))
        self._shown |= {past.record.id: past for past in reversed(recent)}
        for task in list(islice(self._shown, max(0, len(self._shown) - SHOWN_KEPT))):
            del self._shown[task]
        return [past.row() for past in recent]

    def calibration(self, app: str | None = None) -> Calibration:
        """Return actual ÷ predicted time of the attempts that answered: median, p90, count. `app`: only its own."""
        found = Quantile(REMEMBERED)
        for past in self._calls:
            if past.record.ok and past.record.predicted_s and _is_of(past.record, app):
                found.add(past.record.actual_s / past.record.predicted_s)
        return Calibration(found.read(0.5), found.read(0.9), len(found))


def _is_of(record: RequestRecord, app: str | None) -> bool:
    return app is None or record.app == app
