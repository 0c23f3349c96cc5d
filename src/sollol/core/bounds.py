"""Bound what callers can invent: names of models and applications, options, deadlines."""

from __future__ import annotations


def keep_largest(values: dict[str, float], most: int) -> dict[str, float]:
    """Return the `most` largest of these values."""
    return values if len(values) <= most else dict(sorted(values.items(), key=_value)[-most:])


def _value(item: tuple[str, float]) -> float:
    return item[1]
