"""Judge how late a load is, and whether its node hangs.

A node may hang in a load for hours while it answers probes and serves the models in its memory (ollama#17408). The
deadline is one that operators of such clusters found right: 5 minutes and 20 s for each GiB, at most 6 hours.
"""

from __future__ import annotations

from typing import Final

from sollol.core.types import MILLISECOND, SECOND, Micros

LATE_TIMES: Final = 1.1  # times the prediction
LATE_LEAST: Final[Micros] = 300 * MILLISECOND
UNKNOWN_TIMES: Final = 3.0  # for the first load of a node, which has no measured prediction
OVERTAKEN_TIMES: Final = 1.5  # times the load of another node
HUNG_TIMES: Final = 4.0
HUNG_LEAST: Final[Micros] = 20 * SECOND
PAUSE: Final[Micros] = 60 * SECOND
PAUSE_MAX: Final[Micros] = 3_600 * SECOND
DEADLINE: Final[Micros] = 300 * SECOND
DEADLINE_PER_GIB: Final[Micros] = 20 * SECOND
DEADLINE_MAX: Final[Micros] = 6 * 3_600 * SECOND


class LoadWatchByPrediction:
    """Compare the time of a load with multiples of its prediction.

    Args:
        late_times: Times the prediction after which another node loads the model, too.
        hung_times: Times the prediction after which the node gets no further loads.
        unknown_times: Times `hung_times` that the first load of a node may take.
        hung_least_us: Least time beyond the prediction for that.
        pause_us: First time without loads; it doubles with each load that hangs, up to `PAUSE_MAX`.
    """

    __slots__ = ("_hung_least_us", "_hung_times", "_late_times", "_pause_us", "_unknown_times")

    def __init__(
        self,
        *,
        late_times: float = LATE_TIMES,
        hung_times: float = HUNG_TIMES,
        unknown_times: float = UNKNOWN_TIMES,
        hung_least_us: Micros = HUNG_LEAST,
        pause_us: Micros = PAUSE,
    ) -> None:
        self._late_times = late_times
        self._unknown_times = unknown_times
        self._hung_times = hung_times
        self._hung_least_us = hung_least_us
        self._pause_us = pause_us

    def late_after_us(self, predicted_us: Micros) -> Micros:
        """Return the µs after which another node should load the model, too."""
        return round(self._late_times * predicted_us) + LATE_LEAST

    def hangs(self, elapsed_us: Micros, predicted_us: Micros, measured: bool) -> bool:
        """Check that the node should get no further loads. `measured`: it has loaded models before."""
        times = self._hung_times if measured else self._hung_times * self._unknown_times
        return elapsed_us > times * predicted_us and elapsed_us - predicted_us > self._hung_least_us

    def is_overtaken(self, elapsed_us: Micros, predicted_us: Micros, other_us: Micros) -> bool:
        """Check that a late load hangs, since another node has needed only `other_us`."""
        return elapsed_us > max(self.late_after_us(predicted_us), OVERTAKEN_TIMES * other_us)

    def pause_us(self, hung: int) -> Micros:
        """Return the µs without loads after so many loads that hung in a row."""
        pause: Micros = self._pause_us << min(hung - 1, 10)
        return min(pause, PAUSE_MAX)

    def deadline_us(self, size: int, predicted_us: Micros, measured: bool) -> Micros:
        """Return the µs after which a load of `size` bytes is given up.

        The first load of a node has no measured prediction and may take twice as long.
        """
        usual = DEADLINE + DEADLINE_PER_GIB * size // 2**30
        return min(max(usual, round(HUNG_TIMES * predicted_us)) if measured else 2 * usual, DEADLINE_MAX)
