"""Implement `sollol discover`, which lists the Ollama nodes of the private networks."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sollol.cli import fleet
from sollol.cli.console import note, plural, print_json, stdout, table
from sollol.cli.fleet import JsonOption

EPILOG = """\
[bold]Examples[/bold]

  sollol discover
  sollol discover --subnet 10.9.66.0/24 --port 11434 --port 11435
  sollol discover --json | jq -r '.nodes[].url'

[bold]What is searched[/bold]

  OLLAMA_HOST and SOLLOL_NODES, this machine, the machine around a container,
  and this machine's private IPv4 networks (up to a /22 of each; --all: a /16).
  Only private addresses are ever searched.

[bold]Exit codes[/bold]

  0    done, even if nothing was found
  2    a subnet or a port cannot be used
"""


def discover(
    subnet: Annotated[
        list[str] | None,
        typer.Option(metavar="CIDR", help="Search this network instead of this machine's own. Repeatable."),
    ] = None,
    port: Annotated[
        list[int] | None, typer.Option(metavar="N", help="Instead of 11434. Repeatable.", show_default=False)
    ] = None,
    timeout: Annotated[float, typer.Option(metavar="S", help="The time of the whole search, in seconds.")] = 2.0,
    everything: Annotated[
        bool, typer.Option("--all", help="Search the whole of a large network, up to a /16.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Find Ollama nodes: each machine and port once, whatever the number of its addresses."""
    options: dict[str, Any] = {"discover_all_nodes": everything, "subnets": subnet or None}
    if port:
        options["ports"] = port
    found = fleet.search_networks(timeout, **options)
    if as_json:
        print_json({"nodes": [_as_json(node) for node in found]})
        return
    if not found:
        note(f"No Ollama node was found. {fleet.HOW_TO_ADD}")
        return
    made = table("host", "port", "version", "models", "latency", "found", right=("port", "models", "latency"))
    for node in found:
        made.add_row(
            node.endpoint.host,
            str(node.endpoint.port),
            node.version,
            str(len(node.models)),
            f"{node.latency_s * 1000:.1f} ms",
            _where(node),
        )
    stdout().print(made)
    note(f"{plural(len(found), 'node')} found.")


def _where(node: Any) -> str:
    aliases = ", ".join(node.aliases)
    return f"{node.source}, also {aliases}" if aliases else str(node.source)


def _as_json(node: Any) -> dict[str, Any]:
    return {
        "node": node.endpoint.key,
        "host": node.endpoint.host,
        "port": node.endpoint.port,
        "url": node.endpoint.url,
        "version": node.version,
        "models": list(node.models),
        "latency_ms": round(node.latency_s * 1000, 2),
        "source": str(node.source),
        "aliases": list(node.aliases),
    }
