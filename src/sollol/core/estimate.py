"""Estimators: add(...) writes, reading never does (linkerd's lesson), and nothing here knows a clock.

`Rate` is a ratio of decayed sums, work ÷ time, not a mean of ratios: a tiny chunk whose time is mostly
overhead counts for little, and requests that finish together (dt near 0) cannot make it explode.
"""

from __future__ import annotations

from sollol.core.types import Micros


class Rate:
    """Work per microsecond. A sample that covers `memory_us` of busy time replaces about two thirds of the past."""

    __slots__ = ("_amount", "_memory_us", "_span")

    def __init__(self, memory_us: Micros) -> None:
        self._amount = 0.0
        self._span = 0.0
        self._memory_us = memory_us

    def add(self, amount: float, span_us: Micros) -> None:
        keep = self._memory_us / (self._memory_us + span_us)
        self._amount = self._amount * keep + amount
        self._span = self._span * keep + max(span_us, 1)

    @property
    def known(self) -> bool:
        return self._span > 0

    def read(self) -> float | None:
        """Units per microsecond, or None before the first sample."""
        return self._amount / self._span if self._span > 0 else None


class Mean:
    """An exponentially weighted mean whose first samples count fully, so it has no warm-up bias."""

    __slots__ = ("_count", "_value", "_weight")

    def __init__(self, weight: float = 0.2) -> None:
        self._value = 0.0
        self._weight = weight
        self._count = 0

    def add(self, sample: float) -> None:
        self._count += 1
        self._value += max(self._weight, 1 / self._count) * (sample - self._value)

    def read(self) -> float | None:
        return self._value if self._count else None
