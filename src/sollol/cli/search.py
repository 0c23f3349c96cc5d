"""Implement `sollol search`, which prints the passages of an index nearest in meaning to a question."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from sollol.cli import fleet
from sollol.cli.console import print_json, say, stdout
from sollol.cli.fleet import JsonOption, NodesOption
from sollol.errors import BadInput
from sollol.index.documents import place
from sollol.index.extras import need

if TYPE_CHECKING:
    from sollol.index.nearest import Hit

_SHOWN_CHARS = 300

EPILOG = """\
[bold]Examples[/bold]

  sollol search notes.npz "how do I renew the certificate?"
  sollol search kb.parquet "warranty period" -k 10 --json

[bold]Exit codes[/bold]

  0    found
  1    no node could embed the question
  2    FILE is not an index, or the question is empty
"""


def search(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An index of `sollol embed`.", show_default=False)],
    query: Annotated[str, typer.Argument(metavar="QUERY", help="The question, in words.", show_default=False)],
    count: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many passages.")] = 5,
    nodes: NodesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the passages nearest to a question in an index that [bold]sollol embed[/bold] wrote.

    The question is embedded with the model of the index, on one of the nodes;
    then every passage is compared with it (cosine). A score of 1 means the same
    direction, 0 nothing in common.
    """
    need("numpy")
    from sollol.index import format as index_format
    from sollol.index.nearest import nearest

    if not query.strip():
        raise BadInput("QUERY is empty; expected some words")
    model = index_format.about(file).model
    with fleet.open_pool(fleet.choose(nodes).endpoints) as pool:
        vector = pool.embed(model, query)["embeddings"][0]
    hits = nearest(file, vector, count)
    if as_json:
        print_json({"file": str(file), "model": model, "query": query, "hits": [_as_json(hit) for hit in hits]})
    else:
        show(hits)


def show(hits: list[Hit]) -> None:
    """Print the hits with their scores and places."""
    for number, (score, passage) in enumerate(hits, 1):
        stdout().print(Text.assemble((f"{number}. {score:.3f}  ", "bold"), place(passage)), soft_wrap=True)
        say(f"   {_beginning(passage.text)}")


def _beginning(text: str) -> str:
    line = " ".join(text.split())
    if len(line) <= _SHOWN_CHARS:
        return line
    return line[:_SHOWN_CHARS].rpartition(" ")[0] + " …"


def _as_json(hit: Hit) -> dict[str, Any]:
    return {"score": round(hit.score, 6), **hit.passage._asdict()}
