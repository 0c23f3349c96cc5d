"""What became of the last calls: for `explain`, for displays, and for how good the predictions are."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from typing import Any

from sollol.core.actions import Complete, Start
from sollol.core.state.estimators import Quantile
from sollol.core.types import LEAN_ROW, OK, Decision, Kind, Micros, Outcome, RoutingMode, Row, Status, Task, TaskType
from sollol.pool.answers import Answer
from sollol.pool.batch import BatchJob
from sollol.pool.jobs import CallJob, Story
from sollol.pool.report import BatchReport, NodeShare

REMEMBERED = 1_000
SHOWN = 100
ERROR_MOST = 1_000  # characters of an error that are kept
NODES_MOST = 64  # nodes of which it is kept why they did not answer
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


class Past:
    """A call that is over, with all that was tried; without what was said, which may be large."""

    __slots__ = ("at", "attempt", "error", "how", "nodes", "status", "story")

    def __init__(
        self,
        at: Micros,
        how: Status,
        attempt: int | None,
        story: Story | BatchStory,
        error: str = "",
        status: int = 0,
        nodes: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.at = at  # when it was over
        self.how = how
        self.attempt = attempt  # that answered
        self.story = story
        self.error = error[:ERROR_MOST]  # in which it ended
        self.status = status
        self.nodes = nodes  # of one that no node answered: each, and why it did not

    def explained(self) -> dict[str, Any]:
        """Return the record, with the error, and with what every node answered, or why it was not asked."""
        record = self.story.record(self.attempt)
        told: dict[str, Any] = {**record, "error": self.error, "status": self.status}
        asked = {row["node"] for row in record["tried"]}
        others = [{"node": node, "outcome": "not asked", "why": why} for node, why in self.nodes if node not in asked]
        return told | {"tried": [*record["tried"], *others]}

    def lateness(self) -> float | None:
        """Actual ÷ predicted time of the attempt that answered."""
        story = self.story
        if self.how is OK and isinstance(story, Story):
            for start, outcome, began, ended in story.attempts:
                if start.attempt == self.attempt and outcome.status is OK:
                    return _lateness(start.decision.predicted_us, began, ended)
        return None


class _Considered:
    """A row of LEAN with its score, and the next one."""

    __slots__ = ("_decode", "_more", "_overhead", "_prefill", "_wait", "node", "score")

    def __init__(self) -> None:
        self.node = ""
        self.score = self._wait = self._prefill = self._decode = self._overhead = 0.0
        self._more: _Considered | None = None

    def keep(self, row: Row, score: float) -> None:
        self.node, self._wait, self._prefill, self._decode, self._overhead = row
        self.score = score

    def row(self) -> Row:
        return self.node, self._wait, self._prefill, self._decode, self._overhead

    def next(self) -> _Considered:
        if self._more is None:
            self._more = _Considered()
        return self._more


class _Place:
    """Where a call is remembered: a good answer at the first attempt, as nearly all are, in these fields.

    The next call to come here is written over it. As objects of its own it would be freed a thousand calls later, when
    it has left the processor's caches: fifty lines of memory a call, which was 3 % of the gateway's time, and more on
    a machine whose caches others use, too."""

    __slots__ = (
        "_app",
        "_began",
        "_considered",
        "_count",
        "_ended",
        "_kind",
        "_mode",
        "_model",
        "_node",
        "_predicted_us",
        "_reason",
        "_submitted",
        "_type",
        "id",
    )

    def __init__(self) -> None:
        self.id = self._count = self._submitted = self._began = self._ended = self._predicted_us = 0
        self._kind, self._type = Kind.CHAT, TaskType.CHAT
        self._mode: RoutingMode | None = None
        self._model = self._app = self._node = self._reason = ""
        self._considered = _Considered()

    def keep(self, story: Story) -> bool:
        """False, and nothing is kept, if it was otherwise than these fields can tell."""
        if len(story.attempts) != 1 or story.seams:
            return False
        start, outcome, began, ended = story.attempts[0]
        decision, task = start.decision, story.task
        rows, scores = decision.rows, decision.scores
        if outcome.status is not OK or not isinstance(rows, list) or not isinstance(scores, list):
            return False
        considered = self._considered
        for place, row in enumerate(rows):
            if len(row) != LEAN_ROW:
                return False
            considered.keep(row, scores[place])
            considered = considered.next()
        self._count = len(rows)
        self.id, self._submitted, self._began, self._ended = task.id, story.submitted_us, began, ended
        self._kind, self._type, self._mode = task.kind, task.type, task.mode
        self._model, self._app = task.model, task.app
        self._node, self._predicted_us, self._reason = decision.node, decision.predicted_us, decision.reason
        return True

    def past(self) -> Past:
        story = Story(Task(self.id, self._kind, self._model, app=self._app, type=self._type, mode=self._mode))
        story.submitted_us = self._submitted
        rows: list[Row] = []
        scores: list[float] = []
        considered = self._considered
        for _ in range(self._count):
            rows.append(considered.row())
            scores.append(considered.score)
            considered = considered.next()
        decision = Decision(self._node, self._predicted_us, self._reason, rows=rows, scores=scores)
        story.attempts.append((Start(0, self.id, self._node, decision), Outcome(OK), self._began, self._ended))
        return Past(self._ended, OK, 0, story)

    def lateness(self) -> float | None:
        return _lateness(self._predicted_us, self._began, self._ended)


def _lateness(predicted_us: Micros, began: Micros, ended: Micros) -> float | None:
    return (ended - began) / predicted_us if predicted_us else None


class History:
    """The last REMEMBERED calls, by id: single ones, and batches as a whole.

    A fast cluster has forgotten a call before somebody who sees it can ask about it, so what was shown is kept longer.
    """

    def __init__(self, now: Callable[[], Micros]) -> None:
        self._now = now
        self._places = [_Place() for _ in range(REMEMBERED)]  # at once, so that they lie beside each other
        self._next = self._count = 0
        self._others: dict[int, Past] = {}  # by place, what a place cannot tell
        self._shown: dict[int, Past] = {}  # by task, what was shown first standing first

    def add(self, job: CallJob) -> None:
        settled, story = job.settled, job.story
        assert settled is not None
        number = self._turn()
        if settled.outcome.status is not OK or not self._places[number].keep(story):
            self._keep(number, settled, story)

    def add_batch(self, job: BatchJob, settled: Complete, report: BatchReport) -> None:
        self._keep(self._turn(), settled, BatchStory(job.task, report, job.wait_us))

    def _turn(self) -> int:
        """The place that is to be written next: the oldest."""
        number, size = self._next, len(self._places)
        self._next = number + 1 if number + 1 < size else 0
        if self._count < size:
            self._count += 1
        elif self._others:
            self._others.pop(number, None)
        return number

    def _keep(self, number: int, settled: Complete, story: Story | BatchStory) -> None:
        self._places[number].id = settled.task
        outcome = settled.outcome
        error = "" if outcome.status is OK else outcome.message or outcome.status.value
        self._others[number] = Past(
            self._now(), outcome.status, settled.attempt, story, error, outcome.http_status, settled.tried[:NODES_MOST]
        )

    def _past(self, number: int) -> Past:
        return self._others.get(number) or self._places[number].past()

    def find(self, task: int) -> dict[str, Any] | None:
        found = self._shown.get(task)
        if found is None:
            kept = enumerate(islice(self._places, self._count))
            number = next((number for number, place in kept if place.id == task), None)
            if number is None:
                return None
            found = self._past(number)
        return {**self._row(found), **found.explained()}

    def recent(self) -> list[dict[str, Any]]:
        """Newest first. All of them can be asked for until ASKABLE others were shown."""
        backwards = range(1, min(SHOWN, self._count) + 1)
        recent = [self._past((self._next - back) % len(self._places)) for back in backwards]
        self._shown |= {past.story.task.id: past for past in reversed(recent)}
        for task in list(islice(self._shown, max(0, len(self._shown) - ASKABLE))):
            del self._shown[task]
        return [self._row(past) for past in recent]

    def _row(self, past: Past) -> dict[str, Any]:
        story = past.story
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
            "error": past.error,
            "task_type": task.type.value,
            "at": time.time() - (self._now() - past.at) / 1_000_000,
        }

    def calibration(self) -> dict[str, Any]:
        """Actual ÷ predicted time of the attempts that answered: median, p90, how many."""
        found = Quantile(REMEMBERED)
        for number in range(self._count):
            lateness = (self._others.get(number) or self._places[number]).lateness()
            if lateness is not None:
                found.add(lateness)
        return {"median": found.read(0.5), "p90": found.read(0.9), "count": len(found)}
