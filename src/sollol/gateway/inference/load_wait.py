"""Answer 503 to a request that waits too long for a load, and let the load go on."""

from __future__ import annotations

import asyncio
import math
from typing import Any, Final

import msgspec

from sollol.backends.ollama import encode
from sollol.core.events import LoadRequested
from sollol.core.state.replica import Replica
from sollol.core.types import Micros
from sollol.core.view import SchedulerView
from sollol.gateway.context import Context
from sollol.gateway.formats.error_responses import error_body
from sollol.http_server.request import Request
from sollol.observe.load_rows import is_being_loaded, load_row

LOOK_EVERY_S: Final = 0.5


def limit_load_wait(context: Context, request: Request, task: int) -> None:
    """Look after `load_wait_s` whether the request of a task still waits for a load."""
    wait_s = context.settings.load_wait_s
    if wait_s is not None:
        asyncio.get_running_loop().call_later(wait_s, _look, context, request, task)


def _look(context: Context, request: Request, task: int) -> None:
    engine = context.engine
    view, now = engine.scheduler.view(), engine.dispatcher.now()
    pending = view.tasks.get(task)
    if pending is None or pending.delivering or request.has_begun or request.is_answered:
        return
    replica = loading_replica(view, task, now)
    if replica is None:  # a load may begin yet
        asyncio.get_running_loop().call_later(LOOK_EVERY_S, _look, context, request, task)
        return
    loading = loading_row(replica, now)
    eta_s = loading["eta_seconds"]
    about = "" if eta_s is None else f", for about {eta_s:.0f} s more"
    message = f"{replica.model} is being loaded on {replica.key}{about}; try again later"
    body = msgspec.json.decode(error_body(request.path, 503, message)) | {"loading": loading}
    request.answer(503, encode(body), headers=[("Retry-After", str(math.ceil(eta_s or 10)))])
    engine.dispatcher.cancel(task)
    # The node gives a load up whose last caller leaves.
    kind, model, options = pending.task.kind, pending.task.model, pending.task.options
    why = f"a request has waited {context.settings.load_wait_s:g} s for it"
    engine.dispatcher.feed(LoadRequested(replica.key, model, kind, options, "", why))


def loading_replica(view: SchedulerView, task: int, now: Micros) -> Replica | None:
    """Return the replica whose load a task waits for; None if it waits for something else, or has an answer."""
    pending = view.tasks.get(task)
    if pending is None or pending.delivering:
        return None
    attempts = list(pending.attempts.values())
    if attempts:
        loading = [attempt.replica for attempt in attempts if attempt.loads and not attempt.delivering]
        return loading[0] if len(loading) == len(attempts) else None
    group = view.groups.get(pending.task.model)
    replicas = group.replicas.values() if group is not None else ()
    if any(replica.is_loaded and not replica.is_loading and replica.usable(now) for replica in replicas):
        return None  # it waits for a free slot
    return next((replica for replica in replicas if is_being_loaded(replica, now)), None)


def loading_row(replica: Replica, now: Micros) -> dict[str, Any]:
    """Return `state`, `node`, `progress` (0.0 to 1.0) and `eta_seconds`; these are None where no load was measured."""
    row = load_row(replica, now)
    eta_ms = row.eta_ms
    return {
        "state": row.state,
        "node": replica.key,
        "progress": row.progress,
        "eta_seconds": None if eta_ms is None else round(eta_ms / 1000, 1),
    }
