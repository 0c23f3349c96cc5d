"""Predict how long a node takes to load a model, and which models a load would evict.

A load takes a fixed part and the size of the model divided by a bandwidth. Both are learned from the node's own loads:
each is corrected by its share of the error, so that a small model changes the fixed part and a large one the bandwidth.
No API reports what fits into a node's memory: it is learned from which models were in memory together, and which one
went when another came.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any, Final

from sollol.core.state.estimators import positive
from sollol.core.types import SECOND, Micros

FIXED: Final = 0.3 * SECOND  # assumed before the first load: starting a runner
BANDWIDTH: Final = 1_000.0  # bytes per microsecond assumed for reading a model, before the first load
NEWEST: Final = 0.3  # least weight of the newest load
UNKNOWN: Final = 0.5  # risk that a model does not fit, where nothing like it was seen
MODELS_MOST: Final = 3  # models in memory at once, until more were seen: Ollama's default for each GPU
FULL_MAX: Final = 8  # combinations of models that did not fit, remembered for a node


class LoadTimeEstimator:
    """Learn fixed + size / bandwidth of a node's loads."""

    __slots__ = ("_bandwidth_seen", "_fixed_seen", "_per_byte", "fixed_us")

    def __init__(self) -> None:
        self.fixed_us = FIXED
        self._per_byte = 1 / BANDWIDTH  # microseconds
        self._fixed_seen = 0.0  # loads seen by each, counted by their share
        self._bandwidth_seen = 0.0

    @property
    def is_measured(self) -> bool:
        """Return whether a load of this node was recorded."""
        return self._fixed_seen + self._bandwidth_seen > 0

    def predict(self, size: int) -> Micros:
        """Return the microseconds that loading `size` bytes should take."""
        return round(self.fixed_us + size * self._per_byte)

    def values(self) -> list[float]:
        """Return the state for `restore`."""
        return [self.fixed_us, self._per_byte, self._fixed_seen, self._bandwidth_seen]

    def restore(self, values: Sequence[float]) -> None:
        """Restore a state that `values` returned. Raises ValueError for other values."""
        fixed, per_byte, fixed_seen, bandwidth_seen = [positive(value) for value in values]
        if fixed > 0 and per_byte > 0:
            self.fixed_us, self._per_byte = fixed, per_byte
            self._fixed_seen, self._bandwidth_seen = fixed_seen, bandwidth_seen

    def add(self, size: int, took_us: Micros) -> None:
        """Record a load of `size` bytes that took `took_us`."""
        reading_us = size * self._per_byte
        share = reading_us / (self.fixed_us + reading_us)
        error = max(1, took_us) / (self.fixed_us + reading_us)
        self.fixed_us *= error ** ((1 - share) * max(NEWEST, 1 / (1 + self._fixed_seen)))
        self._per_byte *= error ** (share * max(NEWEST, 1 / (1 + self._bandwidth_seen)))
        self._fixed_seen += 1 - share
        self._bandwidth_seen += share


class MemoryFit:
    """Learn which models fit into a node's memory together."""

    __slots__ = ("_fits", "_full")

    def __init__(self) -> None:
        self._fits = (0, 0)  # the most models, and the most bytes, that were seen in memory together
        self._full: list[tuple[int, int]] = []  # models and bytes of combinations that did not fit

    def seen(
        self,
        listed: Container[str],
        before: Mapping[str, int],
        current: Mapping[str, int],
        loading: Mapping[str, int],
        used: frozenset[str],
    ) -> None:
        """Compare two lists of the models in memory, name -> bytes.

        Args:
            listed: The models of the last list.
            before: The same, and those that have answered since.
            current: The models of this list.
            loading: Models that are being loaded; no node lists them before the end.
            used: Models that were in use, so not expired.
        """
        count, size = len(current), sum(current.values())
        self._fits = max(self._fits[0], count), max(self._fits[1], size)
        self._full = [full for full in self._full if full[0] > count or full[1] > size]  # it does fit now
        came = [name for name in (*current, *loading) if name not in listed]
        gone = (before.keys() - current.keys() - loading.keys()) & used
        if came and gone:
            together = {**{name: before[name] for name in gone}, **loading, **current}
            self.note(len(together), sum(together.values()))

    def values(self) -> list[Any]:
        """Return the state for `restore`."""
        return [list(self._fits), [list(full) for full in self._full]]

    def restore(self, values: Sequence[Any]) -> None:
        """Restore a state that `values` returned. Raises ValueError for other values."""
        count, size = [int(positive(value)) for value in values[0]]
        self._full = [(int(positive(full[0])), int(positive(full[1]))) for full in values[1][:FULL_MAX]]
        self._fits = count, size

    @property
    def fitting_bytes(self) -> int:
        """Return the most bytes of models that were seen in memory together."""
        return self._fits[1]

    @property
    def full_bytes(self) -> int | None:
        """Return the fewest bytes of models that did not fit together; None if all did."""
        return min((size for _, size in self._full), default=None)

    def most_models(self, room: int) -> int:
        """Return how many models may be in memory at once, where `room` bytes are enough for them.

        A node has a bound of its own (OLLAMA_MAX_LOADED_MODELS), which no API reports.
        """
        refused = [count - 1 for count, size in self._full if size <= room]
        return min([max(MODELS_MOST, self._fits[0]), *refused])

    @property
    def is_tight(self) -> bool:
        """Return whether some models did not fit together."""
        return bool(self._full)

    def note(self, count: int, size: int) -> None:
        """Record that so many models, of so many bytes, did not fit together."""
        full = count, size
        if not any(other[0] <= full[0] and other[1] <= full[1] for other in self._full):
            self._full = [other for other in self._full if other[0] < full[0] or other[1] < full[1]]
            self._full = [*self._full, full][-FULL_MAX:]

    def risk(self, loaded: Mapping[str, int], size: int) -> float:
        """Return the probability that a model of `size` bytes evicts one: 0, 1, or UNKNOWN."""
        count, total = len(loaded) + 1, sum(loaded.values()) + size
        if any(full[0] <= count and full[1] <= total for full in self._full):
            return 1.0
        return 0.0 if not loaded or (count <= self._fits[0] and total <= self._fits[1]) else UNKNOWN
