"""The only builder of Tasks: applies every constraint of a caller, on every path."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from sollol.core.types import Kind, Micros, Task, TaskType, canonical_model
from sollol.workload.call_options import CallOptions

CONTEXT_ROUTES: Final = frozenset(["/api/chat", "/api/generate", "/api/embed", "/api/embeddings"])  # with `num_ctx`
NANOSECOND_S: Final = 1e-9  # a node drops what is less
# Go's time.ParseDuration: numbers with units, or a zero without one.
_ZERO: Final = re.compile(r"[-+]?(?:0|(?:(?:0+(?:\.0*)?|\.0+)(?:ns|us|\u00b5s|\u03bcs|ms|s|m|h))+)")


class Work(NamedTuple):
    """The scheduling properties of a request. `cost` in cost units (`sollol.workload.cost`)."""

    kind: Kind
    model: str
    route: str  # the node's path
    cost: int = 0
    tokens_out: int | None = None  # the limit of the answer's tokens
    options: str = ""  # runner options: `runner_key`
    type: TaskType = TaskType.CHAT
    prefix: tuple[tuple[int, int], ...] = ()
    stream: bool = False
    observable: bool = False  # its job reports the first byte of an answer
    repeatable: bool = True  # a hedge does no harm: one that unloads the model would do so on two nodes
    batch: bool = False
    width: int | None = None  # requests in flight of a batch


def build_task(
    id: int,
    work: Work,
    call: CallOptions,
    hedge: bool | str | None,
    app: str,
    now: Micros,
    share_contexts: bool = True,
) -> Task:
    """Build the task of a request at the time `now`.

    Args:
        id: The number of the task.
        work: The request's own properties.
        call: The caller's constraints.
        hedge: The caller's `hedge`, or the name under which the caller's own policy is registered.
        app: The application, unless the caller names another.
        now: The present, in microseconds; the deadline counts from here.
        share_contexts: A runner with a larger context may serve it.
    """
    timeout_s = call.timeout_s
    return Task(
        id,
        work.kind,
        canonical_model(work.model),
        work.cost,
        call.priority,
        app if call.app is None else call.app,
        work.tokens_out,
        work.options,
        None if timeout_s is None else now + round(timeout_s * 1_000_000),
        batch=work.batch,
        width=work.width,
        type=work.type,
        mode=call.mode,
        hedge=hedge if work.repeatable else False,
        stream=work.stream,
        prefix=work.prefix,
        only=call.only,
        route=work.route,
        gpu=call.gpu,
        observable=work.observable,
        exact_context=not share_contexts or work.route not in CONTEXT_ROUTES,
    )


def unloads(keep_alive: Any) -> bool:
    """Check whether this `keep_alive` unloads the model after the call.

    It is read as by a node: 0 and "0s" unload, "" and "s" do not.
    """
    if isinstance(keep_alive, str):
        return _ZERO.fullmatch(keep_alive) is not None
    return type(keep_alive) in (int, float) and 0 <= keep_alive < NANOSECOND_S
