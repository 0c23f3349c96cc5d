"""Implement `sollol top`, which shows the cluster live in a terminal.

Requests and queue are in the program that has the pool, and are read from its dashboard or from a gateway. Where none
runs, the nodes are probed directly, and only their state is shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sollol.cli import fleet
from sollol.cli.attach import KeyOption, Refused, UrlOption, attach
from sollol.cli.console import note, print_json, printable, stdout
from sollol.cli.fleet import NodesOption
from sollol.errors import BadInput, SollolError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine

    from rich.console import RenderableType

    from sollol.cli.attach import Remote
    from sollol.transport.base import Transport

    Read = Callable[[], Coroutine[Any, Any, dict[str, Any]]]
    Draw = Callable[..., RenderableType]

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
  A gateway with keys requires one with --admin, in SOLLOL_API_KEY.
  Ctrl-C ends it. Without a terminal it prints one frame, as with --once.

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
    """Watch nodes, queue and requests live in the terminal."""
    import asyncio

    from sollol.transport.http import HttpTransport

    if url is not None and nodes is not None:
        raise BadInput(
            "--url and --nodes exclude each other, because a dashboard shows its own nodes; pass one of them"
        )
    if redis:
        if url is not None or nodes is not None:
            raise BadInput("--redis excludes --url and --nodes, because it shows all applications; pass one of them")
        _watch_redis(interval, once, as_json)
        return
    with asyncio.Runner() as runner:
        transport = HttpTransport()
        try:
            remote = runner.run(_attach(transport, url, api_key)) if nodes is None else None
            if remote is not None:
                _watch(runner, remote.snapshot, remote.snapshot, interval, once, as_json)
            else:
                _watch_nodes(runner, nodes, interval, once, as_json)
        finally:
            runner.run(transport.aclose())


async def _attach(transport: Transport, url: str | None, key: str | None) -> Remote | None:
    """Return the dashboard or gateway to watch, or None where only the nodes can be shown.

    A gateway found on this machine that requires another key is reported on stderr and not used.
    """
    remote = await attach(transport, url, key)
    if remote is not None and url is None:
        try:
            await remote.snapshot()
        except Refused as error:
            note(f"{error}\nWithout it, the nodes themselves are shown.")
            return None
    return remote


def _watch_nodes(runner: asyncio.Runner, nodes: str | None, interval: float, once: bool, as_json: bool) -> None:
    from sollol.dashboard.watch import Watch

    watch = Watch(fleet.choose(nodes).endpoints)
    try:
        _watch(runner, watch.snapshot, lambda: watch.snapshot(None), interval, once, as_json)
    finally:
        runner.run(watch.aclose())


def _watch_redis(interval: float, once: bool, as_json: bool) -> None:
    import asyncio

    from sollol.cli.applications import Applications, draw

    applications = Applications()
    try:
        with asyncio.Runner() as runner:
            _watch(runner, applications.snapshot, applications.snapshot, interval, once, as_json, draw)
    finally:
        applications.close()


def _watch(
    runner: asyncio.Runner,
    read: Read,
    read_whole: Read,
    interval: float,
    once: bool,
    as_json: bool,
    draw: Draw | None = None,
) -> None:
    """Print or draw snapshots; `read_whole` waits for all nodes, `read` leaves late ones to a later frame."""
    import asyncio

    if draw is None:
        from sollol.cli import screen

        draw = screen.draw
    if as_json:
        print_json(runner.run(read_whole()))
    elif once or not stdout().is_terminal:
        stdout().print(draw(runner.run(read_whole())))
    else:
        try:
            _live(runner, read, interval, draw)
        except (KeyboardInterrupt, asyncio.CancelledError):  # the normal end, also during a timeout
            note("")


def _live(runner: asyncio.Runner, read: Read, interval: float, draw: Draw) -> None:
    import asyncio

    from rich.live import Live

    console = stdout()
    frame = runner.run(read())
    with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        trouble = ""
        while True:
            live.update(draw(frame, console.height, trouble), refresh=True)
            runner.run(asyncio.sleep(interval))
            try:
                frame, trouble = runner.run(read()), ""
            except SollolError as error:
                trouble = f"{printable(error)}; trying again"
