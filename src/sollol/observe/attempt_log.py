"""Log of the attempts of one task: the source of its routing record, its history and its metrics."""

from __future__ import annotations

from typing import Any

from sollol.answers import Answer
from sollol.core.actions import Start
from sollol.core.types import OK, Decision, Micros, Outcome, Status, Task
from sollol.observe.rows import CandidateRow


class AttemptLog:
    """The attempts of one task, in the order of their ends."""

    __slots__ = ("attempts", "first_us", "resumptions", "submitted_us", "task")

    def __init__(self, task: Task) -> None:
        self.task = task
        self.submitted_us: Micros = 0
        self.first_us: Micros = 0  # when the caller received the first part of a stream; 0 before
        self.resumptions: list[dict[str, Any]] = []  # points at which another node resumed the answer
        self.attempts: list[tuple[Start, Outcome, Micros, Micros]] = []

    def record(self, attempt: int | None) -> Answer:
        """Return the routing record of the answering attempt (None: of the last one), and of those before it."""
        answered = [entry for entry in self.attempts if entry[0].attempt == attempt] or self.attempts[-1:]
        task = self.task
        record = Answer(
            id=task.id,
            node="",
            host="",
            port=0,
            reasons=[],
            predicted_ms=0.0,
            actual_ms=0.0,
            queue_ms=0.0,
            attempts=len(self.attempts),
            tried=self._tried(),
            candidates=[],
            task_type=task.type.value,
            mode=task.mode.value if task.mode else None,
            seams=self.resumptions,
        )
        for start, _, began, ended in answered:
            decision = start.decision
            host, _, port = decision.node.rpartition(":")
            record.update(
                node=decision.node,
                host=host.strip("[]"),
                port=int(port) if port.isdigit() else 0,
                reasons=[decision.reason],
                predicted_ms=decision.predicted_us / 1000,
                actual_ms=(ended - began) / 1000,
                queue_ms=(began - self.submitted_us) / 1000,
                candidates=shown_candidates(decision),
            )
        return record

    def _tried(self) -> list[dict[str, Any]]:
        closed = "another node answered first" if any(entry[1].status is OK for entry in self.attempts) else ""
        return [
            {
                "node": start.node,
                "outcome": outcome.status.value,
                "why": outcome.message or (closed if outcome.status is Status.LEFT else ""),
                "ms": (ended - began) / 1000,
            }
            for start, outcome, began, ended in self.attempts
            if outcome.status is not OK
        ]


def shown_candidates(decision: Decision) -> list[CandidateRow]:
    """Return the considered nodes with the terms of their predictions, in milliseconds."""
    return [
        {"node": c.node, "finish_ms": c.finish_us / 1000, "terms": {name: us / 1000 for name, us in c.terms.items()}}
        for c in decision.candidates
    ]
