"""Implement `sollol doctor`, which finds faults of nodes, network, models, settings and this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from sollol.cli import fleet
from sollol.cli.attach import KeyOption, Refused, UrlOption, attach
from sollol.cli.console import EXIT_FAILED, note, plural, print_json, printable, say, stdout
from sollol.cli.fleet import Chosen, JsonOption, NodesOption
from sollol.errors import BadInput, NoNodeAvailable

if TYPE_CHECKING:
    from sollol.core.types import LoadedModel
    from sollol.observe.findings import Finding
    from sollol.transport.base import Transport

EPILOG = """\
[bold]Examples[/bold]

  sollol doctor
  sollol doctor --json | jq -r '.findings[] | .fix'
  sollol doctor --fix

[bold]What it looks at[/bold]

  A running gateway or dashboard (--url, else this machine's), which has
  loads, failures and waiting requests; else the nodes themselves. Besides
  that the way to each node, its clock, the settings, and this machine's disk.

[bold]--fix[/bold]

  Loads a model again that fell to the CPU of a node with a GPU, where no
  request uses it. Nothing else is changed.

[bold]Exit codes[/bold]

  0    nothing is wrong; hints (info) may be there
  1    something is wrong
  2    the command cannot be used as given
"""
STYLES = {"error": "bold red", "warning": "bold yellow", "info": "bold cyan"}


def doctor(
    url: UrlOption = None,
    api_key: KeyOption = None,
    nodes: NodesOption = None,
    as_json: JsonOption = False,
    fix: Annotated[bool, typer.Option("--fix", help="Mend what is safe to mend.")] = False,
) -> None:
    """Find what is wrong, what it costs, and the exact fix."""
    found, overview = examine(url, api_key, nodes, fix=fix)
    looked_at = {"source": overview["source"], "nodes": [node["host"] for node in overview["nodes"]]}
    if as_json:
        print_json({"findings": rows_of(found), "looked_at": looked_at})
    else:
        _print(found, looked_at)
    if any(finding.severity != "info" for finding in found):
        raise typer.Exit(EXIT_FAILED)


def rows_of(found: list[Finding]) -> list[dict[str, Any]]:
    """Return findings as plain values."""
    import msgspec

    rows: list[dict[str, Any]] = msgspec.to_builtins(found)
    return rows


def examine(
    url: str | None, api_key: str | None, nodes: str | None, *, fix: bool = False
) -> tuple[list[Finding], dict[str, Any]]:
    """Return all findings, the most severe first, and the overview in which they were found."""
    import asyncio

    from sollol.transport.http import HttpTransport

    if url is not None and nodes is not None:
        raise BadInput("--url and --nodes exclude each other, because a gateway has its own nodes; pass one of them")
    with asyncio.Runner() as runner:
        transport = HttpTransport()
        try:
            overview = runner.run(_remote(transport, url, api_key)) if nodes is None else None
            chosen = None
            if overview is None:
                chosen = _choose(nodes)
                overview = runner.run(_look(chosen))
            return runner.run(_findings(transport, overview, chosen, fix)), overview
        finally:
            runner.run(transport.aclose())


async def _remote(transport: Transport, url: str | None, key: str | None) -> dict[str, Any] | None:
    """Return the overview of a running gateway or dashboard, None where there is none."""
    remote = await attach(transport, url, key)
    if remote is not None:
        try:
            return {**await remote.snapshot(), "source": remote.url}
        except Refused as error:
            if url is not None:
                raise
            note(f"{error}\nWithout it, the nodes themselves are examined.")
    return None


def _choose(nodes: str | None) -> Chosen:
    try:
        return fleet.choose(nodes)
    except NoNodeAvailable:
        return Chosen((), "discovery")


async def _look(chosen: Chosen) -> dict[str, Any]:
    import msgspec

    from sollol.dashboard.watch import Watch

    watch = Watch(chosen.endpoints)
    try:
        await watch.snapshot(None)
        return {**msgspec.to_builtins(await watch.overview()), "source": chosen.how}
    finally:
        await watch.aclose()


async def _findings(transport: Transport, overview: dict[str, Any], chosen: Chosen | None, fix: bool) -> list[Finding]:
    """Return all findings, the most severe first."""
    from sollol.observe.findings import SEVERITIES, Finding

    found = [Finding(**row) for row in overview.get("findings", ())]
    found += await _local_findings(transport, chosen)
    if overview.get("applications") is None:
        found += await _other_gateways(transport, overview, chosen)
    if fix:
        await _mend(transport, overview, found)
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


async def _local_findings(transport: Transport, chosen: Chosen | None) -> list[Finding]:
    """Return findings about the settings, this machine, and the way to each node."""
    import asyncio

    from sollol.cli.link import measure_link
    from sollol.cli.local_checks import disks, link_findings, settings

    found = [*settings(), *disks()]
    if chosen is not None:
        links = await asyncio.gather(*(measure_link(transport, node) for node in chosen.endpoints))
        for node, link in zip(chosen.endpoints, links, strict=True):
            found += link_findings(node.key, link)
        found += await _agent_findings(transport, chosen)
    return found


async def _agent_findings(transport: Transport, chosen: Chosen) -> list[Finding]:
    """Return findings about the agents of the nodes, if the settings have their key."""
    from sollol.agent.client import read_agents
    from sollol.agent.findings import agent_findings
    from sollol.config import load_settings

    try:
        settings = load_settings()
    except BadInput:  # a finding of its own
        return []
    if not settings.agents_key:
        return []
    nothing: dict[str, LoadedModel] = {}
    nodes = [(node, nothing) for node in chosen.endpoints]
    return agent_findings(await read_agents(transport, nodes, settings.agents_port, settings.agents_key, {}))


async def _other_gateways(transport: Transport, overview: dict[str, Any], chosen: Chosen | None) -> list[Finding]:
    """Return findings about gateways on this machine and on those of the nodes that use the same nodes."""
    from sollol.cli.attach import GATEWAY_PORT
    from sollol.cli.local_checks import other_gateways
    from sollol.core.endpoint import Endpoint, parse_endpoint

    endpoints = [parse_endpoint(node["url"]) for node in overview["nodes"]]
    hosts = dict.fromkeys(["127.0.0.1", *(endpoint.host for endpoint in endpoints)])
    urls = [Endpoint(host, GATEWAY_PORT).url for host in hosts]
    own = overview["source"] if chosen is None else None
    return await other_gateways(transport, urls, own, {endpoint.key for endpoint in endpoints})


async def _mend(transport: Transport, overview: dict[str, Any], found: list[Finding]) -> None:
    """Load models again that fell to the CPU of a node with a GPU and that no request uses."""
    import msgspec

    from sollol.core.endpoint import parse_endpoint
    from sollol.transport.base import Call, Timeouts, TransportFault

    urls = {node["host"]: node["url"] for node in overview["nodes"]}
    used = {(row["node"], row["model"]) for row in overview["running"]}
    for finding in [finding for finding in found if finding.id == "on-cpu" and finding.severity == "warning"]:
        model, node = finding.data["model"], finding.subject.rpartition(" on ")[2]
        if (node, model) in used:
            note(f"{printable(finding.subject)} is in use, and was left alone.")
            continue
        timeouts = Timeouts(3.0, 600.0, 600.0)
        try:
            for keep_alive in (0, "5m"):
                body = msgspec.json.encode({"model": model, "keep_alive": keep_alive})
                reply = await transport.send(
                    parse_endpoint(urls[node]), Call("POST", "/api/generate", body, timeouts=timeouts)
                )
                await reply.read()
        except TransportFault as fault:
            note(f"{printable(finding.subject)} could not be loaded again: {printable(str(fault))}")
            continue
        note(f"{printable(finding.subject)} was unloaded and loaded again; `sollol ps` shows where it runs now.")


def _print(found: list[Finding], looked_at: dict[str, Any]) -> None:
    for finding in found:
        head = Text.assemble((f"{finding.severity}: ", STYLES[finding.severity]), printable(finding.summary))
        stdout().print(head, soft_wrap=True)
        say(f"  {printable(finding.cost)}")
        say(f"  Fix: {printable(finding.fix)}")
        say()
    wrong = sum(finding.severity != "info" for finding in found)
    hints = len(found) - wrong
    counted = plural(wrong, "fault") + (f", {plural(hints, 'hint')}" if hints else "")
    note(f"{counted if found else 'Nothing is wrong'}. Looked at {plural(len(looked_at['nodes']), 'node')} "
         f"(from {looked_at['source']}).")  # fmt: skip
