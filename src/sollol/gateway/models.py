"""Changing the models of the nodes: pull, push, create, copy, delete, and the blobs that a create needs.

A change goes to the nodes that it concerns (`targets`), at once, and is told for each: progress is one stream whose
lines name their node; an outcome that differs between nodes is not hidden in one word.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from sollol.core.endpoint import Endpoint
from sollol.core.types import canonical_model
from sollol.errors import BadInput, NoNodeAvailable, ResponseError
from sollol.gateway.fanout import fields_of, holders
from sollol.gateway.request import NDJSON, Request
from sollol.nodes.dialect import encode, error_text
from sollol.nodes.transport import Call, TransportFault
from sollol.pool import manage

if TYPE_CHECKING:
    from sollol.core.fleet import NodeState
    from sollol.gateway.app import Gateway

BLOB: Final = re.compile(r"/api/blobs/([^/]+)")
_PARAMETERS: Final = re.compile(r"(\d+(?:\.\d+)?)b\b")
BYTES_PER_PARAMETER: Final = 0.6  # of the usual quantisation to four bits, with what goes with it
AHEAD: Final = 8  # pieces of an upload that a node may be behind the fastest


def admin(request: Request) -> None:
    """Raises ResponseError for a key that may not change the nodes."""
    if request.key is not None and not request.key.admin:
        raise ResponseError(
            f"the key {request.key.name!r} may not change models; an admin key may (sollol keys add NAME --admin)", 403
        )


def chosen(gateway: Gateway, request: Request) -> list[Endpoint] | None:
    """The nodes that the query names (`node=HOST:PORT`, also several, or `nodes=all`); None if it names none."""
    query = request.query
    nodes = {node.key: node for node in gateway.engine.scheduler.fleet.nodes.values()}
    if query.get("nodes") == "all":
        return [node.endpoint for node in nodes.values() if node.up is not False]
    names = query.get("node") or query.get("nodes")
    if not names:
        return None
    found = []
    for name in names.split(","):
        key = name.strip()
        node = nodes.get(key) or nodes.get(f"{key}:11434")
        if node is None:
            raise BadInput(f"node={key!r} is not a node here; expected one of {', '.join(nodes)}, or nodes=all")
        found.append(node.endpoint)
    return found


def pull_targets(gateway: Gateway, model: str) -> list[Endpoint]:
    """Where a model goes if nobody says: to the nodes that have it, else to one that it fits.

    No API tells how much memory a node has. What is known is the largest model it has held wholly in its GPU, and
    the model's size, if its name tells it ("70b"). Among the nodes known to hold as much, the fastest; without such,
    the one that has held the most."""
    nodes = [node for node in gateway.engine.scheduler.fleet.nodes.values() if node.usable]
    if not nodes:
        raise NoNodeAvailable("pull: no node is up")
    have = [node.endpoint for node in nodes if canonical_model(model) in node.models]
    if have:
        return have
    told = _PARAMETERS.search(model.lower())
    needed = float(told[1]) * 1e9 * BYTES_PER_PARAMETER if told else 0.0
    fitting = [node for node in nodes if needed and held(node) >= needed]
    if fitting:
        return [max(fitting, key=lambda node: (node.speed.read() or 0.0, held(node))).endpoint]
    return [max(nodes, key=lambda node: (held(node), node.speed.read() or 0.0)).endpoint]


def held(node: NodeState) -> float:
    """Bytes of the largest model that a node is known to hold in its GPU; for want of that, on its disk, a little."""
    on_gpu = [model.size for model in node.loaded.values() if model.size and model.size_vram >= model.size]
    return max(on_gpu, default=0.0) or 1e-3 * max(node.models.values(), default=0)


async def pull(gateway: Gateway, request: Request) -> None:
    admin(request)
    fields = _renamed(gateway, fields_of(request, "model", "name"))
    nodes = chosen(gateway, request) or pull_targets(gateway, fields["model"])
    await _carry_out(gateway, request, fields, nodes)


async def push(gateway: Gateway, request: Request) -> None:
    admin(request)
    fields = _renamed(gateway, fields_of(request, "model", "name"))
    nodes = chosen(gateway, request) or (await holders(gateway, fields["model"]))[:1]
    await _carry_out(gateway, request, fields, nodes)


async def create(gateway: Gateway, request: Request) -> None:
    admin(request)
    fields = fields_of(request, "model", "name")
    nodes = chosen(gateway, request)
    if nodes is None:
        base = fields.get("from")
        if isinstance(base, str) and base and not fields.get("files"):
            fields["from"] = gateway.settings.resolve_model(base)
            try:
                nodes = await holders(gateway, fields["from"], base)
            except ResponseError:  # the node that it fits will pull it
                nodes = pull_targets(gateway, fields["from"])
        else:
            nodes = _all_up(gateway)
    await _carry_out(gateway, request, fields, nodes)


async def copy(gateway: Gateway, request: Request) -> None:
    admin(request)
    fields = fields_of(request, "source")
    nodes = chosen(gateway, request) or await holders(gateway, fields["source"])
    await _everywhere(gateway, request, fields, nodes)


async def delete(gateway: Gateway, request: Request) -> None:
    admin(request)
    fields = fields_of(request, "model", "name")
    nodes = chosen(gateway, request) or await holders(gateway, str(fields.get("model") or fields["name"]))
    await _everywhere(gateway, request, fields, nodes)


def _renamed(gateway: Gateway, fields: dict[str, Any]) -> dict[str, Any]:
    name = str(fields.get("model") or fields["name"])
    return {**fields, "model": gateway.settings.resolve_model(name)}


def _all_up(gateway: Gateway) -> list[Endpoint]:
    nodes = [node.endpoint for node in gateway.engine.scheduler.fleet.nodes.values() if node.usable]
    if not nodes:
        raise NoNodeAvailable("no node is up")
    return nodes


async def _everywhere(gateway: Gateway, request: Request, fields: dict[str, Any], nodes: Sequence[Endpoint]) -> None:
    """One call to each node. All good: as a node answers it; otherwise told for each."""
    try:
        found = await manage.everywhere(gateway.engine.transport, nodes, request.method, request.path, fields)
    finally:
        gateway.engine.refresh()
    request.answer(200, encode(found))


async def _carry_out(gateway: Gateway, request: Request, fields: dict[str, Any], nodes: Sequence[Endpoint]) -> None:
    """A call with progress: one stream for all nodes, or without `stream` one answer."""
    transport = gateway.engine.transport
    if fields.get("stream") is False:
        await _everywhere(gateway, request, fields, nodes)
        return
    lines = manage.progress(transport, nodes, request.path, fields)
    told: dict[str, str] = {}
    refused = 0  # the status with which a node would not begin
    sums = Sums(len(nodes))
    try:
        async for line in lines:
            node = str(line["node"])
            if line.get("error"):
                told[node] = str(line["error"])
                refused = refused or int(line.get("status_code") or 0)
                continue
            if line.get("status") == "success":
                told[node] = "success"
            if not request.has_begun:
                request.begin(200, NDJSON)
            if node not in told:
                await _say(request, sums.of(line))
        if not request.has_begun:
            if refused:
                raise ResponseError(next(iter(told.values())), refused)
            request.begin(200, NDJSON)
        await _say(request, _outcome(told, nodes))
        request.end()
    finally:
        await lines.aclose()
        gateway.engine.refresh()


async def _say(request: Request, line: dict[str, Any]) -> None:
    if not request.write(encode(line) + b"\n"):
        await request.drained()


def _outcome(told: dict[str, str], nodes: Sequence[Endpoint]) -> dict[str, Any]:
    """The last line: success if it is one anywhere, with what became of it on each node."""
    outcomes = {node.key: told.get(node.key, "ended without a word") for node in nodes}
    if "success" in outcomes.values():
        return {"status": "success", "nodes": outcomes}
    return {"error": next(iter(outcomes.values())), "nodes": outcomes}


class Sums:
    """Progress of one layer on several nodes as that of one: bytes are summed, so that no bar goes back."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes
        self._completed: dict[str, dict[str, int]] = {}

    def of(self, line: dict[str, Any]) -> dict[str, Any]:
        digest, total = line.get("digest"), line.get("total")
        if self._nodes == 1 or not digest or not total:
            return line
        by_node = self._completed.setdefault(str(digest), {})
        node = str(line["node"])
        by_node[node] = max(by_node.get(node, 0), int(line.get("completed") or 0))
        return {**line, "total": total * self._nodes, "completed": sum(by_node.values())}


