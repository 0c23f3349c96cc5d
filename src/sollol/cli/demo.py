"""Implement `sollol demo`, which embeds documents on unequal nodes and kills one midway.

The result is then checked: every passage is in the index, a sample of vectors equals a node's direct answers, and the
time is compared with the fluid bound, the least time of any scheduler. Every number is measured in the run that prints
it, but for the given speeds of simulated nodes.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from sollol.cli import fleet
from sollol.cli.console import note, plural, print_json, say, seconds, stdout, table
from sollol.cli.embed import EmbedOutcome, stream
from sollol.cli.fleet import JsonOption, NodesOption
from sollol.cli.search import show
from sollol.errors import BadInput, SollolError
from sollol.index.documents import Documents, Passage, check_extras
from sollol.index.extras import need

if TYPE_CHECKING:
    from sollol.cli.demo_nodes import Stage
    from sollol.core.endpoint import Endpoint
    from sollol.index.build import Build
    from sollol.index.chunks import Cut
    from sollol.index.nearest import Hit

_SIZE, _OVERLAP = 160, 30  # small passages, because a demo needs some hundred of them
_LEAST_CHARS = 10_000  # least size of a checkout's documents; smaller ones are replaced by the package's texts
_SAMPLE = 12
_SAME_DIRECTION = 0.999  # a GPU and a CPU round differently
_QUESTION = "What happens to the work when a node dies?"

EPILOG = """\
[bold]Examples[/bold]

  sollol demo
  sollol demo ~/notes --ask "what did we decide about backups?"
  sollol demo --nodes 10.0.0.5,10.0.0.6 --model nomic-embed-text

[bold]Which nodes[/bold]

  Those that are named (--nodes, SOLLOL_NODES, OLLAMA_HOST, the configuration
  file) or run on this machine; with --discover, those of the private networks.
  If none has an embedding model, four simulated ones are started as processes.
  Only a simulated node is killed.

[bold]Exit codes[/bold]

  0    everything is as claimed
  1    a passage is missing or differs, or the nodes failed
  2    FOLDER or --nodes cannot be used
"""


class Report(NamedTuple):
    """Hold the results of a run; `bound_s` is the least time in seconds that these nodes need."""

    stage: Stage
    files: int
    passages: int
    outcome: EmbedOutcome
    killed_at_s: float | None
    bound_s: float
    lost: int
    compared: int
    different: int
    question: str
    hits: list[Hit]

    @property
    def efficiency(self) -> float:
        """Return the bound divided by the measured time, 0 to 1."""
        return self.bound_s / self.outcome.seconds if self.outcome.seconds else 0.0


def demo(
    folder: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="Documents to use instead of SOLLOL's own.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="The embedding model.", show_default=False)] = None,
    ask: Annotated[str | None, typer.Option(help="The question to search for at the end.", show_default=False)] = None,
    nodes: NodesOption = None,
    discover: Annotated[bool, typer.Option("--discover", help="Look for nodes in the private networks too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Embed documents on unequal nodes, kill one midway, check that no passage is lost, and search for a question."""
    need("numpy")
    from sollol.cli.demo_nodes import stage
    from sollol.index.chunks import Cut

    cut = Cut(_SIZE, _OVERLAP)
    paths = [folder] if folder else own_documents()
    documents = Documents(paths)
    check_extras(documents)
    expected = list(documents.passages(cut))
    if not expected:
        raise BadInput(f"{folder}: no text was found")
    question = ask or (_a_sentence(expected) if folder else _QUESTION)
    with stage(nodes, discover, model, len(expected)) as place:
        if not as_json:
            _introduce(place, documents, len(expected))
        report = _perform(place, Documents(paths), expected, cut, question)
    if as_json:
        print_json(_as_json(report))
    else:
        _tell(report)
    if report.lost or report.different:
        raise SollolError(f"{report.lost} passages lost, {report.different} of {report.compared} vectors differ")


