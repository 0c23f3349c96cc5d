"""The gateway's own routes, under /sollol: is it well, what does it do, why did it decide so."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from sollol.backends.ollama import encode
from sollol.errors import BadInput, ResponseError
from sollol.gateway.auth import access
from sollol.gateway.routes.lists import states
from sollol.gateway.routes.openapi import document
from sollol.http_server.request import Request
from sollol.observe.metrics import CONTENT_TYPE as METRICS_TYPE
from sollol.policies.probing import EVERY
from sollol.version import __version__

if TYPE_CHECKING:
    from sollol.gateway.app import Gateway

EXPLAIN: Final[re.Pattern[str]] = re.compile(r"/sollol/explain/([^/]+)")
SEE: Final = "see what others ask"
QUEUE: Final[re.Pattern[str]] = re.compile(r"/sollol/queue/([^/]+)")


async def health(gateway: Gateway, request: Request) -> None:
    """It serves."""
    request.answer(200, encode({"status": "ok", "version": __version__}))


async def ready(gateway: Gateway, request: Request) -> None:
    """At least one node is up, and the gateway is not about to end; if not, why.

    While nobody works, nodes are asked seldom; who asks for this wants to know, so they are asked again then, and a
    node that has died shows the next time."""
    now = gateway.engine.dispatcher.now()
    if any(now - node.asked_us > EVERY for node in states(gateway)):
        gateway.engine.refresh()
    nodes = gateway.pool.nodes
    why = {node.key: node.why or "it was not asked yet" for node in nodes if node.state != "up"}
    up = len(nodes) - len(why)
    if why and gateway.keyring.required and request.key is None:  # anybody may ask this
        why = {"gateway": f"{len(why)} of {len(nodes)} nodes are not up; who sends a key is told which, and why"}
    if gateway.draining:
        why["gateway"] = "it is about to end"
    elif not nodes:
        why["gateway"] = "it has no nodes"
    good = up > 0 and not gateway.draining
    told = {"status": "ready" if good else "not ready", "nodes_up": up, "nodes": len(nodes), "why": why}
    request.answer(200 if good else 503, encode(told), headers=() if good else [("Retry-After", "5")])


async def snapshot(gateway: Gateway, request: Request) -> None:
    access.admin(request, SEE)
    request.answer(200, encode(gateway.snapshot()))


async def metrics(gateway: Gateway, request: Request) -> None:
    """Answer with the metrics in Prometheus' text format."""
    access.admin(request, SEE)
    request.answer(200, gateway.engine.metrics(__version__), METRICS_TYPE)


async def nodes(gateway: Gateway, request: Request) -> None:
    access.admin(request, SEE)
    request.answer(200, encode({"nodes": gateway.pool.snapshot()["nodes"]}))


async def explain(gateway: Gateway, request: Request, task: str) -> None:
    request.answer(200, encode(access.without_others(request, _explained(gateway, request, task))))


async def queue(gateway: Gateway, request: Request, task: str) -> None:
    """Where a request stands: its position and when it should start, in milliseconds."""
    found = _explained(gateway, request, task)
    told = {"id": found["id"], "state": found["state"], "model": found["model"]}
    told |= {"position": found.get("position"), "eta_ms": found.get("eta_ms"), "queue_ms": found.get("queue_ms")}
    request.answer(200, encode(told))


def _explained(gateway: Gateway, request: Request, task: str) -> dict[str, Any]:
    """One that a key may not see is answered as one that is not there."""
    number = gateway.task_of(request, task)
    try:
        found = gateway.pool.explain(number) if number is not None else None
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


async def openapi(gateway: Gateway, request: Request) -> None:
    request.answer(200, encode(document(gateway.keyring.required)))
