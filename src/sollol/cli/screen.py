"""Draw a snapshot for `sollol top`: the lists of nodes and requests, and whole frames that fit the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.text import Text

from sollol.cli.console import millis, one_line, plural, printable
from sollol.cli.listings import Column, Drawn, Listing, Row, lines

LATE = 1.5  # times the prediction, from which on a running request is marked
SPARK_S = 60.0
SPARK = "▁▂▃▄▅▆▇█"
SPARK_CELLS = 15
BAR_CELLS = 10
RATE_S = 10.0  # over which the shown rate is taken
SHOWN = 20  # rows of a list where the height sets no bound
WIDEST = 500
APART = 30  # lines from which on an empty line is between lists
_VERDICTS = {"ok": "green", "info": "cyan", "warning": "yellow", "error": "red"}

Rates = Mapping[str, Sequence[float]]  # tokens per second by node, for each of the last intervals


class Spark(NamedTuple):
    """Hold the tokens per second of each node over the last minute; `step_s` is the length of an interval."""

    rates: Rates
    step_s: float

    @property
    def highest(self) -> float:
        """Return the highest rate of all nodes, so that their rows can be compared."""
        return max((rate for row in self.rates.values() for rate in row), default=0.0)


NO_SPARK = Spark({}, 2.0)


def listings_of(frame: Row, spark: Spark = NO_SPARK) -> list[Listing]:
    """Return the lists that a frame has."""
    if frame.get("watching"):
        return [Listing("nodes", _WATCHED, lambda frame: frame["nodes"], lambda row: row["host"], "no nodes")]
    loads = [Listing("loading", _LOADING, loads_of, lambda row: (row["node"], row["model"]), "nothing loading")]
    return [
        Listing("nodes", _node_columns(spark), lambda frame: frame["nodes"], lambda row: row["host"], "no nodes"),
        *(loads if loads_of(frame) else []),
        Listing("running", _RUNNING, lambda frame: frame["running"], lambda row: row["attempt"], "nothing running"),
        Listing("waiting", _WAITING, lambda frame: frame["waiting"], lambda row: row["id"], "nothing waiting"),
        Listing("recent", _RECENT, lambda frame: frame["recent"], lambda row: row["id"], "no requests yet"),
    ]


def loads_of(frame: Row) -> list[dict[str, Any]]:
    """Return the loads in progress on all nodes, with their `node`."""
    return [{"node": node["host"], **load} for node in frame["nodes"] for load in node.get("loading") or ()]


def load_progress(load: Row) -> Text:
    """Return a load's progress as a bar and a share, or what is known instead."""
    if load.get("state") == "stuck":
        return Text("stuck", style="yellow")
    share = load.get("progress")
    if share is None:
        return Text("late" if load["elapsed_ms"] > load["predicted_ms"] else "not measured yet", style="dim")
    share = min(max(share, 0.0), 1.0)
    done = round(share * BAR_CELLS)
    return Text.assemble(("█" * done, "cyan"), ("░" * (BAR_CELLS - done), "dim"), f" {share:.0%}")


def headline(frame: Row, width: int = WIDEST) -> Text:
    """Return the counts of a frame as one line, without the last ones where they do not fit."""
    up = sum(1 for node in frame["nodes"] if node["state"] == "up")
    parts = [frame["app_name"], f"{up} of {len(frame['nodes'])} nodes up"]
    if frame.get("watching"):
        parts.append("the nodes alone: the requests of programs are not seen")
    else:
        totals, ratio = frame["totals"], frame["calibration"]
        failed = f", {totals['failed_requests']:,} failed" if totals["failed_requests"] else ""
        parts += [
            f"{len(frame['running'])} running",
            f"{len(frame['waiting'])} waiting",
            f"{plural(totals['total_requests'], 'request')}{failed}",
        ]
        if ratio["count"]:
            parts.append(f"actual ÷ predicted time: median {ratio['median']:.2f}, p90 {ratio['p90']:.2f}")
    return title(parts, width)


