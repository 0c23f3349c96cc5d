"""Read the constraints of a call from its headers (`X-Sollol-*`), bounded by its key."""

from __future__ import annotations

import re
from typing import Final

from sollol.errors import BadInput
from sollol.gateway.context import Context
from sollol.http_server.request import Request, has_ours
from sollol.workload.call_options import CallOptions
from sollol.workload.validation import check_mode, check_only

PRIORITY: Final = 5  # of a request that names none
NODES_MOST: Final = 100  # nodes that one request may name
_SECONDS: Final = re.compile(r"-?[0-9]{1,9}")
_DURATION: Final = re.compile(r"-?([0-9]{1,9}(\.[0-9]{1,9})?(ns|us|ms|s|m|h))+")
_FLAGS: Final = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def options_of(request: Request, context: Context) -> CallOptions:
    """Return the constraints of a request, with its place in a trace if traces are recorded.

    Raises:
        BadInput: A header has a value that is not permitted.
    """
    options = _constraints_of(request, context)
    if context.engine.otel is not None and (parent := request.header(b"traceparent")):
        return options._replace(trace=(parent, request.header(b"tracestate")))
    return options


def _constraints_of(request: Request, context: Context) -> CallOptions:
    key, default = request.key, context.default_options
    if request.plain or not has_ours(request.headers):
        if key is None:
            return default
        return default._replace(priority=min(PRIORITY, key.priority_max), app=key.app)
    priority = _number(request, b"x-sollol-priority", 0, 10, PRIORITY)
    deadline_ms = _number(request, b"x-sollol-deadline-ms", 1, 86_400_000, 0)
    mode = request.header(b"x-sollol-mode")
    hedge = request.header(b"x-sollol-hedge")
    if hedge and hedge.lower() not in _FLAGS:
        raise BadInput(f"X-Sollol-Hedge: {hedge!r}; expected true or false")
    # A key names its application; a header cannot change that.
    app = key.app if key is not None else request.header(b"x-sollol-app")[:64] or default.app
    return CallOptions(
        priority=priority if key is None else min(priority, key.priority_max),
        timeout_s=deadline_ms / 1000 if deadline_ms else default.timeout_s,
        mode=check_mode(mode) if mode else default.mode,
        hedge=_FLAGS[hedge.lower()] if hedge else default.hedge,
        only=_nodes(request, context),
        app=app,
        keep_alive=_keep_alive(request),
    )


def split_names(source: str, text: str) -> list[str]:
    """Return the names of nodes in a list that is separated by commas.

    Raises:
        BadInput: There are too many.
    """
    if text.count(",") >= NODES_MOST:
        raise BadInput(f"{source}: {text.count(',') + 1} names of nodes; expected at most {NODES_MOST}")
    return text.split(",")


def _keep_alive(request: Request) -> int | str | None:
    text = request.header(b"x-sollol-keep-alive")
    if not text:
        return None
    if _SECONDS.fullmatch(text):
        return int(text)
    if not _DURATION.fullmatch(text):
        raise BadInput(f"X-Sollol-Keep-Alive: {text[:80]!r}; expected seconds, or a duration such as 10m or 1h30m")
    return text


def _nodes(request: Request, context: Context) -> tuple[str, ...] | None:
    text = request.header(b"x-sollol-node")
    if not text:
        return None
    only = check_only(split_names("X-Sollol-Node", text))
    nodes = context.engine.scheduler.view().nodes
    for node in only or ():
        if node not in nodes:
            raise BadInput(f"X-Sollol-Node: {node!r} is not a node here; expected one of {', '.join(nodes)}")
    return only


def _number(request: Request, name: bytes, least: int, most: int, default: int) -> int:
    text = request.header(name)
    if not text:
        return default
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise BadInput(f"{name.decode().title()}: {text!r}; expected a whole number from {least} to {most}")
    return value
