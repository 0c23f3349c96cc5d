"""Decide how often a node is probed, and how many silent probes make it down.

While there is work, a node is probed often, so that one that is gone is noticed; without work, rarely. A node that is
down is probed soon at first, then after pauses that double. A refused connection is certain. Silence is not: a machine
under load answers late.
"""

from __future__ import annotations

from typing import Final

from sollol.core.types import MILLISECOND, SECOND, Micros

EVERY: Final[Micros] = 5 * SECOND
EVERY_IDLE: Final[Micros] = 60 * SECOND
IDLE_AFTER: Final[Micros] = 30 * SECOND
RETRY: Final[Micros] = 500 * MILLISECOND
RETRY_MAX: Final[Micros] = 5 * SECOND
SILENCES: Final = 2
NEWCOMERS: Final[Micros] = 250 * MILLISECOND


class ProbeSchedule:
    """Probe at one interval while there is work and at another without; back off from a node that is down.

    Args:
        every_us: Interval while there is work.
        every_idle_us: Interval without work.
        idle_after_us: Time without a task after which there is no work.
        retry_us: First pause before a node that is down is probed again.
        retry_max_us: Longest such pause while there is work.
        silences: Probes in a row without an answer that make a node down.
        newcomers_us: Time that the first task waits for the answers of new nodes.
    """

    __slots__ = (
        "_every_idle_us",
        "_every_us",
        "_retry_max_us",
        "_silences",
        "idle_after_us",
        "newcomers_us",
        "retry_us",
    )

    def __init__(
        self,
        *,
        every_us: Micros = EVERY,
        every_idle_us: Micros = EVERY_IDLE,
        idle_after_us: Micros = IDLE_AFTER,
        retry_us: Micros = RETRY,
        retry_max_us: Micros = RETRY_MAX,
        silences: int = SILENCES,
        newcomers_us: Micros = NEWCOMERS,
    ) -> None:
        self.idle_after_us = idle_after_us
        self.newcomers_us = newcomers_us
        self.retry_us = retry_us
        self._every_us = every_us
        self._every_idle_us = every_idle_us
        self._retry_max_us = retry_max_us
        self._silences = silences

    def every_us(self, idle: bool) -> Micros:
        """Return the µs between two probes of a node that is up."""
        return self._every_idle_us if idle else self._every_us

    def is_down(self, silences: int) -> bool:
        """Check that so many probes in a row without an answer make a node down."""
        return silences >= self._silences

    def pause_us(self, before_us: Micros) -> Micros:
        """Return the µs until a node that is down is probed again; `before_us`: the last pause, or 0."""
        return min(max(self.retry_us, 2 * before_us), self._retry_max_us)
