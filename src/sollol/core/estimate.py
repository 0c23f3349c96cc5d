"""Estimators: add(...) writes, reading never does (linkerd's lesson), and nothing here knows a clock.

`Rate` is a ratio of decayed sums, work ÷ time, not a mean of ratios: a tiny chunk whose time is mostly
overhead counts for little, and requests that finish together (dt near 0) cannot make it explode.
"""

from __future__ import annotations

from collections import deque

from sollol.core.types import Micros

KINDS_MAX = 10_000  # of (application, task type, model) to remember


class Rate:
    """Work per microsecond. A sample that covers `memory_us` of busy time replaces about two thirds of the past."""

    __slots__ = ("_amount", "_memory_us", "_span", "value")

    def __init__(self, memory_us: Micros) -> None:
        self.value: float | None = None  # units per microsecond; what read() gives, without a call
        self._amount = 0.0
        self._span = 0.0
        self._memory_us = memory_us

    def add(self, amount: float, span_us: Micros, outlier: float = 0.0) -> None:
        """`outlier`: a sample that took so many times longer than expected counts as one that took just that; a
        straggler is no slow node, and a node that has become slow is believed a few samples later. 0 believes all."""
        if outlier and self._span:
            span_us = min(span_us, round(outlier * amount * self._span / max(self._amount, 1e-9)))
        keep = self._memory_us / (self._memory_us + span_us)
        self._amount = self._amount * keep + amount
        self._span = self._span * keep + max(span_us, 1)
        self.value = self._amount / self._span

    @property
    def known(self) -> bool:
        return self._span > 0

    def read(self) -> float | None:
        """Units per microsecond, or None before the first sample."""
        return self.value


class Mean:
    """An exponentially weighted mean whose first samples count fully, so it has no warm-up bias."""

    __slots__ = ("_weight", "count", "value")

    def __init__(self, weight: float = 0.2) -> None:
        self.value: float | None = None  # what read() gives, without a call
        self._weight = weight
        self.count = 0

    def add(self, sample: float) -> None:
        self.count += 1
        before = self.value or 0.0
        self.value = before + max(self._weight, 1 / self.count) * (sample - before)

    def read(self) -> float | None:
        return self.value


class Lengths:
    """How many tokens answers have: by application, type of task and model, or what of that was seen often enough."""

    __slots__ = ("_means",)

    def __init__(self) -> None:
        self._means: dict[tuple[str, ...], Mean] = {}

    def add(self, app: str, kind: str, model: str, tokens: int) -> None:
        if len(self._means) > KINDS_MAX:
            self._means.clear()
        for key in ((app, kind, model), (kind, model), (model,)):
            mean = self._means.get(key)
            if mean is None:
                mean = self._means[key] = Mean(0.05)
            mean.add(tokens)

    def read(self, app: str, kind: str, model: str) -> float | None:
        """The expected number of tokens, or None where nothing like it was seen."""
        for key, least in (((app, kind, model), 3), ((kind, model), 3), ((model,), 1)):
            mean = self._means.get(key)
            if mean is not None and mean.count >= least:
                return mean.read()
        return None


class Quantile:
    """A quantile of the last `size` samples."""

    __slots__ = ("_samples", "_sorted")

    def __init__(self, size: int = 200) -> None:
        self._samples: deque[float] = deque(maxlen=size)
        self._sorted: list[float] | None = None

    def add(self, sample: float) -> None:
        self._samples.append(sample)
        self._sorted = None

    def read(self, share: float) -> float | None:
        if not self._samples:
            return None
        if self._sorted is None:
            self._sorted = sorted(self._samples)
        return self._sorted[min(len(self._sorted) - 1, int(share * len(self._sorted)))]

    def __len__(self) -> int:
        return len(self._samples)
