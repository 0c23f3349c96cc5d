"""Exceptions for the outcomes of tasks."""

from __future__ import annotations

from typing import Final

from sollol.core.actions import Complete
from sollol.core.types import Status, Task
from sollol.errors import DeadlineExceeded, NoNodeAvailable, QueueFull, ResponseError, SollolError, StreamBroken

LACKS: Final = "does not have"  # how the reason of a node without the model begins


def error_of(settled: Complete, task: Task) -> SollolError | None:
    """Return the exception of a completed task, None for a good end."""
    error = _error_of(settled, task)
    if error is not None:
        error.task_id = task.id
    return error


def _error_of(settled: Complete, task: Task) -> SollolError | None:
    outcome = settled.outcome
    what = f"{task.kind.value} with {task.model}"
    match outcome.status:
        case Status.OK:
            return None
        case Status.REFUSED:
            return ResponseError(outcome.message, outcome.http_status)
        case Status.NO_NODE:
            if not settled.tried:
                return NoNodeAvailable(
                    f"{what}: the pool has no nodes. Add one with pool.add_node('host', 11434), set SOLLOL_NODES or "
                    "OLLAMA_HOST, or let OllamaPool.auto_configure() look for them."
                )
            wait_s = None if outcome.retry_us is None else outcome.retry_us / 1e6
            lacking = [node for node, why in settled.tried if why.startswith(LACKS)]
            on = f" --on {lacking[0]}" if len(lacking) == 1 else ""
            bring = f" (`sollol models pull {task.model}{on}` brings it)" if lacking else ""
            head = f"{what}: {outcome.message}{bring}; of {len(settled.tried)} nodes:"
            return NoNodeAvailable(head, settled.tried, wait_s)
        case Status.QUEUE_FULL:
            wait_s = None if outcome.retry_us is None else outcome.retry_us / 1e6
            return QueueFull(f"{what}: {outcome.message}; retry later, or add nodes", wait_s)
        case Status.DEADLINE:
            return DeadlineExceeded(f"{what}: {outcome.message}; raise timeout=, or add nodes")
        case Status.LEFT:
            return SollolError(f"{what}: the pool was closed, or the call was cancelled")
        case _:
            return StreamBroken(f"{what}: {outcome.message}")
