"""The only builder of Tasks: every constraint that a caller can give is applied here, on every path."""

from __future__ import annotations

from typing import Any, NamedTuple

from sollol.core.types import Kind, Micros, Task, TaskType, canonical_model
from sollol.workload.call_options import CallOptions


class Work(NamedTuple):
    """A request, as far as scheduling needs it. `cost` in cost units (`sollol.workload.cost`)."""

    kind: Kind
    model: str
    route: str  # the node's path
    cost: int = 0
    tokens_out: int | None = None  # the most tokens that the answer may have
    options: str = ""  # runner options: `runner_key`
    type: TaskType = TaskType.CHAT
    prefix: tuple[tuple[int, int], ...] = ()
    stream: bool = False
    observable: bool = False  # its job can report when a node begins to answer
    unloads: bool = False  # the model leaves memory at its end
    repeatable: bool = True  # a second copy does no harm
    batch: bool = False
    width: int | None = None  # requests in flight of a batch


def build_task(id: int, work: Work, call: CallOptions, hedge: bool | str | None, app: str, now: Micros) -> Task:
    """Return the task of a request, sent by `app` unless the caller names another application.

    `hedge`: as the caller set it, or the name under which the caller's own policy is registered.
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
        # A copy that unloads its model when it ends would do so on two nodes.
        hedge=False if work.unloads or not work.repeatable else hedge,
        stream=work.stream,
        prefix=work.prefix,
        only=call.only,
        route=work.route,
        gpu=call.gpu,
        observable=work.observable,
    )


def unloads(keep_alive: Any) -> bool:
    """Check whether a model leaves memory after a call with this `keep_alive`: "0", "0s", 0 and 0.0 mean yes."""
    return keep_alive is not None and str(keep_alive).strip("0.hmnsu\u00b5") == ""
