"""Draw a snapshot for `sollol top`, as tables of nodes, queue and requests that fit the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from sollol.cli.console import millis, printable, table

Row = Mapping[str, Any]
_HEAD = 3  # lines: the headline, which may need two, and one for trouble
_NODES_PART = 3  # nodes get at most a third of the height
_LINES_APART = 3  # between sections: an empty line, the names of the columns, the count of omitted rows
_LEAST = 1
_SHOWN = 20  # rows of a section where the height sets no bound
_WIDEST = 500


class Uncut:
    """Draw tables as wide as their content, cut at the right edge of a terminal."""

    def __init__(self, content: RenderableType) -> None:
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width if console.is_terminal else _WIDEST
        for line in console.render_lines(self._content, options.update(width=_WIDEST, height=None), pad=False):
            yield from Segment.adjust_line_length(line, width, pad=False)
            yield Segment.line()


def draw(frame: Row, height: int | None = None, trouble: str = "") -> RenderableType:
    """Return a snapshot as tables, for a terminal of `height` lines or, with None, for a file."""
    watching = bool(frame.get("watching"))
    nodes = _watched(frame, height) if watching else _nodes(frame, height)
    parts: list[RenderableType] = [Text(trouble, style="red"), nodes]
    if not watching:
        sections = (_running, _waiting, _recent)
        left = None if height is None else height - _HEAD - min(len(frame["nodes"]) + 1, height // _NODES_PART)
        for section, rows in zip(sections, _shares(frame, left), strict=True):
            parts += [Text(), section(frame, rows)]
    return Group(_headline(frame, watching), Uncut(Group(*parts)))


def _shares(frame: Row, left: int | None) -> list[int]:
    """Return the lines for running, waiting and recent; unused lines go to the later ones."""
    if left is None:
        return [_SHOWN] * 3
    shares: list[int] = []
    for name, part in (("running", 0.4), ("waiting", 0.35), ("recent", 1.0)):
        share = max(_LEAST, min(len(frame[name]), int(left * part) - _LINES_APART))
        shares.append(share)
        left -= min(share, max(1, len(frame[name]))) + _LINES_APART
    return shares


def _headline(frame: Row, watching: bool) -> Text:
    up = sum(1 for node in frame["nodes"] if node["state"] == "up")
    parts = [frame["app_name"], f"{up} of {len(frame['nodes'])} nodes up"]
    if watching:
        parts.append("the nodes alone: what programs ask of them is not seen")
    else:
        totals, ratio = frame["totals"], frame["calibration"]
        failed = f", {totals['failed_requests']:,} failed" if totals["failed_requests"] else ""
        parts += [
            f"{len(frame['running'])} running",
            f"{len(frame['waiting'])} waiting",
            f"{totals['total_requests']:,} requests{failed}",
        ]
        if ratio["count"]:
            parts.append(f"of predicted time: median {ratio['median']:.2f}, p90 {ratio['p90']:.2f}")
    return Text.assemble(("SOLLOL  ", "bold"), printable("  ".join(part for part in parts if part)))


def _nodes(frame: Row, height: int | None) -> RenderableType:
    columns = ("node", "state", "running", "latency", "items/s", "requests", "success", "models in memory")
    made = _one_line(table(*columns, right=("running", "latency", "items/s", "requests", "success")))
    rows = _shown(frame, height)
    for node in rows:
        has_requests = bool(node["total_requests"])
        made.add_row(
            printable(node["host"]),
            _state(node),
            str(node["active_requests"]),
            millis(node["latency_ms"]) if node["latency_ms"] else "-",
            f"{node['batch_throughput']:,.1f}" if node["batch_throughput"] else "-",
            f"{node['total_requests']:,}",
            f"{node['success_rate']:.1%}" if has_requests else "-",
            _memories(node),
        )
    return _with_rest(made, len(frame["nodes"]) - len(rows))


def _watched(frame: Row, height: int | None) -> RenderableType:
    """Return the table of nodes that are watched without a pool."""
    made = _one_line(table("node", "state", "latency", "models in memory", right=("latency",)))
    rows = _shown(frame, height)
    for node in rows:
        latency = millis(node["latency_ms"]) if node["latency_ms"] else "-"
        made.add_row(printable(node["host"]), _state(node), latency, _memories(node))
    return _with_rest(made, len(frame["nodes"]) - len(rows))


def _shown(frame: Row, height: int | None) -> Sequence[Row]:
    rows: Sequence[Row] = frame["nodes"]
    if height is None or len(rows) + 1 <= height // _NODES_PART:
        return rows
    return rows[: max(_LEAST, height // _NODES_PART - 2)]


def _state(node: Row) -> Text:
    return Text(printable(node["state"]), style={"up": "green", "down": "red"}.get(node["state"], "dim"))


def _memories(node: Row) -> Text:
    if node["state"] == "down":
        return Text(printable(node["why"]), style="red")
    parts = [memory(model) for model in node["loaded"]]
    parts += [Text(printable(words), style="yellow") for words in node.get("unable") or ()]
    return Text(", ").join(parts)


def memory(model: Row) -> Text:
    """Return a loaded model's name, with its processor if a part of it is on the CPU."""
    name, where = printable(model["model"]), printable(model["processor"])
    return Text.assemble(name, (f" ! {where}", "yellow")) if "CPU" in where else Text(name)


