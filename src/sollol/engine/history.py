"""History of finished requests: for `explain`, for displays, and for calibration."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any

from sollol.answers import Answer
from sollol.core.actions import Complete
from sollol.core.state.estimators import Quantile
from sollol.core.types import OK, Micros, Status, Task
from sollol.engine.batch_job import BatchJob
from sollol.engine.batch_report import BatchReport, NodeShare
from sollol.engine.jobs import AttemptLog, CallJob

REMEMBERED = 1_000
SHOWN = 100
ERROR_MOST = 1_000  # characters kept of an error
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
    """A finished request: its attempts and its outcome, without payload."""

    __slots__ = ("at", "attempt", "attempt_log", "error", "http_status", "nodes", "status")

    def __init__(
        self,
        at: Micros,
        status: Status,
        attempt: int | None,
        attempt_log: AttemptLog | BatchLog,
        error: str = "",
        http_status: int = 0,
        nodes: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.at = at  # time of the end
        self.status = status
        self.attempt = attempt  # the attempt that answered
        self.attempt_log = attempt_log
        self.error = error[:ERROR_MOST]
        self.http_status = http_status
        self.nodes = nodes  # (node, reason) for each, if no node answered

    def explained(self) -> dict[str, Any]:
        """Return the record, with the failure of every node or the reason why it was not called."""
        record = self.attempt_log.record(self.attempt)
        summary: dict[str, Any] = {**record, "error": self.error, "status": self.http_status}
        called = {row["node"] for row in record["tried"]}
        others = [{"node": node, "outcome": "not asked", "why": why} for node, why in self.nodes if node not in called]
        return summary | {"tried": [*record["tried"], *others]}

    def lateness(self) -> float | None:
        """Return actual ÷ predicted time of the attempt that answered, None without one."""
        attempt_log = self.attempt_log
        if self.status is OK and isinstance(attempt_log, AttemptLog):
            for start, outcome, began, ended in attempt_log.attempts:
                if start.attempt == self.attempt and outcome.status is OK:
                    return _lateness(start.decision.predicted_us, began, ended)
        return None


def _lateness(predicted_us: Micros, began: Micros, ended: Micros) -> float | None:
    return (ended - began) / predicted_us if predicted_us else None


class History:
    """The last REMEMBERED calls, by id: single ones, and batches in total.

    On a fast cluster a call leaves this list before a user can request its details, so shown calls are kept longer.
    """

    def __init__(self, now: Callable[[], Micros]) -> None:
        self._now = now
        self._calls: deque[FinishedRequest] = deque(maxlen=REMEMBERED)
        self._shown: dict[int, FinishedRequest] = {}  # by task id, in the order of their first display

    def add(self, job: CallJob) -> None:
        """Record a finished call."""
        assert job.settled is not None
        self._keep(job.settled, job.attempt_log)

    def add_batch(self, job: BatchJob, settled: Complete, report: BatchReport) -> None:
        """Record a finished batch."""
        self._keep(settled, BatchLog(job.task, report, job.wait_us))

    def _keep(self, settled: Complete, attempt_log: AttemptLog | BatchLog) -> None:
        outcome = settled.outcome
        error = "" if outcome.status is OK else outcome.message or outcome.status.value
        nodes = settled.tried[:NODES_MOST]
        past = FinishedRequest(
            self._now(), outcome.status, settled.attempt, attempt_log, error, outcome.http_status, nodes
        )
        self._calls.append(past)

    def find(self, task: int) -> dict[str, Any] | None:
        """Return the record of a task, None if it is not kept."""
        found = self._shown.get(task) or next((past for past in self._calls if past.attempt_log.task.id == task), None)
        return None if found is None else {**self._row(found), **found.explained()}

    def recent(self) -> list[dict[str, Any]]:
        """Return the last calls, newest first; `find` returns them until SHOWN_KEPT others were shown."""
        recent = list(islice(reversed(self._calls), SHOWN))
        self._shown |= {past.attempt_log.task.id: past for past in reversed(recent)}
        for task in list(islice(self._shown, max(0, len(self._shown) - SHOWN_KEPT))):
            del self._shown[task]
        return [self._row(past) for past in recent]

    def _row(self, past: FinishedRequest) -> dict[str, Any]:
        attempt_log = past.attempt_log
        task = attempt_log.task
        record = attempt_log.record(past.attempt)
        return {
            "id": task.id,
            "kind": task.kind.value,
            "model": task.model,
            "app": task.app,
            "node": record["node"],
            "outcome": past.status.value,
            "predicted_ms": record["predicted_ms"],
            "actual_ms": record["actual_ms"],
            "queue_ms": record["queue_ms"],
            "attempts": record["attempts"],
            "reason": "; ".join(record["reasons"]),
            "error": past.error,
            "task_type": task.type.value,
            "at": time.time() - (self._now() - past.at) / 1_000_000,
        }

    def calibration(self) -> dict[str, Any]:
        """Return actual ÷ predicted time of the attempts that answered: median, p90, count."""
        found = Quantile(REMEMBERED)
        for past in self._calls:
            lateness = past.lateness()
            if lateness is not None:
                found.add(lateness)
        return {"median": found.read(0.5), "p90": found.read(0.9), "count": len(found)}
