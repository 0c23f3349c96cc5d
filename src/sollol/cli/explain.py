"""Implement `sollol explain`, which prints why a request was sent to its node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.text import Text

from sollol.cli.attach import HOW_TO_START, KeyOption, NoAnswer, UrlOption, attach
from sollol.cli.console import millis, print_json, printable, say, stdout, table
from sollol.cli.fleet import JsonOption

EPILOG = """\
[bold]Examples[/bold]

  sollol explain 180
  sollol explain 180 --url http://127.0.0.1:8080 --json

[bold]Where the number is[/bold]

  In the dashboard, in `sollol top`, and in a program as answer.routing.id.
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
    _say(record)


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


def _say(record: Mapping[str, Any]) -> None:
    state = record.get("outcome") if record.get("state") == "done" else record.get("state")
    stdout().print(
        Text(printable(f"Call {record['id']}: {record['kind']} with {record['model']}, {state}"), style="bold")
    )
    for name, value in _facts(record):
        say(f"{name:<10} {printable(value)}")
    for attempt in record.get("running", ()):
        say()
        say(printable(f"Running on {attempt['node']} ({attempt['reason']})"))
        say(f"{millis(attempt['elapsed_ms'])} of {millis(attempt['predicted_ms'])} predicted")
        _say_candidates(attempt["candidates"], attempt["node"])
    _say_candidates(record.get("candidates", ()), record.get("node", ""))
    if record.get("tried"):
        say(
            "\nTried before"
            if record.get("outcome") == "ok" or record.get("state") != "done"
            else "\nWhat each node said"
        )
        for row in record["tried"]:
            parts = [row["node"], row.get("outcome", ""), row["why"], millis(row["ms"]) if "ms" in row else ""]
            say("  " + printable(": ".join(part for part in parts if part)))
    for seam in record.get("seams", ()):
        say(printable(f"{seam['node']} went on after {seam['characters']:,} characters ({seam['tokens']:,} tokens)"))
    for item, error in record.get("item_errors", {}).items():
        say(printable(f"item {item}: {error}"))


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


def _say_candidates(rows: Sequence[Mapping[str, Any]], chosen: str) -> None:
    if not rows:
        return
    terms = list(dict.fromkeys(name for row in rows for name in row["terms"]))
    made = table("candidate", *map(printable, terms), "would finish in", right=(*terms, "would finish in"))
    for row in rows:
        name = printable(row["node"]) + (" (chosen)" if row["node"] == chosen else "")
        made.add_row(name, *(millis(row["terms"].get(term)) for term in terms), millis(row["finish_ms"]))
    say()
    stdout().print(made)
