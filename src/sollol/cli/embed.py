"""Implement `sollol embed`, which embeds documents on all nodes and writes one index file.

Documents are read in this thread while the pool embeds in its own, and each result is written to the log at once.
Memory does not grow with the collection, and a run can be interrupted at any time.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from sollol.cli import fleet
from sollol.cli.console import Stopped, note, one_line, plural, print_json, say, seconds, stdout
from sollol.cli.fleet import JsonOption, NodesOption
from sollol.cli.progress import Count, NodeRow, Progress, node_rows, node_table
from sollol.errors import BadInput, ResponseError, SollolError
from sollol.index.documents import Documents, Skipped, check_extras, place
from sollol.index.extras import need

if TYPE_CHECKING:
    from sollol.index.build import Build

_SHOWN = 20  # problems that are listed one by one
_QUICKLY_WRITTEN = 20_000  # passages; writing more takes seconds and is announced
_MODEL_FAULTS = (404, 501)  # the model is missing or cannot embed, so every passage would be refused

EPILOG = """\
[bold]Examples[/bold]

  sollol embed ~/notes --model nomic-embed-text --out notes.npz
  sollol embed book.pdf faq.csv -m bge-m3 -o kb.parquet --chunk-size 600
  sollol embed docs -m bge-m3 -o docs.jsonl --nodes 10.0.0.5,10.0.0.6:11435

[bold]Again[/bold]

  The same command continues an interrupted run from FILE.partial, and
  brings a finished file up to date: only passages that are new or changed
  are embedded, those whose documents are gone are dropped.

[bold]Exit codes[/bold]

  0    the file is written; documents that could not be read are listed
  1    it failed, or --strict found a document that cannot be read, or the
       model refused a passage (the file has all others)
  2    the command cannot be carried out as written; nothing was touched
  130  interrupted; the same command continues
"""


class Failed(SollolError):
    """Report a run that cannot continue, or that left passages out."""


class EmbedOutcome(NamedTuple):
    """Hold the measured results of a run."""

    seconds: float
    nodes: list[NodeRow]
    refused: list[str]


def embed(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH…", help="Files and folders: .txt .md .html .jsonl .csv .pdf", show_default=False),
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="The embedding model.", show_default=False)],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="The index to write: .npz, .jsonl or .parquet.", show_default=False),
    ],
    chunk_size: Annotated[int, typer.Option(metavar="CHARS", help="The longest passage.")] = 1000,
    overlap: Annotated[
        int, typer.Option(metavar="CHARS", help="The characters that a passage repeats of the one before.")
    ] = 150,
    nodes: NodesOption = None,
    priority: Annotated[int, typer.Option(min=0, max=10, help="0 (can wait) to 10 (urgent).")] = 5,
    strict: Annotated[
        bool, typer.Option("--strict", help="Embed nothing if a document cannot be read: exit code 1.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an index of another model, and reuse nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Embed documents on all nodes at once, into an index that [bold]sollol search[/bold] reads.

    Documents are cut into overlapping passages at paragraphs, sentences or
    words. Each keeps its file and its place there: the page of a PDF, the row
    of a table, the line of a .jsonl, and the offset in characters. Equal
    passages are embedded once. The file is written beside its place and then
    renamed: it is never half there.
    """
    need("numpy")
    from sollol.index.build import Build
    from sollol.index.chunks import Cut

    cut = Cut(chunk_size, overlap).checked()
    if not model.strip():
        raise BadInput("--model is empty; expected a name such as nomic-embed-text")
    partial = out.with_name(out.name + ".partial")
    documents = Documents(paths, leave_out=[out, partial, out.with_name(f".{out.name}.new")])
    check_extras(documents)
    if strict:
        _refuse_problems(documents.check(cut))
    with Build(out, model, cut, force=force) as build:
        if build.continued:
            note(f"Continuing: {plural(build.continued, 'vector')} are kept in {build.log.path}")
        try:
            outcome, missing = _run(build, documents, nodes, priority)
        except SollolError:
            if documents.all_read and not build.total:  # all documents may have been skipped
                _list_skipped(documents)
            raise
        _tell(build, documents, outcome, as_json)
    if missing:
        raise Failed(f"{plural(missing, 'passage')} refused by the model; {out} has the other {build.count:,}")


def _refuse_problems(problems: list[Skipped]) -> None:
    if problems:
        listed = [f"  {one_line(file)} {why}" for file, why in problems]
        raise Failed("\n".join(["--strict: nothing was embedded, because these cannot be read:", *listed]))


def _run(build: Build, documents: Documents, nodes: str | None, priority: int) -> tuple[EmbedOutcome, int]:
    """Embed and write; return the outcome and the number of passages that the model refused."""
    try:
        outcome = _embed_new(build, documents, nodes, priority)
        if build.total > _QUICKLY_WRITTEN:
            note(f"Writing {build.out} ...")
        return outcome, len(build.finish())
    except KeyboardInterrupt:
        raise Stopped(_how_to_continue(build)) from None
    except ResponseError as error:  # the fault of one passage would be listed instead
        raise Failed(f"the model {build.model} cannot embed: {error}") from error
    except SollolError as error:
        if len(build.log):
            error.add_note(_how_to_continue(build))
        raise


