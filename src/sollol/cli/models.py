"""Implement `sollol models`: list, pull, delete, copy, keep in memory and unload the models of all nodes."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from sollol.cli import fleet
from sollol.cli.console import note, plural, print_json, printable, say, size, stdout, table, warn
from sollol.cli.fleet import JsonOption, NodesOption
from sollol.cli.model_plan import plan
from sollol.cli.model_pull import follow, pull_way, read_rooms
from sollol.cli.model_table import ago, look, memory_of, rows_of
from sollol.core.endpoint import Endpoint, parse_endpoint
from sollol.core.types import canonical_model
from sollol.errors import BadInput, ResponseError

if TYPE_CHECKING:
    from sollol.answers import Answer
    from sollol.models.desired import ModelPlan
    from sollol.models.inventory import NodeInventory
    from sollol.transport.base import Transport
    from sollol.transport.http import HttpTransport

T = TypeVar("T")
EPILOG = """\
[bold]Examples[/bold]

  sollol models list
  sollol models pull llama3.2 --on gpu-1 --on gpu-2
  sollol models pull llama3.2 --lan
  sollol models pin llama3.2
  sollol models unload llama3.2 --on gpu-1
  sollol models rm llama2 --all
  sollol models sync --dry-run

[bold]Which nodes[/bold]

  --nodes names the cluster, as for all commands; --on the nodes of a change.
  Without --on, a change concerns every node of the cluster that it can.

[bold]Room[/bold]

  Ollama's API does not report the room on a node's disk. `sollol agent`
  does; without it a pull to a full disk fails there.

[bold]Exit codes[/bold]

  0    done on all nodes
  1    it failed on a node, or no node has the model
"""

app = typer.Typer(help="Models over all nodes: list, pull, delete, copy, keep in memory, unload.", epilog=EPILOG,
                  no_args_is_help=True)  # fmt: skip

app.command("plan")(plan)

OnOption = Annotated[
    list[str] | None,
    typer.Option(
        "--on", metavar="HOST:PORT", help="A node of the change; repeatable. Default: all.", show_default=False
    ),
]
LanOption = Annotated[
    bool,
    typer.Option("--lan", help="Download a model once: from a node that has it, over a registry of this machine."),
]
ConfigOption = Annotated[
    str | None,
    typer.Option("--config", metavar="FILE", help="The file with the settings.", show_default=False),
]
Model = Annotated[str, typer.Argument(help="The name of the model.", show_default=False)]


def _run(work: Callable[[HttpTransport], Awaitable[T]]) -> T:
    import asyncio

    from sollol.transport.http import HttpTransport

    async def run() -> T:
        transport = HttpTransport()
        try:
            return await work(transport)
        finally:
            await transport.aclose()

    return asyncio.run(run())


def _targets(nodes: str | None, on: Sequence[str] | None) -> tuple[Endpoint, ...]:
    """Return the nodes of a change.

    Raises:
        BadInput: A node of --on is not in the cluster.
    """
    chosen = fleet.choose(nodes).endpoints
    if not on:
        return chosen
    by_key = {endpoint.key: endpoint for endpoint in chosen} | {endpoint.host: endpoint for endpoint in chosen}
    found = []
    for name in on:
        endpoint = by_key.get(name) or by_key.get(parse_endpoint(name).key)
        if endpoint is None:
            raise BadInput(f"--on {name} is not a node here; expected one of {', '.join(e.key for e in chosen)}")
        found.append(endpoint)
    return tuple(dict.fromkeys(found))


# --- list ---


@app.command("list")
def list_models(nodes: NodesOption = None, as_json: JsonOption = False) -> None:
    """Show the models of all nodes: digest, size, place in memory, last use."""
    chosen = fleet.choose(nodes)
    found, used = _run(lambda transport: look(transport, chosen.endpoints))
    rows = rows_of(found, used)
    down = [{"node": node.key, "why": node.why} for node in found if node.why]
    if as_json:
        print_json({"models": rows, "down": down})
        return
    if rows:
        made = table("model", "node", "size", "digest", "in memory", "last used", right=("size",))
        before = ""
        for row in rows:
            name = "" if row["model"] == before else printable(row["model"])
            before = row["model"]
            digest = row["digest"].removeprefix("sha256:")[:12] + (" !" if row["differs"] else "")
            made.add_row(name, row["node"], size(row["size"]), digest, memory_of(row), ago(row["last_used"]))
        stdout().print(made)
    models = len({row["model"] for row in rows})
    note(f"{plural(models, 'model')} on {len(found) - len(down)} of {plural(len(found), 'node')} (from {chosen.how}).")
    if any(row["differs"] for row in rows):
        note("! marks a model whose version differs between nodes; `sollol models pull NAME` makes them the same.")
    for node in down:
        note(f"  {node['node']} is down: {printable(node['why'])}")


# --- changes of the disks ---


@app.command()
def pull(
    model: Model,
    on: OnOption = None,
    lan: LanOption = False,
    config: ConfigOption = None,
    nodes: NodesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Pull a model to nodes, with one progress bar for all."""
    targets = _targets(nodes, on)
    everyone = fleet.choose(nodes).endpoints

    async def work(transport: HttpTransport) -> dict[str, str]:
        rooms = await read_rooms(transport, targets, config)
        unknown = [node.key for node in targets if node.key not in rooms]
        if unknown and not as_json:
            note(f"The room on the disk is unknown to Ollama's API, and no agent reports it, on {', '.join(unknown)}.")
        async with pull_way(transport, everyone, config, lan=lan) as way:
            return await follow(way(model, targets), model, len(targets))

    outcomes = _run(work)
    _report(model, {node.key: outcomes.get(node.key, "no outcome") for node in targets}, as_json, "pulled")


