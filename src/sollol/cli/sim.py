"""Implement `sollol sim`, which starts simulated nodes on loopback ports.

`python -m sollol.sim` runs the same command.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from sollol.errors import BadInput

if TYPE_CHECKING:
    from sollol.sim.faults import FaultEvent
    from sollol.sim.models import NodeSpec

T = TypeVar("T")

EPILOG = """\
[bold]Examples[/bold]

  sollol sim                         one node, instant
  sollol sim --speeds 4,2,1          three unequal nodes
  sollol sim --nodes 3 --port 22434 --embed-items-per-s 50
  sollol sim --spec '{"num_parallel": 4}' --spec '{"cpu_slowdown": 20}'

[bold]Output[/bold]

  In a terminal, the nodes and a line to paste; else, or with --json, one
  line of JSON for each node: {"url": ..., "pid": ...}. It runs until Ctrl-C.

[bold]Exit codes[/bold]

  0    interrupted, or the input ended (--until-stdin-ends)
  2    an option cannot be used, or an address is taken
"""


def sim(
    nodes: Annotated[int | None, typer.Option(min=1, help="How many. [default: 1]", show_default=False)] = None,
    speeds: Annotated[
        str | None, typer.Option(metavar="4,2,1", help="Relative speeds, one for each node.", show_default=False)
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the first node, the others follow; 0: free ones.")
    ] = 0,
    spec: Annotated[
        list[str] | None,
        typer.Option(metavar="JSON", help="A NodeSpec; given several times: one for each node.", show_default=False),
    ] = None,
    schedule: Annotated[str, typer.Option(metavar="JSON", help='Faults: [{"at_s": 3, "do": "die"}].')] = "[]",
    embed_items_per_s: Annotated[
        float | None, typer.Option(help="Of the fastest node; without it: instant, or 100 with --speeds.")
    ] = None,
    decode_tokens_per_s: Annotated[float | None, typer.Option(help="The same; 60 with --speeds.")] = None,
    prefill_tokens_per_s: Annotated[float | None, typer.Option(help="The same; 2000 with --speeds.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in a terminal, too.")] = False,
    until_stdin_ends: Annotated[bool, typer.Option("--until-stdin-ends", help="End with the standard input.")] = False,
) -> None:
    """Start simulated Ollama nodes, equal or unequal, to try SOLLOL without a machine to spare."""
    from sollol.sim.process import CannotServe, ServeJob, print_node, serve_nodes

    rates = {
        "embed_items_per_s": embed_items_per_s,
        "decode_tokens_per_s": decode_tokens_per_s,
        "prefill_tokens_per_s": prefill_tokens_per_s,
    }
    try:
        specs = node_specs(nodes, _speeds(speeds), host, spec or ["{}"], rates)
        job = ServeJob(specs, host, port, _events(schedule), until_stdin_ends)
    except (ValueError, TypeError) as error:
        raise BadInput(f"sollol sim: {error}") from None
    plain = as_json or not sys.stdout.isatty()
    try:
        serve_nodes(job, print_node if plain else _Shown(len(specs)))
    except CannotServe as error:
        raise BadInput(f"{error}; choose another --port, or 0 for a free one") from None


def _json(option: str, text: str, kind: type[T], example: str) -> T:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, kind):
        raise ValueError(f"{option} {text}; expected JSON such as {example}")
    return value


def _events(text: str) -> list[FaultEvent]:
    from sollol.sim.faults import parse_events

    example = '[{"at_s": 3, "do": "die"}]'
    events = _json("--schedule", text, list, example)
    try:
        return parse_events(events)
    except (KeyError, TypeError):
        raise ValueError(f"--schedule {text}; expected JSON such as {example}") from None


def _speeds(given: str | None) -> list[float]:
    if given is None:
        return []
    try:
        speeds = [float(word) for word in given.replace(":", ",").split(",")]
    except ValueError:
        speeds = []
    if not speeds or not all(0 < speed < float("inf") for speed in speeds):
        raise ValueError(f"--speeds {given}; expected numbers above 0 such as 4,2,1")
    return speeds


def node_specs(
    nodes: int | None, speeds: list[float], host: str, given: list[str], rates: dict[str, float | None]
) -> list[NodeSpec]:
    """Return a spec for each node.

    Raises:
        ValueError: The options contradict each other, or one is invalid.
        TypeError: A spec has a field of the wrong type.
    """
    from sollol.sim.models import NodeSpec

    listed = [
        NodeSpec.from_json({**_json("--spec", text, dict, '{"num_parallel": 4}'), "host": host}) for text in given
    ]
    counts = {count for count in (nodes, len(speeds) or None, len(listed) if len(listed) > 1 else None) if count}
    if len(counts) > 1:
        raise ValueError(f"{' and '.join(map(str, sorted(counts)))} nodes; expected the same number in all options")
    usual = {"embed_items_per_s": 100.0, "decode_tokens_per_s": 60.0, "prefill_tokens_per_s": 2000.0}
    specs = []
    for place in range(counts.pop() if counts else 1):
        spec = listed[place % len(listed)]
        share = speeds[place] / max(speeds) if speeds else 1.0
        own: dict[str, float] = {}
        for name, fastest in rates.items():
            rate = fastest or (getattr(spec, name) or usual[name] if speeds else None)
            if rate is not None:
                own[name] = rate * share
        specs.append(NodeSpec.from_json({**spec.to_json(), "seed": spec.seed + place, **own}))
    return specs


class _Shown:
    """Print the nodes on a terminal, and the line that sets SOLLOL_NODES after the last one."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._urls: list[str] = []

    def __call__(self, url: str, spec: NodeSpec) -> None:
        self._urls.append(url)
        models = ", ".join(model.name for model in spec.models)
        speed = f"{spec.embed_items_per_s:g} texts/s" if spec.embed_items_per_s else "instant"
        print(f"{url}   {speed}   {models}", flush=True)
        if len(self._urls) == self._count:
            print(f"\nexport SOLLOL_NODES={','.join(self._urls)}\n\nCtrl-C ends them.", flush=True)