def own_documents() -> list[Path]:
    """Return the README and docs of a checkout; from a wheel, the texts in the package."""
    here = Path(__file__).resolve()
    root = here.parents[3]
    if (root / "pyproject.toml").is_file():
        found = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
        found = [path for path in found if path.is_file()]
        if sum(path.stat().st_size for path in found) >= _LEAST_CHARS:
            return [_short(path) for path in found]
    return [_short(here.parent / "demo_texts")]


def _short(path: Path) -> Path:
    """Return a path relative to the current folder, if it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _a_sentence(passages: list[Passage]) -> str:
    """Return words from the middle of the documents, as a question that has an answer."""
    return " ".join(passages[len(passages) // 2].text.split()[:12])


def _perform(place: Stage, documents: Documents, expected: list[Passage], cut: Cut, question: str) -> Report:
    from sollol.index.build import Build
    from sollol.index.nearest import nearest

    with tempfile.TemporaryDirectory(prefix="sollol-demo-") as folder:
        out = Path(folder, "index.npz")
        with Build(out, place.model, cut) as build, fleet.open_pool(place.endpoints) as pool:
            inputs = build.inputs(documents.passages(cut))
            first = next(inputs)
            killer = _Killer(place, len(expected))
            outcome = stream(build, documents, pool, itertools.chain([first], inputs), after=killer)
            build.finish()
            vector = pool.embed(place.model, question)["embeddings"][0]
        lost, sample = _missing(out, expected)
        compared, different = _compare(_fastest(place, outcome), place.model, sample)
        hits = nearest(out, vector, 3)
    return Report(
        stage=place,
        files=len(documents.files),
        passages=len(expected),
        outcome=outcome,
        killed_at_s=killer.at_s,
        bound_s=_bound(place, outcome, build.embedded, killer.at_s),
        lost=lost,
        compared=compared,
        different=different,
        question=question,
        hits=hits,
    )


class _Killer:
    """Kill the victim once half of the passages are done; called after each result."""

    def __init__(self, place: Stage, passages: int) -> None:
        self._place, self._half = place, passages / 2
        self._started = time.monotonic()
        self.at_s: float | None = None

    def __call__(self, build: Build) -> None:
        if self._place.victim is None or self.at_s is not None or build.done < self._half:
            return
        self._place.victim.kill()
        self.at_s = time.monotonic() - self._started
        note(f"Killed {self._place.victim_key} after {seconds(self.at_s)}, with {build.done:,} passages done.")


def _missing(out: Path, expected: list[Passage]) -> tuple[int, list[tuple[Passage, Any]]]:
    """Return the number of passages missing from the index, and a sample of the others with their vectors."""
    from collections import Counter

    from sollol.index import format as index_format

    left = Counter(expected)
    every = -(-len(expected) // _SAMPLE)
    sample = []
    position = 0
    for block in index_format.blocks(out):
        for passage, vector in zip(block.passages, block.vectors, strict=True):
            left[passage] -= 1
            if position % every == 0:
                sample.append((passage, vector))
            position += 1
    return sum(abs(count) for count in left.values()), sample


def _fastest(place: Stage, outcome: EmbedOutcome) -> Endpoint:
    """Return the node that embedded most items, among those that are up."""
    done = {row.node: row.items for row in outcome.nodes if row.state != "down" and row.node != place.victim_key}
    return max(place.endpoints, key=lambda endpoint: done.get(endpoint.key, -1))


def _compare(node: Endpoint, model: str, sample: list[tuple[Passage, Any]]) -> tuple[int, int]:
    """Embed the sample on one node without the pool, and return the vectors compared and those that differ."""
    import asyncio

    import numpy as np

    from sollol.cli.model_choice import post

    body = {"model": model, "input": [passage.text for passage, _ in sample]}
    answer = asyncio.run(post(node, "/api/embed", body))
    if answer is None:
        raise SollolError(f"{node.key} did not answer a direct request, so nothing was compared; run `sollol nodes`")
    direct = np.asarray(answer["embeddings"], np.float32)
    ours = np.stack([vector for _, vector in sample])
    norms = np.linalg.norm(direct, axis=1) * np.linalg.norm(ours, axis=1)
    cosines = np.sum(direct * ours, axis=1) / np.maximum(norms, 1e-12)
    return len(sample), int(np.sum(cosines < _SAME_DIRECTION))


def _bound(place: Stage, outcome: EmbedOutcome, items: int, killed_at_s: float | None) -> float:
    """Return the least seconds, from the given speeds of simulated nodes or else the measured rates."""
    from sollol.sim import fluid_bound

    rates = place.rates or {row.node: row.items_per_s for row in outcome.nodes}
    end = float("inf")
    lived = {place.victim_key: killed_at_s} if killed_at_s is not None else {}
    bound = fluid_bound(items, [(rate, 0.0, lived.get(node) or end) for node, rate in rates.items()])
    return bound if bound < end else 0.0


def _introduce(place: Stage, documents: Documents, passages: int) -> None:
    if place.simulated:
        speeds = ", ".join(f"{rate:.1f}" for rate in place.rates.values())
        say("No Ollama with an embedding model is named or runs on this machine. Four simulated nodes were")
        say(f"started, each a process of its own. Together they are as unequal as real ones: {speeds} items/s.")
        say("Their vectors are hashed words, so a search finds common words rather than common meaning.")
    else:
        say(f"{plural(len(place.endpoints), 'node')} with {place.model} (from {place.how}).")
    say(f"All of them now embed {plural(passages, 'passage')} from {plural(len(documents.files), 'file')}.")
    if place.simulated:
        say("Halfway one of them is killed, without warning.")
    say()


def _tell(report: Report) -> None:
    made = table("node", "speed", "items", "share", "items/s", "state", right=("speed", "items", "share", "items/s"))
    for row in report.outcome.nodes:
        killed = report.killed_at_s is not None and row.node == report.stage.victim_key
        speed = report.stage.rates.get(row.node)
        made.add_row(
            row.node,
            f"{speed:.1f}" if speed else "-",
            f"{row.items:,}",
            f"{row.share:.0%}",
            f"{row.items_per_s:,.1f}",
            "killed" if killed else row.state,
            style="red" if killed else None,
        )
    stdout().print(made)
    say()
    whole = "nothing was lost" if not report.lost else f"{report.lost} WERE LOST"
    say(f"{report.passages - report.lost:,} of {plural(report.passages, 'passage')} are in the index: {whole}.")
    same = report.compared - report.different
    say(f"{same} of {report.compared} vectors equal a node's answer to a direct request.")
    say(
        f"It took {seconds(report.outcome.seconds)}. No scheduler could have needed less than "
        f"{seconds(report.bound_s)} (the fluid bound): efficiency {report.efficiency:.0%}."
    )
    say(f"\nQuestion: {report.question}\n")
    show(report.hits)


def _as_json(report: Report) -> dict[str, Any]:
    outcome = report.outcome
    dead = report.stage.victim_key if report.killed_at_s is not None else ""
    return {
        "simulated": report.stage.simulated,
        "model": report.stage.model,
        "files": report.files,
        "passages": report.passages,
        "nodes": [
            {**row._asdict(), "speed": report.stage.rates.get(row.node), "killed": row.node == dead}
            for row in outcome.nodes
        ],
        "killed_at_s": report.killed_at_s,
        "seconds": outcome.seconds,
        "fluid_bound_s": report.bound_s,
        "efficiency": report.efficiency,
        "lost": report.lost,
        "compared": report.compared,
        "different": report.different,
        "question": report.question,
        "hits": [{"score": round(hit.score, 6), **hit.passage._asdict()} for hit in report.hits],
    }
