"""Change the running cluster: drain a node, unload a model, cancel a request, set the routing mode.

All need an admin key where keys are required. Pages of other sites are refused by their Origin.
"""

from __future__ import annotations

import re
from typing import Final, TypeVar

import msgspec

from sollol.backends.ollama import encode, load_call
from sollol.core.events import WakeRequested
from sollol.core.types import Kind, canonical_model
from sollol.errors import BadInput, ResponseError
from sollol.gateway.context import Context
from sollol.gateway.formats.bodies import read_json
from sollol.gateway.routes.answers import CancelledRequest, Drained, ModeBody, ModelBody, Unloaded, Woken
from sollol.http_server.request import Request

T = TypeVar("T")

MODEL_AND_NODE: Final = '{"model": NAME} and, for one node only, "node": HOST:PORT'
PREFIX: Final = r"(?:/sollol|/dashboard/api)"
DRAIN: Final[re.Pattern[str]] = re.compile(PREFIX + r"/nodes/(.+)/(drain|resume|wake)", re.DOTALL)
CANCEL: Final[re.Pattern[str]] = re.compile(PREFIX + r"/requests/([^/]+)/cancel")
RESTART: Final[re.Pattern[str]] = re.compile(r"/sollol/nodes/(.+)/restart", re.DOTALL)
UNLOAD: Final[re.Pattern[str]] = re.compile(PREFIX + r"/models/unload")
MODE: Final[re.Pattern[str]] = re.compile(PREFIX + r"/mode")


async def drain(context: Context, request: Request, node: str, verb: str) -> None:
    """Keep new work away from a node, let it come again, or wake the node."""
    key = node_of(context, node)
    if verb == "wake":
        wakeable = context.engine.scheduler.view().nodes[key].wakeable
        if not wakeable:
            raise ResponseError(f"{key} cannot be woken; name its network card: [nodes.{key!r}] mac = ...", 409)
        context.engine.dispatcher.feed(WakeRequested(key, "an operator requested it"))
        request.answer(200, encode(Woken(key, True)))
        return
    context.engine.drain(key, verb == "drain")
    request.answer(200, encode(Drained(key, verb == "drain")))


async def restart(context: Context, request: Request, node: str) -> None:
    """Let the agent of a node restart its Ollama, by the command that its owner has named."""
    key = node_of(context, node)
    agents = context.agents
    if agents is None or key not in agents.reports():
        raise ResponseError(f"no agent of {key} can be used; `sollol agent` there, and its key in [agents]", 409)
    status, answer = await agents.restart(key)
    request.answer(status, answer)


async def unload(context: Context, request: Request) -> None:
    """Put a model out of the memory of one node, or of all that hold it."""
    body = body_of(request, ModelBody, MODEL_AND_NODE)
    model = canonical_model(context.settings.resolve_model(body.model))
    nodes = context.engine.scheduler.view().nodes
    chosen = [node_of(context, body.node)] if body.node else list(nodes)
    holding = [key for key in chosen if nodes[key].usable and model in nodes[key].loaded]
    if not holding:
        raise ResponseError(f"no node holds {model} in memory; `sollol ps` lists what is loaded", 404)
    for key in holding:
        context.engine.dispatcher.send_later(nodes[key].endpoint, load_call(Kind.GENERATE, model, "", 0))
    context.engine.refresh()
    request.answer(200, encode(Unloaded(model, holding)))


async def cancel(context: Context, request: Request, name: str) -> None:
    """Cancel a waiting or running request, or a batch."""
    task = context.request_ids.find(request, name)
    if task is None or task not in context.engine.scheduler.view().tasks:
        raise ResponseError(f"no request {name!r} waits or runs", 404)
    context.engine.dispatcher.cancel(task, "an operator has cancelled this request")
    request.answer(200, encode(CancelledRequest(task, True)))


async def mode(context: Context, request: Request) -> None:
    """Set the routing mode of requests without one, until the settings are read again."""
    body = body_of(request, ModeBody, '{"mode": "fast", "reliable", "async" or null}')
    context.pool.set_routing_mode(body.mode)
    request.answer(200, encode(body))


def body_of(request: Request, kind: type[T], expected: str) -> T:
    """Return the body of a request.

    Raises:
        BadInput: It is not of this kind.
        ResponseError: 413: it has too many values.
    """
    try:
        return msgspec.json.decode(read_json(request.body), type=kind)
    except msgspec.ValidationError as error:
        raise BadInput(f"{error}; expected {expected}") from None


def node_of(context: Context, name: str) -> str:
    """Return the key of a node.

    Raises:
        ResponseError: 404, if it is not a node here.
    """
    nodes = context.engine.scheduler.view().nodes
    if name not in nodes:
        raise ResponseError(f"{name!r} is not a node here; expected one of {', '.join(nodes) or 'none'}", 404)
    return name
