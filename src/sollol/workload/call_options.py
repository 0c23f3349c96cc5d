"""Constraints of a call, the same on every path: single calls, streams, batches, API formats."""

from __future__ import annotations

from typing import Any, NamedTuple

from sollol.core.policy import Hedger
from sollol.core.types import RoutingMode, TaskType
from sollol.workload.validation import (
    check_flag,
    check_hedge,
    check_mode,
    check_only,
    check_priority,
    check_timeout,
    check_type,
)


class CallOptions(NamedTuple):
    """Constraints of one call. `only`: keys of the permitted nodes; `app` None: the pool's own."""

    priority: int = 5
    timeout_s: float | None = None
    mode: RoutingMode | None = None
    hedge: bool | Hedger | None = None
    type: TaskType | None = None
    only: tuple[str, ...] | None = None
    gpu: bool = False
    app: str | None = None
    keep_alive: int | str | None = None  # set in the request's body where that has none
    trace: tuple[str, str] | None = None  # the caller's `traceparent` and `tracestate`


def call_options(
    priority: Any,
    timeout: Any,
    mode: Any = None,
    hedge: Any = None,
    task_type: Any = None,
    node: Any = None,
    requires_gpu: Any = False,
) -> CallOptions:
    """Validate the keyword arguments of a pool's call.

    Raises:
        BadInput: A value is not permitted.
    """
    return CallOptions(
        check_priority(priority),
        check_timeout(timeout),
        check_mode(mode),
        check_hedge(hedge),
        check_type(task_type),
        check_only(node),
        check_flag("requires_gpu", requires_gpu),
    )
