"""What became of the last calls: for `explain`, for displays, and for how good the predictions are."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from typing import Any, Final

from sollol.core.estimate import Quantile
from sollol.core.messages import Settle, Start
from sollol.core.ring import Ring
from sollol.core.types import OK, Decision, How, Micros, Outcome, Task
from sollol.pool.answers import Answer
from sollol.pool.batch import BatchJob, BatchReport
from sollol.pool.jobs import CallJob, Story

REMEMBERED: Final = 1_000
SHOWN: Final = 100
ASKABLE: Final = 3_000  # calls shown and still explained: half a minute of a display that takes a frame a second


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

    __slots__ = ("at", "attempt", "how", "id")

    def __init__(self, id: int, at: Micros, how: How, attempt: int | None) -> None:
        self.id = id
        self.at = at  # when it was over
        self.how = how
        self.attempt = attempt  # that answered

    def story(self) -> Story | BatchStory:
        raise NotImplementedError

    def lateness(self) -> float | None:
        """Actual ÷ predicted time of the attempt that answered."""
        raise NotImplementedError


class WholePast(Past):
    """With all that was tried."""

    __slots__ = ("_story",)

    def __init__(self, at: Micros, settled: Settle, story: Story | BatchStory) -> None:
        super().__init__(settled.task, at, settled.outcome.how, settled.attempt)
        self._story = story

    def story(self) -> Story | BatchStory:
        return self._story

    def lateness(self) -> float | None:
        story = self._story
        if self.how is OK and isinstance(story, Story):
            for start, outcome, began, ended in story.attempts:
                if start.attempt == self.attempt and outcome.how is OK:
                    return _lateness(start.decision, began, ended)
        return None


class PlainPast(Past):
    """A good answer at the first attempt, as nearly all are: only what can be told of it. What is kept of a call is
    freed a thousand calls later, when it has left the processor's caches, so it should be little."""

    __slots__ = ("_app", "_began", "_decision", "_kind", "_mode", "_model", "_submitted", "_type")

    def __init__(self, task: Task, start: Start, submitted: Micros, began: Micros, ended: Micros) -> None:
        super().__init__(task.id, ended, OK, start.attempt)
        self._kind, self._type, self._mode = task.kind, task.type, task.mode
        self._model, self._app = task.model, task.app
        self._decision = start.decision
        self._submitted, self._began = submitted, began

    def story(self) -> Story | BatchStory:
        task = Task(self.id, self._kind, self._model, app=self._app, type=self._type, mode=self._mode)
        story = Story(task)
        story.submitted_us = self._submitted
        start = Start(self.attempt or 0, self.id, self._decision.node, self._decision)
        story.attempts.append((start, Outcome(OK), self._began, self.at))
        return story

    def lateness(self) -> float | None:
        return _lateness(self._decision, self._began, self.at)


def _lateness(decision: Decision, began: Micros, ended: Micros) -> float | None:
    return (ended - began) / decision.predicted_us if decision.predicted_us else None


class History:
    """The last REMEMBERED calls, by id: single ones, and batches as a whole.

    A fast cluster has forgotten a call before somebody who sees it can ask about it, so what was shown is kept longer.
    """

    def __init__(self, now: Callable[[], Micros]) -> None:
        self._now = now
        self._past: Ring[Past] = Ring(REMEMBERED)
        self._shown: dict[int, Past] = {}  # by task, what was shown first standing first

    def add(self, job: CallJob) -> None:
        settled, story = job.settled, job.story
        assert settled is not None
        if len(story.attempts) == 1 and settled.outcome.how is OK and not story.seams:
            start, outcome, began, ended = story.attempts[0]
            if outcome.how is OK:
                self._past.add(PlainPast(story.task, start, story.submitted_us, began, ended))
                return
        self._past.add(WholePast(self._now(), settled, story))

    def add_batch(self, job: BatchJob, settled: Settle, report: BatchReport) -> None:
        self._past.add(WholePast(self._now(), settled, BatchStory(job.task, report, job.wait_us)))

    def find(self, task: int) -> dict[str, Any] | None:
        found = next((past for past in self._past if past.id == task), self._shown.get(task))
        return None if found is None else {**self._row(found), **found.story().record(found.attempt)}

    def recent(self) -> list[dict[str, Any]]:
        """Newest first. All of them can be asked for until ASKABLE others were shown."""
        recent = list(self._past)[: -SHOWN - 1 : -1]
        self._shown |= {past.id: past for past in reversed(recent)}
        for task in list(islice(self._shown, max(0, len(self._shown) - ASKABLE))):
            del self._shown[task]
        return [self._row(past) for past in recent]

    def _row(self, past: Past) -> dict[str, Any]:
        story = past.story()
        task = story.task
        record = story.record(past.attempt)
        return {
            "id": task.id,
            "kind": task.kind.value,
            "model": task.model,
            "app": task.app,
            "node": record["node"],
            "outcome": past.how.value,
            "predicted_ms": record["predicted_ms"],
            "actual_ms": record["actual_ms"],
            "queue_ms": record["queue_ms"],
            "attempts": record["attempts"],
            "reason": "; ".join(record["reasons"]),
            "task_type": task.type.value,
            "at": time.time() - (self._now() - past.at) / 1_000_000,
        }

    def calibration(self) -> dict[str, Any]:
        """Actual ÷ predicted time of the attempts that answered: median, p90, how many."""
        found = Quantile(REMEMBERED)
        for past in self._past:
            lateness = past.lateness()
            if lateness is not None:
                found.add(lateness)
        return {"median": found.read(0.5), "p90": found.read(0.9), "count": len(found)}
