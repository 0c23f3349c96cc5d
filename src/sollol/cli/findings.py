"""Hold the results of `sollol bench`, and print them as a table, as JSON, and as warnings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.table import Table

from sollol.cli.console import millis, plural, printable, say, seconds, stdout, table
from sollol.core.endpoint import Endpoint

if TYPE_CHECKING:
    from sollol.cli.measure import Alone, CallCost, Plan, Talk
    from sollol.observe.batch_report import BatchReport

_TOO_SHORT = 0.5  # share of `--seconds`; a rate from a shorter time is rough


class Place(NamedTuple):
    """Hold the nodes to measure; `given` has the speeds of simulated ones in items/s."""

    endpoints: tuple[Endpoint, ...]
    how: str
    given: dict[str, float]

    @property
    def simulated(self) -> bool:
        """Check whether the nodes are simulated."""
        return bool(self.given)


@dataclass
class Row:
    """Hold the measurements of one node; None if not measured."""

    endpoint: Endpoint
    alone: Alone | None = None
    talk: Talk | None = None
    was_loaded: bool | None = None
    errors: list[str] = field(default_factory=list)

    @property
    def node(self) -> str:
        """Return the node's address."""
        return self.endpoint.key

    @property
    def rate(self) -> float:
        """Return the rate alone in items/s, 0 if not measured."""
        return self.alone.report.items_per_s if self.alone else 0.0


@dataclass
class Findings:
    """Hold all measurements of a run."""

    plan: Plan
    place: Place
    rows: list[Row]
    model: str | None = None
    chat_model: str | None = None
    together: BatchReport | None = None
    call: CallCost | None = None
    problems: list[str] = field(default_factory=list)  # that concern no single node

    @property
    def sum_alone(self) -> float:
        """Return the sum of the rates alone, in items/s."""
        return sum(row.rate for row in self.rows)

    @property
    def efficiency(self) -> float | None:
        """Return the rate together divided by the sum of the rates alone, or None."""
        return self.together.items_per_s / self.sum_alone if self.together and self.sum_alone else None


def warnings_of(found: Findings) -> list[str]:
    """Return the warnings about the results."""
    warnings = list(found.problems)
    for row in found.rows:
        warnings += [f"{row.node}: {error}" for error in row.errors]
        if row.alone and "CPU" in row.alone.runs_on:
            warnings.append(
                f"{row.node}: {found.model} runs on {row.alone.runs_on}. If it has a GPU, the model did not fit into "
                "its memory, and could be up to 20 times faster there."
            )
        if row.alone and row.alone.report.seconds < _TOO_SHORT * found.plan.seconds:
            took = millis(row.alone.report.seconds * 1000)
            warnings.append(f"{row.node}: --items {found.plan.items:,} took only {took}; its rates are rough.")
    for node, share in found.together.nodes.items() if found.together else ():
        if share.failed:
            warnings.append(f"{node}: {plural(share.failed, 'request')} failed while all nodes embedded together.")
    return warnings


def tell(found: Findings) -> None:
    """Print the results."""
    source = "simulated" if found.place.simulated else f"from {found.place.how}"
    models = [f"embedding with {found.model}"] * bool(found.model) + [f"chat with {found.chat_model}"] * bool(
        found.chat_model
    )
    say(printable(", ".join([f"{plural(len(found.rows), 'node')} ({source})", *models]) + "."))
    stdout().print(_table(found))
    if found.together and found.efficiency is not None:
        say(
            f"Together {found.together.items_per_s:,.1f} items/s of {found.sum_alone:,.1f}, the sum of alone: "
            f"efficiency {found.efficiency:.0%}."
        )
    if found.call:
        added = (found.call.pool_s - found.call.raw_s) * 1000
        say(
            f"A call that does nothing takes {found.call.pool_s * 1000:.2f} ms through the pool and "
            f"{found.call.raw_s * 1000:.2f} ms without it: {added:+.2f} ms."
        )


def _table(found: Findings) -> Table:
    given = found.place.given
    columns = ["node", *(["given"] if given else []), "alone", "share", "load", "runs on", "first token", "tokens/s"]
    made = table(*columns, right=[name for name in columns if name not in ("node", "runs on")])
    for row in found.rows:
        made.add_row(
            row.node,
            *([f"{given[row.node]:,.1f}/s"] if given else []),
            *_embed_cells(found, row),
            millis(row.talk.first_token_s and row.talk.first_token_s * 1000) if row.talk else "-",
            f"{row.talk.tokens_per_s:,.1f}" if row.talk and row.talk.tokens_per_s else "-",
            style="red" if row.errors else None,
        )
    return made


def _embed_cells(found: Findings, row: Row) -> tuple[str, ...]:
    if row.alone is None:
        return ("-",) * 4
    share = found.together.nodes.get(row.node) if found.together else None
    return (
        f"{row.rate:,.1f}/s",
        f"{share.share:.0%}" if share else "-",
        "was loaded" if row.was_loaded else seconds(row.alone.load_s),
        row.alone.runs_on,
    )


def as_json(found: Findings) -> dict[str, Any]:
    """Return the results as a JSON value."""
    from sollol.cli.measure import PASSAGE_WORDS

    together, call = found.together, found.call
    return {
        "simulated": found.place.simulated,
        "nodes_from": found.place.how,
        "model": found.model,
        "chat_model": found.chat_model,
        "passage_words": PASSAGE_WORDS,
        "nodes": [_row_as_json(found, row) for row in found.rows],
        "sum_alone_items_per_s": _round(found.sum_alone),
        "together_items": together.items if together else None,
        "together_s": _round(together.seconds) if together else None,
        "together_items_per_s": _round(together.items_per_s) if together else None,
        "efficiency": _round(found.efficiency),
        "call_through_pool_ms": _round(call.pool_s * 1000) if call else None,
        "call_without_pool_ms": _round(call.raw_s * 1000) if call else None,
        "call_added_ms": _round((call.pool_s - call.raw_s) * 1000) if call else None,
        "calls": call.calls if call else None,
        "warnings": warnings_of(found),
    }


def _row_as_json(found: Findings, row: Row) -> dict[str, Any]:
    alone, talk = row.alone, row.talk
    share = found.together.nodes.get(row.node) if found.together else None
    return {
        "node": row.node,
        "given_items_per_s": found.place.given.get(row.node),
        "alone_items": alone.report.items if alone else None,
        "alone_s": _round(alone.report.seconds) if alone else None,
        "alone_items_per_s": _round(row.rate) if alone else None,
        "together_items": share.items if share else None,
        "together_share": _round(share.share) if share else None,
        "was_loaded": row.was_loaded,
        "load_s": _round(alone.load_s) if alone else None,
        "runs_on": alone.runs_on if alone else None,
        "chat_load_s": _round(talk.load_s) if talk else None,
        "first_token_s": _round(talk.first_token_s) if talk else None,
        "tokens_per_s": _round(talk.tokens_per_s) if talk else None,
        "errors": row.errors,
    }


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
