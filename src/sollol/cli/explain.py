"""Implement `sollol explain`, which prints why a request was sent to its node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.text import Text

from sollol.cli.attach import HOW_TO_START, KeyOption, NoAnswer, UrlOption, attach
from sollol.cli.console import millis, one_line, print_json, stdout
from sollol.cli.fleet import JsonOption
from sollol.cli.listings import Column, Listing, arrange, lines
from sollol.cli.screen import WIDEST

EPILOG = """\
[bold]Examples[/bold]

  sollol explain 180
  sollol explain 180 --url http://127.0.0.1:8080 --json

[bold]Where the number is[/bold]

  In the dashboard, in `sollol top`, in the header X-Sollol-Request-Id of a
  gateway's answer, and in a program as answer.routing.id.
  A pool keeps its last 1,000 calls. A gateway with keys explains the calls
  made with your key (SOLLOL_API_KEY), and all calls to an admin key.

[bold]Exit codes[/bold]

  0    explained
  1    no dashboard answers, it has no such number, or it requires a key
"""


def explain(
    number: Annotated[int, typer.Argument(metavar="ID", min=0, help="The number of a call.", show_default=False)],
    url: UrlOption = None,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Explain why a request was sent to its node: the candidates, with the terms of each prediction."""
    import asyncio

    record = asyncio.run(_read(number, url, api_key))
    if as_json:
        print_json(record)
        return
    for line in explanation(record):
        stdout().print(line, soft_wrap=True)


async def _read(number: int, url: str | None, key: str | None) -> dict[str, Any]:
    from sollol.transport.http import HttpTransport

    transport = HttpTransport()
    try:
        remote = await attach(transport, url, key)
        if remote is None:
            raise NoAnswer(f"no dashboard runs on this machine (ports 11435 and 8080 were tried). {HOW_TO_START}")
        return await remote.explain(number)
    finally:
        await transport.aclose()


def explanation(record: Mapping[str, Any]) -> list[Text]:
    """Return an explanation as lines."""
    state = record.get("outcome") if record.get("state") == "done" else record.get("state")
    found = [Text(one_line(f"Call {record['id']}: {record['kind']} with {record['model']}, {state}"), style="bold")]
    found += [_line(f"{name:<10} {value}") for name, value in _facts(record)]
    for attempt in record.get("running", ()):
        found += [Text(), _line(f"Running on {attempt['node']} ({attempt['reason']})")]
        found.append(_line(f"{millis(attempt['elapsed_ms'])} of {millis(attempt['predicted_ms'])} predicted"))
        found += _candidates(attempt["candidates"], attempt["node"])
    found += _candidates(record.get("candidates", ()), record.get("node", ""))
    if record.get("tried"):
        is_well = record.get("outcome") == "ok" or record.get("state") != "done"
        found += [Text(), _line("Tried before" if is_well else "Answers of the nodes")]
        for row in record["tried"]:
            parts = [row["node"], row.get("outcome", ""), row["why"], millis(row["ms"]) if "ms" in row else ""]
            found.append(_line("  " + ": ".join(part for part in parts if part)))
    for at in record.get("seams", ()):
        went_on = f"{at['node']} went on after {at['characters']:,} characters ({at['tokens']:,} tokens)"
        found.append(_line(went_on))
    for item, error in record.get("item_errors", {}).items():
        found.append(_line(f"item {item}: {error}"))
    return found


def _line(text: str) -> Text:
    return Text(one_line(text))


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the names and values to print, without those that are missing."""
    actual = ""
    if record.get("actual_ms"):
        share = (
            f" ({record['actual_ms'] / record['predicted_ms']:.2f} of predicted)" if record.get("predicted_ms") else ""
        )
        actual = millis(record["actual_ms"]) + share
    waits = f"{record['position']}, starts in {millis(record['eta_ms'])}" if "position" in record else ""
    facts = [
        ("error", record.get("error")),
        ("node", record.get("node")),
        ("why there", record.get("reason")),
        ("predicted", millis(record["predicted_ms"]) if record.get("predicted_ms") else ""),
        ("actual", actual),
        ("waited", millis(record["queue_ms"]) if "queue_ms" in record else ""),
        ("position", waits),
        ("attempts", record.get("attempts")),
        ("task", record.get("task_type")),
        ("mode", record.get("mode")),
        ("app", record.get("app")),
    ]
    return [(name, str(value)) for name, value in facts if value]


def _candidates(rows: Sequence[Mapping[str, Any]], chosen: str) -> list[Text]:
    """Return a table of the candidates, with an empty line before it."""
    if not rows:
        return []
    terms = list(dict.fromkeys(name for row in rows for name in row["terms"]))

    def term(name: str) -> Column:
        return Column(name, lambda row: millis(row["terms"].get(name)), right=True)

    columns = (
        Column("candidate", lambda row: row["node"] + (" (chosen)" if row["node"] == chosen else "")),
        *(term(one_line(name)) for name in terms),
        Column("would finish in", lambda row: millis(row["finish_ms"]), right=True),
    )
    listing = Listing("candidates", columns, lambda record: record["rows"], lambda row: row["node"], "")
    return [Text(), *lines(arrange(listing, {"rows": rows}), WIDEST, len(rows))]
