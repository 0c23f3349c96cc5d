"""What became of the last calls: for `explain`, for displays, and for how good the predictions are."""

from __future__ import annotations

import time
from collections import deque
from itertools import islice
from typing import Any

from sollol.core.estimate import Quantile
from sollol.core.messages import Settle
from sollol.core.types import OK, How, Task
from sollol.pool.answers import Answer
from sollol.pool.batch import BatchJob, BatchReport
from sollol.pool.jobs import CallJob, Story

REMEMBERED = 1_000
SHOWN = 100
ASKABLE = 3_000  # calls shown and still explained: half a minute of a display that takes a frame a second


class BatchStory:
    """What became of a batch, as the record of a call. Nothing was predicted for it as a whole."""

    __slots__ = ("report", "task", "wait_us")

    def __init__(self, task: Task, report: BatchReport, wait_us: int | None) -> None:
        self.task = task
        self.report = report
        self.wait_us = wait_us

    def record(self, attempt: int | None) -> Answer:
        report = self.report
        queue_ms = report.seconds * 1000 if self.wait_us is None else self.wait_us / 1000
        told = f"{report.items} texts in {report.requests} requests"
        told += f", {report.retries} of them failed" if report.retries else ""
        told += f", {report.takeovers} to take over what was late" if report.takeovers else ""
        return Answer(
            id=self.task.id,
            node=", ".join(node for node, share in report.nodes.items() if share.items),
            reasons=[told],
            predicted_ms=0.0,
            actual_ms=report.seconds * 1000 - queue_ms,
            queue_ms=queue_ms,
            attempts=report.requests,
            tried=[
                {"node": node, "outcome": How.FAILED.value, "why": f"{share.failed} requests failed", "ms": 0.0}
                for node, share in report.nodes.items()
                if share.failed
            ],
            candidates=[],
            task_type=self.task.type.value,
            mode=None,
            seams=[],
            items=report.items,
            failed_items=report.failed,
            items_per_s=report.items_per_s,
            efficiency=report.efficiency,
            nodes={node: share._asdict() for node, share in report.nodes.items()},
        )


class Past:
    """A call that is over; without what was said, which may be large."""

    __slots__ = ("at", "settled", "story")

    def __init__(self, at: float, settled: Settle, story: Story | BatchStory) -> None:
        self.at = at
        self.settled = settled
        self.story = story


class History:
    """The last REMEMBERED calls, by id: single ones, and batches as a whole.

    A fast cluster has forgotten a call before somebody who sees it can ask about it, so what was shown is kept longer.
    """

    def __init__(self) -> None:
        self._past: deque[Past] = deque(maxlen=REMEMBERED)
        self._shown: dict[int, Past] = {}  # by task, what was shown first standing first
        self._ratios = Quantile(REMEMBERED)

    def add(self, job: CallJob) -> None:
        settled, story = job.settled, job.story
        assert settled is not None
        self._past.append(Past(time.time(), settled, story))
        if settled.outcome.how is not OK:
            return
        for start, outcome, began, ended in story.attempts:
            if start.attempt == settled.attempt and outcome.how is OK:
                predicted_us = start.decision.predicted_us
                if predicted_us:
                    self._ratios.add((ended - began) / predicted_us)

    def add_batch(self, job: BatchJob, settled: Settle, report: BatchReport) -> None:
        self._past.append(Past(time.time(), settled, BatchStory(job.task, report, job.wait_us)))

    def find(self, task: int) -> dict[str, Any] | None:
        found = next((past for past in reversed(self._past) if past.settled.task == task), self._shown.get(task))
        return None if found is None else {**_row(found), **found.story.record(found.settled.attempt)}

    def recent(self) -> list[dict[str, Any]]:
        """Newest first. All of them can be asked for until ASKABLE others were shown."""
        recent = list(islice(reversed(self._past), SHOWN))
        self._shown |= {past.settled.task: past for past in reversed(recent)}
        for task in list(islice(self._shown, max(0, len(self._shown) - ASKABLE))):
            del self._shown[task]
        return [_row(past) for past in recent]

    def calibration(self) -> dict[str, Any]:
        """Actual ÷ predicted time of the attempts that answered: median, p90, how many."""
        return {"median": self._ratios.read(0.5), "p90": self._ratios.read(0.9), "count": len(self._ratios)}


def _row(past: Past) -> dict[str, Any]:
    task = past.story.task
    record = past.story.record(past.settled.attempt)
    return {
        "id": task.id,
        "kind": task.kind.value,
        "model": task.model,
        "app": task.app,
        "node": record["node"],
        "outcome": past.settled.outcome.how.value,
        "predicted_ms": record["predicted_ms"],
        "actual_ms": record["actual_ms"],
        "queue_ms": record["queue_ms"],
        "attempts": record["attempts"],
        "reason": "; ".join(record["reasons"]),
        "task_type": task.type.value,
        "at": past.at,
    }
