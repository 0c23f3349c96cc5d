"""Implement `sollol bench`, which measures each node alone and all nodes together.

Every node embeds alone, then all together. The efficiency is the rate together divided by the sum of the rates alone;
100 % is the bound. A node that fails is listed with its reason, and the others are still measured.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from sollol.cli import fleet
from sollol.cli.console import note, plural, print_json, printable, say, warn
from sollol.cli.findings import Findings, Place, Row, as_json, tell, warnings_of
from sollol.cli.fleet import JsonOption, NodesOption
from sollol.cli.progress import Steps
from sollol.core.types import canonical_model
from sollol.errors import BadInput, NoNodeAvailable, SollolError

if TYPE_CHECKING:
    from sollol.cli.measure import Plan
    from sollol.cli.model_choice import Disks

T = TypeVar("T")

_SECONDS = (0.2, 600)
_ITEMS = (10, 1_000_000)
_SIMULATED_ITEMS_PER_S = 120.0  # of all simulated nodes together
_SIMULATED_TOKENS_PER_S = 150.0
_SIMULATED_EMBED, _SIMULATED_CHAT = "nomic-embed-text", "qwen2.5:0.5b"

EPILOG = """\
[bold]Examples[/bold]

  sollol bench
  sollol bench --nodes 10.0.0.5,10.0.0.6 --model nomic-embed-text --seconds 10
  sollol bench --chat-model llama3.2 --json
  sollol bench --simulated

[bold]What is measured[/bold]

  Each node embeds passages of 120 words alone: "alone", in items/s. Loading
  the model is timed apart ("load") and not counted. Then all nodes embed one
  batch together. The sum of "alone" is what they could do if none ever
  waited (the fluid bound); together / sum is the efficiency. A few per cent
  are noise, both ways.

  Each node that has the chat model answers a question about such a passage:
  the time until the first token (all of the prompt is read then), and
  tokens/s from there on. At last, a call that gives the model nothing to do
  is made by turns through the pool and straight to a node.

[bold]How long it takes[/bold]

  For N nodes about N + 1 times --seconds, N times more for the chat model,
  and the loading of models. What else the nodes have to do slows both:
  measure when they are idle.

[bold]Which nodes[/bold]

  As everywhere (--nodes, SOLLOL_NODES, ..., discovery). If no Ollama is found
  at all, and with --simulated, four simulated nodes of given, unequal speeds
  are started as processes. Their numbers do not describe your nodes.

[bold]Exit codes[/bold]

  0    measured; nodes that failed are listed
  1    nothing could be measured
  2    an option cannot be used as given
  130  interrupted with Ctrl-C
