"""Which nodes a change of models goes to: those that the query names, or by a rule for each kind of change."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sollol.core.endpoint import Endpoint, parse_endpoint
from sollol.core.types import canonical_model
from sollol.errors import BadInput, NoNodeAvailable, ResponseError
from sollol.gateway.routes.lists import READING, holders, states
from sollol.http_server.request import Request
from sollol.transport.base import Call, TransportFault

if TYPE_CHECKING:
    from sollol.core.state.node import Node
    from sollol.gateway.app import Gateway

_PARAMETERS: Final = re.compile(r"(\d+(?:\.\d+)?)([bm])\b")
BYTES_PER_PARAMETER: Final = 0.6  # of the usual quantisation to four bits, with what goes with it


NAMES_MOST: Final = 100  # nodes that one request may name


def names_in(where: str, text: str) -> list[str]:
    """Return the names of a list from a header or a query. Raises BadInput for too many."""
    if text.count(",") >= NAMES_MOST:
        raise BadInput(f"{where}: {text.count(',') + 1} names of nodes; expected at most {NAMES_MOST}")
    return text.split(",")


class Targets(NamedTuple):
    """The nodes a change goes to, and those that it should reach and cannot: key -> why."""

    nodes: tuple[Endpoint, ...]
    down: dict[str, str]


def of(nodes: list[Node]) -> Targets:
    """These, without those that are down."""
    return Targets(
        tuple(node.endpoint for node in nodes if node.up is not False),
        {node.key: f"the node is down: {node.lost_why}" for node in nodes if node.up is False},
    )


def chosen(gateway: Gateway, request: Request) -> Targets | None:
    """The nodes that the query names (`node=HOST:PORT`, also several, or `nodes=all`); None if it names none."""
    query = request.query
    names = ",".join(filter(None, (query.get("node"), query.get("nodes"))))
    if not names:
        return None
    nodes = {node.key: node for node in states(gateway)}
    if names == "all":
        return of(_some(list(nodes.values())))
    found: dict[str, Endpoint] = {}
    for name in names_in("node", names):
        key = name if name in nodes else parse_endpoint(name).key
        if key not in nodes:
            raise BadInput(f"node={name!r} is not a node here; expected one of {', '.join(nodes)}, or nodes=all")
        found[key] = nodes[key].endpoint
    return Targets(tuple(found.values()), {})


def all_up(gateway: Gateway) -> Targets:
    """Every node that is up."""
    return of(_some([node for node in states(gateway) if node.usable]))


def _some(nodes: list[Node]) -> list[Node]:
    if not nodes:
        raise NoNodeAvailable("no node is up")
    return nodes


async def of_holders(gateway: Gateway, model: str, missing: str) -> Targets:
    """The nodes that have a model now, and those that are down and had it: they come back with it."""
    wanted = canonical_model(model)
    had = of([node for node in states(gateway) if node.up is False and wanted in node.models]).down
    try:
        return Targets(tuple(await holders(gateway, model, missing)), had)
    except (ResponseError, NoNodeAvailable):
        if not had:
            raise
        return Targets((), had)


def of_pull(gateway: Gateway, model: str) -> Targets:
    """Where a model goes if nobody says: to the nodes that have it, else to one that it fits.

    No API tells how much memory a node has. What is known is the largest model that it was seen to hold wholly in its
    GPU, and the size of the model: from a node that is down and has it, else from its name ("70b"). Among the nodes
    that have held as much, the fastest; if there is none, or the size is not known, the one that has held the most."""
    name = canonical_model(model)
    up = _some([node for node in states(gateway) if node.usable])
    have = [node for node in up if name in node.models]
    if have:
        return of(have)
    needed = max((node.models.get(name, 0) for node in states(gateway)), default=0) or size_by_name(name)
    fitting = [node for node in up if 0 < needed <= node.held_bytes]
    if fitting:
        return of([max(fitting, key=lambda node: (node.speed.read() or 0.0, node.held_bytes))])
    return of([max(up, key=_room)])


def size_by_name(model: str) -> float:
    """Bytes of a model whose name tells its parameters ("llama3.1:70b", "qwen3:0.6b", "smollm:135m"), else 0."""
    told = _PARAMETERS.search(model.lower())
    return float(told[1]) * {"b": 1e9, "m": 1e6}[told[2]] * BYTES_PER_PARAMETER if told else 0.0


def _room(node: Node) -> tuple[int, float, int]:
    """How much a node is likely to hold: what its GPU held; for want of that its speed, and what is on its disk."""
    return node.held_bytes, node.speed.read() or 0.0, max(node.models.values(), default=0)


async def of_create(gateway: Gateway, fields: dict[str, Any]) -> Targets:
    """The nodes that have what the new model is made of: its base (else where a pull of it would go, since a node
    pulls a base that it lacks), and the uploaded blobs."""
    base = fields.get("from")
    if isinstance(base, str) and base:
        try:
            found = await of_holders(gateway, base, f"model '{base}' not found")
        except ResponseError:
            found = of_pull(gateway, base)
    else:
        found = all_up(gateway)
    blobs = [digest for name in ("files", "adapters") for digest in _values(fields.get(name))]
    if not blobs:
        return found
    have = await asyncio.gather(*(_has_all(gateway, node, blobs) for node in found.nodes))
    able = tuple(node for node, has in zip(found.nodes, have, strict=True) if has)
    return Targets(able, found.down) if able else found  # where none has them, the nodes say so


def _values(files: Any) -> list[str]:
    return [digest for digest in files.values() if isinstance(digest, str)] if isinstance(files, dict) else []


async def _has_all(gateway: Gateway, node: Endpoint, blobs: list[str]) -> bool:
    statuses = await asyncio.gather(*(head(gateway, node, f"/api/blobs/{digest}") for digest in blobs))
    return all(status == 200 for status in statuses)


async def head(gateway: Gateway, node: Endpoint, path: str) -> int:
    """The status of a HEAD; 502 for a node that does not answer."""
    try:
        reply = await gateway.engine.transport.send(node, Call("HEAD", path, timeouts=READING))
        await reply.aclose()
    except (BadInput, TransportFault):
        return 502
    return reply.status
