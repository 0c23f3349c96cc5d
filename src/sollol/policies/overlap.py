"""Decide when a request starts beside others rather than wait for them.

The node may be at work for another model, or have slots that share one rate: each request is half as fast meanwhile.
The work of the node stays the same, so this pays for a request that takes less than it would wait.
"""

from __future__ import annotations

from typing import Final

from sollol.core.types import SECOND, Micros

# A request that would wait so long, and so many times its own time, may test for one more slot.
WAITS_LONG: Final[Micros] = SECOND // 20
WAITS_TIMES: Final = 2


class OverlapShort:
    """Start a short request beside long answers of no higher priority.

    Args:
        waits_long_us: Least wait for which a slot is tried that is not known.
        waits_times: Times its own time that the request must wait for that.
    """

    __slots__ = ("_waits_long_us", "_waits_times")

    def __init__(self, *, waits_long_us: Micros = WAITS_LONG, waits_times: float = WAITS_TIMES) -> None:
        self._waits_long_us = waits_long_us
        self._waits_times = waits_times

    def overlaps(self, service_us: Micros, wait_us: Micros, running: int, priority: int, highest: int) -> bool:
        """Check that a request starts beside others on a busy node.

        Args:
            service_us: Time that it takes there alone.
            wait_us: Time until it would start otherwise.
            running: Requests in flight on its replica.
            priority: Its priority.
            highest: Highest priority at work on the node.
        """
        return 0 < service_us <= wait_us // (1 + running) and highest <= priority

    def tries_slot(self, service_us: Micros, wait_us: Micros) -> bool:
        """Check that the wait is long enough to test for one more slot."""
        return wait_us >= max(self._waits_long_us, self._waits_times * service_us)
