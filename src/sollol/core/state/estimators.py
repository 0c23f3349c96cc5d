"""Estimators: `add` writes, reading never does (linkerd's lesson). None has a clock.

`Rate` is a ratio of decayed sums, work ÷ time, not a mean of ratios. A tiny chunk whose time is mostly overhead counts
for little, and requests that finish together (dt near 0) cannot make it explode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from sollol.core.state.ring import Ring
from sollol.core.types import Micros

LENGTH_WEIGHT: Final = 0.05  # weight of the newest answer
KINDS_MAX: Final = 10_000  # of (application, task type, model) to remember


def positive(value: Any) -> float:
    """Return a finite number that is not negative. Raises ValueError for other values."""
    number = float(value)
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{value!r} is no measurement; expected a finite number from 0 on")
    return number


class Rate:
    """Estimate work per µs. A sample of `memory_us` replaces about two thirds of the past."""

    __slots__ = ("_amount", "_memory_us", "_span", "value")

    def __init__(self, memory_us: Micros) -> None:
        self.value: float | None = None  # units per µs; the same as read(), without a call
        self._amount = 0.0
        self._span = 0.0
        self._memory_us = memory_us

    def add(self, amount: float, span_us: Micros, outlier: float = 0.0) -> None:
        """Add work and the µs that it took.

        Args:
            outlier: Longest time of a sample, as a multiple of the expected one; 0 for no bound. One straggler is no
                slow node, and a node that has become slow shows a few samples later.
        """
        amounts, span = self._amount, self._span
        if outlier and span:
            longest = outlier * amount * span / (amounts if amounts > 1e-9 else 1e-9)
            if span_us > longest:
                span_us = round(longest)
        keep = self._memory_us / (self._memory_us + span_us)
        self._amount = amounts = amounts * keep + amount
        self._span = span = span * keep + (span_us if span_us > 1 else 1)
        self.value = amounts / span

    def values(self) -> list[float]:
        """Return the state for `restore`."""
        return [self._amount, self._span]

    def restore(self, values: Sequence[float]) -> None:
        """Restore a state that `values` returned. Raises ValueError for other values."""
        amount, span = positive(values[0]), positive(values[1])
        if span > 0:
            self._amount, self._span, self.value = amount, span, amount / span

    @property
    def known(self) -> bool:
        """Return whether there is a sample."""
        return self._span > 0

    def read(self) -> float | None:
        """Return units per µs, or None before the first sample."""
        return self.value


class Mean:
    """Exponentially weighted mean. The first samples count fully, so it has no warm-up bias."""

    __slots__ = ("_weight", "count", "value")

    def __init__(self, weight: float = 0.2) -> None:
        self.value: float | None = None  # the same as read(), without a call
        self._weight = weight
        self.count = 0

    def add(self, sample: float) -> None:
        """Add a sample."""
        self.count = count = self.count + 1
        before, weight = self.value, self._weight
        if before is None:
            self.value = sample
            return
        if count * weight < 1:
            weight = 1 / count
        self.value = before + weight * (sample - before)

    def values(self) -> list[float]:
        """Return the state for `restore`."""
        return [0.0 if self.value is None else self.value, self.count]

    def restore(self, values: Sequence[float]) -> None:
        """Restore a state that `values` returned. Raises ValueError for other values."""
        value, count = positive(values[0]), int(positive(values[1]))
        if count > 0:
            self.value, self.count = value, count

    def read(self) -> float | None:
        """Return the mean, or None before the first sample."""
        return self.value


class Length:
    """Estimate the tokens of one kind of answer. With few samples, a wider kind answers."""

    __slots__ = ("_count", "_least", "_value", "_wider")

    def __init__(self, least: int, wider: Length | None) -> None:
        self._count = 0
        self._value: float | None = None
        self._least = least  # answers before the estimate of a kind is used
        self._wider = wider

    def add(self, tokens: int) -> None:
        """Add the tokens of an answer, to this kind and all wider ones."""
        kind: Length | None = self
        while kind is not None:
            kind._count = count = kind._count + 1
            value = kind._value
            if value is None:
                kind._value = float(tokens)
            else:
                weight = 1 / count
                kind._value = value + (weight if weight > LENGTH_WEIGHT else LENGTH_WEIGHT) * (tokens - value)
            kind = kind._wider

    def values(self) -> list[float]:
        """Return the state for `restore`."""
        return [self._count, 0.0 if self._value is None else self._value]

    def restore(self, values: Sequence[float]) -> None:
        """Restore a state that `values` returned. Raises ValueError for other values."""
        count, value = int(positive(values[0])), positive(values[1])
        if count > 0:
            self._count, self._value = count, value

    def read(self) -> float | None:
        """Return the expected tokens, or None without a sample."""
        kind = self
        while kind._count < kind._least and kind._wider is not None:
            kind = kind._wider
        return kind._value


class Lengths:
    """Estimate the tokens of answers by application, type of task and model."""

    __slots__ = ("_kinds",)

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, ...], Length] = {}

    def values(self) -> list[list[Any]]:
        """Return the state for `restore`: one row for each kind, its key first."""
        return [[list(key), *length.values()] for key, length in self._kinds.items()]

    def restore(self, rows: Sequence[Sequence[Any]]) -> None:
        """Restore a state that `values` returned. Raises ValueError for other values."""
        for key, count, value in rows[:KINDS_MAX]:
            app, kind, model = ["", "", *key] if len(key) == 1 else ["", *key] if len(key) == 2 else key
            self.of(str(app), str(kind), str(model))
            self._kinds[tuple(str(part) for part in key)].restore((count, value))

    def of(self, app: str, kind: str, model: str) -> Length:
        """Return the estimator of one kind."""
        if len(self._kinds) > KINDS_MAX:
            self._kinds.clear()
        wider: Length | None = None
        for key, least in (((model,), 1), ((kind, model), 3), ((app, kind, model), 3)):
            found = self._kinds.get(key)
            if found is None:
                found = self._kinds[key] = Length(least, wider)
            wider = found
        assert wider is not None
        return wider


class Quantile:
    """Return quantiles of the last `size` samples."""

    __slots__ = ("_samples", "_sorted")

    def __init__(self, size: int = 200) -> None:
        self._samples: Ring[float] = Ring(size)
        self._sorted: list[float] | None = None

    def add(self, sample: float) -> None:
        """Add a sample."""
        self._sorted = None
        self._samples.add(sample)

    def read(self, share: float) -> float | None:
        """Return a quantile, or None without a sample."""
        if not len(self._samples):
            return None
        if self._sorted is None:
            self._sorted = sorted(self._samples)
        return self._sorted[min(len(self._sorted) - 1, int(share * len(self._sorted)))]

    def __len__(self) -> int:
        return len(self._samples)
