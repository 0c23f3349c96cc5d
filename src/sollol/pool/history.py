"""What became of the last calls: for `explain`, for displays, and for how good the predictions are."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from sollol.core.estimate import Quantile
from sollol.core.types import How
from sollol.pool.jobs import CallJob

REMEMBERED = 1_000
SHOWN = 100


class History:
    """The last REMEMBERED single calls, by id."""

    def __init__(self) -> None:
        self._jobs: deque[tuple[float, CallJob]] = deque(maxlen=REMEMBERED)
        self._ratios = Quantile(REMEMBERED)

    def add(self, job: CallJob) -> None:
        assert job.settled is not None
        self._jobs.append((time.time(), job))
        if job.settled.outcome.how is not How.OK:
            return
        for start, outcome, began, ended in job.story.attempts:
            if start.attempt == job.settled.attempt and outcome.how is How.OK and start.decision.predicted_us:
                self._ratios.add((ended - began) / start.decision.predicted_us)

    def find(self, task: int) -> dict[str, Any] | None:
        for when, job in reversed(self._jobs):
            if job.task.id == task:
                return {**_row(when, job), **job.story.record(job.settled.attempt if job.settled else None)}
        return None

    def recent(self) -> list[dict[str, Any]]:
        """Newest first."""
        rows = []
        for when, job in reversed(list(self._jobs)):
            rows.append(_row(when, job))
            if len(rows) == SHOWN:
                break
        return rows

    def calibration(self) -> dict[str, Any]:
        """Actual ÷ predicted time of the attempts that answered: median, p90, how many."""
        return {"median": self._ratios.read(0.5), "p90": self._ratios.read(0.9), "count": len(self._ratios)}


def _row(when: float, job: CallJob) -> dict[str, Any]:
    assert job.settled is not None
    task = job.task
    record = job.story.record(job.settled.attempt)
    return {
        "id": task.id,
        "kind": task.kind.value,
        "model": task.model,
        "app": task.app,
        "node": record["node"],
        "outcome": job.settled.outcome.how.value,
        "predicted_ms": record["predicted_ms"],
        "actual_ms": record["actual_ms"],
        "queue_ms": record["queue_ms"],
        "attempts": record["attempts"],
        "reason": "; ".join(record["reasons"]),
        "task_type": task.type.value,
        "at": when,
    }