# --- blobs ---


async def has_blob(gateway: Gateway, request: Request, digest: str) -> None:
    """200 only if every node that a create would go to has it."""
    nodes = chosen(gateway, request) or _all_up(gateway)
    statuses = await asyncio.gather(*(_head(gateway, node, request.path) for node in nodes))
    request.answer(max(statuses), b"")


async def _head(gateway: Gateway, node: Endpoint, path: str) -> int:
    try:
        reply = await gateway.engine.transport.send(node, Call("HEAD", path, timeouts=manage.TIMEOUTS))
        await reply.aclose()
    except TransportFault:
        return 502
    return reply.status


async def upload_blob(gateway: Gateway, request: Request, digest: str) -> None:
    """To all nodes at once as it comes; the slowest sets the pace, and one that fails is left out."""
    admin(request)
    nodes = chosen(gateway, request) or _all_up(gateway)
    queues: dict[str, asyncio.Queue[bytes]] = {node.key: asyncio.Queue(AHEAD) for node in nodes}
    sending = {node.key: asyncio.create_task(_upload(gateway, node, request.path, queues[node.key])) for node in nodes}
    try:
        async for piece in request.pieces():
            await _hand_out(piece, queues, sending)
            if all(task.done() for task in sending.values()):
                break
        await _hand_out(b"", queues, sending)
        if request.is_gone:
            return
        answers = dict(zip(sending, await asyncio.gather(*sending.values()), strict=True))
    finally:
        for task in sending.values():
            task.cancel()
    good = [status for status, _ in answers.values() if status < 300]
    if not good:
        status, why = next(iter(answers.values()))
        raise ResponseError(why, status)
    nodes_told = {node: "success" if status < 300 else why for node, (status, why) in answers.items()}
    request.answer(max(good), b"" if len(good) == len(nodes) else encode({"nodes": nodes_told}))


