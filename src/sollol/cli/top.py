"""Implement `sollol top`, which shows the cluster live in a terminal.

Requests and queue are in the program that has the pool, and are read from its dashboard or from a gateway. Where none
runs, the nodes are probed directly, and only their state is shown.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated

import typer

from sollol.cli import fleet
from sollol.cli.attach import KeyOption, UrlOption, attach_readable
from sollol.cli.console import print_json, stdout
from sollol.cli.fleet import NodesOption
from sollol.errors import BadInput

if TYPE_CHECKING:
    from sollol.cli.top_sources import Source

EPILOG = """\
[bold]Examples[/bold]

  sollol top
  sollol top --url http://127.0.0.1:8080 --interval 0.5
  sollol top --once --nodes 10.0.0.5,10.0.0.6
  sollol top --redis
  sollol top --json | jq '.nodes[] | select(.state != "up")'

[bold]What it reads[/bold]

  --url, else a gateway (port 11435) or a dashboard (port 8080) on this
  machine, else the nodes themselves. --nodes means the nodes themselves,
  --redis all applications that share the Redis of the settings.
  A gateway with keys requires one in SOLLOL_API_KEY: with --admin it
  shows all and acts, else it shows its own application.
  Without a terminal it prints one frame, as with --once.

[bold]Keys[/bold]

  ? shows all. / filters, s sorts, Tab goes from list to list. On the selected
  row d drains or resumes a node, u unloads a model, c cancels a request, and
  e explains one; d, u and c need a confirmation. q or Ctrl-C ends it.

[bold]Exit codes[/bold]

  0    done
  1    there is no dashboard at --url, it requires a key, or no node is known
"""


def top(
    url: UrlOption = None,
    api_key: KeyOption = None,
    nodes: NodesOption = None,
    redis: Annotated[bool, typer.Option("--redis", help="Show all applications that share a Redis.")] = False,
    interval: Annotated[float, typer.Option(metavar="S", min=0.1, help="Seconds from frame to frame.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one snapshot as JSON and end.")] = False,
) -> None:
    """Watch nodes, queue and requests live in the terminal, and act on them."""
    import asyncio

    if url is not None and nodes is not None:
        raise BadInput(
            "--url and --nodes exclude each other, because a dashboard shows its own nodes; pass one of them"
        )
    if redis and (url is not None or nodes is not None):
        raise BadInput("--redis excludes --url and --nodes, because it shows all applications; pass one of them")
    asyncio.run(_show(url, api_key, nodes, redis, interval, once, as_json))


async def _show(
    url: str | None, key: str | None, nodes: str | None, redis: bool, interval: float, once: bool, as_json: bool
) -> None:
    console = stdout()
    async with _opened(url, key, nodes, redis) as source:
        if as_json:
            print_json(await source.whole())
        elif once or not console.is_terminal:
            from sollol.cli import screen
            from sollol.cli.listings import arrange

            frame = await source.whole()
            width = console.width if console.is_terminal else screen.WIDEST
            head = source.head(frame, width)[0]
            for line in screen.once(head, [arrange(each, frame) for each in source.listings(frame)], width):
                console.print(line, soft_wrap=True)
        else:
            from sollol.cli.top_live import show_live

            await show_live(source, interval)


@contextlib.asynccontextmanager
async def _opened(url: str | None, key: str | None, nodes: str | None, redis: bool) -> AsyncIterator[Source]:
    """Yield what is watched, and close it at the end."""
    import asyncio

    from sollol.cli.top_sources import NodesSource, RedisSource, RemoteSource
    from sollol.transport.http import HttpTransport

    if redis:
        shared = RedisSource()
        try:
            yield shared
        finally:
            shared.close()
        return
    transport = HttpTransport()
    try:
        remote = await attach_readable(transport, url, key) if nodes is None else None
        if remote is not None:
            yield RemoteSource(remote)
            return
    finally:
        await transport.aclose()
    endpoints = await asyncio.to_thread(lambda: fleet.choose(nodes).endpoints)
    alone = NodesSource(endpoints)
    try:
        yield alone
    finally:
        await alone.aclose()