@app.command()
def rm(
    model: Model,
    on: OnOption = None,
    everywhere: Annotated[bool, typer.Option("--all", help="Delete it from every node that has it.")] = False,
    nodes: NodesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a model from nodes."""
    if bool(on) == everywhere:
        raise BadInput("expected the nodes to delete it from: --on HOST:PORT, or --all")
    _change(model, _targets(nodes, on), as_json, "deleted", "DELETE", "/api/delete", {"model": model})


@app.command()
def copy(
    source: Annotated[str, typer.Argument(help="The name of the model.", show_default=False)],
    target: Annotated[str, typer.Argument(help="The new name.", show_default=False)],
    on: OnOption = None,
    nodes: NodesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a model a second name, on every node that has it."""
    body = {"source": source, "destination": target}
    _change(source, _targets(nodes, on), as_json, f"copied to {target}", "POST", "/api/copy", body)


def _change(
    model: str, targets: Sequence[Endpoint], as_json: bool, done: str, method: str, path: str, body: dict[str, Any]
) -> None:
    from sollol.models import operations

    async def change(transport: Transport) -> Answer:
        found = await _holding(transport, model, targets)
        return await operations.call_all(transport, found, method, path, body)

    _report(model, _run(change)["nodes"], as_json, done)


async def _holding(transport: Transport, model: str, targets: Sequence[Endpoint]) -> list[Endpoint]:
    """Return the nodes that have a model on disk, and print which lack it."""
    from sollol.models import operations

    found = await operations.holders(transport, targets, model)
    for node in targets:
        if node not in found:
            note(f"{node.key} lacks {printable(model)}: `sollol models pull {printable(model)} --on {node.key}`")
    return found


# --- changes of the memory ---


@app.command()
def warm(model: Model, on: OnOption = None, nodes: NodesOption = None, as_json: JsonOption = False) -> None:
    """Load a model into memory, on every node that has it."""
    _keep(model, on, nodes, as_json, "in memory", None)


@app.command()
def pin(model: Model, on: OnOption = None, nodes: NodesOption = None, as_json: JsonOption = False) -> None:
    """Load a model and keep it in memory until it is unpinned or the node restarts."""
    from sollol.models.changes import FOREVER

    _keep(model, on, nodes, as_json, "pinned", FOREVER)
    if not as_json:
        note(f'For good: pin = true in [models."{canonical_model(model)}"] of the file, and `sollol models sync`.')


@app.command()
def unpin(model: Model, on: OnOption = None, nodes: NodesOption = None, as_json: JsonOption = False) -> None:
    """Let a model leave the memory once it is unused for five minutes."""
    from sollol.models.changes import USUAL

    _keep(model, on, nodes, as_json, "unpinned", USUAL, in_memory=True)


@app.command()
def unload(model: Model, on: OnOption = None, nodes: NodesOption = None, as_json: JsonOption = False) -> None:
    """Unload a model from memory, on every node that holds it. Running calls end first."""
    _keep(model, on, nodes, as_json, "unloaded", 0, in_memory=True)


def _keep(
    model: str,
    on: Sequence[str] | None,
    nodes: str | None,
    as_json: bool,
    done: str,
    keep_alive: int | str | None,
    in_memory: bool = False,
) -> None:
    targets = _targets(nodes, on)

    async def keep(transport: Transport) -> Answer:
        from sollol.models import operations
        from sollol.models.inventory import read_inventory

        name = canonical_model(model)
        if in_memory:
            found = await read_inventory(transport, targets)
            chosen = [node.node for node in found if name in node.loaded]
            if not chosen:
                raise ResponseError(f"{name} is not in the memory of {_words(targets)}; `sollol ps` lists what is", 404)
        else:
            chosen = await _holding(transport, model, targets)
        body = {"model": model} if keep_alive is None else {"model": model, "keep_alive": keep_alive}
        return await operations.load(transport, chosen, body)

    _report(model, _run(keep)["nodes"], as_json, done)


def _words(targets: Sequence[Endpoint]) -> str:
    return ", ".join(node.key for node in targets)


def _report(model: str, outcomes: Mapping[str, str], as_json: bool, done: str) -> None:
    """Print the outcome of each node; exit with 1 if one failed."""
    failed = {node: why for node, why in outcomes.items() if why != "success"}
    if as_json:
        print_json({"model": canonical_model(model), "nodes": dict(outcomes)})
    else:
        for node, why in outcomes.items():
            if node not in failed:
                say(f"{node}: {printable(model)} {printable(done)}")
            else:
                warn(f"{node}: {printable(why)}")
    if failed:
        raise typer.Exit(1)


# --- the desired state ---


@app.command()
def sync(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the changes and their reasons.")] = False,
    lan: LanOption = False,
    config: ConfigOption = None,
    nodes: NodesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the models of the nodes as the tables of models in the file name them. Deletes nothing."""
    from sollol.config import load_settings
    from sollol.config.paths import find_file
    from sollol.gateway.settings import gateway_settings
    from sollol.models.desired import plan
    from sollol.models.inventory import read_inventory, with_rooms

    file = find_file(config)
    settings = gateway_settings(load_settings(config=file), file or "")
    if not settings.models:
        expected = 'expected tables such as [models."llama3.2"] with replicas = 2'
        if file is None:
            raise BadInput(f"there is no configuration file that names models; `sollol init` writes one; {expected}")
        raise BadInput(f"{file} names no model; {expected}")
    chosen = settings.nodes if nodes is None and settings.nodes else fleet.choose(nodes).endpoints

    async def look_at(transport: HttpTransport) -> list[NodeInventory]:
        rooms = await read_rooms(transport, chosen, config)
        return with_rooms(await read_inventory(transport, chosen), rooms)

    found = plan(settings.models, _run(look_at))
    outcomes = {} if dry_run else _carry_out(found, chosen, config, lan=lan)
    _show_plan(found, outcomes, dry_run, as_json)
    if found.unmet or any(outcome != "success" for outcome in outcomes.values()):
        raise typer.Exit(1)


def _carry_out(
    found: ModelPlan, nodes: Sequence[Endpoint], config: str | None, *, lan: bool
) -> dict[tuple[str, str, str], str]:
    from sollol.models.changes import carry_out

    outcomes: dict[tuple[str, str, str], str] = {}

    async def work(transport: HttpTransport) -> None:
        async with pull_way(transport, nodes, config, lan=lan) as way:
            lines = carry_out(transport, {node.key: node for node in nodes}, found.changes, way)
            async with contextlib.aclosing(lines):
                async for line in lines:
                    if "error" in line or line.get("status") == "success":
                        key = (line["verb"], line["model"], line["node"])
                        outcomes[key] = str(line.get("error") or "success")
                        note(f"{' '.join(key)}: {printable(outcomes[key])}")

    _run(work)
    return {change[:3]: outcomes.get(change[:3], "no outcome") for change in found.changes}


def _show_plan(found: ModelPlan, outcomes: Mapping[tuple[str, str, str], str], dry_run: bool, as_json: bool) -> None:
    if as_json:
        rows = [{**change._asdict(), "outcome": outcomes.get(change[:3])} for change in found.changes]
        print_json({"changes": rows, "unmet": found.unmet, "dry_run": dry_run})
        return
    if found.changes:
        made = table("change", "model", "node", "reason")
        for change in found.changes:
            made.add_row(change.verb, printable(change.model), change.node, printable(change.reason))
        stdout().print(made)
    for line in found.unmet:
        warn(printable(line))
    count = plural(len(found.changes), "change")
    good = sum(outcome == "success" for outcome in outcomes.values())
    said = f"{count} to be made" if dry_run else f"{count} made" if good == len(outcomes) else f"{good} of {count} made"
    note(f"{said}." if found.changes else "Nothing has to change.")
