"""Change the running cluster: drain a node, unload a model, cancel a request, set the routing mode.

All need an admin key where keys are required. Pages of other sites are refused by their Origin.
"""

from __future__ import annotations

import re
from typing import Final

from sollol.backends.ollama import encode, load_call
from sollol.core.events import WakeRequested
from sollol.core.types import Kind, RoutingMode, canonical_model
from sollol.errors import BadInput, ResponseError
from sollol.gateway.context import Context
from sollol.gateway.formats.bodies import fields_of
from sollol.http_server.request import Request

PREFIX: Final = r"(?:/sollol|/dashboard/api)"
DRAIN: Final[re.Pattern[str]] = re.compile(PREFIX + r"/nodes/(.+)/(drain|resume|wake)", re.DOTALL)
CANCEL: Final[re.Pattern[str]] = re.compile(PREFIX + r"/requests/([^/]+)/cancel")
RESTART: Final[re.Pattern[str]] = re.compile(r"/sollol/nodes/(.+)/restart", re.DOTALL)
UNLOAD: Final[re.Pattern[str]] = re.compile(PREFIX + r"/models/unload")
MODE: Final[re.Pattern[str]] = re.compile(PREFIX + r"/mode")


async def drain(context: Context, request: Request, node: str, verb: str) -> None:
    """Keep new work away from a node, let it come again, or wake the node."""
    key = _node(context, node)
    if verb == "wake":
        wakeable = context.engine.scheduler.view().nodes[key].wakeable
        if not wakeable:
            raise ResponseError(f"{key} cannot be woken; name its network card: [nodes.{key!r}] mac = ...", 409)
        context.engine.dispatcher.feed(WakeRequested(key, "an operator wants it"))
        request.answer(200, encode({"node": key, "woken": True}))
        return
    context.engine.drain(key, verb == "drain")
    request.answer(200, encode({"node": key, "drained": verb == "drain"}))


async def restart(context: Context, request: Request, node: str) -> None:
    """Let the agent of a node restart its Ollama, by the command that its owner has named."""
    key = _node(context, node)
    agents = context.agents
    if agents is None or key not in agents.reports():
        raise ResponseError(f"no agent of {key} can be used; `sollol agent` there, and its key in [agents]", 409)
    status, answer = await agents.restart(key)
    request.answer(status, answer)


async def unload(context: Context, request: Request) -> None:
    """Put a model out of the memory of one node, or of all that hold it."""
    fields = fields_of(request)
    name = fields.get("model")
    if not isinstance(name, str) or not name:
        raise BadInput('expected {"model": NAME} and, for one node only, "node": HOST:PORT')
    model = canonical_model(context.settings.resolve_model(name))
    nodes = context.engine.scheduler.view().nodes
    chosen = [_node(context, str(fields["node"]))] if fields.get("node") else list(nodes)
    holding = [key for key in chosen if nodes[key].usable and model in nodes[key].loaded]
    if not holding:
        raise ResponseError(f"no node holds {model} in memory; `sollol ps` lists what is loaded", 404)
    for key in holding:
        context.engine.dispatcher.send_later(nodes[key].endpoint, load_call(Kind.GENERATE, model, "", 0))
    context.engine.refresh()
    request.answer(200, encode({"model": model, "nodes": holding}))


async def cancel(context: Context, request: Request, name: str) -> None:
    """Cancel a waiting or running request, or a batch."""
    task = context.request_ids.find(request, name)
    if task is None or task not in context.engine.scheduler.view().tasks:
        raise ResponseError(f"no request {name!r} waits or runs", 404)
    context.engine.dispatcher.cancel(task, "an operator has cancelled this request")
    request.answer(200, encode({"id": task, "cancelled": True}))


async def mode(context: Context, request: Request) -> None:
    """Set the routing mode of requests without one, until the settings are read again."""
    fields = fields_of(request)
    if "mode" not in fields:
        raise BadInput('expected {"mode": "fast", "reliable", "async" or null}')
    value = fields["mode"]
    if value is not None and value not in list(RoutingMode):
        raise BadInput(f'mode={value!r}; expected "fast", "reliable", "async" or null')
    context.pool.set_routing_mode(value)
    request.answer(200, encode({"mode": value}))


def _node(context: Context, name: str) -> str:
    """Return the key of a node.

    Raises:
        ResponseError: 404, if it is not a node here.
    """
    nodes = context.engine.scheduler.view().nodes
    if name not in nodes:
        raise ResponseError(f"{name!r} is not a node here; expected one of {', '.join(nodes) or 'none'}", 404)
    return name