def title(parts: Sequence[str], width: int) -> Text:
    """Return the name of the program and as many parts as fit."""
    line = Text("SOLLOL", style="bold")
    for part in filter(None, parts):
        if line.cell_len + cell_len(part) + 2 > width:
            break
        line.append(f"  {one_line(part)}", style="not bold")
    return line


def verdict(frame: Row) -> Text:
    """Return the verdict of a frame as one line, empty where there is none."""
    found = frame.get("verdict") or {}
    return Text(one_line(found.get("text", "")), style=_VERDICTS.get(found.get("severity", ""), ""))


def once(head: Text, drawn: Sequence[Drawn], width: int) -> list[Text]:
    """Return a whole frame for a file, a pipe or `--once`."""
    found = [head]
    for part in drawn:
        found += [Text(), *lines(part, width, SHOWN)]
    return found


def share_out(rows: Sequence[int], height: int, focus: int) -> list[int]:
    """Return the lines of each list under its header, for lists of these lengths in `height` lines.

    The first list gets up to a third at first. The rest is shared; the list with the focus gets three parts of it.
    """
    height -= len(rows)  # the headers; an empty list has nothing else
    shares = [min(number, 2) for number in rows]
    shares[0] = min(rows[0], max(2, height // 3))
    while sum(shares) > max(0, height):
        shares[max(range(len(shares)), key=lambda number: (shares[number], number != focus))] -= 1
    left = height - sum(shares)
    while left > 0 and any(share < number for share, number in zip(shares, rows, strict=True)):
        for number in (*range(len(rows)), focus, focus):
            if left > 0 and shares[number] < rows[number]:
                shares[number] += 1
                left -= 1
    return shares


def sparkline(rates: Sequence[float], highest: float, cells: int = SPARK_CELLS) -> str:
    """Return rates as bars of one line, the newest at the right; a rate of 0 is a space."""
    if not rates or highest <= 0:
        return " " * cells
    per_cell = max(1, -(-len(rates) // cells))
    sums = [rates[max(0, end - per_cell) : end] for end in range(len(rates), 0, -per_cell)][:cells]
    means = [sum(part) / len(part) for part in reversed(sums)]
    bars = [SPARK[min(7, int(mean / highest * 8))] if mean > 0 else " " for mean in means]
    return "".join(bars).rjust(cells)


def _node_columns(spark: Spark) -> tuple[Column, ...]:
    newest = max(1, int(RATE_S / spark.step_s))
    highest = spark.highest

    def rate(row: Row) -> float:
        rates = spark.rates.get(row["host"], ())[-newest:]
        return sum(rates) / len(rates) if rates else 0.0

    def bars(row: Row) -> Text:
        return Text(sparkline(spark.rates.get(row["host"], ()), highest), style="cyan")

    found = (
        Column("node", lambda row: row["host"]),
        Column("state", _state, _state_key),
        Column("running", _slots, lambda row: row["active_requests"], right=True),
        Column("tokens/s", lambda row: _rate(rate(row)), rate, right=True, rank=1),
        Column("last minute", bars, rate, rank=2),
        Column("items/s", lambda row: _rate(row["batch_throughput"]), lambda row: row["batch_throughput"], True, 4),
        Column("latency", _latency, lambda row: row["latency_ms"], True, 3),
        Column("requests", lambda row: f"{row['total_requests']:,}", lambda row: row["total_requests"], True, 5),
        Column("success", _success, lambda row: row["success_rate"], True, 6),
        Column("models in memory", _memories),
    )
    return found if spark.rates else tuple(column for column in found if column.name not in ("tokens/s", "last minute"))


def _rate(value: float) -> str:
    return f"{value:,.1f}" if value else "-"


def _latency(row: Row) -> str:
    return millis(row["latency_ms"]) if row["latency_ms"] else "-"


def _success(row: Row) -> str:
    return f"{row['success_rate']:.1%}" if row["total_requests"] else "-"


def _slots(row: Row) -> str:
    return str(row["active_requests"])


def _state_key(row: Row) -> int:
    return {"down": 0, "unknown": 1}.get(row["state"], 2 if row.get("drained") else 3)


def _state(row: Row) -> Text:
    if row["state"] == "up" and row.get("drained"):
        return Text("drained", style="yellow")
    return Text(printable(row["state"]), style={"up": "green", "down": "red"}.get(row["state"], "dim"))


def _memories(row: Row) -> Text:
    if row["state"] == "down":
        return Text(one_line(row["why"]), style="red")
    parts = [_memory(model) for model in row["loaded"]]
    parts += [Text(one_line(words), style="yellow") for words in (*row.get("drained_for", ()), *row.get("unable", ()))]
    return Text(", ").join(parts)


def _memory(model: Row) -> Text:
    """Return a loaded model's name, with its processor if a part of it is on the CPU."""
    name, where = one_line(model["model"]), one_line(model["processor"])
    return Text.assemble(name, (f" ! {where}", "yellow")) if "CPU" in where else Text(name)


def _elapsed(row: Row) -> Text:
    late = row["elapsed_ms"] > LATE * row["predicted_ms"]
    return Text(millis(row["elapsed_ms"]), style="yellow" if late else "")


def _kind(row: Row) -> str:
    return f"{row['kind']} {row['items']}" if row.get("items") else str(row["kind"])


def _number(row: Row) -> str:
    return str(row["id"])


def _outcome(row: Row) -> Text:
    return Text(one_line(row["outcome"]), style="" if row["outcome"] == "ok" else "red")


_WATCHED = (
    Column("node", lambda row: row["host"]),
    Column("state", _state, _state_key),
    Column("latency", _latency, lambda row: row["latency_ms"], True, 1),
    Column("models in memory", _memories),
)
_LOADING = (
    Column("loading", lambda row: row["model"]),
    Column("node", lambda row: row["node"]),
    Column("progress", load_progress, lambda row: row.get("progress")),
    Column("elapsed", lambda row: millis(row["elapsed_ms"]), lambda row: row["elapsed_ms"], True, 1),
    Column("predicted", lambda row: millis(row["predicted_ms"]), lambda row: row["predicted_ms"], True, 2),
    Column("left", lambda row: millis(row.get("eta_ms")), lambda row: row.get("eta_ms"), True, 3),
)
_RUNNING = (
    Column("running", _number, lambda row: row["id"], True),
    Column("model", lambda row: row["model"]),
    Column("kind", _kind, None, False, 3),
    Column("node", lambda row: row["node"]),
    Column("elapsed", _elapsed, lambda row: row["elapsed_ms"], True, 1),
    Column("predicted", lambda row: millis(row["predicted_ms"]), lambda row: row["predicted_ms"], True, 2),
    Column("reason", lambda row: row["reason"], None, False, 4),
)
_WAITING = (
    Column("waiting", _number, lambda row: row["id"], True),
    Column("position", lambda row: str(row["position"]), lambda row: row["position"], True, 4),
    Column("model", lambda row: row["model"]),
    Column("kind", lambda row: row["kind"], None, False, 3),
    Column("waited", lambda row: millis(row["waited_ms"]), lambda row: row["waited_ms"], True, 1),
    Column("starts in", lambda row: millis(row["eta_ms"]), lambda row: row["eta_ms"], True, 2),
    Column("priority", lambda row: str(row["priority"]), lambda row: row["priority"], True, 5),
    Column("app", lambda row: row["app"], None, False, 6),
)
_RECENT = (
    Column("recent", _number, lambda row: row["id"], True),
    Column("at", lambda row: datetime.fromtimestamp(row["at"]).strftime("%H:%M:%S"), lambda row: row["at"], False, 2),
    Column("model", lambda row: row["model"]),
    Column("node", lambda row: row["node"]),
    Column("outcome", _outcome),
    Column("predicted", lambda row: millis(row["predicted_ms"] or None), lambda row: row["predicted_ms"], True, 3),
    Column("actual", lambda row: millis(row["actual_ms"]), lambda row: row["actual_ms"], True, 1),
    Column("attempts", lambda row: str(row["attempts"]), lambda row: row["attempts"], True, 5),
    Column("reason", lambda row: row["reason"], None, False, 4),
)
