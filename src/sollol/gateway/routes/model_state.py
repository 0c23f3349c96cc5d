"""Show the models of all nodes, keep them in memory, and make them as the file names them."""

from __future__ import annotations

import re
from contextlib import aclosing
from typing import Any, Final

from sollol.backends.ollama import encode
from sollol.core.types import canonical_model
from sollol.errors import BadInput, ResponseError
from sollol.gateway.auth import access
from sollol.gateway.context import Context
from sollol.gateway.formats.bodies import fields_of, model_name
from sollol.gateway.model_sync import plan_of, pull_of
from sollol.gateway.node_queries import nodes_of, up_nodes, wait_until_probed
from sollol.http_server.request import NDJSON, Request
from sollol.models.changes import carry_out, outcomes_of
from sollol.models.inventory import NodeInventory, is_pinned, read_inventory

SEE: Final = "see the models of all nodes"
KEEP: Final[re.Pattern[str]] = re.compile(r"/sollol/models/(warm|pin|unpin)")


async def inventory(context: Context, request: Request) -> None:
    """Answer with one row for each model on each node, and the nodes that are down."""
    access.check_admin(request, SEE)
    found = await read_inventory(context.engine.transport, up_nodes(context))
    down = {node.key: node.lost_why for node in nodes_of(context) if node.up is False}
    down |= {node.key: node.why for node in found if node.why}
    rows = [row for node in found for row in _rows(context, node)]
    request.answer(200, encode({"models": rows, "down": down}))


def _rows(context: Context, found: NodeInventory) -> list[dict[str, Any]]:
    state = context.engine.state()
    node = state.view.nodes.get(found.key)
    rows = []
    for name, stored in sorted(found.stored.items()):
        loaded = found.loaded.get(name)
        used = node.last_use(name) if node is not None else 0
        rows.append(
            {
                "model": name,
                "node": found.key,
                **stored._asdict(),
                "processor": loaded.processor if loaded is not None else None,
                "gpu_share": loaded.gpu_share if loaded is not None else None,
                "pinned": is_pinned(loaded),
                "last_used": state.wall_clock(used) if used else None,
            }
        )
    return rows


async def keep(context: Context, request: Request, verb: str) -> None:
    """Load a model, keep it in memory, or let it leave the memory."""
    fields = fields_of(request)
    name, node = fields.get("model"), _node(context, fields)
    if not isinstance(name, str) or not name:
        raise BadInput('expected {"model": NAME} and, for one node only, "node": HOST:PORT')
    model = context.settings.resolve_model(name)
    pool = context.pool
    call = {"warm": pool.warm_model, "pin": pool.pin, "unpin": pool.unpin}[verb]
    done = await call(model, node=node)
    await wait_until_probed(context, done["nodes"])
    request.answer(200, encode({"model": canonical_model(model), **done}))


async def free(context: Context, request: Request) -> None:
    """Unload models of a node until so many bytes are free."""
    fields = fields_of(request)
    node, size = _node(context, fields), fields.get("bytes")
    if isinstance(size, float) and size.is_integer():  # JSON writes 1 in both ways
        size = int(size)
    if node is None or type(size) is not int or size < 1:
        raise BadInput('expected {"node": HOST:PORT, "bytes": N}, N at least 1')
    request.answer(200, encode({"node": node, **await context.pool.free_memory(node, size)}))


async def pull(context: Context, request: Request) -> None:
    """Pull a model to nodes, over the registry where there is one: lines of progress, then the outcomes."""
    fields = fields_of(request, "model")
    named = fields.get("nodes")
    if named is not None and not (isinstance(named, list) and all(isinstance(name, str) for name in named)):
        raise BadInput('"nodes" is no list; expected HOST:PORT, …, or none for all nodes')
    keys = {_node(context, {"node": name}) for name in named or ()}
    nodes = [node for node in up_nodes(context) if not keys or node.key in keys]
    outcomes: dict[str, str] = {}
    lines = pull_of(context)(context.settings.resolve_model(model_name(fields)), nodes)
    request.begin(200, NDJSON)
    async with aclosing(lines):
        async for line in lines:
            if "error" in line or line.get("status") == "success":
                outcomes[str(line["node"])] = str(line.get("error") or "success")
            if not request.write(encode(line) + b"\n"):
                await request.drained()
    await wait_until_probed(context, outcomes)
    good = sum(outcome == "success" for outcome in outcomes.values())
    status = "success" if good == len(outcomes) else "partial" if good else "failed"
    request.write(encode({"status": status, "nodes": outcomes}) + b"\n")
    request.end()


async def sync(context: Context, request: Request) -> None:
    """Make the models of the nodes as the file names them, or list the changes (`dry_run`)."""
    dry_run = fields_of(request).get("dry_run", False)
    if not isinstance(dry_run, bool):
        raise BadInput('"dry_run" is not true or false')
    found = await plan_of(context)
    rows: list[dict[str, Any]] = [change._asdict() for change in found.changes]
    if not dry_run:
        nodes = {node.key: node.endpoint for node in context.pool.nodes}
        outcomes = await outcomes_of(carry_out(context.engine.transport, nodes, found.changes, pull_of(context)))
        rows = [
            row | {"outcome": outcomes.get(c[:3], "no outcome")} for row, c in zip(rows, found.changes, strict=True)
        ]
        context.engine.refresh()
    request.answer(200, encode({"changes": rows, "unmet": found.unmet}))


def _node(context: Context, fields: dict[str, Any]) -> str | None:
    """Return the node of a body, None if it names none.

    Raises:
        BadInput: It is no text.
        ResponseError: 404: it is not a node here.
    """
    name = fields.get("node")
    if name is None:
        return None
    if not isinstance(name, str):
        raise BadInput(f'"node" is a {type(name).__name__}; expected HOST:PORT, or null')
    nodes = context.engine.scheduler.view().nodes
    if name not in nodes:
        raise ResponseError(f"{name!r} is not a node here; expected one of {', '.join(nodes) or 'none'}", 404)
    return name
