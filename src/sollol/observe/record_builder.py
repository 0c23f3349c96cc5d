"""Build the record of a finished request from its task, its attempts and its outcome."""

from __future__ import annotations

from typing import Final

from sollol.core.actions import Complete
from sollol.core.types import OK, Cause, Micros, Status, Task
from sollol.observe.attempt_log import AttemptLog
from sollol.observe.batch_report import BatchReport
from sollol.observe.request_record import AttemptRecord, RequestRecord

ERROR_MOST: Final = 1_000  # characters kept of an error
MODEL_MOST: Final = 500  # characters kept of a model's name, which a caller may invent; Ollama's names are shorter


def error_of(settled: Complete) -> str:
    """Return the error of a completed task, "" for a good end."""
    outcome = settled.outcome
    return "" if outcome.status is OK else (outcome.message or outcome.status.value)[:ERROR_MOST]


def record_of_call(settled: Complete, log: AttemptLog, ended_us: Micros, at: float) -> RequestRecord:
    """Return the record of a single request that ended at `ended_us`, `at` by the wall clock."""
    task, submitted = log.task, log.submitted_us
    queue_us = actual_us = predicted_us = predicted_first_us = 0
    node, timing, attempts = "", settled.outcome.timing, []
    for start, outcome, began, ended in log.attempts:
        attempts.append(
            AttemptRecord(
                start.node,
                start.cause._value_,
                outcome.status._value_,
                "" if outcome.status is OK else outcome.message[:ERROR_MOST],
                (began - submitted) / 1e6,
                (ended - began) / 1e6,
                start.decision.predicted_us / 1e6,
                outcome.http_status,
            )
        )
        if start.attempt == settled.attempt:
            node, timing = start.node, outcome.timing
            queue_us, actual_us = began - submitted, ended - began
            predicted_us, predicted_first_us = start.decision.predicted_us, start.decision.first_us
    first_us = log.first_us - submitted if log.first_us else None
    if first_us is None and node and timing.total_us and timing.tokens:  # a whole answer: by the node's own clock
        first_us = queue_us + max(0, actual_us - timing.decode_us)
    outcome = settled.outcome
    return RequestRecord(
        *_of_task(task, at),
        task.stream,
        task.options,
        node,
        outcome.status._value_,
        error_of(settled),
        outcome.http_status,
        attempts,
        (queue_us if node else ended_us - submitted) / 1e6,
        actual_us / 1e6,
        (ended_us - submitted) / 1e6,
        None if first_us is None else first_us / 1e6,
        predicted_us / 1e6,
        predicted_first_us / 1e6,
        timing.prompt_tokens,
        timing.tokens,
        timing.load_us / 1e6,
        timing.prompt_us / 1e6,
        timing.decode_us / 1e6,
        len(log.resumptions),
    )


def record_of_batch(
    settled: Complete, task: Task, report: BatchReport, wait_us: int | None, at: float
) -> RequestRecord:
    """Return the record of a batch. Its attempts are one per node that failed a request."""
    total_s = report.seconds
    queue_s = total_s if wait_us is None else wait_us / 1e6
    failed = [
        AttemptRecord(node, Cause.FIRST.value, Status.FAILED.value, share.error[:ERROR_MOST], 0.0, 0.0, 0.0)
        for node, share in report.nodes.items()
        if share.failed
    ]
    return RequestRecord(
        *_of_task(task, at),
        stream=False,
        options=task.options,
        outcome=settled.outcome.status.value,
        error=error_of(settled),
        http_status=settled.outcome.http_status,
        node=", ".join(node for node, share in report.nodes.items() if share.items),
        attempts=failed,
        queue_s=queue_s,
        actual_s=total_s - queue_s,
        total_s=total_s,
        first_token_s=None,
        predicted_s=0.0,
        predicted_first_s=0.0,
        items=report.items,
        failed_items=report.failed,
        takeovers=report.takeovers,
    )


def _of_task(task: Task, at: float) -> tuple[int, float, str, str, str, str, int, str]:
    mode = task.mode.value if task.mode else ""
    return task.id, at, task.app, task.kind._value_, task.model[:MODEL_MOST], task.type._value_, task.priority, mode
