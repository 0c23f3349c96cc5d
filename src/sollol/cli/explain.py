"""`sollol explain`: why a request went where it went, told by the dashboard of the program that sent it."""

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
  A pool remembers its last 1,000 calls. A gateway with keys explains to
  each what was asked with it (SOLLOL_API_KEY), to an admin key everything.

[bold]Exit codes[/bold]

  0    explained
  1    no dashboard answers, it does not know this number, or wants a key
"""


def explain(
    number: Annotated[int, typer.Argument(metavar="ID", min=0, help="The number of a call.", show_default=False)],
    url: UrlOption = None,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell why a request went where it went: the nodes it could have gone to, with the terms of each prediction."""
    import asyncio

    told = asyncio.run(_ask(number, url, api_key))
    if as_json:
        print_json(told)
        return
    _say(told)


async def _ask(number: int, url: str | None, key: str | None) -> dict[str, Any]:
    from sollol.transport.http import HttpTransport

    transport = HttpTransport()
    try:
        remote = await attach(transport, url, key)
        if remote is None:
            raise NoAnswer(f"no dashboard runs on this machine (ports 11435 and 8080 were asked). {HOW_TO_START}")
        return await remote.explain(number)
    finally:
        await transport.aclose()


def _say(told: Mapping[str, Any]) -> None:
    state = told.get("outcome") if told.get("state") == "done" else told.get("state")
    stdout().print(Text(printable(f"Call {told['id']}: {told['kind']} with {told['model']}, {state}"), style="bold"))
    for name, value in _facts(told):
        say(f"{name:<10} {printable(value)}")
    for attempt in told.get("running", ()):
        say()
        say(printable(f"Running on {attempt['node']} ({attempt['reason']})"))
        say(f"{millis(attempt['elapsed_ms'])} of {millis(attempt['predicted_ms'])} predicted")
        _say_candidates(attempt["candidates"], attempt["node"])
    _say_candidates(told.get("candidates", ()), told.get("node", ""))
    if told.get("tried"):
        say("\nTried before" if told.get("outcome") == "ok" or told.get("state") != "done" else "\nWhat each node said")
        for row in told["tried"]:
            parts = [row["node"], row.get("outcome", ""), row["why"], millis(row["ms"]) if "ms" in row else ""]
            say("  " + printable(": ".join(part for part in parts if part)))
    for seam in told.get("seams", ()):
        say(printable(f"{seam['node']} went on after {seam['characters']:,} characters ({seam['tokens']:,} tokens)"))
    for item, error in told.get("item_errors", {}).items():
        say(printable(f"item {item}: {error}"))


def _facts(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What there is to say in a line each; times only where there is one."""
    actual = ""
    if told.get("actual_ms"):
        share = f" ({told['actual_ms'] / told['predicted_ms']:.2f} of predicted)" if told.get("predicted_ms") else ""
        actual = millis(told["actual_ms"]) + share
    waits = f"{told['position']}, starts in {millis(told['eta_ms'])}" if "position" in told else ""
    facts = [
        ("error", told.get("error")),
        ("node", told.get("node")),
        ("why there", told.get("reason")),
        ("predicted", millis(told["predicted_ms"]) if told.get("predicted_ms") else ""),
        ("actual", actual),
        ("waited", millis(told["queue_ms"]) if "queue_ms" in told else ""),
        ("position", waits),
        ("attempts", told.get("attempts")),
        ("task", told.get("task_type")),
        ("mode", told.get("mode")),
        ("app", told.get("app")),
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
