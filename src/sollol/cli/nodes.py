"""Implement `sollol nodes`, which shows the state of the nodes and where their models run.

A model, or a part of it, that does not fit into GPU memory runs on the CPU, and Ollama reports this only as
`size_vram` below `size`. The table prints it in words, because it is the usual reason of a slow node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sollol.cli import fleet
from sollol.cli.console import note, plural, print_json, stdout, table
from sollol.cli.fleet import JsonOption, NodesOption
from sollol.core.endpoint import Endpoint

if TYPE_CHECKING:
    from sollol.core.types import NodeFacts

EPILOG = """\
[bold]Examples[/bold]

  sollol nodes
  sollol nodes --nodes 10.0.0.5,10.0.0.6:11435 --json

[bold]Loaded models[/bold]

  "GPU" is all of it in GPU memory. "40% GPU" and "CPU" mean that it did not
  fit: such a node can be 20 times slower. Fewer loaded models, a smaller
  context (num_ctx) or a smaller quantisation help.

[bold]Exit codes[/bold]

  0    done, even if nodes are down
  1    no node is known
"""


class NodeState(NamedTuple):
    """Hold the facts that a node reported, or the reason why there are none."""

    endpoint: Endpoint
    facts: NodeFacts | None
    why: str = ""


def nodes(nodes: NodesOption = None, as_json: JsonOption = False) -> None:
    """Show the state of the nodes: version, models in memory with their share on the GPU, models on disk."""
    import asyncio

    chosen = fleet.choose(nodes)
    states = asyncio.run(look(chosen.endpoints))
    if as_json:
        print_json({"nodes": [_as_json(state) for state in states], "named_by": chosen.how})
        return
    made = table("node", "state", "version", "in memory", "on disk")
    for state in states:
        made.add_row(state.endpoint.key, *_cells(state), style=None if state.facts else "red")
    stdout().print(made)
    up = sum(1 for state in states if state.facts)
    note(f"{up} of {plural(len(states), 'node')} up (from {chosen.how}).")


async def look(endpoints: tuple[Endpoint, ...]) -> list[NodeState]:
    """Probe all nodes at the same time."""
    from sollol.backends.probe import ProbeFailed, probe_all
    from sollol.transport.http import HttpTransport

    transport = HttpTransport()
    try:
        found = await probe_all(transport, endpoints)
    finally:
        await transport.aclose()
    return [
        NodeState(endpoint, None, str(facts)) if isinstance(facts, ProbeFailed) else NodeState(endpoint, facts)
        for endpoint, facts in found.items()
    ]


def _cells(state: NodeState) -> tuple[str, str, str, str]:
    facts = state.facts
    if facts is None:
        return "down", "-", state.why, ""
    loaded = [f"{name} ({model.processor})" for name, model in facts.loaded.items()]
    return "up", facts.version, "\n".join(loaded) or "-", "\n".join(facts.models) or "-"


def _as_json(state: NodeState) -> dict[str, Any]:
    facts = state.facts
    if facts is None:
        return {"node": state.endpoint.key, "up": False, "why": state.why}
    loaded = [{"model": name, "runs_on": model.processor, **model._asdict()} for name, model in facts.loaded.items()]
    disk = [{"model": name, "bytes": size} for name, size in facts.models.items()]
    return {"node": state.endpoint.key, "up": True, "version": facts.version, "loaded": loaded, "models": disk}
