"""Choose the nodes for a change of models, from the query or by a rule for each kind."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from sollol.core.endpoint import Endpoint, parse_endpoint
from sollol.core.state.replica import Node
from sollol.core.types import canonical_model
from sollol.errors import BadInput, NoNodeAvailable, ResponseError
from sollol.gateway.context import Context
from sollol.gateway.inference.call_options import split_names
from sollol.gateway.node_queries import READING, holders, nodes_of
from sollol.http_server.request import Request
from sollol.transport.base import Call, TransportFault

_PARAMETERS: Final = re.compile(r"(\d+(?:\.\d+)?)([bm])\b")
BYTES_PER_PARAMETER: Final = 0.6  # of the usual quantisation to four bits, with buffers


class Targets(NamedTuple):
    """The nodes of a change, and those that it cannot reach, with the reason: key -> reason."""

    nodes: tuple[Endpoint, ...]
    down: dict[str, str]


def reachable(nodes: list[Node]) -> Targets:
    """Split nodes into reachable and unreachable ones."""
    return Targets(
        tuple(node.endpoint for node in nodes if node.up is not False),
        {node.key: f"the node is down: {node.lost_why}" for node in nodes if node.up is False},
    )


def chosen(context: Context, request: Request) -> Targets | None:
    """Return the nodes in the query (`node=HOST:PORT`, also several, or `nodes=all`); None if it has none."""
    query = request.query
    names = ",".join(filter(None, (query.get("node"), query.get("nodes"))))
    if not names:
        return None
    nodes = {node.key: node for node in nodes_of(context)}
    if names == "all":
        return reachable(_require(list(nodes.values())))
    found: dict[str, Endpoint] = {}
    for name in split_names("node", names):
        key = name if name in nodes else parse_endpoint(name).key
        if key not in nodes:
            raise BadInput(f"node={name!r} is not a node here; expected one of {', '.join(nodes)}, or nodes=all")
        found[key] = nodes[key].endpoint
    return Targets(tuple(found.values()), {})


def all_up(context: Context) -> Targets:
    """Return all nodes that are up."""
    return reachable(_require([node for node in nodes_of(context) if node.usable]))


def _require(nodes: list[Node]) -> list[Node]:
    """Return the nodes. Raises NoNodeAvailable for none."""
    if not nodes:
        raise NoNodeAvailable("no node is up")
    return nodes


async def holding(context: Context, model: str, missing: str) -> Targets:
    """Return the nodes that have a model, and as unreachable those that are down and had it."""
    name = canonical_model(model)
    had = reachable([node for node in nodes_of(context) if node.up is False and name in node.models]).down
    try:
        return Targets(tuple(await holders(context, model, missing)), had)
    except (ResponseError, NoNodeAvailable):
        if not had:
            raise
        return Targets((), had)


def for_pull(context: Context, model: str) -> Targets:
    """Choose the nodes for a pull: those that have the model, else one that has room for it.

    No API reports the memory of a node. Known are the largest model that it has held in its GPU, and the size of the
    model: from a node that is down and has it, else from its name ("70b"). Of the nodes that have held as much, the
    fastest is chosen; if there is none, or the size is unknown, the one that has held the most.
    """
    name = canonical_model(model)
    up = _require([node for node in nodes_of(context) if node.usable])
    have = [node for node in up if name in node.models]
    if have:
        return reachable(have)
    needed = max((node.models.get(name, 0) for node in nodes_of(context)), default=0) or size_by_name(name)
    fitting = [node for node in up if 0 < needed <= node.held_bytes]
    if fitting:
        return reachable([max(fitting, key=lambda node: (node.speed.read() or 0.0, node.held_bytes))])
    return reachable([max(up, key=_room)])


def size_by_name(model: str) -> float:
    """Estimate the bytes of a model from the parameters in its name, as in "llama3.1:70b"; return 0 without them."""
    found = _PARAMETERS.search(model.lower())
    return float(found[1]) * {"b": 1e9, "m": 1e6}[found[2]] * BYTES_PER_PARAMETER if found else 0.0


def _room(node: Node) -> tuple[int, float, int]:
    """Return a sort key for the room of a node: bytes held in its GPU, speed, largest model."""
    return node.held_bytes, node.speed.read() or 0.0, max(node.models.values(), default=0)


async def for_create(context: Context, fields: dict[str, Any]) -> Targets:
    """Choose the nodes for a create: those with the base model and the uploaded blobs.

    If no node has the base, the nodes for its pull are chosen, because a node pulls a base that it lacks.
    """
    base = fields.get("from")
    if isinstance(base, str) and base:
        try:
            found = await holding(context, base, f"model '{base}' not found")
        except ResponseError:
            found = for_pull(context, base)
    else:
        found = all_up(context)
    blobs = [digest for name in ("files", "adapters") for digest in _values(fields.get(name))]
    if not blobs:
        return found
    statuses = await statuses_of(context, found.nodes, [f"/api/blobs/{digest}" for digest in blobs])
    able = tuple(node for node in found.nodes if set(statuses[node]) == {200})
    return Targets(able, found.down) if able else found  # without one, a node reports the missing blob


def _values(files: Any) -> list[str]:
    return [digest for digest in files.values() if isinstance(digest, str)] if isinstance(files, dict) else []


async def statuses_of(context: Context, nodes: Iterable[Endpoint], paths: list[str]) -> dict[Endpoint, list[int]]:
    """Return node -> the statuses of HEAD requests for the paths, 502 where it does not answer."""

    async def head(node: Endpoint, path: str) -> int:
        try:
            reply = await context.engine.transport.send(node, Call("HEAD", path, timeouts=READING))
            await reply.aclose()
        except (BadInput, TransportFault):
            return 502
        return reply.status

    async def heads(node: Endpoint) -> list[int]:
        return await asyncio.gather(*(head(node, path) for path in paths))

    chosen = list(nodes)
    return dict(zip(chosen, await asyncio.gather(*map(heads, chosen)), strict=True))
