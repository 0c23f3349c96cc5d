"""Show the models of all nodes, keep them in memory, and make them as the file names them."""

from __future__ import annotations

import re
from contextlib import aclosing
from typing import Final

from sollol.backends.ollama import encode
from sollol.core.types import canonical_model
from sollol.gateway.auth import access
from sollol.gateway.context import Context
from sollol.gateway.model_sync import plan_of, pull_of
from sollol.gateway.node_queries import nodes_of, up_nodes, wait_until_probed
from sollol.gateway.routes.actions import MODEL_AND_NODE, body_of, node_of
from sollol.gateway.routes.answers import (
    ChangeRow,
    FreeBody,
    Freed,
    Inventory,
    Kept,
    ModelBody,
    ModelOnNode,
    PullBody,
    SyncBody,
    Synced,
)
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
    request.answer(200, encode(Inventory(rows, down)))


def _rows(context: Context, found: NodeInventory) -> list[ModelOnNode]:
    state = context.engine.state()
    node = state.view.nodes.get(found.key)
    rows = []
    for name, stored in sorted(found.stored.items()):
        loaded = found.loaded.get(name)
        used = node.last_use(name) if node is not None else 0
        rows.append(
            ModelOnNode(
                model=name,
                node=found.key,
                **stored._asdict(),
                processor=loaded.processor if loaded is not None else None,
                gpu_share=loaded.gpu_share if loaded is not None else None,
                pinned=is_pinned(loaded),
                last_used=state.wall_clock(used) if used else None,
            )
        )
    return rows


async def keep(context: Context, request: Request, verb: str) -> None:
    """Load a model, keep it in memory, or let it leave the memory."""
    body = body_of(request, ModelBody, MODEL_AND_NODE)
    node = None if body.node is None else node_of(context, body.node)
    model = context.settings.resolve_model(body.model)
    pool = context.pool
    call = {"warm": pool.warm_model, "pin": pool.pin, "unpin": pool.unpin}[verb]
    done = await call(model, node=node)
    await wait_until_probed(context, done["nodes"])
    request.answer(200, encode(Kept(canonical_model(model), done["status"], done["nodes"])))


async def free(context: Context, request: Request) -> None:
    """Unload models of a node until so many bytes are free."""
    body = body_of(request, FreeBody, '{"node": HOST:PORT, "bytes": N}, N at least 1')
    done = await context.pool.free_memory(node_of(context, body.node), int(body.bytes))
    request.answer(200, encode(Freed(body.node, done["status"], done["freed"], done["unloaded"], done["kept"])))


async def pull(context: Context, request: Request) -> None:
    """Pull a model to nodes, over the registry where there is one: lines of progress, then the outcomes."""
    body = body_of(request, PullBody, '{"model": NAME} and, for some nodes only, "nodes": [HOST:PORT, …]')
    keys = {node_of(context, name) for name in body.nodes or ()}
    nodes = [node for node in up_nodes(context) if not keys or node.key in keys]
    outcomes: dict[str, str] = {}
    lines = pull_of(context)(context.settings.resolve_model(body.model), nodes)
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
    dry_run = body_of(request, SyncBody, '{"dry_run": true or false}').dry_run
    found = await plan_of(context)
    rows = [ChangeRow(*change) for change in found.changes]
    if not dry_run:
        nodes = {node.key: node.endpoint for node in context.pool.nodes}
        outcomes = await outcomes_of(carry_out(context.engine.transport, nodes, found.changes, pull_of(context)))
        for row, change in zip(rows, found.changes, strict=True):
            row.outcome = outcomes.get(change[:3], "no outcome")
        context.engine.refresh()
    request.answer(200, encode(Synced(rows, list(found.unmet))))
