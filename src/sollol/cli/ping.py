"""Implement `sollol ping`, which measures the way to one node."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sollol.cli.console import EXIT_FAILED, note, print_json, printable, say
from sollol.cli.fleet import JsonOption
from sollol.core.endpoint import parse_endpoint

EPILOG = """\
[bold]Examples[/bold]

  sollol ping 10.0.0.5
  sollol ping gaming-pc --model llama3.2

[bold]What it measures[/bold]

  connect      TCP, the fastest of five
  http         a small request, the fastest of five
  network      4 MB sent to the node, which refuses them
  first token  with --model: a request of one token; it loads the model

[bold]Exit codes[/bold]

  0    the node answers
  1    it does not
  2    the address cannot be used
"""


def ping(
    node: Annotated[str, typer.Argument(metavar="NODE", help="Host, host:port or URL.")],
    model: Annotated[str | None, typer.Option("--model", metavar="NAME", help="Measure the first token, too.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the way to a node: connecting, HTTP, network, first token."""
    import asyncio

    endpoint = parse_endpoint(node)

    async def measure() -> dict[str, Any]:
        from sollol.cli.link import first_token_s, measure_link
        from sollol.transport.base import TransportFault
        from sollol.transport.http import HttpTransport

        transport = HttpTransport()
        try:
            link = await measure_link(transport, endpoint, upload=True)
            if model and not link.error:
                try:
                    link = link._replace(first_token_s=await first_token_s(transport, endpoint, model))
                except TransportFault as fault:
                    link = link._replace(error=str(fault))
        finally:
            await transport.aclose()
        return link._asdict()

    found = asyncio.run(measure())
    if as_json:
        print_json({"node": endpoint.key, **found})
    else:
        _print(endpoint.key, found)
    if found["error"]:
        raise typer.Exit(EXIT_FAILED)


def _print(node: str, found: dict[str, Any]) -> None:
    words = []
    for name, field in (("connect", "connect_s"), ("http", "http_s"), ("first token", "first_token_s")):
        if found[field] is not None:
            words.append(f"{name} {found[field] * 1000:.1f} ms")
    if found["upload_mb_s"] is not None:
        words.append(f"network {found['upload_mb_s']:,.0f} MB/s")
    if found["skew_s"]:
        words.append(f"clock {found['skew_s']:+.0f} s")
    if words:
        say(f"{node}: {', '.join(words)}")
    if found["error"]:
        note(f"{node}: {printable(found['error'])}")
