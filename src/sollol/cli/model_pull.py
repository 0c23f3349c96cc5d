"""Pull models for `sollol models`: to each node by itself, or over a registry of this machine."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import TYPE_CHECKING

from sollol.cli.console import plural, printable
from sollol.core.endpoint import Endpoint

if TYPE_CHECKING:
    from sollol.answers import Answer
    from sollol.core.types import LoadedModel
    from sollol.models.changes import Pull
    from sollol.registry.seeders import Seeder
    from sollol.registry.server import Registry
    from sollol.transport.base import Transport
    from sollol.transport.http import HttpTransport


@contextlib.asynccontextmanager
async def pull_way(
    transport: HttpTransport, nodes: Sequence[Endpoint], config: str | None, *, lan: bool
) -> AsyncIterator[Pull]:
    """Yield the function that pulls: over a registry of this machine with `lan`, else to each node by itself."""
    from sollol.models.changes import plain_pull
    from sollol.models.distribution import Distribution

    if not lan:
        yield plain_pull(transport)
        return
    rooms = await read_rooms(transport, nodes, config)
    registry, seeders = await _registry(transport, nodes, config), _seeders(nodes, config)
    try:
        yield lambda model, targets: Distribution(transport, registry, model, seeders, rooms).run(targets, nodes)
    finally:
        await registry.aclose()


async def read_rooms(transport: Transport, nodes: Sequence[Endpoint], config: str | None) -> dict[str, int]:
    """Return node -> free bytes on its disk, where an agent reports them."""
    from sollol.agent.client import read_agents, rooms_of
    from sollol.config import load_settings
    from sollol.config.paths import find_file

    settings = load_settings(config=find_file(config))
    if not settings.agents_key:
        return {}
    nothing: dict[str, LoadedModel] = {}
    pairs = [(node, nothing) for node in nodes]
    return rooms_of(await read_agents(transport, pairs, settings.agents_port, settings.agents_key, {}))


def _seeders(nodes: Sequence[Endpoint], config: str | None) -> dict[str, Seeder]:
    """Return the agents that may run beside the nodes, if the settings have their key."""
    from sollol.config import load_settings
    from sollol.config.paths import find_file
    from sollol.registry.seeders import Seeder

    settings = load_settings(config=find_file(config))
    key = settings.agents_key
    return {node.key: Seeder(Endpoint(node.host, settings.agents_port).url, key) for node in nodes} if key else {}


async def _registry(transport: HttpTransport, targets: Sequence[Endpoint], config: str | None) -> Registry:
    """Open a registry for the time of a command, at an address that the targets can call."""
    import msgspec

    from sollol.cli.serving import start_registry
    from sollol.config import load_settings
    from sollol.config.paths import find_file
    from sollol.duties import log_fault
    from sollol.gateway.settings import gateway_settings
    from sollol.http_server.host_guard import is_loopback

    file = find_file(config)
    settings = gateway_settings(load_settings(config=file), file or "").registry
    host = "127.0.0.1" if all(is_loopback(node.host) for node in targets) else "0.0.0.0"
    return await start_registry(msgspec.structs.replace(settings, host=host, port=0), transport, log_fault)


async def follow(lines: AsyncGenerator[Answer, None], what: str, nodes: int) -> dict[str, str]:
    """Show the progress of all nodes as one bar; return the outcome of each node."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from sollol.cli.console import stderr
    from sollol.models.progress import MergedProgress

    merged = MergedProgress(nodes)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr(), transient=True, disable=not stderr().is_terminal) as bar:
        task = bar.add_task(printable(what), total=None)
        async with contextlib.aclosing(lines):
            async for line in lines:
                if line.get("phase") == "push":
                    bar.update(task, description=f"{printable(what)} from {line['node']}")
                    continue
                merged.add(line)
                done = len(merged.outcomes)
                bar.update(
                    task,
                    total=merged.total or None,
                    completed=merged.completed,
                    description=f"{printable(what)}, {done} of {plural(nodes, 'node')}",
                )
    return merged.outcomes
