"""Compute the bounds that the result of a simulated run is compared with."""

from __future__ import annotations

import math
from collections.abc import Iterable


def fluid_bound(items: float, rates: Iterable[tuple[float, float, float]]) -> float:
    """Return the earliest second at which nodes that never idle could have done `items`.

    `rates` has (items per second, from_s, until_s) for each node and each stretch of time in which it works at that
    rate; stretches may overlap. It is the t with sum of rate · |[from, until] ∩ [0, t]| = items; inf if never. No
    scheduler can beat it, so makespan ÷ bound measures one.
    """
    stretches = [(rate, max(0.0, start), until) for rate, start, until in rates if rate > 0 and until > start]
    marks = sorted({0.0, *(s for _, s, _ in stretches), *(u for _, _, u in stretches if u < math.inf)})
    done = 0.0
    for place, mark in enumerate(marks):
        rate = math.fsum(r for r, start, until in stretches if start <= mark < until)
        until = marks[place + 1] if place + 1 < len(marks) else math.inf
        if rate > 0 and done + rate * (until - mark) >= items:
            return mark + max(0.0, items - done) / rate
        if until == math.inf:
            return math.inf if items > done else mark
        done += rate * (until - mark)
    return math.inf


def percentile(values: Iterable[float], share: float) -> float:
    """Return the value below which `share` of the values lie (nearest rank); nan for none."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]