"""


def bench(
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="The embedding model; else the one most nodes have.", show_default=False),
    ] = None,
    chat_model: Annotated[
        str | None,
        typer.Option("--chat-model", help="The chat model; else the smallest on several nodes.", show_default=False),
    ] = None,
    no_chat: Annotated[bool, typer.Option("--no-chat", help="Measure no chat model.")] = False,
    duration: Annotated[
        float, typer.Option("--seconds", metavar="S", help="How long each measurement takes, about.")
    ] = 3.0,
    items: Annotated[int, typer.Option(metavar="N", help="The most passages in one measurement.")] = 20_000,
    simulated: Annotated[
        bool, typer.Option("--simulated", help="Use simulated nodes, even if there are real ones.")
    ] = False,
    nodes: NodesOption = None,
    json: JsonOption = False,
) -> None:
    """Measure your nodes: each alone, all together, and how close together comes to the sum."""
    from sollol.cli.measure import Plan

    _check("--seconds", duration, _SECONDS)
    _check("--items", items, _ITEMS)
    if simulated and nodes is not None:
        raise BadInput(f"--simulated and --nodes {nodes} exclude each other; expected one of them")
    if no_chat and chat_model is not None:
        raise BadInput(f"--no-chat and --chat-model {chat_model} exclude each other; expected one of them")
    with _place(nodes, simulated, model, chat_model) as place:
        if place.simulated:
            (note if json else say)(
                "SIMULATED: these are four simulated nodes on this machine, of given speeds. No Ollama is measured."
            )
        found = _measure(place, Plan(duration, items), model, chat_model, no_chat)
    if json:
        print_json(as_json(found))
    else:
        tell(found)
    for warning in warnings_of(found):
        warn(printable(warning))
    if not any(row.alone or row.talk for row in found.rows):
        raise SollolError("nothing could be measured")


def _check(option: str, value: float, bounds: tuple[float, float]) -> None:
    low, high = bounds
    if not low <= value <= high:  # also for nan
        raise BadInput(f"{option} {value}: expected {low:,} to {high:,}")


@contextlib.contextmanager
def _place(nodes: str | None, simulated: bool, model: str | None, chat_model: str | None) -> Iterator[Place]:
    if not simulated:
        try:
            chosen = fleet.choose(nodes)
        except NoNodeAvailable as none:
            note(f"{str(none).splitlines()[0]}")
        else:
            yield Place(chosen.endpoints, chosen.how, {})
            return
    from sollol.cli.simulated import running, unequal
    from sollol.sim import ModelSpec, NodeSpec

    speeds = unequal(_SIMULATED_ITEMS_PER_S)
    models = (
        ModelSpec(model or _SIMULATED_EMBED, "embed", 274_000_000, dim=768, context_length=2048),
        ModelSpec(chat_model or _SIMULATED_CHAT, size_bytes=398_000_000, mean_words=200.0),
    )
    specs = [
        NodeSpec(
            models=models,
            embed_items_per_s=speed,
            decode_tokens_per_s=tokens,
            prefill_tokens_per_s=10 * tokens,
            load_bytes_per_s=1e9,
            vectors="cheap",  # the vectors are not read, and their cost is not part of the given speed
        )
        for speed, tokens in zip(speeds, unequal(_SIMULATED_TOKENS_PER_S), strict=True)
    ]
    with running(specs) as started:
        given = {endpoint.key: speed for endpoint, speed in zip(started, speeds, strict=True)}
        yield Place(tuple(started), "simulated", given)


def _measure(place: Place, plan: Plan, model: str | None, chat_model: str | None, no_chat: bool) -> Findings:
    import asyncio

    from sollol.cli import model_choice
    from sollol.cli.nodes import look

    states = asyncio.run(look(place.endpoints))
    disks = {state.endpoint: state.facts.models for state in states if state.facts}
    found = Findings(plan, place, [Row(state.endpoint) for state in states])
    for row, state in zip(found.rows, states, strict=True):
        if state.facts is None:
            row.errors.append(state.why)
    if disks:
        found.model = _model("--model", model, disks, model_choice.EMBED) or asyncio.run(
            model_choice.embedding_model(disks)
        )
        if not no_chat:
            wanted = _model("--chat-model", chat_model, disks, model_choice.CHAT)
            found.chat_model = wanted or asyncio.run(model_choice.chat_model(disks))
        for row, state in zip(found.rows, states, strict=True):
            row.was_loaded = found.model in state.facts.loaded if state.facts and found.model else None
        with Steps() as steps:
            _embed(found, disks, steps)
            _chat(found, disks, steps)
    return found


def _model(option: str, wanted: str | None, disks: Disks, ability: str) -> str | None:
    """Return the canonical name of a model after checking that a node can use it.

    Raises:
        BadInput: No node has the model, or it lacks the ability.
    """
    import asyncio

    from sollol.cli.model_choice import abilities

    if wanted is None:
        return None
    name = canonical_model(wanted)
    known = sorted({name for models in disks.values() for name in models})
    holder = next((endpoint for endpoint, models in disks.items() if name in models), None)
    if holder is None:
        raise BadInput(f"{option} {wanted}: no node has it; expected one of {', '.join(known) or 'none'}")
    can = asyncio.run(abilities(holder, name))
    if can and ability not in can:
        what = {"embedding": "an embedding model", "completion": "a chat model"}[ability]
        raise BadInput(f"{option} {wanted}: it can do {', '.join(sorted(can))}; expected {what}")
    return name


def _embed(found: Findings, disks: Disks, steps: Steps) -> None:
    """Measure embedding on each node, on all together, and the cost of a call on the fastest."""
    from sollol.cli import measure

    model, rows = found.model, found.rows
    if model is None:
        found.problems.append("No node has an embedding model (ollama pull nomic-embed-text); embedding not measured.")
        return
    for number, row in enumerate(rows, 1):
        if row.endpoint not in disks:
            continue
        if model not in disks[row.endpoint]:
            row.errors.append(f"does not have {model}")
            continue
        steps.say(f"{row.node} ({number} of {len(rows)}) embeds alone")
        row.alone = _try(row.errors, "", measure.alone, row.endpoint, model, found.plan)
    able = [row for row in rows if row.alone]
    if not able:
        return
    steps.say(f"{plural(len(able), 'node')} embed together")
    endpoints = tuple(row.endpoint for row in able)
    problems = found.problems
    found.together = _try(problems, "Together: ", measure.together, endpoints, model, found.sum_alone, found.plan)
    fastest = max(able, key=lambda row: row.rate)
    steps.say(f"{fastest.node} answers calls through the pool and without it")
    found.call = _try(problems, "Cost of a call: ", measure.call_cost, fastest.endpoint, model)


def _chat(found: Findings, disks: Disks, steps: Steps) -> None:
    """Measure the chat model last, because loading it may unload the embedding model."""
    from sollol.cli import measure

    model, rows = found.chat_model, found.rows
    for number, row in enumerate(rows, 1):
        if model and model in disks.get(row.endpoint, ()):
            steps.say(f"{row.node} ({number} of {len(rows)}) answers a question with {model}")
            row.talk = _try(row.errors, f"{model}: ", measure.talk, row.endpoint, model, found.plan)


def _try(problems: list[str], what: str, measure: Callable[..., T], *args: Any) -> T | None:
    """Return a measurement, or None after appending the reason to `problems`."""
    try:
        return measure(*args)
    except SollolError as error:
        tried = error.tried if isinstance(error, NoNodeAvailable) else ()
        # For a single node, the rest of the message only repeats its name.
        problems.append(what + (tried[0][1] if len(tried) == 1 else str(error)))
        return None