def _running(frame: Row, limit: int) -> RenderableType:
    def cells(row: Row) -> tuple[str | Text, ...]:
        late = row["elapsed_ms"] > 1.5 * row["predicted_ms"]
        elapsed = Text(millis(row["elapsed_ms"]), style="yellow" if late else "")
        items = f" {row['items']}" if row["items"] else ""
        kind = f"{row['kind']}{items}"
        return _id(row), row["model"], kind, row["node"], elapsed, millis(row["predicted_ms"]), row["reason"]

    columns = ("running", "model", "kind", "node", "elapsed", "predicted", "reason")
    return _section(frame["running"], limit, columns, ("running", "elapsed", "predicted"), cells)


def _waiting(frame: Row, limit: int) -> RenderableType:
    def cells(row: Row) -> tuple[str | Text, ...]:
        place = str(row["position"])
        times = millis(row["waited_ms"]), millis(row["eta_ms"])
        return _id(row), place, row["model"], row["kind"], *times, str(row["priority"]), row["app"]

    columns = ("waiting", "position", "model", "kind", "waited", "starts in", "priority", "app")
    return _section(frame["waiting"], limit, columns, ("waiting", "position", "waited", "starts in", "priority"), cells)


def _recent(frame: Row, limit: int) -> RenderableType:
    def cells(row: Row) -> tuple[str | Text, ...]:
        at = datetime.fromtimestamp(row["at"]).strftime("%H:%M:%S")
        outcome = Text(row["outcome"], style="" if row["outcome"] == "ok" else "red")
        times = millis(row["predicted_ms"] or None), millis(row["actual_ms"])
        return _id(row), at, row["model"], row["node"], outcome, *times, str(row["attempts"]), row["reason"]

    columns = ("recent", "at", "model", "node", "outcome", "predicted", "actual", "attempts", "reason")
    return _section(frame["recent"], limit, columns, ("recent", "predicted", "actual", "attempts"), cells)


def _id(row: Row) -> str:
    return str(row["id"])


def _section(
    rows: Sequence[Row],
    limit: int,
    columns: Sequence[str],
    right: Sequence[str],
    cells: Callable[[Row], tuple[str | Text, ...]],
) -> RenderableType:
    made = _one_line(table(*columns, right=right))
    if not rows:
        return Text(f"nothing {columns[0]}" if columns[0] != "recent" else "no requests yet", style="dim")
    shown = rows[:limit]
    for row in shown:
        made.add_row(*(cell if isinstance(cell, Text) else printable(cell) for cell in cells(row)))
    return _with_rest(made, len(rows) - len(shown))


def _one_line(made: Table) -> Table:
    """Keep each row of a table on one line, so that its height is known."""
    for column in made.columns:
        column.no_wrap, column.overflow = True, "ellipsis"
    return made


def _with_rest(made: Table, more: int) -> RenderableType:
    return Group(made, Text(f"and {more:,} more", style="dim")) if more > 0 else made
