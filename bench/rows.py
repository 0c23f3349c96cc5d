"""What a benchmark row is: a figure, what it is held against in the same run, and what it should reach."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypedDict


class Row(TypedDict):
    name: str
    value: float | None
    unit: str
    reference: str
    target: str
    ok: bool | None
    note: str


def row(
    name: str,
    value: float | None,
    unit: str,
    reference: str,
    target: float | None = None,
    *,
    at_least: bool = False,
    note: str = "",
) -> Row:
    """`target`: the value should be at most (or with `at_least` at least) this."""
    sign = "≥" if at_least else "≤"
    ok = None
    if value is not None and target is not None:
        ok = value >= target if at_least else value <= target
    told = f"{sign} {target:g}" if target is not None else ""
    return Row(name=name, value=value, unit=unit, reference=reference, target=told, ok=ok, note=note)


def skipped(name: str, why: str) -> Row:
    return row(name, None, "", "", note=f"skipped: {why}")


def failed(name: str, why: str) -> Row:
    return {**skipped(name, why), "ok": False, "note": f"failed: {why}"}


def show(rows: Iterable[Any]) -> None:
    """The rows as a table on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table("work", "measured", "beside", "at least", "", "note")
    for item in rows:
        value = "" if item["value"] is None else f"{item['value']:.4g} {item['unit']}".strip()
        mark = {True: "ok", False: "MISSED", None: ""}[item["ok"]]
        table.add_row(item["name"], value, str(item["reference"]), str(item["target"]), mark, item["note"])
    Console(width=160).print(table)


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


Bench = Callable[[], list[Row]]
