"""Implement `sollol dashboard`, which serves the live page of nodes without a pool."""

from __future__ import annotations

from typing import Annotated

import typer

from sollol.cli import fleet
from sollol.cli.console import note, plural, print_json, say
from sollol.cli.fleet import NodesOption

EPILOG = """\
[bold]Examples[/bold]

  sollol dashboard
  sollol dashboard --nodes 10.0.0.5,10.0.0.6 --port 0 --json

[bold]What it shows[/bold]

  The nodes and the models in their memory, read from them directly. Queue
  and requests are in the program that has the pool: it shows them with
  run_unified_dashboard(pool, 8080).

[bold]Exit codes[/bold]

  0    ended with Ctrl-C
  1    the port is taken, or no node is known
"""


def dashboard(
    nodes: NodesOption = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="The port; 0 takes a free one.")] = 8080,
    as_json: Annotated[bool, typer.Option("--json", help="Print the address as JSON.")] = False,
) -> None:
    """Serve a live page of the nodes."""
    from sollol.dashboard import UnifiedDashboard, Watch
    from sollol.http_server.host_guard import is_loopback

    chosen = fleet.choose(nodes)
    page = UnifiedDashboard(Watch(chosen.endpoints), port, host=host)
    url = page.start()
    if as_json:
        print_json({"url": url, "nodes": [endpoint.key for endpoint in chosen.endpoints]})
    else:
        say(url)
    note(f"{plural(len(chosen.endpoints), 'node')} (from {chosen.how}). Ctrl-C ends it.")
    if not is_loopback(host):
        note("There is no password: every caller that reaches this address can read the names of nodes and models.")
    try:
        page.run()
    except KeyboardInterrupt:  # the normal end
        note("")
