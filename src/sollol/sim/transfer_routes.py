"""Push models to a registry, and pull them from one, for a node that keeps its models in a folder.

A name with a host, such as `10.0.0.5:11436/library/llama3.2`, is transferred for real over HTTP. It needs `insecure`,
since the registry of the host is then called without TLS. In virtual time there are no sockets, so only nodes that
are served over HTTP have a folder.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

from sollol.sim.machine import NodeDied
from sollol.sim.ollama_store import DEFAULT_HOST, RegistryName, parse_name
from sollol.sim.registry_client import TransferFailed
from sollol.sim.reply import NDJSON, PLAIN_JSON, SimReply
from sollol.sim.request import encode

if TYPE_CHECKING:
    from sollol.sim.node import SimNode
    from sollol.sim.request import SimRequest

Way = Literal["pull", "push"]


def host_name(node: SimNode, model: str) -> RegistryName | None:
    """Return a name with a host, if the node has a folder; None for a model of the public registry."""
    name = parse_name(model)
    return name if node.store is not None and name.host != DEFAULT_HOST else None


async def transfer(node: SimNode, request: SimRequest, name: RegistryName, way: Way) -> SimReply:
    """Serve a push or a pull, with progress or with its end alone."""
    reply = SimReply()
    if not request.streams:
        lines: list[dict[str, Any]] = []
        await _run(node, request, name, way, lines.append)
        failed = "error" in lines[-1]
        return SimReply.of(500 if failed else 200, encode(lines[-1]), PLAIN_JSON)
    reply.begin(200, NDJSON)

    async def write() -> None:
        try:
            await _run(node, request, name, way, lambda line: reply.push(encode(line) + b"\n"))
            reply.finish()
        except NodeDied:
            reply.fail("the connection was closed")

    reply.writer = node.spawn(write())
    return reply


async def _run(node: SimNode, request: SimRequest, name: RegistryName, way: Way, report: Any) -> None:
    client = node.registry_client
    assert client is not None
    if not request.data.get("insecure"):
        problem = "http: server gave HTTP response to HTTPS client"
        url = f"https://{name.host}/v2/{name.path}/manifests/{name.tag}"
        report({"status": f"{way}ing manifest"})
        report({"error": f'{way} model manifest: Get "{url}": {problem}'})
        return
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    work = asyncio.create_task(getattr(client, way)(name, report))
    work.add_done_callback(lambda _: done.set_result(None) if not done.done() else None)
    try:
        await node.machine.wait(done)
        work.result()
        if way == "pull":
            node.add_pulled(name)
    except (TransferFailed, OSError) as error:
        report({"error": str(error)})
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
