"""Implement `sollol ps`, which lists the models in memory over all nodes, as `ollama ps` does for one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from rich.text import Text

from sollol.cli import fleet
from sollol.cli.attach import KeyOption, UrlOption, attach_readable
from sollol.cli.console import millis, note, plural, print_json, printable, seconds, size, stdout, table
from sollol.cli.fleet import JsonOption, NodesOption
from sollol.cli.screen import load_progress, loads_of
from sollol.errors import BadInput

EPILOG = """\
[bold]Examples[/bold]

  sollol ps
  sollol ps --url http://10.0.0.2:11435
  sollol ps --nodes 10.0.0.5,10.0.0.6:11435
  sollol ps --json | jq '.models[] | select(.on_cpu)'

[bold]Processor[/bold]

  "!" marks a model of which a part runs on the CPU because it did not fit
  into GPU memory. Ollama does this without a message, and it can be 20 times
  slower. Fewer models in memory, a smaller context (num_ctx) or a smaller
  quantisation help. A node without GPU has all its models there.

[bold]Loads[/bold]

  Ollama does not report a load in progress. A gateway or program with a
  dashboard does: --url, else one on this machine. It shows the time against
  its prediction, and "stuck" for a load that hangs. --nodes means the nodes
  themselves. A gateway with keys requires one in SOLLOL_API_KEY.

[bold]Exit codes[/bold]

  0    done, even if nodes are down
  1    no node is known
"""
_FOREVER_YEARS = 50  # Ollama writes "never" as a date three centuries ahead


def ps(
    url: UrlOption = None, api_key: KeyOption = None, nodes: NodesOption = None, as_json: JsonOption = False
) -> None:
    """List the models in memory over all nodes: size, share on GPU and CPU, context, until when; and the loads."""
    import asyncio

    if url is not None and nodes is not None:
        raise BadInput("--url and --nodes exclude each other, because a gateway lists its own nodes; pass one of them")
    frame, how = asyncio.run(_look(url, api_key, nodes))
    rows = [row for node in frame["nodes"] for row in _rows(node["host"], node["loaded"])]
    loads = loads_of(frame)
    down = [
        {key: node[key] for key in ("state", "why")} | {"node": node["host"]}
        for node in frame["nodes"]
        if node["state"] != "up"
    ]
    if as_json:
        print_json({"models": rows, "loading": loads, "down": down})
        return
    if rows:
        made = table("node", "model", "size", "processor", "context", "until", right=("size", "context"))
        for row in rows:
            mark = Text(
                f"{'! ' if row['fell_back'] else ''}{row['processor']}", style="yellow" if row["fell_back"] else ""
            )
            context = f"{row['context_length']:,}" if row["context_length"] else "-"
            name = printable(row["model"])
            made.add_row(row["node"], name, size(row["size"]), mark, context, _left(row["expires_at"]))
        stdout().print(made)
    if loads:
        made = table(
            "node", "loading", "progress", "elapsed", "predicted", "left", right=("elapsed", "predicted", "left")
        )
        for load in loads:
            times = (millis(load.get(key)) for key in ("elapsed_ms", "predicted_ms", "eta_ms"))
            made.add_row(load["node"], printable(load["model"]), load_progress(load), *times)
        stdout().print(made)
    up, total = len(frame["nodes"]) - len(down), plural(len(frame["nodes"]), "node")
    note(f"{plural(len(rows), 'model')} in memory; {up} of {total} up (from {how}).")
    for node in down:
        note(f"  {node['node']} is {node['state']}{': ' if node['why'] else ''}{printable(node['why'])}")


async def _look(url: str | None, key: str | None, nodes: str | None) -> tuple[dict[str, Any], str]:
    """Return a frame of a gateway, a dashboard or the nodes, and where it is from."""
    import asyncio

    import msgspec

    from sollol.dashboard.watch import Watch
    from sollol.transport.http import HttpTransport

    transport = HttpTransport()
    try:
        remote = await attach_readable(transport, url, key) if nodes is None else None
        if remote is not None:
            return await remote.snapshot(), remote.url
    finally:
        await transport.aclose()
    chosen = await asyncio.to_thread(fleet.choose, nodes)
    watch = Watch(chosen.endpoints)
    try:
        return msgspec.to_builtins(await watch.snapshot(None)), chosen.how
    finally:
        await watch.aclose()


def _rows(node: str, models: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of one node; where all models are on the CPU, none counts as fallen back."""
    has_gpu = any("GPU" in model["processor"] for model in models)
    found = []
    for model in models:
        on_cpu = "CPU" in model["processor"]
        found.append({"node": node, **model, "on_cpu": on_cpu, "fell_back": on_cpu and has_gpu})
    return found


def _left(expires_at: str) -> str:
    try:
        when = datetime.fromisoformat(expires_at)
        left = (when - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return "-"
    if left > _FOREVER_YEARS * 365 * 86_400:
        return "stays"
    return f"{seconds(left)} from now" if left > 0 else "unloading"