async def _hand_out(
    piece: bytes, queues: dict[str, asyncio.Queue[bytes]], sending: dict[str, asyncio.Task[tuple[int, str]]]
) -> None:
    for node, queue in queues.items():
        task = sending[node]
        putting = asyncio.ensure_future(queue.put(piece))
        await asyncio.wait({putting, task}, return_when=asyncio.FIRST_COMPLETED)
        putting.cancel()


async def _upload(gateway: Gateway, node: Endpoint, path: str, queue: asyncio.Queue[bytes]) -> tuple[int, str]:
    async def pieces() -> AsyncIterator[bytes]:
        while piece := await queue.get():
            yield piece

    try:
        reply = await gateway.engine.transport.send(
            node, Call("POST", path, pieces(), "application/octet-stream", timeouts=manage.TIMEOUTS)
        )
        body = await reply.read()
    except TransportFault as fault:
        return 502, str(fault)
    return reply.status, error_text(body)


# --- memory ---


async def unload(gateway: Gateway, request: Request, model: str) -> None:
    """`keep_alive: 0` with nothing to say: out of the memory of every node that holds it."""
    fields = {**fields_of(request, "model"), "model": model, "stream": False}
    name = canonical_model(model)
    nodes = gateway.engine.scheduler.fleet.nodes.values()
    holding = [node.endpoint for node in nodes if node.usable and name in node.loaded]
    holding = holding or (await holders(gateway, model))[:1]
    answers = await manage.ask_all(gateway.engine.transport, holding, "POST", request.path, fields, manage.LOADING)
    good = manage.need_one(f"unload {model}", answers)
    gateway.engine.refresh()
    request.answer(200, encode(next(iter(good.values()))))
