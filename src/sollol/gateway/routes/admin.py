"""Answer the gateway's own routes under /sollol: health, state, queue, and explanations of decisions."""

from __future__ import annotations

import re
from typing import Any, Final

from sollol.backends.ollama import encode
from sollol.errors import BadInput, ResponseError
from sollol.gateway.auth import access
from sollol.gateway.context import Context
from sollol.gateway.metrics_server import check_reader
from sollol.gateway.node_queries import nodes_of
from sollol.gateway.routes.answers import Health, Nodes, QueuePlace, Ready
from sollol.gateway.routes.openapi import document
from sollol.http_server.request import Request
from sollol.observe.metrics import CONTENT_TYPE as METRICS_TYPE
from sollol.policies.probing import EVERY
from sollol.version import __version__

EXPLAIN: Final[re.Pattern[str]] = re.compile(r"/sollol/explain/([^/]+)")
VIEW_OTHERS: Final = "see requests of others"
QUEUE: Final[re.Pattern[str]] = re.compile(r"/sollol/queue/([^/]+)")


async def health(context: Context, request: Request) -> None:
    """Answer that the gateway serves."""
    request.answer(200, encode(Health("ok", __version__, context.instance)))


async def ready(context: Context, request: Request) -> None:
    """Answer 200 if a node is up and the gateway is not about to end, else 503 with the reasons.

    Idle nodes are probed rarely, so this request starts probes; a node that died shows at the next request.
    """
    now = context.engine.dispatcher.now()
    if any(now - node.asked_us > EVERY for node in nodes_of(context)):
        context.engine.refresh()
    nodes = context.pool.nodes
    why = {node.key: node.why or "it was not probed yet" for node in nodes if node.state != "up"}
    up = len(nodes) - len(why)
    if why and context.keyring.required and request.key is None:  # a public route
        why = {"gateway": f"{len(why)} of {len(nodes)} nodes are not up; a request with a key shows which, and why"}
    if context.is_draining():
        why["gateway"] = "it is about to end"
    elif not nodes:
        why["gateway"] = "it has no nodes"
    good = up > 0 and not context.is_draining()
    answer = Ready("ready" if good else "not ready", up, len(nodes), why)
    request.answer(200 if good else 503, encode(answer), headers=() if good else [("Retry-After", "5")])


async def snapshot(context: Context, request: Request) -> None:
    """Answer with the state of nodes, queue and requests."""
    access.check_admin(request, VIEW_OTHERS)
    request.answer(200, encode(context.overview()))


async def metrics(context: Context, request: Request) -> None:
    """Answer with the metrics in Prometheus' text format."""
    keyring = context.keyring
    check_reader(context.settings.metrics, keyring, request, required=keyring.required)
    request.answer(200, context.engine.metrics(__version__), METRICS_TYPE)


async def nodes(context: Context, request: Request) -> None:
    """Answer with the state of the nodes."""
    access.check_admin(request, VIEW_OTHERS)
    request.answer(200, encode(Nodes(context.pool.read_snapshot().nodes)))


async def plan(context: Context, request: Request) -> None:
    """Answer with the last plan of the controller, and what it has done."""
    access.check_admin(request, "see the plan of the controller")
    if context.controller is None:
        raise ResponseError(
            "there is no controller; start one with `sollol serve --controller`, or in [controller]", 404
        )
    request.answer(200, encode(context.controller.status()))


async def explain(context: Context, request: Request, task: str) -> None:
    """Answer with the reasons for the routing of a request."""
    request.answer(200, encode(access.without_others(request, _explained(context, request, task))))


async def queue(context: Context, request: Request, task: str) -> None:
    """Answer with the position of a request in the queue, and the milliseconds until its expected start."""
    found = _explained(context, request, task)
    place, eta_ms = found.get("position"), found.get("eta_ms")
    answer = QueuePlace(found["id"], found["state"], found["model"], place, eta_ms, found.get("queue_ms"))
    request.answer(200, encode(answer))


def _explained(context: Context, request: Request, task: str) -> dict[str, Any]:
    """Return the record of a request. One that the key may not see does not exist for it."""
    number = context.request_ids.find(request, task)
    try:
        found = context.pool.explain(number) if number is not None else None
    except BadInput:
        found = None
    if found is None or not access.sees(request, found["app"]):
        whose = "" if access.sees_all(request) else " of this key"
        raise ResponseError(
            f"no request{whose} is called {task!r}; expected the number in X-Sollol-Request-Id, or the id that was "
            "given there, of one of the last 1,000",
            404,
        )
    return found


async def openapi(context: Context, request: Request) -> None:
    """Answer with the description of these routes."""
    request.answer(200, encode(document(context.keyring.required)))