def _embed_new(build: Build, documents: Documents, nodes: str | None, priority: int) -> EmbedOutcome:
    """Embed the passages without a vector; if there is none, use no node."""
    inputs = build.inputs(documents.passages(build.log.cut))
    first = next(inputs, None)
    if first is None:
        return EmbedOutcome(0.0, [], [])
    with fleet.open_pool(fleet.choose(nodes).endpoints) as pool:
        return stream(build, documents, pool, itertools.chain([first], inputs), priority)


def _how_to_continue(build: Build) -> str:
    if not len(build.log):
        return "nothing was embedded yet."
    return f"{plural(len(build.log), 'vector')} are kept in {build.log.path}; the same command continues from there."


def stream(
    build: Build,
    documents: Documents,
    pool: Any,
    inputs: Iterator[str],
    priority: int = 5,
    after: Callable[[Build], None] = lambda build: None,
) -> EmbedOutcome:
    """Embed the inputs on a pool and add the results to the build.

    Args:
        build: The index to extend.
        documents: The documents that the inputs come from.
        pool: An OllamaPool, or an object with its `embed_stream` and `get_stats`.
        inputs: The texts of the passages.
        priority: The priority of the batch, 0 to 10.
        after: Called after each result.
    """
    refused: list[str] = []
    first_error: ResponseError | None = None

    def count() -> Count:
        total = documents.estimate.total()
        done = documents.estimate.cost_of(build.done)
        return Count(build.done, total.passages, documents.all_read, build.embedded, done, total.cost)

    started = time.monotonic()
    results = pool.embed_stream(build.model, inputs, priority=priority, on_error="return")
    with Progress(count, pool.get_stats) as progress:
        for index, result in results:
            if isinstance(result, ResponseError):
                if result.status_code in _MODEL_FAULTS:
                    raise result
                first_error = first_error or result
                refused.append(f"{place(build.refuse(index))}: {result}")
            elif isinstance(result, Exception):
                raise result
            else:
                build.add(index, result)
            after(build)
            progress.tick()
    if first_error and not len(build.log):
        raise first_error
    return EmbedOutcome(time.monotonic() - started, node_rows(pool.get_stats()), refused)


def _tell(build: Build, documents: Documents, outcome: EmbedOutcome, as_json: bool) -> None:
    if as_json:
        print_json(_as_json(build, documents, outcome))
        return
    rate = f" in {seconds(outcome.seconds)} ({build.embedded / outcome.seconds:,.1f}/s)" if outcome.seconds else ""
    say(
        f"Wrote {build.out}: {plural(build.count, 'passage')} from {plural(documents.files_with_text, 'file')}, "
        f"{build.dim} numbers each, model {build.model}"
    )
    say(f"{build.embedded:,} embedded{rate}, {build.reused:,} reused, {build.repeated:,} repeated")
    if outcome.nodes:
        stdout().print(node_table(outcome.nodes))
    _list_skipped(documents)
    _list_problems("Refused by the model", outcome.refused)
    if documents.other_kinds:
        note(f"{plural(documents.other_kinds, 'file')} of other kinds left out: {_kinds(documents.others)}.")


def _list_skipped(documents: Documents) -> None:
    _list_problems("Skipped", [f"{one_line(file)} {why}" for file, why in documents.skipped])


def _list_problems(what: str, problems: list[str]) -> None:
    if not problems:
        return
    note(f"{what} ({len(problems):,}):")
    for line in problems[:_SHOWN]:
        note(f"  {line}")
    if len(problems) > _SHOWN:
        note(f"  and {len(problems) - _SHOWN:,} more (--json lists all)")


def _as_json(build: Build, documents: Documents, outcome: EmbedOutcome) -> dict[str, Any]:
    return {
        "out": str(build.out),
        "model": build.model,
        "dim": build.dim,
        "passages": build.count,
        "files": documents.files_with_text,
        "embedded": build.embedded,
        "reused": build.reused,
        "repeated": build.repeated,
        "seconds": round(outcome.seconds, 3),
        "items_per_s": round(build.embedded / outcome.seconds, 2) if outcome.seconds else 0.0,
        "nodes": [row._asdict() for row in outcome.nodes],
        "skipped": [problem._asdict() for problem in documents.skipped],
        "refused": outcome.refused,
        "other_kinds": documents.other_kinds,
        "other_endings": dict(documents.others.most_common()),
    }


def _kinds(others: Counter[str]) -> str:
    """Return the endings of files that were left out, the most frequent first."""
    named = [f"{count:,} {kind or 'without an ending'}" for kind, count in others.most_common(_SHOWN)]
    more = len(others) - len(named)
    return ", ".join(named) + (f" and {more:,} more kinds" if more > 0 else "")
