"""Decide when an idle node repeats, at the end of a batch, what another has in flight (work stealing)."""

from __future__ import annotations

from typing import Final

from sollol.core.types import MILLISECOND, SECOND, Micros

MARGIN: Final[Micros] = 5 * MILLISECOND  # least cost of a takeover: a request
SOONER: Final = 0.9  # share of the remaining time within which the idle node must finish
LOOK_AGAIN: Final[Micros] = 20 * MILLISECOND  # least pause between two looks
LATE: Final = 0.1  # of its prediction that a chunk is late, when the next look is due
STUCK: Final[Micros] = SECOND  # of an attempt, before a node that failed its items may try them once more
TRIES_MOST: Final = 12  # failures after which it does not


class TakeoverIfSooner:
    """Take over what an idle node would finish clearly sooner.

    Args:
        margin_us: Least cost of a takeover.
        sooner: Share of the remaining time within which the idle node must finish.
        look_again_us: Least pause between two looks.
        late: Share of its prediction that a chunk is late, when the next look is due.
        stuck_us: Time of an attempt after which a node that failed its items may try them again.
        tries_most: Failures of the items after which it does not.
    """

    __slots__ = ("_late", "_look_again_us", "_margin_us", "_sooner", "_stuck_us", "_tries_most")

    def __init__(
        self,
        *,
        margin_us: Micros = MARGIN,
        sooner: float = SOONER,
        look_again_us: Micros = LOOK_AGAIN,
        late: float = LATE,
        stuck_us: Micros = STUCK,
        tries_most: int = TRIES_MOST,
    ) -> None:
        self._margin_us = margin_us
        self._sooner = sooner
        self._look_again_us = look_again_us
        self._late = late
        self._stuck_us = stuck_us
        self._tries_most = tries_most

    def pays(self, cost: float, rate: float, startup_us: Micros, remaining_us: Micros) -> bool:
        """Check that an idle node would finish this work clearly before `remaining_us`."""
        return startup_us + cost / rate + self._margin_us < self._sooner * remaining_us

    def repeats(self, waited_us: Micros, tries: int) -> bool:
        """Check that a node which failed these items may try them once more."""
        return waited_us >= self._stuck_us and tries < self._tries_most

    def look_again_us(self, left_us: Micros, predicted_us: Micros) -> Micros:
        """Return the µs until the next look at an attempt that should end in `left_us`."""
        return max(left_us + round(self._late * predicted_us), self._look_again_us)
